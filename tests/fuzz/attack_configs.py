"""Attack with damaged configurations."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from fuzz.harness import attack
from secateur import PruningConfig

GOOD: dict[str, Any] = {
    "pattern": "2:4",
    "target_sparsity": 0.3,
    "criterion": "taylor",
    "start_step": 3,
    "end_step": 70,
    "sparsity_decay_type": "linear",
    "op_names": ["encoder\\..*"],
    "reg_coeff": 0.01,
    "seed": 7,
    "layers": {"encoder\\.0\\..*": None, "encoder\\.1": {"pattern": "4x1", "target_sparsity": 0.2}},
    "layer_types": {"Conv2d": {"pattern": "1xchannel"}},
}

VALUES: list[Any] = [
    *(None, True, -1, 0, 10**400, 1e-320, float("nan"), float("inf"), "", "\x1b[2J", "\ud800", "\0", "\u202e", "2:4"),
    *("x" * 9_000, "(" * 300, "a{99999999999}", "[", "*", "1e5", "2001-99-99", "12:30", "~", "<<", "=", "!!int"),
    *([], {}, [[]], {"": {}}, {"pattern": None}, ["\x1b"], [None], {"a": {"b": {"c": {}}}}),
]

FRAGMENTS = [
    *("&a ", "*a", "<<: *a", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!python/none ", "!!set ", "!!omap "),
    *(
        "? ",
        "- ",
        ": ",
        "[",
        "]",
        "{",
        "}",
        "|\n",
        ">\n",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "\t",
        "\r",
        "\ufeff",
        "'",
        '"',
    ),
    *("\\ud800", "\\x1b", "\0", "9" * 5_000, "[" * 500, "{a: " * 500, "pattern: 2:4\n", "0x", "1_", "190:20:30"),
]


@attack(cases=300)
def read_configs(chance: random.Random, folder: Path) -> None:
    """Read a damaged text: it is refused, or the configuration is equal after writing and reading it."""
    data = json.loads(json.dumps(GOOD))
    for _ in range(chance.choice((0, 0, 1, 2))):
        replace_value(chance, data)
    write: Callable[[Any], str] = chance.choice((json.dumps, yaml.safe_dump))
    content = write(data)
    for _ in range(chance.choice((0, 1, 1, 3))):
        at = chance.randrange(len(content) + 1)
        content = content[:at] + chance.choice(FRAGMENTS) + content[at + chance.choice((0, 0, 1, 5)) :]
    source: str | Path = content
    if chance.random() < 0.3:
        source = folder / "pruning.yaml"
        source.write_bytes(content.encode(chance.choice(("utf-8", "utf-16", "utf-8-sig")), "surrogatepass"))
    config = PruningConfig.from_yaml(source)
    assert PruningConfig.from_yaml(config.to_yaml()) == config
    assert PruningConfig.from_json(config.to_json()) == config


def replace_value(chance: random.Random, data: dict[str, Any]) -> None:
    """Put an unusual value or key somewhere into nested mappings."""
    key = chance.choice([*data, "", "\x1b[31m", "patern", "x" * 9_000])
    if isinstance(data.get(key), dict) and data[key] and chance.random() < 0.7:
        replace_value(chance, data[key])
    else:
        data[key] = copy.deepcopy(chance.choice(VALUES))
