"""The acoustic model: locate it, read its file, build it, change its vocabulary, save it."""
