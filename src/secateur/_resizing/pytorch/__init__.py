"""Record on torch modules what slimming changed, and change a module of the original sizes in the same way."""

from secateur._resizing.pytorch.blocks import REMOVED, list_children, list_removed_blocks, merge_positions
from secateur._resizing.pytorch.branches import (
    BranchLayout,
    RemovedBranch,
    list_arguments,
    list_branches,
    replace_module,
)
from secateur._resizing.pytorch.sizes import CONFIG, RECORD, Sizes, clear_sizes, find_mismatch, read_sizes, set_sizes

__all__ = [
    "CONFIG",
    "RECORD",
    "REMOVED",
    "BranchLayout",
    "RemovedBranch",
    "Sizes",
    "clear_sizes",
    "find_mismatch",
    "list_arguments",
    "list_branches",
    "list_children",
    "list_removed_blocks",
    "merge_positions",
    "read_sizes",
    "replace_module",
    "set_sizes",
]
