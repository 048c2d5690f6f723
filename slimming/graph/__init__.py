"""Which channels a network has, and which of them can be cut."""

from slimming.graph.channel_graph import ChannelGraph
from slimming.graph.trace import trace

__all__ = ["ChannelGraph", "trace"]
