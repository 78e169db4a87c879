"""What was done: settings, facts, digests and notes."""

from __future__ import annotations

import json
from typing import Any

from secateur.config import PruningConfig
from secateur.results import Summary, describe_config

__all__ = ["make_run_description"]

ALWAYS_SHOWN = ("pattern", "target_sparsity", "pruning_scope")
"""Settings that are shown even if they have their default value."""

HIDDEN = ("format_version",)


def make_run_description(summary: Summary) -> dict[str, Any] | None:
    """Return what was done, and the settings that differ from the defaults."""
    if not (summary.headlines or summary.facts or summary.configs or summary.digests or summary.notes):
        return None
    return {
        "headlines": summary.headlines,
        "facts": summary.facts,
        "configs": [
            {"settings": _list_settings(config), "json": json.dumps(config, indent=2, default=str)}
            for config in summary.configs
        ],
        "digests": summary.digests,
        "notes": summary.notes,
    }


def _list_settings(config: dict[str, Any]) -> dict[str, str]:
    """Return the settings that differ from their defaults, and those of `ALWAYS_SHOWN`."""
    defaults = describe_config(PruningConfig())
    return {
        key: json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
        for key, value in config.items()
        if key not in HIDDEN and (value != defaults.get(key) or (key in ALWAYS_SHOWN and value is not None))
    }
