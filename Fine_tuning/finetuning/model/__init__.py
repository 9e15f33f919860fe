"""The acoustic model: found, read from its file, built, given another vocabulary, saved."""
