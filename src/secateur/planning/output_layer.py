"""Find output layers. Classifiers, language-model heads and routers stay dense unless the configuration names them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

from secateur.planning.layers import Candidate

__all__ = ["explain_default", "find_output_names"]

HEAD_NAMES = frozenset(
    {"classifier", "cls", "embed_out", "fc_out", "head", "lm_head", "output_projection", "qa_outputs", "score"}
)
"""Usual names of output layers, or of parts of a model that end with the output layer."""


def explain_default(candidate: Candidate, candidates: Sequence[Candidate]) -> str | None:
    """Return why a layer stays dense unless the configuration names it; ``None``: it does not.

    If a model has only one supported layer, it is pruned even if it is the output.
    """
    if candidate.is_output and sum(other.is_supported for other in candidates) != 1:
        return "output layer: dense unless op_names or layers name it"
    return "router of experts: dense unless op_names or layers name it" if candidate.is_router else None


def find_output_names(names: Collection[str], is_list: Callable[[str], bool]) -> list[str]:
    """Find the output layers of a model that does not declare them, by name and order.

    These are the last layer of each part that has the name of a head. If there is none, it is the last layer of the
    model, unless that is in a list of blocks, as in an encoder without a head.

    Args:
        names: Names of the supported layers, in the order of the model; dots separate the names of parts.
        is_list: Returns whether the part with a name is a list of repeated blocks.

    Examples:
        >>> find_output_names(["body.0", "body.1", "lm_head"], lambda part: part == "body")
        ['lm_head']
        >>> find_output_names(["body.0", "body.1"], lambda part: part == "body")
        []
    """
    if not names:
        return []
    last = list(names)[-1]
    parents = last.split(".")[:-1]
    is_repeated = any(is_list(".".join(parents[:depth])) for depth in range(1, len(parents) + 1))
    return _find_heads(names, is_list) or ([] if is_repeated else [last])


def _find_heads(names: Collection[str], is_list: Callable[[str], bool]) -> list[str]:
    """Find the last layer of each part that has the name of a head.

    Only parts at the top level of the model, or of the model that it wraps, count. Inside blocks the same names mean
    something else, as in ``attention.score``.
    """
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    depth = len(list(takewhile(lambda parts: len(set(parts)) == 1, levels)))
    heads: dict[str, str] = {}
    for name in names:
        path = name.split(".")
        if path[depth] in HEAD_NAMES:
            part = ".".join(path[: depth + 1])
            heads[".".join(path[: depth + 1 + is_list(part)])] = name
    return list(heads.values())
