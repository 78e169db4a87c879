"""Record the changes of slimming on torch modules, and apply them to modules of the original sizes."""

from secateur._resizing.pytorch.blocks import Assign, drop_blocks, list_children, list_removed_blocks, record_blocks
from secateur._resizing.pytorch.branches import (
    BranchLayout,
    RemovedBranch,
    list_arguments,
    list_branches,
    replace_modules,
)
from secateur._resizing.pytorch.sizes import CONFIG, RECORD, Sizes, clear_sizes, find_mismatch, read_sizes, set_sizes

__all__ = [
    "CONFIG",
    "RECORD",
    "Assign",
    "BranchLayout",
    "RemovedBranch",
    "Sizes",
    "clear_sizes",
    "drop_blocks",
    "find_mismatch",
    "list_arguments",
    "list_branches",
    "list_children",
    "list_removed_blocks",
    "read_sizes",
    "record_blocks",
    "replace_modules",
    "set_sizes",
]
