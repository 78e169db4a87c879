"""Test one-shot pruning by several processes: the same masks as in one, and errors on all of them.

Starting processes takes most of the time, so each start checks several things.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout

import secateur
from distributed.processes import run_ranks
from oneshot.problems import batches
from secateur.distributed.pytorch.ranks import Ranks
from secateur.distributed.pytorch.team import Team
from secateur.errors import ConfigError, SecateurError
from secateur.oneshot.pytorch import is_leader
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.layer_jobs import assign_costs
from tiny_models import bits, deep_mlp

METHODS: dict[str, dict[str, Any]] = {
    "sparsegpt": {"solver": "sparsegpt"},
    "alps": {"solver": "alps", "refine": "pcg", "config": {"pattern": "4x1", "target_sparsity": 0.5}},
    "owl": {"solver": "wanda", "allocation": "owl", "config": {"pattern": "1x1", "target_sparsity": 0.5}},
    "permuted": {"solver": "wanda", "permute": True},
    "refined": {
        "solver": "wanda",
        "refine": [
            secateur.refiners.Block(steps=5, batches_per_step=2),
            secateur.refiners.Distill(steps=5, minutes=9, held_out=0.4),
        ],
        "calibration": batches(5, rows=512),
    },
}

TOLERANCES = {"refined": 1e-6}
"""Method → absolute difference of weights, if they are not equal to the last bit: gradients add up in float32."""


class Alone(secateur.refiners.BlockRefiner):
    """A refiner that knows nothing of several processes."""

    def refine(self, block: Any) -> None:  # noqa: ARG002
        raise AssertionError


class Stop(nn.Module):
    """Ends the run on one rank when it is first called after the layer before it was pruned."""

    def __init__(self, layer: nn.Module, rank: int, *, kills: bool = False) -> None:
        super().__init__()
        self.layers = [layer]
        self.rank = rank
        self.kills = kills

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.environ.get("RANK") == str(self.rank) and not next(self.layers[0].parameters()).all():
            if self.kills:
                os._exit(9)
            raise ValueError("too deep")
        return x


def stop_in(model: nn.Sequential, rank: int, **options: Any) -> nn.Sequential:
    model[3] = Stop(model[2], rank, **options)
    return model


def prune(model: nn.Module, folder: Path | None = None, **options: Any) -> Any:
    execution = secateur.Execution(folder=folder, processes=options.pop("processes", "all"))
    arguments = {"config": "2:4", "solver": "sparsegpt", "calibration": batches(), "execution": execution}
    return secateur.prune(model, **arguments | options)


def prune_by(method: str) -> dict[str, Any]:
    model = deep_mlp()
    report = prune(model, **METHODS[method])
    return {"state": model.state_dict(), "errors": report.errors, "sparsity": report.sparsity}


def prune_by_all() -> dict[str, Any]:
    return {method: prune_by(method) for method in METHODS}


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_prune_like_one(ranks: int) -> None:
    results = run_ranks(prune_by_all, ranks)
    for method in METHODS:
        one = prune_by(method)
        for found in (result[method] for result in results):
            assert found["sparsity"] == one["sparsity"]
            assert found["errors"] == one["errors"]
            for name, value in one["state"].items():
                assert torch.equal(found["state"][name] == 0, value == 0)
                torch.testing.assert_close(found["state"][name], value, rtol=0, atol=TOLERANCES.get(method, 0))
                assert torch.equal(found["state"][name], results[0][method]["state"][name])


def explain(**options: Any) -> tuple[str, bool]:
    """Return the error of a run, and whether the model is as before."""
    model = options.pop("model", None) or deep_mlp()
    before = bits(model)
    try:
        prune(model, **options)
    except SecateurError as error:
        return f"{type(error).__name__}: {error}", bits(model) == before
    return "none", False


def disagree_and_fail() -> dict[str, tuple[str, bool]]:
    rank = int(os.environ["RANK"])
    found = {
        "configuration": explain(config="2:4" if rank else "1:4"),
        "model": explain(model=deep_mlp(seed=rank)),
        "batches": explain(calibration=batches(3 + rank)),
        "solver": explain(solver="wanda" if rank else "sparsegpt"),
        "plan": explain(config={"pattern": "2:4", "op_names": ["nothing"]} if rank else "2:4"),
        "forward": explain(model=stop_in(deep_mlp(), rank=1)),
        "few": explain(calibration=batches(1)),
        "refiner": explain(refine=Alone()),
        "units": explain(config={"pattern": "channels", "target_sparsity": 0.5}, solver="osscar"),
    }
    with pytest.raises(ConfigError, match="cannot prune units of several layers"):
        secateur.slim(deep_mlp(), calibration=batches(), budget={"parameters": 0.5})
    model = deep_mlp()
    prune(model)  # the processes still understand each other
    if rank == 0:
        prune(model, processes="one")
    found["leader"] = str(is_leader(batches(), None)), is_leader(batches(), secateur.Execution(processes="one"))
    return found


def test_an_error_on_one_rank_is_an_error_on_all() -> None:
    first, second = run_ranks(disagree_and_fail, 2)
    for case, expected in {
        "configuration": "must have the same configuration",
        "model": "must have the same weights",
        "batches": "must have the same number of batches, calibration data",
        "solver": "must have the same solver, refiners and allocation",
        "few": "at least as many batches as there are processes, 2, found 1",
        "refiner": "Alone does not support several processes",
        "units": "cannot prune units of several layers",
    }.items():
        assert expected in first[case][0]
        assert first[case][0].split(":")[0] == second[case][0].split(":")[0]
    assert first["plan"][0].startswith("RankError: The run ended on rank 1, and so on every other: ")
    assert "'nothing'" in first["plan"][0]
    assert second["forward"][0].startswith("CalibrationError: The model fails on calibration batch 1")
    assert first["forward"][0] == (f"RankError: The run ended on rank 1, and so on every other: {second['forward'][0]}")
    assert [found["leader"][0] for found in (first, second)] == ["True", "False"]
    assert all(is_unchanged for found in (first, second) for _, is_unchanged in found.values())


def lose_a_rank() -> None:
    model = stop_in(deep_mlp(), rank=1, kills=True)
    before = bits(deep_mlp())
    with pytest.raises(SecateurError, match="cannot reach the others, because one of them is gone"):
        prune(model)
    model[3] = nn.ReLU()
    assert bits(model) == before


def test_a_rank_that_dies_ends_the_run_on_all() -> None:
    with pytest.raises(AssertionError, match=r"^rank 1: the process ended without a result$"):
        run_ranks(lose_a_rank, 3)


def miss_a_rank() -> str:
    _set_pg_timeout(timedelta(seconds=1))
    if os.environ["RANK"] == "0":
        return explain()[0]
    time.sleep(5)
    return ""


def test_a_rank_that_does_not_prune_is_missed_after_the_time_limit() -> None:
    first, _ = run_ranks(miss_a_rank, 2)
    assert "Rank 0 of 2 cannot reach the others" in first
    assert "Timed out" in first


def resume(folder: Path) -> tuple[bool, bool, str, list[str]]:
    """Interrupt a run and resume it; return whether all ranks end with the bits of a run without interruption."""
    expected = deep_mlp()
    prune(expected)
    explain(model=stop_in(deep_mlp(), rank=0), folder=folder)
    Ranks.join().gather(None)
    other = explain(folder=folder, processes="one")[0] if os.environ["RANK"] == "0" else ""
    parts = sorted(path.name for path in folder.iterdir())
    model = deep_mlp()
    prune(model, folder)
    everyone = Ranks.join().gather(bits(model))
    return bits(model) == bits(expected), everyone[0] == everyone[1], other, parts


def test_a_run_that_is_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    for is_same, is_equal, _, parts in (results := run_ranks(resume, 2, tmp_path)):
        assert is_same
        assert is_equal
        assert any("done" in name for name in parts)
    assert "it differs in ranks" in results[0][2]
    assert list(tmp_path.iterdir()) == []


def read_different_layers() -> dict[str, Any]:
    """Rank 1 alone reads the second layer."""
    layers = {name: nn.Linear(4, 4) for name in ("first", "second")}
    statistics = InputStatistics(layers, with_gram=True)
    inputs = torch.arange(8.0).reshape(2, 4) + int(os.environ["RANK"])
    with statistics.record_inputs():
        for name in ("first", "second")[: 1 + int(os.environ["RANK"])]:
            statistics.start_batch(None)
            layers[name](inputs.clone())
    statistics.add_other_ranks(Team(Ranks.join()))
    groups = statistics.group_layers()
    return {
        "groups": groups,
        "rows": [statistics.count_rows(name) for name in layers],
        "grams": [*statistics._sums],
    } | {name: (statistics.compute_moments(name)[0], statistics.pop_gram(name)) for name in layers}


def test_statistics_of_all_ranks_are_added() -> None:
    inputs = torch.arange(8.0).reshape(2, 4)
    both = torch.cat([inputs, inputs + 1])
    for found in run_ranks(read_different_layers, 2):
        assert found["groups"] == [("first",), ("second",)]
        assert found["rows"] == [4, 2]
        for name, read in (("first", both), ("second", inputs + 1)):
            torch.testing.assert_close(found[name][0], read.mean(dim=0)[None])
            torch.testing.assert_close(found[name][1], (read.T @ read)[None])


def test_jobs_are_divided_by_their_cost() -> None:
    assert assign_costs([10, 1, 9, 2, 2], 2) == [0, 1, 1, 1, 0]
    assert assign_costs([1, 1], 3) == [0, 1]
    assert assign_costs([3, 1], 1) == [0, 0]
