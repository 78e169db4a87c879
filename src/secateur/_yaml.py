"""How this package reads YAML."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["Loader"]


class Loader(yaml.SafeLoader):
    """YAML 1.1 without its numbers to the base 60, which would read ``2:4`` as 124."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """The tag of a node without one."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_number = tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
        return self.DEFAULT_SCALAR_TAG if is_number and ":" in value else tag
