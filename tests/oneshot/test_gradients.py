"""One-shot pruning by a criterion that needs gradients."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.errors import CalibrationError, ConfigError, ScoreError, UnsupportedModelError
from secateur.masking.rearrangement import rearrange_units
from secateur.oneshot import Progress
from secateur.oneshot.pytorch import gradient_run

Floats = npt.NDArray[np.floating[Any]]

FISHER = {"criterion": "mask_fisher", "pattern": "1xchannel", "target_sparsity": 0.5}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def draw_batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(count)]


def cross_entropy(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def mask_gradients(layer: str) -> Floats:
    """The gradients with respect to a mask of the rows of one layer, by automatic differentiation."""
    model, rows = mlp().eval(), []
    for inputs, labels in draw_batches():
        module = model.get_submodule(layer)
        mask = torch.ones(module.weight.shape[0], 1, requires_grad=True)
        masked = {f"{layer}.weight": module.weight.detach() * mask}
        outputs = torch.func.functional_call(model, masked, (inputs,))
        nn.functional.cross_entropy(outputs, labels).backward()
        rows.append(mask.grad.reshape(-1).numpy())
    return np.stack(rows)


def loss_of(gradients: Floats, pruned: Any) -> float:
    return float(np.square(gradients[:, list(pruned)].sum(axis=1)).sum())


def transcribe_rearrangement(gradients: Floats, count: int) -> set[int]:
    """The algorithm of the paper, in the plainest form."""
    order = np.argsort(np.square(gradients).sum(axis=0), kind="stable").tolist()
    pruned = order[:count]
    for unit in order[count:]:
        pruned.append(unit)
        pruned.remove(min(reversed(pruned), key=lambda left: loss_of(gradients, [i for i in pruned if i != left])))
    return set(pruned)


def test_units_are_those_of_a_transcription_of_the_paper() -> None:
    model = mlp()
    report = secateur.prune(model, FISHER, calibration=draw_batches(), loss=cross_entropy)
    assert [(row.name, row.pruned_units) for row in report.layers] == [("0", 4), ("2", 4)]
    for name in ("0", "2"):
        rows = {row for row, weight in enumerate(model.get_submodule(name).weight) if not weight.any()}
        assert rows == transcribe_rearrangement(mask_gradients(name).astype(np.float64), 4)
    assert report.is_complete


@pytest.mark.parametrize("config", [{}, {"pruning_scope": "global"}])
def test_the_ranking_is_by_the_diagonal(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_run, "rearrange_units", lambda gradients, keep, alive: keep)  # noqa: ARG005
    model = mlp()
    secateur.prune(model, FISHER | config, calibration=draw_batches(), loss=cross_entropy)
    scores = {name: np.square(mask_gradients(name)).sum(axis=0) for name in ("0", "2")}
    cut = np.sort(np.concatenate(list(scores.values())))[7]
    for name, score in scores.items():
        expected = score <= (cut if config else np.sort(score)[3])
        assert (model.get_submodule(name).weight == 0).all(dim=1).tolist() == expected.tolist()


@given(st.integers(1, 4), st.integers(1, 7), st.data())
def test_rearranging_is_the_transcription_and_never_worse(batches: int, units: int, data: st.DataObject) -> None:
    values = st.lists(st.integers(-9, 9), min_size=units, max_size=units)
    gradients = np.array([data.draw(values) for _ in range(batches)], dtype=np.float64)
    count = data.draw(st.integers(0, units))
    keep = np.ones(units, dtype=bool)
    keep[np.argsort(np.square(gradients).sum(axis=0), kind="stable")[:count]] = False
    found = rearrange_units(gradients, keep)
    assert count == (~found).sum()
    before, after = loss_of(gradients, np.flatnonzero(~keep)), loss_of(gradients, np.flatnonzero(~found))
    assert after <= before
    assert after >= min(loss_of(gradients, pruned) for pruned in itertools.combinations(range(units), count))


def test_units_pruned_before_stay_pruned() -> None:
    gradients = np.array([[0.0, 1.0, -1.0, 5.0]])
    alive = np.array([False, True, True, True])
    found = rearrange_units(gradients, np.array([False, False, True, True]), alive)
    assert found.tolist() == [False, False, True, True]
    model = mlp()
    model[0].weight.data[[1, 5]] = 0
    secateur.prune(model, FISHER | {"keep_zeros": True}, calibration=draw_batches(), loss=cross_entropy)
    empty = (model[0].weight == 0).all(dim=1)
    assert empty.sum() == 4
    assert empty[[1, 5]].all()


@pytest.mark.parametrize("criterion", ["mask_fisher", "taylor", "mask_gradient", "snip", "snip_momentum", "movement"])
@pytest.mark.parametrize("pattern", ["1xchannel", "channelx1", "4x2", "2:4", "1x1"])
def test_every_gradient_criterion_and_pattern(criterion: str, pattern: str) -> None:
    model = mlp()
    config = {"criterion": criterion, "pattern": pattern, "target_sparsity": 0.5, "op_names": ["2"]}
    report = secateur.prune(model, config, calibration=draw_batches(), loss=cross_entropy)
    assert report.sparsity == 0.5
    assert (model[2].weight == 0).sum() == 32
    assert all(weight.grad is None for weight in model.parameters())


def test_weights_are_not_trained_and_frozen_ones_stay_frozen() -> None:
    model, dense = mlp().requires_grad_(requires_grad=False), mlp()
    secateur.prune(model, FISHER, calibration=draw_batches(), loss=cross_entropy)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.training
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dense.get_parameter(name) * (weight != 0))


class OwnLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Mapping[str, torch.Tensor]:
        logits = self.body(inputs)
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


def test_models_with_a_loss_of_their_own() -> None:
    model, other = OwnLoss(), mlp()
    batches = [{"inputs": inputs, "labels": labels} for inputs, labels in draw_batches()]
    secateur.prune(model, FISHER, calibration=batches)
    secateur.prune(other, FISHER, calibration=draw_batches(), loss=cross_entropy)
    assert torch.equal(model.body[0].weight, other[0].weight)
    without = [{"inputs": inputs} for inputs, _ in draw_batches()]
    with pytest.raises(
        CalibrationError, match=r"batch 0: the model must return a loss, .* found NoneType\. Pass loss="
    ):
        secateur.prune(OwnLoss(), FISHER, calibration=without)


@pytest.mark.parametrize(
    ("config", "options", "kind", "message"),
    [
        (
            {},
            {"loss": lambda outputs, _: outputs},
            CalibrationError,
            r"loss\(outputs, batch\) must return a loss.*\(16, 3\)",
        ),
        ({}, {"loss": lambda outputs, _: outputs.detach().sum()}, CalibrationError, "depends on the weights"),
        ({}, {"loss": lambda outputs, _: outputs.sum() * torch.nan}, ScoreError, "scores must be numbers, found nan"),
        ({"criterion": "magnitude"}, {}, ConfigError, "loss has no effect with the criterion 'magnitude'"),
        ({}, {"calibration": None}, CalibrationError, "loss needs calibration data"),
        (
            {},
            {"solver": "wanda"},
            ConfigError,
            "solver has no effect .*, here 'mask_fisher'",
        ),
        ({}, {"refine": "pcg"}, ConfigError, "refine has no effect"),
        ({}, {"execution": secateur.Execution(device="cpu")}, ConfigError, "execution has no effect"),
        ({}, {"allocation": "owl"}, ConfigError, "allocation must be 'uniform' or 'global'"),
    ],
)
def test_bad_input_leaves_the_model_unchanged(
    config: dict[str, Any], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = mlp()
    arguments = {"calibration": draw_batches(), "loss": cross_entropy} | options
    with pytest.raises(kind, match=message):
        secateur.prune(model, FISHER | config, **arguments)
    assert all(torch.equal(weight, mlp().get_parameter(name)) for name, weight in model.named_parameters())


def test_the_allocation_names_the_scope() -> None:
    sparsities = {}
    for allocation in ("uniform", "global"):
        config = {**FISHER, "pruning_scope": "global", "target_sparsity": 0.25}
        report = secateur.prune(mlp(), config, calibration=draw_batches(), loss=cross_entropy, allocation=allocation)
        sparsities[allocation] = {layer.sparsity for layer in report.layers}
    assert sparsities["uniform"] == {0.25}
    assert sparsities["global"] == {0.125, 0.375}


def test_layers_that_the_loss_does_not_reach_are_refused() -> None:
    model = mlp()
    unused = nn.ModuleDict({"used": model, "unused": nn.Linear(4, 4)})
    unused.forward = model.forward  # type: ignore[method-assign]
    with pytest.raises(ScoreError, match="no gradient of the loss reaches unused"):
        secateur.prune(unused, FISHER | {"op_names": [".*"]}, calibration=draw_batches(), loss=cross_entropy)


def test_large_layers_are_not_rearranged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gradient_run, "MAX_REARRANGED_UNITS", 4)
    secateur.prune(mlp(), FISHER, calibration=draw_batches(), loss=cross_entropy)
    assert "not rearranged in layers of more than 4 units: 0, 2" in caplog.text


def test_keras_models_are_refused() -> None:
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    with pytest.raises(UnsupportedModelError, match="loss supports torch models only"):
        secateur.prune(model, {"pattern": "1xchannel"}, loss=cross_entropy)


def test_progress_is_reported_per_batch() -> None:
    seen: list[Progress] = []
    execution = secateur.Execution(progress=seen.append)
    secateur.prune(mlp(), FISHER, calibration=draw_batches(), loss=cross_entropy, execution=execution)
    assert [(event.stage, event.done, event.total) for event in seen] == [(f"batch {i}", i, 4) for i in range(1, 5)]
    assert seen[-1].seconds_left == 0
    assert secateur.prune(mlp(), FISHER, calibration=draw_batches(), loss=cross_entropy, progress=True).is_complete
