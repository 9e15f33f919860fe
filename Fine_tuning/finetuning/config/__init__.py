"""An experiment: its keys, read from YAML and the command line, and checked."""
