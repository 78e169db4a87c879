"""A short schedule for the tests of trainers."""

from typing import Any

__all__ = ["CONFIG"]

CONFIG: dict[str, Any] = {
    "pattern": "4x1",
    "target_sparsity": 0.5,
    "criterion": "snip_momentum",
    "start_step": 2,
    "end_step": 8,
    "pruning_frequency": 2,
}
