"""Prune inside the training loops of other projects.

Each module serves one project, and imports it: `secateur.integrations.transformers`, `secateur.integrations.lightning`
and `secateur.integrations.accelerate`.
"""

from __future__ import annotations

__all__: list[str] = []
