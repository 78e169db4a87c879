r"""From the names of parameters and modules in a recipe to expressions for whole names of layers.

A recipe matches expressions with ``re.match``, from the start and not to the end, and often against the names of
parameters. Here they are matched against whole names of layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from secateur.errors import ConfigError

__all__ = ["match_modules", "match_parameters"]

ALL_PRUNABLE = "__ALL_PRUNABLE__"
ALL = "__ALL__"
EXPRESSION = "re:"


def match_parameters(given: Any, where: str) -> tuple[str, ...]:
    r"""Expressions for the layers whose weights are meant.

    Args:
        given: One name or several: of parameters, expressions that start with ``re:``, or ``__ALL_PRUNABLE__``.
        where: What errors say that it stands in.

    Raises:
        ConfigError: It means something else than weights of layers.

    Example:
        >>> match_parameters(["re:.*conv.*weight", "fc.weight"], "params")
        ('.*conv.*', 'fc')
    """
    return tuple(_match_parameter(name, where) for name in _check_names(given, where))


def match_modules(given: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    r"""Expressions for the layers that are meant or lie in what is meant, and types.

    Args:
        given: One name or several: of modules, of classes, expressions that start with ``re:``, or ``__ALL__``.
        where: What errors say that it stands in.

    Example:
        >>> match_modules(["re:.*lm_head", "Linear"], "targets")
        (('(?:.*lm_head).*',), ('Linear',))
    """
    expressions, types = [], []
    for name in _check_names(given, where):
        if name in (ALL, ALL_PRUNABLE):
            expressions.append(".*")
        elif name.startswith(EXPRESSION):
            expressions.append(_match_within(name.removeprefix(EXPRESSION)))
        elif re.fullmatch(r"[A-Z]\w*", name):
            types.append(name)
        else:
            expressions.append(rf"{re.escape(name)}(?:\..*)?")
    return tuple(expressions), tuple(types)


def _match_parameter(name: str, where: str) -> str:
    if name == ALL_PRUNABLE:
        return ".*"
    if name == ALL:
        raise ConfigError(
            f"{where}: {ALL} means biases and norms too, which are not pruned here. Write {ALL_PRUNABLE} for the "
            f"weights of all linear and convolutional layers."
        )
    if name.startswith(EXPRESSION):
        return _match_parameter_expression(name.removeprefix(EXPRESSION), where)
    if not name.endswith(".weight"):
        raise ConfigError(
            f"{where}: {name!r} must be the full name of a layer's weight, such as 'fc.weight'. Other parameters are "
            f"not pruned here."
        )
    return re.escape(name.removesuffix(".weight"))


def _match_parameter_expression(expression: str, where: str) -> str:
    body = expression.removesuffix("$")
    if not _has_alternatives(body):
        for ending in (r"\.weight", ".weight"):
            if body.endswith(ending):
                return body.removesuffix(ending)
        if body.endswith(".*weight"):
            return body.removesuffix("weight")
        if body == expression and not body.endswith("weight"):
            return _match_start(body)
    raise ConfigError(
        f"{where}: 're:{expression}' must end in '.weight', '.*weight' or '.*' for the layers to be told from it. "
        f"Write alternatives in parentheses, or as several expressions."
    )


def _match_within(expression: str) -> str:
    """What matches from the start of a name, and all that lies in it where it matches to the end."""
    body = expression.removesuffix("$")
    return _match_start(body) if body == expression else rf"(?:{body})(?:\..*)?"


def _match_start(body: str) -> str:
    return body if body.endswith(".*") and not _has_alternatives(body) else f"(?:{body}).*"


def _has_alternatives(body: str) -> bool:
    """Whether there is a ``|`` outside of parentheses."""
    inner = None
    while inner != body:
        inner, body = body, re.sub(r"\([^()]*\)", "", body)
    return "|" in body


def _check_names(given: Any, where: str) -> Iterable[str]:
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{where} must be a name or a list of names, found {given!r}.")
    return found
