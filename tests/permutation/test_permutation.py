"""Reordering hidden channels: the dense model computes the same, and N:M keeps more."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import secateur
from oneshot.problems import realistic_inputs
from secateur.errors import CalibrationError, ConfigError, LayerError
from secateur.oneshot.pytorch.permutation import order_search, reordering
from secateur.patterns import channel_permutation
from secateur.permutation import permute_channels
from tiny_models import bits
from tiny_transformers import DECODER


@pytest.fixture(autouse=True)
def _few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_permutation, "SWEEPS", 20)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 8)).eval()


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )
    norm: Any = model[1]
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.normal_()
    return model.eval()


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER | {"head_dim": 8})).eval()


def batches_of(model: nn.Module) -> list[Any]:
    torch.manual_seed(1)
    if isinstance(model, nn.Sequential):
        is_conv = isinstance(model[0], nn.Conv2d)
        return [torch.randn(8, 4, 8, 8) if is_conv else realistic_inputs(32, 16, seed) for seed in range(3)]
    return [{"input_ids": torch.randint(1, 64, (2, 12))} for _ in range(3)]


def run(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        outputs: torch.Tensor = model(batch) if isinstance(batch, torch.Tensor) else model(**batch).logits
    return outputs


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (perceptron, [("2",), ("4",)]),
        (convolutions, [("3",), ("8",)]),
        (
            language_model,
            [
                (f"model.layers.{block}.{layer}",)
                for block in range(3)
                for layer in ("self_attn.o_proj", "mlp.down_proj")
            ],
        ),
    ],
)
@pytest.mark.parametrize("spec", ["2:4", "1:4"])
def test_the_dense_model_computes_the_same_and_more_is_kept(build: Any, layers: Any, spec: str) -> None:
    model, plain = build(), build()
    config = {"pattern": spec, "op_names": [".*"]}
    batches = batches_of(model)
    report = permute_channels(model, config, calibration=batches)
    assert [group.layers for group in report.groups] == layers
    assert all(0 < group.before < group.after < 1 for group in report.groups[:1])
    assert all(group.before <= group.after for group in report.groups)
    changed = {name for name, value in bits(model).items() if value != bits(plain)[name]}
    assert {f"{layer}.weight" for layer in layers[0]} <= changed
    assert not any(part in name for name in changed for part in ("q_proj", "k_proj"))
    for batch in batches:
        torch.testing.assert_close(run(model, batch), run(plain, batch), rtol=1e-5, atol=1e-5)


def test_the_reported_scores_are_what_wanda_keeps() -> None:
    model = perceptron()
    batches = batches_of(model)
    report = permute_channels(model, "2:4", calibration=batches)
    with torch.no_grad():
        hidden = model[:2](torch.cat(batches))
    scores = (model[2].weight.detach() * hidden.norm(dim=0)).square().numpy()
    kept = np.sort(scores.reshape(-1, 4), axis=1)[:, 2:].sum() / scores.sum()
    assert report.groups[0].after == pytest.approx(kept, rel=1e-4)


def test_a_pruned_model_loses_less() -> None:
    errors = []
    for is_permuted in (False, True):
        model, dense = perceptron(), perceptron()
        batches = batches_of(model)
        if is_permuted:
            permute_channels(model, "2:4", calibration=batches)
        secateur.prune(model, {"pattern": "2:4", "op_names": ["2"]}, calibration=batches, solver="wanda")
        errors.append(float((run(model, torch.cat(batches)) - run(dense, torch.cat(batches))).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_layers_that_share_their_inputs_are_searched_together() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.left, self.right = nn.Linear(16, 32), nn.Linear(32, 8), nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(x).relu()
            return torch.cat([self.left(hidden), self.right(hidden)], dim=-1)

    torch.manual_seed(0)
    model = Forked()
    report = permute_channels(
        model, {"pattern": "2:4", "op_names": ["left", "right"]}, calibration=[realistic_inputs(32, 16)]
    )
    assert [group.layers for group in report.groups] == [("left", "right")]


def test_all_slices_of_a_channel_move_with_it() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.conv, self.flat = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 8, 1), nn.Linear(16 * 4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(x).relu()
            return torch.cat([self.conv(hidden).flatten(1), self.flat(hidden.flatten(1))], dim=-1)

    torch.manual_seed(0)
    model, images = Forked().eval(), torch.randn(8, 4, 4, 4)
    before, expected = bits(model), run(model, images)
    report = permute_channels(model, {"pattern": "2:4", "op_names": ["conv", "flat"]}, calibration=[images])
    assert [group.layers for group in report.groups] == [("conv",)]
    assert bits(model) != before
    torch.testing.assert_close(run(model, images), expected, rtol=1e-5, atol=1e-5)


def test_weights_with_two_names_are_reordered_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 8)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            down: torch.Tensor = self.down(self.first(x).relu() + self.second(-x).relu())
            return down

    torch.manual_seed(0)
    model, inputs = Tied(), realistic_inputs(32, 16)
    before, expected = bits(model), run(model, inputs)
    permute_channels(model, {"pattern": "2:4", "op_names": ["down"]}, calibration=[inputs])
    assert bits(model) != before
    torch.testing.assert_close(run(model, inputs), expected, rtol=1e-5, atol=1e-5)


def test_channels_that_a_grouped_convolution_reads_too_stay() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.grouped, self.plain = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(16, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(x).relu()
            return torch.cat([self.grouped(hidden), self.plain(hidden)], dim=1)

    torch.manual_seed(0)
    model = Forked()
    before = bits(model)
    report = permute_channels(model, {"pattern": "2:4", "op_names": ["plain"]}, calibration=[torch.randn(4, 4, 8, 8)])
    assert report.groups == ()
    assert bits(model) == before


def sum_kept_blocks(model: nn.Module, layers: tuple[str, ...], norms: dict[str, Any], block: tuple[int, int]) -> float:
    """Return the share of the scores in the better half of the blocks of each layer, in the plainest form."""
    kept = total = 0.0
    for name in layers:
        scores = (model.get_submodule(name).weight.detach() * norms[name]).square().numpy()  # type: ignore[operator]
        rows, columns = (range(0, size, step) for size, step in zip(scores.shape, block, strict=True))
        blocks = sorted(
            scores[row : row + block[0], column : column + block[1]].sum() for row in rows for column in columns
        )
        kept += sum(blocks[len(blocks) // 2 :])
        total += scores.sum()
    return kept / total


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("4x1", [("0",), ("2",)]),  # rows of the layers that compute the channels
        ("1x4", [("2",), ("4",)]),  # columns of those that read them
        ("4x4", [("0", "2"), ("2", "4")]),
        ("2x8", [("2",), ("4",)]),  # larger blocks decide
    ],
)
def test_blocks_keep_more(spec: str, layers: list[tuple[str, ...]]) -> None:
    model, plain = perceptron(), perceptron()
    batches = batches_of(model)
    report = permute_channels(model, {"pattern": spec, "target_sparsity": 0.5, "op_names": [".*"]}, calibration=batches)
    assert [group.layers for group in report.groups] == layers
    assert all(group.before < group.after < 1 for group in report.groups)
    torch.testing.assert_close(run(model, batches[0]), run(plain, batches[0]), rtol=1e-5, atol=1e-5)
    block = tuple(map(int, spec.split("x")))
    last = report.groups[-1]
    x = torch.cat(batches)
    norms = {str(place): model[:place](x).detach().norm(dim=0) for place in (0, 2, 4)}
    assert last.after == pytest.approx(sum_kept_blocks(model, last.layers, norms, block), rel=1e-4)  # type: ignore[arg-type]
    first = report.groups[0]
    norms = {str(place): plain[:place](x).detach().norm(dim=0) for place in (0, 2, 4)}
    assert first.before == pytest.approx(sum_kept_blocks(plain, first.layers, norms, block), rel=1e-4)  # type: ignore[arg-type]


def test_blocks_are_searched_relative_to_the_threshold_of_their_layer() -> None:
    model = perceptron()
    batches = batches_of(model)
    norms = torch.cat(batches).norm(dim=0)
    scores = (model[0].weight.detach() * norms).square().T.numpy()  # type: ignore[operator]
    blocks = np.sort(scores.reshape(16, 8, 4).sum(axis=2), axis=None)
    thresholds = np.full(16, blocks[len(blocks) // 2] / scores.mean())
    order = channel_permutation.search_permutation(
        scores / scores.mean(), channel_permutation.BlockGoal(4, thresholds.astype(np.float32))
    )
    best = np.sort(scores[:, order].reshape(16, 8, 4).sum(axis=2), axis=None)[len(blocks) // 2 :].sum()
    config = {"pattern": "4x1", "target_sparsity": 0.5, "op_names": ["0"]}
    (group,) = permute_channels(model, config, calibration=batches).groups
    gain = best / scores.sum() - group.before
    assert group.after - group.before > 0.9 * gain > 0.001


def test_an_order_that_is_no_better_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    batches = batches_of(model)
    permute_channels(model, "2:4", calibration=batches)
    before = bits(model)
    mixed = np.arange(32).reshape(4, -1).T.reshape(-1)
    monkeypatch.setattr(order_search, "search_permutation", lambda _scores, _goal: mixed)
    report = permute_channels(model, "2:4", calibration=batches)
    assert all(group.before == group.after for group in report.groups)
    assert report.footer == ["Reordered 0 of 1 group of channels: pruning removes 0.0% less of the scores."]
    assert bits(model) == before


@pytest.mark.parametrize(("first", "layers"), [(4, [("down",)]), (2, [])])
def test_channels_that_share_groups_with_others_stay(first: int, layers: list[tuple[str, ...]]) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large, self.rest = nn.Linear(16, first), nn.Linear(16, 16), nn.Linear(16, 8 - first)
            self.down = nn.Linear(24, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            joined = torch.cat([layer(x).relu() for layer in (self.small, self.large, self.rest)], dim=-1)
            down: torch.Tensor = self.down(joined)
            return down

    torch.manual_seed(0)
    model = Joined()
    report = permute_channels(model, {"pattern": "2:4", "op_names": ["down"]}, calibration=[realistic_inputs(32, 16)])
    assert [group.layers for group in report.groups] == layers


def test_values_of_heads_are_reordered_for_blocks() -> None:
    model, plain = language_model(), language_model()
    config = {"pattern": "4x1", "target_sparsity": 0.5, "op_names": [r".*layers\.0\..*"]}
    report = permute_channels(model, config, calibration=batches_of(model))
    prefix = "model.layers.0"
    assert [group.layers for group in report.groups] == [
        (f"{prefix}.self_attn.v_proj",),
        (f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"),
    ]
    assert all(group.before < group.after for group in report.groups)
    for batch in batches_of(model):
        torch.testing.assert_close(run(model, batch), run(plain, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", ["1x1", "1xchannel", "4xchannel", "2:4-transposable"])
def test_patterns_without_a_search_are_refused(spec: str) -> None:
    model = perceptron()
    before = bits(model)
    message = f"permute needs N:M or blocks of several channels, such as 2:4 or 4x1, found '{spec}', for which no order"
    with pytest.raises(ConfigError, match=message):
        permute_channels(model, {"pattern": spec, "target_sparsity": 0.5}, calibration=batches_of(model))
    assert bits(model) == before


def test_frozen_orders_stay() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 8, 1)).eval()
    before = bits(grouped)
    report = permute_channels(grouped, {"pattern": "2:4", "op_names": ["1"]}, calibration=[torch.randn(4, 4, 8, 8)])
    assert report.groups == ()
    assert bits(grouped) == before


def test_a_model_whose_outputs_change_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    list_tensors = reordering.list_tensors

    def hide_bias(model: nn.Module) -> dict[str, torch.Tensor]:
        tensors = list_tensors(model)
        return tensors | {"0.bias": tensors["0.bias"].clone()}

    monkeypatch.setattr(reordering, "list_tensors", hide_bias)
    with pytest.raises(CalibrationError, match="outputs of the model changed when its channels were reordered"):
        permute_channels(model, "2:4", calibration=batches_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_equal_models_get_the_same_order() -> None:
    first, second = perceptron(), perceptron()
    for model in (first, second):
        permute_channels(model, "2:4", calibration=batches_of(model))
    assert bits(first) == bits(second)


def test_the_report_is_a_table() -> None:
    model = perceptron()
    report = permute_channels(model, {"pattern": "2:4", "op_names": ["2"]}, calibration=batches_of(model))
    (group,) = report.groups
    lost = (1 - group.after) / (1 - group.before)
    assert f"{group.before:.2%}" in str(report)
    assert report.footer == [f"Reordered 1 of 1 group of channels: pruning removes {1 - lost:.1%} less of the scores."]
    empty = permute_channels(model, {"pattern": "2:4", "op_names": ["0"]}, calibration=batches_of(model))
    assert "No group" in str(empty)


def test_a_compiled_model_is_reordered_inside() -> None:
    model, plain = perceptron(), perceptron()
    batches = batches_of(model)
    permute_channels(plain, "2:4", calibration=batches)
    report = permute_channels(torch.compile(model, backend="eager"), "2:4", calibration=batches)
    assert [group.layers for group in report.groups] == [("2",)]
    assert bits(model) == bits(plain)


def test_the_order_does_not_depend_on_the_size_of_weights() -> None:
    model, large = perceptron().double(), perceptron().double()
    batches = [batch.double() for batch in batches_of(model)]
    with torch.no_grad():
        large[2].weight.mul_(1e25)  # the squares of such scores exceed float32
    reports = [permute_channels(item, "2:4", calibration=batches) for item in (model, large)]
    assert torch.equal(model[0].weight, large[0].weight)
    assert reports[0].groups[0].after == pytest.approx(reports[1].groups[0].after, rel=1e-4)


def test_weights_that_are_not_finite_are_named() -> None:
    model = perceptron()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    before = bits(model)
    with pytest.raises(LayerError, match=r"layer '2': its weights must be finite, found inf or nan\. Check the model"):
        permute_channels(model, {"pattern": "2:4", "op_names": ["2"]}, calibration=batches_of(model))
    assert bits(model) == before
