"""English text that comes with installed packages, for a language model to read."""

from __future__ import annotations

import re

from secateur._packages import find_package_folder

__all__ = ["load_held_out_text", "prose"]

BLOCK_ENDS = re.compile(r"\n\s*\n|\n(?=\s*[-*] )")
"""Where a paragraph or an item of a list ends in reStructuredText."""

MARKUP = re.compile(r"^[-*] |:[\w:]+:(?=`)|[`*]|(?<=`)~(?=\w)|(?<=[\w\]`])__?(?=\W)|(?<=:):| <https?:[^>]+>(?=`)")
"""What stands around the words in reStructuredText."""

SENTENCES = re.compile(r"[A-Z(](?!.*(?:>>>|---|===)).{40,}[.:]\)?")
"""Prose: no heading, no field, no code and no table."""


def load_held_out_text() -> str:
    """scikit-learn's descriptions of its data sets, without markup: of flowers, faces, wine and news."""
    folder = find_package_folder("sklearn", "datasets/descr")
    assert folder is not None
    return "\n\n".join(prose(file.read_text("utf-8")) for file in sorted(folder.glob("*.rst")))


def prose(text: str) -> str:
    r"""The paragraphs of reStructuredText that are sentences.

    Example:
        >>> prose("Iris\n----\n\n:Number: 150\n\nThe famous Iris database,\nfirst used by :class:`Fisher`_.\n")
        'The famous Iris database, first used by Fisher.'
    """
    blocks = (MARKUP.sub("", " ".join(block.split())) for block in BLOCK_ENDS.split(text))
    return "\n\n".join(block for block in blocks if SENTENCES.fullmatch(block))
