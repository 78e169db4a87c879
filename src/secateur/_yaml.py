"""Read YAML and JSON from untrusted sources, with limits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from secateur._files import open_regular_file
from secateur._wording import format_value
from secateur.errors import ConfigError

__all__ = ["MAX_CHARACTERS", "MAX_DEPTH", "MAX_VALUES", "Loader", "parse_json_or_yaml", "parse_yaml", "read_source"]

MAX_CHARACTERS = 250_000
"""Maximum length of a text, in characters; PyYAML reads about 50,000 per second."""

MAX_VALUES = 100_000
"""Maximum number of values in a text, including those repeated by aliases."""

MAX_DEPTH = 20
"""Maximum nesting depth of lists and mappings."""

MAX_ALIASES = 1_000
"""Maximum number of aliases in a text."""

MAX_MERGED = 10_000
"""Maximum number of keys in a mapping, including those merged with ``<<``."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Lone surrogates, which JSON and YAML can express as escapes, but which UTF-8 files cannot contain."""


def read_source(source: str | Path, what: str) -> str:
    """Read a text from a file, or return it if it is given as a string.

    Args:
        source: A file, given as `Path`, or the text as a string.
        what: What the text is, for error messages.

    Raises:
        ConfigError: The file cannot be read, is not a regular file or not UTF-8, or the text is too long.
    """
    if isinstance(source, Path):
        try:
            text = _read_limited(source).decode("utf-8-sig")
        except (OSError, ValueError) as error:  # a path with a NUL is a `ValueError`, as is a wrong encoding
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise ConfigError(f"The {what} cannot be read: {reason}") from error
    else:
        text = source
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"The {what} cannot be read: it is longer than {MAX_CHARACTERS:,} characters.")
    return text


def parse_json_or_yaml(text: str, what: str) -> Any:
    """Parse JSON, or else YAML; a YAML 1.1 parser would read JSON's ``1e-05`` as a string.

    Raises:
        ConfigError: The text is neither, a mapping repeats a key, or there are too many values or levels of nesting.

    Examples:
        >>> parse_json_or_yaml("pattern: 2:4", "configuration")
        {'pattern': '2:4'}
    """
    try:
        data = json.loads(text, object_pairs_hook=_build_mapping)
    except json.JSONDecodeError:  # not JSON, or broken JSON, for which YAML has the better message
        return parse_yaml(text, what)
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"The {what} is not valid JSON: {_describe(error)}") from error
    return _check_extent(data, what)


def parse_yaml(text: str, what: str, loader: type[Loader] | None = None) -> Any:
    """Parse YAML.

    Args:
        text: The text.
        what: What the text is, for error messages.
        loader: A subclass of `Loader` that supports more tags; by default, `Loader` itself.

    Raises:
        ConfigError: See `parse_json_or_yaml`.
    """
    try:
        data = yaml.load(text, loader or Loader)  # noqa: S506 - a SafeLoader
    except (RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"The {what} is not valid YAML: {_describe(error)}") from error
    return _check_extent(data, what)


class Loader(yaml.SafeLoader):
    """Load YAML 1.1 with limits on its size, and without base-60 numbers, where ``2:4`` means 124."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._aliases = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """Choose the tag of a node without one."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_number = tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
        return self.DEFAULT_SCALAR_TAG if is_number and ":" in value else tag

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node, and limit the number of aliases."""
        self._aliases += self.check_event(yaml.AliasEvent)
        if self._aliases > MAX_ALIASES:
            raise yaml.YAMLError(f"it has more than {MAX_ALIASES:,} aliases.")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose the next mapping, and reject repeated keys."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if (key := _find_repeated(keys)) is not None:
            raise yaml.composer.ComposerError(None, None, f"the key {format_value(key)} occurs twice", node.start_mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge mappings at ``<<``, with a limit: mappings that merge others in turn grow exponentially."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_MERGED:
            raise yaml.YAMLError(f"a mapping has more than {MAX_MERGED:,} keys.")

    def construct_object(self, node: yaml.Node, *deep: Any, **more: Any) -> Any:
        """Construct the value of a node; errors of PyYAML for values that do not match their tag become `YAMLError`."""
        try:
            return super().construct_object(node, *deep, **more)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            value = format_value(node.value) if isinstance(node, yaml.ScalarNode) else type(node).__name__
            raise yaml.constructor.ConstructorError(
                None, None, f"{value} is not a valid {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error


def _read_limited(path: Path) -> bytes:
    """Read a regular file, up to the maximum length."""
    with open_regular_file(path) as file:
        content = file.read(4 * MAX_CHARACTERS + 1)  # a character has at most four bytes in UTF-8
    if len(content) > 4 * MAX_CHARACTERS:
        raise ValueError(f"it is longer than {MAX_CHARACTERS:,} characters.")
    return content


def _describe(error: Exception) -> str:
    return f"it has more than {MAX_DEPTH} levels of nesting." if isinstance(error, RecursionError) else str(error)


def _build_mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (key := _find_repeated(key for key, _ in pairs)) is not None:
        raise ValueError(f"the key {format_value(key)} occurs twice in a mapping.")
    return dict(pairs)


def _find_repeated(keys: Iterable[str]) -> str | None:
    """Return the first key that occurs twice."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


def _check_extent(data: Any, what: str) -> Any:
    """Return the data, or raise `ConfigError` if there are too many values or levels, as with aliases of aliases."""
    pending, count = [(data, 0)], 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"The {what} has more than {MAX_DEPTH} levels of nesting.")
        if count > MAX_VALUES:
            raise ConfigError(f"The {what} has more than {MAX_VALUES:,} values.")
        if isinstance(value, dict):
            pending += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            pending += [(part, depth + 1) for part in value]
        elif isinstance(value, str) and SURROGATE.search(value):
            raise ConfigError(f"The {what} contains a lone surrogate: {format_value(value)}.")
    return data
