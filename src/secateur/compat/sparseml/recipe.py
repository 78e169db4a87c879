"""Parse the text of a recipe into stages of modifiers."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from secateur._wording import format_list, suggest_name
from secateur._yaml import Loader, parse_yaml, read_source
from secateur.compat.sparseml.modifier import Modifier
from secateur.errors import ConfigError

__all__ = ["RecipeStage", "read_stages"]

MODIFIERS = re.compile(r"(.+_)?modifiers")
"""Keys that contain modifiers."""

DESCRIPTIONS = ("metadata", "recipe_metadata", "args", "version", "run_type")
"""Keys that have no effect on a run."""

FORMULA = re.compile(r"eval\((.*)\)", re.DOTALL)

OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}

FUNCTIONS: dict[str, Any] = {"float": float, "int": int, "max": max, "min": min, "round": round}


@dataclass(frozen=True, slots=True)
class RecipeStage:
    """The modifiers of one run.

    Attributes:
        name: The stage's name; empty if the recipe has no stages.
        modifiers: The modifiers, in the order of the recipe.
    """

    name: str
    modifiers: tuple[Modifier, ...]


class _RecipeLoader(Loader):
    """Load YAML whose tags are modifiers."""


@dataclass(frozen=True, slots=True)
class _Tagged:
    name: str
    values: Any


def _construct_tag(loader: _RecipeLoader, name: str, node: yaml.Node) -> _Tagged:
    if isinstance(node, yaml.MappingNode):
        return _Tagged(name, loader.construct_mapping(node, deep=True))
    return _Tagged(name, {} if not node.value else node.value)


_RecipeLoader.add_multi_constructor("!", _construct_tag)


def read_stages(source: str | Path, leave_out: frozenset[str] = frozenset()) -> list[RecipeStage]:
    """Read the stages of a recipe that have modifiers.

    Args:
        source: A file, given as `Path`, or the text as a string.
        leave_out: Names of modifiers to skip.

    Raises:
        ConfigError: The recipe cannot be read, is not valid or has no modifiers left, or `leave_out` has an unknown
            name.
    """
    stages = [
        RecipeStage(name, tuple(_iter_modifiers(groups, variables)))
        for name, groups, variables in _iter_sections(_parse_document(source))
    ]
    names = {modifier.name for stage in stages for modifier in stage.modifiers}
    for name in leave_out:
        if name not in names:
            raise ConfigError(
                f"leave_out: the recipe has no {name!r}.{suggest_name(name, names)} Modifiers: "
                f"{format_list(sorted(names))}."
            )
    remaining = [
        RecipeStage(stage.name, tuple(modifier for modifier in stage.modifiers if modifier.name not in leave_out))
        for stage in stages
    ]
    if not any(stage.modifiers for stage in remaining):
        raise ConfigError("The recipe has no modifiers to import. Modifiers are under 'modifiers' or in stages.")
    return [stage for stage in remaining if stage.modifiers]


def _parse_document(source: str | Path) -> Any:
    text = read_source(source, "recipe")
    if text.lstrip().startswith("---"):
        # This is a Markdown file: keep its front matter.
        text = text.lstrip()[3:].split("\n---", 1)[0]
    document = parse_yaml(text, "recipe", _RecipeLoader)
    if isinstance(document, str) and document.endswith((".yaml", ".yml", ".md")):
        raise ConfigError(
            f"A recipe must be a YAML mapping, found the text {document!r}. To read a file, pass a pathlib.Path."
        )
    if isinstance(document, list):
        return {"modifiers": document}
    if not isinstance(document, dict):
        raise ConfigError(f"A recipe must be a YAML mapping or a list of modifiers, found {type(document).__name__}.")
    return document


def _iter_sections(document: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """Iterate over name, groups of modifiers and variables of each section: the top level, then the stages."""
    names = [key for key, value in document.items() if _is_stage(key, value)]
    variables, groups = _split_section(
        {key: value for key, value in document.items() if key not in names}, "The recipe", {}
    )
    yield "", groups, variables
    for name in names:
        stage_variables, stage_groups = _split_section(document[name], name, variables)
        yield name, stage_groups, stage_variables


def _is_stage(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Mapping) and key.endswith("_stage")


def _split_section(
    section: Mapping[str, Any], where: str, outer: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    variables, groups = dict(outer), []
    for key, value in section.items():
        if MODIFIERS.fullmatch(str(key)):
            groups.append(value)
        elif key in DESCRIPTIONS or value is None:
            continue
        elif isinstance(value, Mapping | _Tagged) or (
            isinstance(value, list) and any(isinstance(item, _Tagged) for item in value)
        ):
            raise ConfigError(
                f"{where}: {key!r} is neither a group of modifiers nor a stage. Such keys end in 'modifiers' or "
                f"'_stage'."
            )
        else:
            variables[str(key)] = _evaluate(value, variables)
    return variables, groups


def _iter_modifiers(groups: list[Any], variables: Mapping[str, Any]) -> Iterator[Modifier]:
    for group in groups:
        if isinstance(group, Mapping):
            for name, values in group.items():
                yield from _iter_named(str(name), values, variables, is_tagged=False)
            continue
        for item in group or ():
            if not isinstance(item, _Tagged):
                raise ConfigError(f"A modifier must be a tag with keys, such as !GMPruningModifier, found {item!r}.")
            yield from _iter_named(item.name, item.values, variables, is_tagged=True)


def _iter_named(name: str, values: Any, variables: Mapping[str, Any], *, is_tagged: bool) -> Iterator[Modifier]:
    """Iterate over one modifier, or over a list of modifiers with the same name."""
    for item in values if isinstance(values, list) else [values]:
        if not isinstance(item or {}, Mapping):
            raise ConfigError(f"{name}: a modifier must be a mapping of keys to values, found {item!r}.")
        yield Modifier(name, {key: _evaluate(value, variables) for key, value in (item or {}).items()}, is_tagged)


def _evaluate(value: Any, variables: Mapping[str, Any]) -> Any:
    """Replace the formulas in a value with their results."""
    if isinstance(value, list):
        return [_evaluate(item, variables) for item in value]
    if isinstance(value, Mapping):
        return {_evaluate(key, variables): _evaluate(item, variables) for key, item in value.items()}
    match = FORMULA.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    try:
        return _evaluate_node(ast.parse(match[1].strip(), mode="eval").body, variables)
    except (SyntaxError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{value!r} cannot be evaluated: {error}") from error


def _evaluate_node(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in variables:
            return variables[name]
        case ast.Name(id=name):
            raise ConfigError(f"The recipe has no variable {name!r}.{suggest_name(name, variables)}")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate_number(operand, variables)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_evaluate_number(left, variables), _evaluate_number(right, variables))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_evaluate_number(argument, variables) for argument in args))
    raise ConfigError(
        f"{ast.unparse(node)!r} cannot be evaluated: formulas can contain numbers, variables, + - * / // and "
        f"{', '.join(FUNCTIONS)}."
    )


def _evaluate_number(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    value = _evaluate_node(node, variables)
    if not isinstance(value, int | float):
        raise ConfigError(f"{ast.unparse(node)!r} must be a number, found {value!r}.")
    return value
