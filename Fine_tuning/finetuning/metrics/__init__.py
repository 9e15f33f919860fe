"""Error rates, alignments and the history of a training run."""
