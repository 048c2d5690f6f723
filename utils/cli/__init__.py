"""The edge: Hydra, options and their types, errors as sentences."""
