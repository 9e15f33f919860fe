"""A finished model with its model card, for others to use."""
