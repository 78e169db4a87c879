"""Tests that the cost of a plan is proportional to the number of layers."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import SecateurError


def make_rules(names: list[str]) -> dict[str, Any]:
    return {name: {"target_sparsity": index / len(names) / 2} for index, name in enumerate(names)}


CONFIGS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "default": lambda _: {},
    "every layer named": lambda names: {"op_names": names},
    "every layer named, escaped": lambda names: {"op_names": [name.replace(".", r"\.") for name in names]},
    "most excluded": lambda names: {"excluded_op_names": names[1:]},
    "a rule for each layer": lambda names: {"layers": make_rules(names)},
    "no layer fits": lambda _: {"pattern": "16x16"},
}


def count_calls(layers: int, make_config: Callable[[list[str]], dict[str, Any]]) -> int:
    """Count the function calls of a plan and of its text."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8)) for _ in range(layers)))
    config = make_config([f"{index}.0" for index in range(layers)])
    count = 0

    def count_call(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        str(secateur.plan(model, config))
    except SecateurError as error:
        str(error)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plan_costs_time_in_proportion_to_the_layers(name: str) -> None:
    count_calls(2, CONFIGS[name])  # imports
    few, many = count_calls(25, CONFIGS[name]), count_calls(100, CONFIGS[name])
    assert many <= 4.2 * few
