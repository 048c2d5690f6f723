"""After the cut: what the removed channels still contributed."""
