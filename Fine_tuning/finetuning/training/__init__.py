"""Step 2: fine-tuning in two phases, resumable to the last bit."""
