"""Dependencies between parameters: groups of units that must be pruned together."""

from secateur.graph.group import Constraints, Group, Member, Role, intersect_masks
from secateur.graph.index_map import AffineMap, ExplicitMap, IndexMap

__all__ = [
    "AffineMap",
    "Constraints",
    "ExplicitMap",
    "Group",
    "IndexMap",
    "Member",
    "Role",
    "intersect_masks",
]
