"""Layers of 30 rows, units that span the rows of all processes, and ties: the masks of one process, bit for bit."""

import traceback
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import secateur
from distributed.models import CONFIG, DIVISIONS, Trained, check_equal, describe, train
from distributed.processes import run_ranks
from distributed.units import ONCE, make_attention, make_thirty, repeat_values
from secateur.errors import LayerError

EVERY = {"op_names": [".*"]}
PROGRESSIVE = {"kind": "progressive", "progressive_steps": 2, "pruning_frequency": 2, "end_step": 3, "start_step": 1}


class Case(NamedTuple):
    config: dict[str, Any]
    make: Callable[[], nn.Module] = make_thirty
    values: int = 0
    division: str = "sharded"
    steps: int = 4


CASES = {
    "4x1": Case({"pattern": "4x1"}),
    "3x1": Case({"pattern": "3x1"}),
    "5x1 local": Case({"pattern": "5x1", "pruning_scope": "local"}),
    "2:4": Case({"pattern": "2:4", **EVERY}),
    "2:4 in part": Case({"pattern": "2:4", "target_sparsity": 0.3, **EVERY}),
    "1xchannel": Case({"pattern": "1xchannel", **EVERY}),
    "channelx1": Case({"pattern": "channelx1", **EVERY}),
    "channelx1 local, max": Case(
        {"pattern": "channelx1", "pruning_scope": "local", "criterion_reduce_type": "max", **EVERY}
    ),
    "channelx1, lasso": Case({"pattern": "channelx1", "reg_type": "group_lasso", "reg_coeff": 0.1}),
    "channelx1, taylor": Case({"pattern": "channelx1", "criterion": "taylor"}),
    "1x1 local": Case({"pattern": "1x1", "pruning_scope": "local", **EVERY}),
    "progressive 1x1": Case({"pattern": "1x1", **PROGRESSIVE, **EVERY}),
    "progressive channelx1": Case({"pattern": "channelx1", **PROGRESSIVE}),
    "progressive 3x1": Case({"pattern": "3x1", **PROGRESSIVE}),
    "random 3x1": Case({"pattern": "3x1", "criterion": "random"}),
    "random channelx1": Case({"pattern": "channelx1", "criterion": "random"}),
    "heads": Case({"pattern": "heads", "target_sparsity": 0.34}, make_attention),
    "heads, max": Case({"pattern": "heads", "target_sparsity": 0.34, "criterion_reduce_type": "max"}, make_attention),
    "progressive heads": Case({"pattern": "heads", "target_sparsity": 0.67, **PROGRESSIVE}, make_attention),
    "layers of heads": Case({"pattern": "heads", "target_sparsity": 0.34}, make_attention, division="by layers"),
}

TIED = ("3x1", "2:4 in part", "1xchannel", "channelx1", "1x1", "1x1 local", "heads")

CASES["1x1"] = Case({"pattern": "1x1", **EVERY})

for tied in TIED:
    for values in (1, 3):
        case = CASES[tied]
        CASES[f"{tied}, {values} values"] = case._replace(
            config={**case.config, **ONCE, "target_sparsity": case.config.get("target_sparsity", 0.5)},
            values=values,
            steps=0,
        )

HYBRID = {f"hybrid {name}": CASES[name]._replace(division="hybrid") for name in ("channelx1", "1x1, 3 values")}


def begin(case: Case, division: str) -> Trained:
    dense = case.make()
    if case.values:
        repeat_values(dense, case.values)
    model = DIVISIONS["sharded by layers" if division == "by layers" else division](dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Trained(model, optimizer, secateur.prepare(model, {**CONFIG, **case.config}, optimizer))


def run_case(case: Case, division: str) -> Any:
    try:
        trained = begin(case, division)
        train(trained.model, trained.optimizer, range(case.steps))
        return describe(trained)
    except Exception:  # noqa: BLE001 -- the test of the case shows it
        return traceback.format_exc()


IN_ONE = ("channelx1", "heads", "1x1, 3 values")
IN_FOUR = (
    "4x1",
    "2:4 in part",
    "1xchannel",
    "channelx1 local, max",
    "progressive 1x1",
    "progressive channelx1",
    "heads",
    *(name for name in CASES if name.endswith("values")),
)

LIMIT = 200.0


def run_cases(ranks: int) -> dict[str, Any]:
    """Run all cases in two processes, and some in one and in four."""
    names = {1: IN_ONE, 2: tuple(CASES), 4: IN_FOUR}[ranks]
    cases = {name: CASES[name] for name in names} | (HYBRID if ranks == 4 else {})
    return {name: run_case(case, case.division) for name, case in cases.items()}


@cache
def run_whole(name: str) -> Any:
    return run_case(CASES[name], "whole")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_masks_are_those_of_one_process(ranks: int) -> None:
    for found in run_ranks(run_cases, ranks, ranks, limit=LIMIT):
        for name, end in found.items():
            expected = run_whole(name.removeprefix("hybrid "))
            assert 0 < expected["sparsity"] < 1, name
            check_equal(end, expected)


def refuse_rows() -> str:
    with pytest.raises(LayerError) as error:
        begin(Case({"pattern": "4x1", "op_names": ["0"]}), "sharded")
    return str(error.value)


def test_rows_that_do_not_fit_are_refused_as_in_one_process() -> None:
    reason = (
        "layer '0' was named but cannot be pruned: 30 output channels are not a multiple of N=4 in '4x1' (weight 30x8)"
    )
    messages = run_ranks(refuse_rows, 2)
    assert messages[0] == messages[1]
    assert reason in messages[0]
