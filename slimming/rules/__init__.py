"""What each operation does with channel ids, and the door for operations of one's own."""

from slimming.rules import contractions, dims, norms, views
from slimming.rules.call import Call, Found, Planes
from slimming.rules.pointwise import keeps_zero, pointwise
from slimming.rules.registry import MODULES, RULES, register

__all__ = ["MODULES", "RULES", "Call", "Found", "Planes", "keeps_zero", "pointwise", "register"]
__all__ += ["contractions", "dims", "norms", "views"]
