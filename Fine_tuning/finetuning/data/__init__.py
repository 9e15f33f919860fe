"""Step 1: a Common Voice release becomes wavs, manifests and, where asked for, shards."""
