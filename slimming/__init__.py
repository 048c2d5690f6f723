"""Network Slimming: find the channels, choose, cut, prove. Needs nothing but torch and safetensors.

graph = trace(model, example)               # which channels can be cut, and why others can't
scores = Slimming().scores(model, graph)    # |gamma| of every BatchNorm
keep = plan(graph, scores, ratio=0.7)       # which channels stay
thin = slim(model, graph, keep)             # a smaller network, cut for real
proof = verify(model, graph, keep, thin, x) # thin computes what the masked network computes
"""

from slimming.checkpoint import load, save
from slimming.graph import ChannelGraph, trace
from slimming.graph.slices import slices
from slimming.methods.base import Method, Training
from slimming.methods.shrink import shrink
from slimming.methods.slimming import Slimming
from slimming.planning.planner import Plan, plan, safe_ratio
from slimming.planning.sensitivity import sensitivity, spare
from slimming.repair.compensate import compensate
from slimming.repair.recalibrate import recalibrate
from slimming.surgery.certificate import Certificate, verify
from slimming.surgery.cut import mask, slim
from slimming.surgery.fold import fold
from slimming.surgery.masks import masks

__all__ = [
    "Certificate",
    "ChannelGraph",
    "Method",
    "Plan",
    "Slimming",
    "Training",
    "compensate",
    "fold",
    "load",
    "mask",
    "masks",
    "plan",
    "recalibrate",
    "safe_ratio",
    "save",
    "sensitivity",
    "shrink",
    "slices",
    "slim",
    "spare",
    "trace",
    "verify",
]
