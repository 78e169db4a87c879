"""For those who come from projects that ended: their interfaces, and readers of their configurations.

None of those projects is imported or needed. `secateur.compat.neural_compressor` has the pruning interface of Intel
Neural Compressor; `secateur.compat.torchao` and `secateur.compat.sparseml` turn configurations into an `ImportedRun`.
"""

from __future__ import annotations

from secateur.compat.imported import ImportedRun

__all__ = ["ImportedRun"]
