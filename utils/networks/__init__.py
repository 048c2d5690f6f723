"""From a config or a file to a network, and what one costs."""
