"""From scores to what stays."""
