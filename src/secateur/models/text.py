"""English text that every Python carries."""

from __future__ import annotations

from pydoc_data.topics import topics

__all__ = ["documentation"]


def documentation() -> str:
    """The documentation of Python's own topics, half a million characters."""
    return "\n\n".join(topics[topic] for topic in sorted(topics))
