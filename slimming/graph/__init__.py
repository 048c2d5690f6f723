"""Which channels a network has, and which of them can be cut."""

from slimming.graph.graph import ChannelGraph, trace

__all__ = ["ChannelGraph", "trace"]
