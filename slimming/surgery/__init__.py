"""Removing channels for real, hiding them, proving that both are the same."""

from slimming.graph.slices import slices
from slimming.surgery.certificate import Certificate, verify
from slimming.surgery.cut import mask, slim
from slimming.surgery.fold import fold

__all__ = ["Certificate", "fold", "mask", "slices", "slim", "verify"]
