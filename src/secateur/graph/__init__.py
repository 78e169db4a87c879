"""Dependencies between parameters: groups of units that must be pruned together."""

from secateur.graph.graph import Barrier, Graph, SizeUse
from secateur.graph.group import Constraints, Group, Member, Role, intersect_masks
from secateur.graph.index_map import AffineMap, ExplicitMap, IndexMap

__all__ = [
    "AffineMap",
    "Barrier",
    "Constraints",
    "ExplicitMap",
    "Graph",
    "Group",
    "IndexMap",
    "Member",
    "Role",
    "SizeUse",
    "intersect_masks",
]
