"""Models as Hugging Face's libraries store them: names of files, indexes of shards, configurations, companion files."""

from __future__ import annotations
