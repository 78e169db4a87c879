"""The package transformers, for models that lie on disk."""

from __future__ import annotations

import os
from types import ModuleType

__all__ = ["quiet_transformers"]


def quiet_transformers() -> ModuleType:
    """The package transformers, which contacts no hub and prints neither bars nor warnings."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return transformers
