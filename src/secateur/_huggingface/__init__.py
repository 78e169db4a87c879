"""Read model folders of Hugging Face libraries: weight files, indexes, configurations and companion files."""

from __future__ import annotations
