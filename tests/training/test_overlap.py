"""A weight is pruned by one run at a time, whichever optimizer, parameter or memory it is reached through."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import secateur
from secateur.errors import LayerError, StateError
from secateur.training.pytorch import PytorchPruner
from secateur.training.pytorch.overlap import shares_memory
from tiny_models import bits, mlp
from training.models import CONFIG, begin


def by_optimizer(model: nn.Module) -> PytorchPruner:
    pruner: PytorchPruner = secateur.prepare(
        model, {**CONFIG, "pattern": "8x1"}, optimizer=SGD(model.parameters(), lr=0.1)
    )
    return pruner


def announced(model: nn.Module) -> PytorchPruner:
    return secateur.prepare(model, {**CONFIG, "pattern": "8x1"})


def same(model: nn.Sequential) -> nn.Module:
    return model


def around(model: nn.Sequential) -> nn.Module:
    return nn.Sequential(model, nn.Linear(4, 4))


def tied(model: nn.Sequential) -> nn.Module:
    other = mlp(1)
    other[2].weight = model[2].weight
    return other


def alias(model: nn.Sequential) -> nn.Module:
    other = mlp(1)
    other[2].weight = nn.Parameter(model[2].weight.detach())
    return other


def rows(model: nn.Sequential) -> nn.Module:
    return (
        nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
        .requires_grad_()
        .apply(
            lambda layer: (
                setattr(layer, "weight", nn.Parameter(model[0].weight.detach()[8:24]))
                if getattr(layer, "out_features", 0) == 16
                else None
            )
        )
    )


@pytest.mark.parametrize("second", [by_optimizer, announced])
@pytest.mark.parametrize("first", [by_optimizer, announced])
@pytest.mark.parametrize("view", [same, around, tied, alias, rows])
def test_two_pruners_of_one_weight(
    view: Callable[[nn.Sequential], nn.Module],
    first: Callable[[nn.Module], PytorchPruner],
    second: Callable[[nn.Module], PytorchPruner],
) -> None:
    model = mlp()
    running = first(model)
    before = bits(model)
    other = view(model)
    with pytest.raises(StateError, match=r"Another pruner already prunes '.*'\. Call its finalize\(\) or close\(\)"):
        second(other)
    assert bits(model) == before
    running.close()
    second(other).close()


def finish(pruner: PytorchPruner) -> None:
    pruner.finalize()


def close(pruner: PytorchPruner) -> None:
    pruner.close()


@pytest.mark.parametrize("end", [finish, close])
def test_an_earlier_run_that_has_ended(end: Callable[[PytorchPruner], None]) -> None:
    trial = begin().train(range(9))
    end(trial.pruner)
    assert by_optimizer(trial.model).is_active


@pytest.mark.parametrize("make", [by_optimizer, announced])
def test_an_earlier_run_that_nobody_can_reach(make: Callable[[nn.Module], PytorchPruner]) -> None:
    model = mlp()
    gc.disable()
    try:
        make(model)
        assert by_optimizer(model).is_active
    finally:
        gc.enable()


def fail(model: nn.Module) -> None:
    pruner = by_optimizer(model)
    raise ValueError(pruner.step)


def test_an_earlier_run_in_a_traceback_lasts_as_long_as_that() -> None:
    model = mlp()
    last: list[Exception] = []
    for expected in (ValueError, StateError):
        try:
            fail(model)
        except expected as error:
            last[:] = [error]  # as a notebook keeps it
    assert isinstance(last[0], StateError)
    assert by_optimizer(model).is_active


def test_runs_of_other_layers_of_the_model() -> None:
    trial = begin({**CONFIG, "excluded_op_names": ["2"]})
    other = secateur.prepare(trial.model, {**CONFIG, "excluded_op_names": ["0"]}, optimizer=trial.optimizer)
    trial.train(range(9))
    assert trial.pruner.finalize().is_complete
    assert other.finalize().is_complete


def test_tied_weights_are_one() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    model[2].weight = model[0].weight
    trial = begin(model=model).train(range(9))
    assert list(trial.pruner.masks) == ["0"]
    assert trial.pruner.finalize().unit_sparsity == 0.75


def test_aliases_within_a_model() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    with pytest.raises(LayerError, match="layers '0' and '1': their weights are two parameters that share memory"):
        by_optimizer(model)


def halves(*cut: Any) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = torch.zeros(8, 8)
    return matrix[cut[0]], matrix[cut[1]]


@pytest.mark.parametrize(
    ("first", "second", "shares"),
    [
        (slice(0, 4), slice(4, 8), False),
        (slice(0, 5), slice(4, 8), True),
        ((slice(None), slice(0, 4)), (slice(None), slice(4, 8)), False),
        ((slice(None), slice(0, 5)), (slice(None), slice(4, 8)), True),
        (slice(0, 8, 2), slice(1, 8, 2), False),
        (slice(0, 8, 2), slice(2, 4), True),
    ],
)
def test_shared_memory_is_found_exactly(first: Any, second: Any, shares: bool) -> None:
    left, right = halves(first, second)
    assert shares_memory(left, right) == shares_memory(right, left) == shares


def test_weights_without_memory_share_none() -> None:
    meta = nn.Linear(4, 4, device="meta").weight
    assert not shares_memory(meta, nn.Linear(4, 4, device="meta").weight)
    assert shares_memory(meta, meta)
    assert not shares_memory(torch.zeros(0), torch.zeros(0))
