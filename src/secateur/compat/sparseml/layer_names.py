r"""Convert names of parameters and modules in a recipe to regular expressions for layer names.

Recipes match expressions with ``re.match``, at the start of a name, and often against names of parameters. In a
`PruningConfig`, expressions match whole names of layers.
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


def match_parameters(names: Any, where: str) -> tuple[str, ...]:
    r"""Convert names of parameters to expressions for their layers.

    Args:
        names: One or more names of parameters, expressions that start with ``re:``, or ``__ALL_PRUNABLE__``.
        where: The location in the recipe, for error messages.

    Raises:
        ConfigError: A name is not the name of a layer's weight.

    Examples:
        >>> match_parameters(["re:.*conv.*weight", "fc.weight"], "params")
        ('.*conv.*', 'fc')
    """
    return tuple(_match_parameter(name, where) for name in _check_names(names, where))


def match_modules(names: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    r"""Convert names of modules to layer types and to expressions for these modules and all layers inside them.

    Args:
        names: One or more names of modules or classes, expressions that start with ``re:``, or ``__ALL__``.
        where: The location in the recipe, for error messages.

    Examples:
        >>> match_modules(["re:.*lm_head", "Linear"], "targets")
        (('(?:.*lm_head).*',), ('Linear',))
    """
    expressions, types = [], []
    for name in _check_names(names, where):
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
            f"{where}: {ALL} includes biases and norms, which cannot be pruned. Use {ALL_PRUNABLE} for the weights of "
            f"all linear and convolutional layers."
        )
    if name.startswith(EXPRESSION):
        return _match_parameter_expression(name.removeprefix(EXPRESSION), where)
    if not name.endswith(".weight"):
        raise ConfigError(
            f"{where}: {name!r} must be the full name of a layer's weight, such as 'fc.weight'. Other parameters "
            f"cannot be pruned."
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
        f"{where}: 're:{expression}' must end in '.weight', '.*weight' or '.*', so that the layers can be derived. "
        f"Put alternatives in parentheses, or write several expressions."
    )


def _match_within(expression: str) -> str:
    """Build an expression for names that start with a match, and for all layers inside a module that matches."""
    body = expression.removesuffix("$")
    return _match_start(body) if body == expression else rf"(?:{body})(?:\..*)?"


def _match_start(body: str) -> str:
    return body if body.endswith(".*") and not _has_alternatives(body) else f"(?:{body}).*"


def _has_alternatives(body: str) -> bool:
    """Whether there is a ``|`` outside of parentheses."""
    previous = None
    while previous != body:
        previous, body = body, re.sub(r"\([^()]*\)", "", body)
    return "|" in body


def _check_names(names: Any, where: str) -> Iterable[str]:
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, list | tuple) or not all(isinstance(name, str) for name in several):
        raise ConfigError(f"{where} must be a name or a list of names, found {names!r}.")
    return several
