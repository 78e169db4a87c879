"""Transposable N:M while a model trains, when solvers prune it, and in files."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from oneshot.problems import batches
from secateur.errors import ArtifactError, ConfigError
from secateur.patterns.tile_selection import select_tiles
from secateur.solvers import SOLVERS, Solver
from tiny_models import mlp
from training.models import Trial, begin, equal_states, revived

CONFIG: dict[str, Any] = {
    "pattern": "2:4-transposable",
    "target_sparsity": None,
    "start_step": 1,
    "end_step": 9,
    "pruning_frequency": 2,
}


def split_weight(mask: torch.Tensor) -> torch.Tensor:
    """The mask of a linear layer as tiles."""
    outputs, inputs = mask.shape
    return mask.reshape(outputs // 4, 4, inputs // 4, 4).transpose(1, 2).reshape(-1, 4, 4)


def keeps_two(mask: torch.Tensor) -> torch.Tensor:
    """For each tile, whether two weights of every row and every column are kept."""
    tiles = split_weight(mask).int()
    return ((tiles.sum(dim=1) == 2) & (tiles.sum(dim=2) == 2)).all(dim=1)


@pytest.mark.parametrize("kind", ["iterative", "sr_ste", "rigl", "set"])
def test_each_tile_is_dense_or_pruned_after_every_step_and_a_resumed_run_is_equal(kind: str) -> None:
    trial = begin(CONFIG | {"kind": kind})
    shares: list[float] = []

    def check(step: int) -> None:
        masks = trial.pruner.masks
        assert revived(trial.pruner) == [], step
        is_pruned = torch.cat([keeps_two(mask) for mask in masks.values()])
        is_dense = torch.cat([split_weight(mask).all(dim=(1, 2)) for mask in masks.values()])
        assert (is_pruned | is_dense).all(), step
        shares.append(float(is_pruned.float().mean()))

    trial.train(range(5), check)
    resumed = begin(CONFIG | {"kind": kind})
    for part in Trial._fields:
        getattr(resumed, part).load_state_dict(copy.deepcopy(getattr(trial, part).state_dict()))
    trial.train(range(5, 12), check)
    resumed.train(range(5, 12))
    assert equal_states(resumed.model.state_dict(), trial.model.state_dict())
    assert shares[-1] == 1.0
    assert all(share == 1.0 for share in shares) == (kind != "iterative")
    assert trial.pruner.finalize().sparsity == 0.5


def test_sr_ste_selects_the_best_mask_of_the_latent_weights() -> None:
    trial = begin(CONFIG | {"kind": "sr_ste"})
    before = trial.pruner.masks
    trial.train(range(3))
    latent = trial.pruner.state_dict()["runs"][0]["latent"]
    for name, mask in trial.pruner.masks.items():
        values = torch.where(mask, trial.model.get_submodule(name).weight.detach(), latent[name])
        expected = select_tiles(split_weight(values.abs()).numpy(), 2)
        assert torch.equal(split_weight(mask), torch.from_numpy(expected))
        assert not torch.equal(mask, before[name])


@pytest.mark.parametrize("solver", [name for name, kind in sorted(SOLVERS.items()) if issubclass(kind, Solver)])
def test_solvers_keep_the_pattern(solver: str) -> None:
    model = mlp()
    report = secateur.prune(model, "2:4-transposable", calibration=batches(), solver=solver, refine="pcg")
    assert report.sparsity == 0.5
    assert all(keeps_two(model.get_submodule(layer.name).weight != 0).all() for layer in report.layers)


@pytest.mark.parametrize("refiner", ["swap", "dsnot"])
def test_refiners_that_exchange_weights_within_groups_are_refused(refiner: str) -> None:
    with pytest.raises(ConfigError, match=r"the pattern must be 1x1.* found '2:4-transposable'"):
        secateur.prune(mlp(), "2:4-transposable", calibration=batches(), solver="wanda", refine=refiner)


def test_artifacts_are_packed_as_groups_and_verified_in_both_directions(tmp_path: Path) -> None:
    model = mlp()
    report = secateur.prune(model, "2:4-transposable")
    secateur.save(model, tmp_path / "saved", report=report)
    entry = json.loads((tmp_path / "saved/secateur.json").read_text())["tensors"]["0.weight"]
    assert entry["packing"] == {"kind": "groups", "count": 2, "group": 4}
    assert entry["pruned"]["pattern"] == "2:4-transposable"
    secateur.verify(tmp_path / "saved")
    loaded = mlp()
    secateur.load(tmp_path / "saved", loaded)
    assert torch.equal(loaded[0].weight, model[0].weight)
    rows = model[0].weight.abs().reshape(-1, 4)
    with torch.no_grad():  # 2:4 along the inputs only
        model[0].weight.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]).expand_as(rows).reshape_as(model[0].weight))
    problem = "layer '0': was pruned to '2:4-transposable', but 0 of its units are zero, but 256 were pruned"
    with pytest.raises(ArtifactError, match=problem):
        secateur.save(model, tmp_path / "torn", report=report)
