"""The nouns that the three scripts are told with: one noun a file."""
