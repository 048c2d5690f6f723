"""A filter's L2 norm as its score, as soft filter pruning ranks (He et al. 2018)."""

from slimming.methods.l1_norm import L1Norm


class L2Norm(L1Norm):
    """Ordinary training; what a channel is worth is the root of the sum of its filters' squares.

    Filters of several layers that make one channel together count as one long filter.
    """

    power = 2
