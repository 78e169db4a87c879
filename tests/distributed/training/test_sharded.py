"""Weights that are divided over processes: the same masks, bit for bit, as in one process without sharding."""

import traceback
from functools import cache
from typing import Any

import pytest

from distributed.models import begin, check_equal, describe, train
from distributed.processes import run_ranks

RIGL: dict[str, Any] = {
    "kind": "rigl",
    "criterion": "magnitude",
    "end_step": 4,
    "pruning_frequency": 2,
    "regrow_fraction": 0.5,
}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "4x1": ({"pattern": "4x1"}, {}),
    "4x1 local": ({"pattern": "4x1", "pruning_scope": "local"}, {}),
    "3x1": ({"pattern": "3x1", "criterion": "magnitude"}, {}),
    "1x1": ({"pattern": "1x1", "criterion": "magnitude"}, {}),
    "1x1 local": ({"pattern": "1x1", "pruning_scope": "local", "criterion": "gradient"}, {}),
    "2:4": ({"pattern": "2:4"}, {}),
    "2:4-transposable": ({"pattern": "2:4-transposable"}, {}),
    "rigl": ({"pattern": "1x1", **RIGL}, {}),
    "rigl 3x1": ({"pattern": "3x1", **RIGL}, {}),
    "rigl 2:4": ({"pattern": "2:4", **RIGL}, {"division": "sharded by layers"}),
    "rigl channelx1": ({"pattern": "channelx1", **RIGL}, {}),
    "set": ({"pattern": "1x1", **RIGL, "kind": "set"}, {}),
    "sr_ste": ({"pattern": "2:4", **RIGL, "kind": "sr_ste", "sr_ste_decay": 0.05}, {}),
    "sr_ste transposable": ({"pattern": "2:4-transposable", **RIGL, "kind": "sr_ste", "end_step": 2}, {}),
    "2:4 in part": ({"pattern": "2:4", "target_sparsity": 0.3, "criterion": "magnitude"}, {}),
    "1xchannel": ({"pattern": "1xchannel"}, {}),
    "channelx1": ({"pattern": "channelx1"}, {}),
    "max": ({"pattern": "4x1", "criterion_reduce_type": "max"}, {}),
    "random": ({"pattern": "4x1", "criterion": "random"}, {}),
    "progressive": ({"pattern": "4x1", "kind": "progressive", "progressive_steps": 2}, {}),
    "lock": ({"pattern": "4x1", "kind": "pattern_lock"}, {}),
    "group lasso": ({"pattern": "4x1", "reg_type": "group_lasso", "reg_coeff": 0.1}, {}),
    "minimum": ({"pattern": "4x1", "min_sparsity_ratio_per_op": 0.4, "max_sparsity_ratio_per_op": 0.6}, {}),
    "fused": ({"pattern": "4x1"}, {"optimizer": "fused"}),
    "foreach": ({"pattern": "2:4"}, {"optimizer": "foreach"}),
    "by layers": ({"pattern": "4x1"}, {"division": "sharded by layers"}),
}


IN_EACH_NUMBER = ("4x1", "3x1", "1x1 local", "2:4", "1xchannel", "channelx1", "lock")
"""The cases that also run in one process and in four."""

LIMIT = 200.0


def run_cases(cases: dict[str, tuple[dict[str, Any], dict[str, Any]]], *, careful: bool = False) -> dict[str, Any]:
    """Return what each case ends with, or how it failed."""
    found: dict[str, Any] = {}
    for name, (config, options) in cases.items():
        try:
            trained = begin(config, **options)
            train(trained.model, trained.optimizer, range(4), careful=careful)
            found[name] = describe(trained)
        except Exception:  # noqa: BLE001 -- the test of the case shows it
            found[name] = traceback.format_exc()
    return found


@cache
def run_all(ranks: int) -> list[dict[str, Any]] | str:
    cases = {name: case for name, case in CASES.items() if ranks == 2 or name in IN_EACH_NUMBER}
    try:
        return run_ranks(run_cases, ranks, cases, limit=LIMIT)
    except AssertionError as error:
        return str(error)


@cache
def run_whole(name: str) -> Any:
    config, options = CASES[name]
    return run_cases({name: (config, options | {"division": "whole"})})[name]


@pytest.mark.parametrize(
    ("ranks", "name"), [(2, name) for name in CASES] + [(ranks, name) for ranks in (1, 4) for name in IN_EACH_NUMBER]
)
def test_masks_do_not_depend_on_the_number_of_processes(name: str, ranks: int) -> None:
    expected, results = run_whole(name), run_all(ranks)
    assert not isinstance(results, str), results
    for found in results:
        # A fused step rounds the last numbers of a tensor in another way than those that fill a vector register.
        check_equal(found[name], expected, 1e-6 if name == "fused" else 0.0)
