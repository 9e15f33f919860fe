"""A model and audio -> log-probabilities -> text, greedily or by beam search with a language model."""
