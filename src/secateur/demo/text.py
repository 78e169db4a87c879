"""Load English text that comes with installed packages, to evaluate a language model on."""

from __future__ import annotations

import re

from secateur._packages import find_package_folder

__all__ = ["extract_prose", "load_held_out_text"]

BLOCK_ENDS = re.compile(r"\n\s*\n|\n(?=\s*[-*] )")
"""Matches the end of a paragraph or of a list item in reStructuredText."""

MARKUP = re.compile(r"^[-*] |:[\w:]+:(?=`)|[`*]|(?<=`)~(?=\w)|(?<=[\w\]`])__?(?=\W)|(?<=:):| <https?:[^>]+>(?=`)")
"""Matches the markup of words in reStructuredText."""

SENTENCES = re.compile(r"[A-Z(](?!.*(?:>>>|---|===)).{40,}[.:]\)?")
"""Matches prose without headings, fields, code and tables."""


def load_held_out_text() -> str:
    """Load scikit-learn's descriptions of its data sets without markup: flowers, faces, wine, news and more."""
    folder = find_package_folder("sklearn", "datasets/descr")
    assert folder is not None
    return "\n\n".join(extract_prose(file.read_text("utf-8")) for file in sorted(folder.glob("*.rst")))


def extract_prose(text: str) -> str:
    r"""Extract the paragraphs of reStructuredText that consist of sentences.

    Examples:
        >>> page = "Iris\n----\n\nThe famous Iris database,\nfirst used by :class:`Fisher`_.\n"
        >>> extract_prose(page)
        'The famous Iris database, first used by Fisher.'
    """
    blocks = (MARKUP.sub("", " ".join(block.split())) for block in BLOCK_ENDS.split(text))
    return "\n\n".join(block for block in blocks if SENTENCES.fullmatch(block))
