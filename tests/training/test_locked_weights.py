"""Zeros of any parameter, kept by kind="pattern_lock"."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import LayerError
from secateur.masking.locked import describe_locked_zeros
from tiny_models import mlp

LOCK = {"kind": "pattern_lock"}


class Tagger(nn.Module):
    """A recurrent net."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.rnn, self.out = recurrent, nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(inputs)[0])


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        other = inputs[..., :4]
        return self.attention(inputs, other, other)[0]


class Experts(nn.Module):
    """Stacked matrices under names and in an order that nothing declares."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bti,eio->bteo", inputs, self.bank)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(8, 8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs, inputs)


def normalized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))


FLOATS, TOKENS, IMAGE = torch.randn(2, 5, 8), torch.arange(12).reshape(2, 6), torch.randn(2, 8, 5)

MODELS: dict[str, tuple[Callable[[], nn.Module], str, torch.Tensor]] = {
    "lstm": (lambda: Tagger(nn.LSTM(8, 8, batch_first=True)), "rnn.weight_hh_l0", FLOATS),
    "gru input": (lambda: Tagger(nn.GRU(8, 8, batch_first=True)), "rnn.weight_ih_l0", FLOATS),
    "projected lstm": (lambda: Tagger(nn.LSTM(8, 12, proj_size=8, batch_first=True)), "rnn.weight_hr_l0", FLOATS),
    "embedding": (lambda: nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 4)), "0.weight", TOKENS),
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(16, 8), nn.Linear(8, 4)), "0.weight", TOKENS),
    "key of attention": (lambda: Attention(kdim=4, vdim=4), "attention.k_proj_weight", FLOATS),
    "experts": (Experts, "bank", FLOATS),
    "grouped transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(8, 8, 3, groups=2)), "0.weight", IMAGE),
    "parametrized": (normalized, "parametrizations.weight.original1", FLOATS),
    "bilinear": (Bilinear, "layer.weight", FLOATS),
}
"""Name → a model, its parameter with zeros, and its input."""


def zero_out(weight: torch.Tensor) -> torch.Tensor:
    """Set every second weight of each row to zero, and return which are zero."""
    with torch.no_grad():
        weight[..., ::2] = 0
    return (weight == 0).detach()


def fit(model: nn.Module, inputs: torch.Tensor, config: dict[str, Any] = LOCK) -> Any:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 0.1)
    pruner = secateur.prepare(model, config, optimizer)
    for _ in range(3):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return pruner


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_zeros_of_any_parameter_are_kept(name: str) -> None:
    make, key, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make()
    zeros = zero_out(model.get_parameter(key))
    assert key in [layer.name for layer in secateur.plan(model, LOCK).layers if layer.is_pruned]
    pruner = fit(model, inputs)
    assert torch.equal(model.get_parameter(key) == 0, zeros)
    assert torch.equal(~pruner.masks[key], zeros)
    report = pruner.finalize()
    assert {layer.name: layer.pruned_weights for layer in report.layers}[key] == int(zeros.sum())
    assert key not in report.dense


@pytest.mark.parametrize(
    "narrow",
    [{"excluded_op_names": ["rnn"]}, {"op_names": ["out"]}, {"layers": {"rnn": None}}, {"layer_types": {"LSTM": None}}],
)
def test_the_configuration_selects_other_parameters_by_their_module(narrow: dict[str, Any]) -> None:
    model = Tagger(nn.LSTM(8, 8, batch_first=True))
    zeros = zero_out(model.get_parameter("rnn.weight_hh_l0"))
    pruner = fit(model, FLOATS, {**LOCK, **narrow})
    assert "rnn.weight_hh_l0" not in pruner.masks
    assert bool((model.get_parameter("rnn.weight_hh_l0")[zeros] != 0).any())


def test_other_parameters_are_not_pruned_by_rules_that_prune() -> None:
    model = Tagger(nn.LSTM(8, 8, batch_first=True))
    found = secateur.plan(model, {"pattern": "4x1", "layers": {"rnn.weight_hh_l0": LOCK}, "op_names": ["out"]})
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert reasons == {
        "rnn.weight_ih_l0": "LSTM is not a supported layer type",
        "rnn.weight_hh_l0": "has no zeros",
        "out": None,
    }


class Adapted(nn.Module):
    """A layer with a low-rank addition that starts at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down, self.up = (
            nn.Linear(base.in_features, 2, bias=False),
            nn.Linear(2, base.out_features, bias=False),
        )
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + self.up(self.down(inputs))


def adapted() -> nn.Sequential:
    model = mlp()
    secateur.prune(model, {"pattern": "2:4"})
    model[0], model[2] = Adapted(model[0]), Adapted(model[2])
    return model


def test_a_weight_that_is_all_zero_is_untrained_and_left_free() -> None:
    torch.manual_seed(0)
    model, inputs = adapted(), torch.randn(8, 16)
    reasons = {layer.name: layer.reason for layer in secateur.plan(model, LOCK).layers}
    assert reasons["0.up"] == "all zero: untrained rather than pruned, so it may change"
    pruner = fit(model, inputs)
    assert bool((model[0].up.weight != 0).all())
    assert "0.up" not in pruner.masks
    state, trained = pruner.state_dict(), model.state_dict()
    report = pruner.finalize()
    assert report.dense["0.up"].startswith("all zero")

    trained["2.up.weight"][0] = 0  # such as a row without a gradient: it stays free in a resumed run
    again = adapted()
    again.load_state_dict(trained)
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    resumed = secateur.prepare(again, LOCK, optimizer)
    resumed.load_state_dict(state)
    assert {"0.up", "2.up"}.isdisjoint(resumed.masks)
    for _ in range(2):
        again(inputs).square().mean().backward()
        optimizer.step()
    assert bool((again[2].up.weight != 0).all())
    resumed.finalize()


def test_a_state_locks_zeros_of_parameters_that_had_none() -> None:
    make, key, inputs = MODELS["embedding"]
    model = make()
    zeros = zero_out(model.get_parameter(key))
    state = fit(model, inputs).state_dict()
    fresh = make()
    optimizer = torch.optim.SGD(fresh.parameters(), 0.1)
    resumed = secateur.prepare(fresh, LOCK, optimizer)
    assert key not in resumed.masks
    fresh.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    fresh(inputs).square().mean().backward()
    optimizer.step()
    assert torch.equal(fresh.get_parameter(key) == 0, zeros)
    report = resumed.finalize()
    assert key in {layer.name for layer in report.layers}
    assert key not in report.dense


def test_zeros_without_an_optimizer_are_refused_by_name_and_weights_without_zeros_are_not() -> None:
    make, key, _ = MODELS["embedding"]
    model = make()
    optimizer = torch.optim.SGD(model[1].parameters(), 0.1)
    secateur.prepare(model, LOCK, optimizer).close()
    zero_out(model.get_parameter(key))
    with pytest.raises(LayerError, match=r"does not have the weights of 1 of 2 layers to be pruned: '0.weight'"):
        secateur.prepare(model, LOCK, optimizer)


def test_a_frozen_tensor_subclass_is_left_alone_and_a_trained_one_is_refused() -> None:
    class Sharded(torch.Tensor):
        pass

    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    zero_out(model[1].weight)
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Sharded), requires_grad=False)
    assert list(fit(model, TOKENS).masks) == ["1", "2"]
    model[0].weight.requires_grad_()
    with pytest.raises(LayerError, match=r"1 layer cannot be pruned:\n  0.weight: its weight is a Sharded"):
        secateur.prepare(model, LOCK, torch.optim.SGD(model.parameters()))


def test_replacing_a_weight_without_zeros_does_not_end_a_lock() -> None:
    make, _, inputs = MODELS["embedding"]
    model = make()
    zero_out(model[1].weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = secateur.prepare(model, LOCK, optimizer)
    model[0].weight = nn.Parameter(torch.randn(32, 8))
    model(inputs).square().mean().backward()
    optimizer.step()
    assert pruner.finalize().layers[0].sparsity == 0.5


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [("4x1", 0.5), ("8x1", 0.5), ("1x4", 0.5), ("2:4", 0.5), ("1:4", 0.75), ("1xchannel", 0.25), ("1x1", 0.3)],
)
def test_the_report_names_the_pattern_of_the_zeros(pattern: str, sparsity: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    once = secateur.prune(model, {"pattern": pattern, "target_sparsity": sparsity})
    report = fit(model, torch.randn(4, 32)).finalize()
    layer, before = report.layers[0], once.layers[0]
    assert (layer.pattern, layer.units, layer.pruned_units) == (pattern, before.units, before.pruned_units)
    assert layer.pruned_weights == before.pruned_weights
    assert report.layers[1].pruned_weights == 0
    assert "Units differ" not in str(report)


def test_zeros_on_a_device_are_recognized_as_tensors() -> None:
    view = secateur.patterns.WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[:4, 1] = False
    assert describe_locked_zeros(view, mask) == ("4x1", 8, 1)


def test_a_lock_of_a_model_without_zeros_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "secateur"):
        secateur.prepare(mlp(), LOCK).close()
    assert [record.getMessage() for record in caplog.records] == [
        "kind='pattern_lock' keeps zeros, and none of the 3 layers has any. Load the pruned weights before "
        "secateur.prepare, unless a saved state is loaded next."
    ]


def test_zeros_of_a_layer_that_is_trained_later_are_kept() -> None:
    """As when layers are unfrozen one after another."""
    model = mlp()
    secateur.prune(model, {"pattern": "2:4", "op_names": [".*"]})
    first, *others = (layer for layer in model if isinstance(layer, nn.Linear))
    first.weight.requires_grad_(False)
    optimizer = torch.optim.Adam([weight for layer in others for weight in layer.parameters()], 0.1)
    pruner = secateur.prepare(model, LOCK | {"pattern": "2:4"}, optimizer)
    before, zeros = first.weight.detach().clone(), first.weight == 0
    for step in range(4):
        if step == 2:
            first.weight.requires_grad_(True)
            optimizer.add_param_group({"params": [first.weight]})
        optimizer.zero_grad()
        model(torch.randn(4, first.in_features)).square().mean().backward()
        optimizer.step()
        assert bool((first.weight == 0).equal(zeros))
    assert not torch.equal(before, first.weight)
    assert pruner.finalize().is_complete
