"""Dependencies between parameters: groups of units that must be pruned together."""

from secateur.graph.graph import Barrier, Graph, SizeUse
from secateur.graph.group import Constraints, Group, Member, Role, intersect_masks
from secateur.graph.index_map import AffineMap, ExplicitMap, IndexMap
from secateur.graph.program import Call
from secateur.graph.rules import RULES, register_rule
from secateur.graph.tracer import Tracer
from secateur.graph.tracing import trace

__all__ = [
    "RULES",
    "AffineMap",
    "Barrier",
    "Call",
    "Constraints",
    "ExplicitMap",
    "Graph",
    "Group",
    "IndexMap",
    "Member",
    "Role",
    "SizeUse",
    "Tracer",
    "intersect_masks",
    "register_rule",
    "trace",
]
