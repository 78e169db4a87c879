"""Test pattern classes that are written against the base classes of Intel Neural Compressor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression
from secateur.compat.neural_compressor.compression.pruner import prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.criteria import PruningCriterion, register_criterion
from secateur.compat.neural_compressor.compression.pruner.patterns import get_pattern
from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    PATTERNS,
    PytorchBasePattern,
    register_pattern,
)
from secateur.compat.neural_compressor.compression.pruner.patterns.nxm import PytorchPatternNxM
from secateur.errors import ArtifactError, ConfigError, UnknownNameError, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("registries_restored")


class Paired(PytorchBasePattern):
    """Prunes the output channels i and i + O/2 together, ranked over all layers."""

    def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        ranked = []
        for name, score in scores.items():
            half = score.shape[0] // 2
            sums = score.flatten(1).mean(1)
            ranked += [((sums[i] + sums[i + half]).item(), name, i) for i in range(half)]
        masks = {name: torch.ones_like(mask) for name, mask in pre_masks.items()}
        for _, name, row in sorted(ranked)[: int(target_sparsity_ratio * len(ranked))]:
            masks[name][[row, row + scores[name].shape[0] // 2]] = 0
        return masks


def make_model() -> Any:
    torch.manual_seed(0)
    conv, linear = torch.nn.Conv2d(2, 8, 3), torch.nn.Linear(8, 8)
    with torch.no_grad():
        for weight in (conv.weight, linear.weight):
            scale = torch.arange(1.0, 9.0).reshape(-1, *[1] * (weight.dim() - 1))
            weight.copy_(scale.expand_as(weight))
        linear.weight.mul_(10)
    head = torch.nn.Linear(8, 2)
    return torch.nn.Sequential(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear, head)


def find_zero_rows(layer: Any) -> list[int]:
    return [row for row, weight in enumerate(layer.weight) if not bool(weight.any())]


def train(model: torch.nn.Module, optimizer: Any, steps: int = 10) -> None:
    for _ in range(steps):
        model(torch.ones(2, 2, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_class_runs_natively_and_its_artifact_is_verified(tmp_path: Path) -> None:
    register_pattern("ptPaired")(Paired)
    model = make_model()
    config = {"pattern": "ptPaired", "target_sparsity": 0.5, "criterion": "magnitude", "op_names": ["^[03]$"]}
    secateur.prune(model, config)
    # 8 pairs; the 4 with the lowest sums are those of the convolution
    assert find_zero_rows(model[0]) == list(range(8))
    assert find_zero_rows(model[3]) == []
    secateur.save(model, tmp_path / "model")
    secateur.verify(tmp_path / "model")  # raises if the zeros do not have the pattern


@pytest.mark.parametrize("pruning_type", ["magnitude", "magnitude_progressive", "snip_momentum"])
def test_class_in_place_of_blocks_runs_under_both_interfaces(pruning_type: str) -> None:
    register_pattern("ptNxM")(Paired)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = WeightPruningConfig(
        [{"pattern": "4x1", "pruning_type": pruning_type}],
        target_sparsity=0.5,
        start_step=1,
        end_step=9,
        pruning_frequency=4,
    )
    pruning = prepare_pruning(model, config, optimizer)
    train(model, optimizer)
    report = pruning.on_train_end()
    rows = find_zero_rows(model[0]), find_zero_rows(model[3])
    assert sum(map(len, rows)) == 8
    assert all(bool(row + 4 in layer) for layer in rows for row in layer if row < 4)
    assert report.sparsity == sum(model[i].weight.eq(0).sum().item() for i in (0, 3)) / (8 * 18 + 64)
    native = make_model()
    secateur.prune(native, {"pattern": "4x1", "target_sparsity": 0.5, "op_names": ["^[03]$"]})
    assert find_zero_rows(native[0])[:4] == [0, 1, 2, 3]


def test_pattern_lock_keeps_zeros() -> None:
    register_pattern("ptNxM")(Paired)
    model = make_model()
    with torch.no_grad():
        model[3].weight[:4] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    config = WeightPruningConfig([{"pattern": "4x1", "pruning_type": "pattern_lock"}], end_step=9)
    pruning = prepare_pruning(model, config, optimizer)
    train(model, optimizer)
    pruning.on_train_end()
    assert find_zero_rows(model[3]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: {"3": masks["3"]}, r"Wrong\.get_masks must return one mask for each"),
        (lambda masks: {name: mask[:1] for name, mask in masks.items()}, r"Wrong\.get_masks, layer '0': the mask must"),
        (
            lambda masks: {name: mask * 0.5 for name, mask in masks.items()},
            r"Wrong\.get_masks, layer '0': masks must be",
        ),
        (lambda masks: masks.missing, r"Wrong\.get_masks uses something that does not exist: AttributeError .*missing"),
    ],
)
def test_mistakes_name_the_class_and_the_method(change: Any, message: str) -> None:
    @register_pattern("ptWrong")
    class Wrong(PytorchBasePattern):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:  # noqa: ARG002
            return change(pre_masks)

    with pytest.raises(ConfigError, match=message):
        secateur.prune(make_model(), {"pattern": "ptWrong", "target_sparsity": 0.5, "op_names": ["^[03]$"]})


def test_a_class_without_masks_is_refused() -> None:
    @register_pattern("ptWrong")
    class Wrong:
        def __init__(self, *_: Any) -> None:
            pass

    with pytest.raises(UnsupportedModelError, match=r"Wrong must have the method get_masks\. Derive it"):
        secateur.prune(make_model(), {"pattern": "ptWrong", "target_sparsity": 0.5})


def test_a_class_may_refuse_layers_and_needs_no_base() -> None:
    @register_pattern("ptHalf")
    class Half:
        invalid_layers = ("3", "absent")

        def __init__(self, _config: Any, _modules: Any) -> None:
            pass

        def get_masks(self, _scores: Any, _sparsity: float, previous: Any) -> Any:
            return {
                name: mask.flatten().cumsum(0).reshape(mask.shape) > mask.numel() // 2
                for name, mask in previous.items()
            }

    report = secateur.prune(make_model(), {"pattern": "ptHalf", "target_sparsity": 0.5, "op_names": ["^[03]$"]})
    assert [layer.name for layer in report.layers] == ["0"]
    assert report.dense["3"] == "Half lists it in invalid_layers"


def test_a_registered_name_comes_before_the_form_of_a_pattern() -> None:
    register_pattern("mixed")(Paired)
    (element,) = WeightPruningConfig([{"pattern": "mixed"}]).complete_elements()
    assert type(get_pattern(element, {})) is Paired
    with pytest.raises(UnknownNameError, match=r"Unknown pattern 'other'\. Known: .*mixed"):
        get_pattern(element | {"pattern": "other"}, {})


def test_a_class_may_bring_weights_back() -> None:
    @register_pattern("ptAlternating")
    class Alternating(PytorchBasePattern):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:  # noqa: ARG002
            for mask in pre_masks.values():
                first = bool(mask[0].any())
                mask[:] = True
                mask[0 if first else 1] = False
            return pre_masks

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    config = {"pattern": "ptAlternating", "criterion": "magnitude", "start_step": 1, "end_step": 3}
    pruner = secateur.prepare(model, {**config, "pruning_frequency": 1}, optimizer)
    rows = []
    for _ in range(4):
        train(model, optimizer, steps=1)
        rows.append(find_zero_rows(model[3]))
    # A row that is back starts from zero, and the next step trains it.
    assert rows == [[0], [0, 1], [0, 1], [0]]
    pruner.finalize()


@pytest.mark.parametrize(("name", "share"), [("4x1", 0.5), ("2:4", 0.5), ("1xchannel", 0.25)])
def test_default_methods_select_exactly(name: str, share: float) -> None:
    (element,) = WeightPruningConfig([{"pattern": name}], max_sparsity_ratio_per_op=0.9).complete_elements()
    layers = {"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 16)}
    pattern = get_pattern(element, layers)
    ones = {key: torch.ones_like(layer.weight, dtype=torch.bool) for key, layer in layers.items()}
    masks = pattern.get_masks({key: layer.weight.detach().abs() for key, layer in layers.items()}, share, ones)
    assert sum((~mask).sum().item() for mask in masks.values()) == share * 192
    assert pattern.get_sparsity_ratio_progressive(masks) == share
    assert pattern.update_residual_cnt(masks, share) == int(share * pattern.total_params_cnt)


def test_single_mask_and_reduction() -> None:
    (element,) = WeightPruningConfig([{"pattern": "4x1"}]).complete_elements()
    pattern = get_pattern(element, {"a": torch.nn.Linear(8, 8)})
    assert pattern.get_single_mask_per_target_ratio(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5).tolist() == [1, 0, 0, 1]
    assert pattern.reduce_tensor(torch.tensor([[1.0, 3.0]]), 1).tolist() == [2.0]


def make_comparable_model() -> Any:
    """A convolution and a linear layer with 64 weights per output channel, so that both lose some."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(4, 64, 4), torch.nn.Linear(64, 128), torch.nn.Linear(128, 8)
    pool = torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(layers[0], *pool, layers[1], torch.nn.ReLU(), layers[2])


# Zeros of the convolution and of the linear layer before each step, measured with Intel Neural Compressor 2.x on this
# model, with this class and these batches.
MEASURED = {
    "magnitude": [[0, 0]] * 3 + [[896, 1408]] * 2 + [[1536, 3072]] * 2 + [[2432, 4480]] * 2 + [[3328, 5888]] * 3,
    "snip_momentum": [[0, 0]] * 3 + [[0, 2304]] * 2 + [[1280, 3328]] * 2 + [[2560, 4352]] * 2 + [[3456, 5760]] * 3,
    "snip": [[0, 0]] * 3 + [[256, 2048]] * 2 + [[896, 3712]] * 2 + [[2432, 4480]] * 2 + [[3072, 6144]] * 3,
    # Gradients of pruned weights are not zero, so that weights come back.
    "gradient": [[0, 0]] * 3
    + [[128, 2176]] * 2
    + [[1024, 4224], [896, 3996], [3328, 4935], [3328, 4528], [3456, 7168], [2496, 7028], [2496, 7028]],
}


@pytest.mark.parametrize("pruning_type", MEASURED)
def test_sparsity_of_each_layer_is_that_of_neural_compressor(pruning_type: str) -> None:
    register_pattern("ptNxM")(Paired)
    model = make_comparable_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    element = {"pattern": "4x1", "pruning_type": pruning_type, "sparsity_decay_type": "linear"}
    steps = {"start_step": 1, "end_step": 9, "pruning_frequency": 2}
    manager = prepare_compression(model, WeightPruningConfig([element], target_sparsity=0.75, **steps))
    generator = torch.Generator().manual_seed(3)
    found = []
    for step in range(12):
        manager.callbacks.on_step_begin(step)
        found.append([int((model[index].weight == 0).sum()) for index in (0, 4)])
        inputs, labels = torch.randn(8, 4, 6, 6, generator=generator), torch.randint(8, (8,), generator=generator)
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        manager.callbacks.on_before_optimizer_step()
        optimizer.step()
        manager.callbacks.on_after_optimizer_step()
        optimizer.zero_grad()
    assert found == MEASURED[pruning_type]
    report = manager.callbacks.on_train_end()
    pruned = [layer.pruned_weights for layer in report.layers]
    assert sum(pruned) == 0.75 * (4096 + 8192)
    assert pruned == found[-1] or pruning_type == "gradient"  # weights that are back need not be trained yet


@pytest.mark.parametrize("kind", ["iterative", "progressive"])
def test_class_trains_natively_and_resumes(kind: str, tmp_path: Path) -> None:
    register_pattern("ptPaired")(Paired)
    settings = {"pattern": "ptPaired", "target_sparsity": 0.5, "criterion": "snip_momentum", "kind": kind}
    steps = {"start_step": 1, "end_step": 9, "pruning_frequency": 4}

    def start() -> tuple[Any, Any, Any]:
        model = make_comparable_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, secateur.prepare(model, {**settings, **steps, "op_names": ["^[04]$"]}, optimizer)

    def step(model: Any, optimizer: Any, count: int) -> None:
        for _ in range(count):
            model(torch.ones(2, 4, 6, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer, pruner = start()
    step(model, optimizer, 6)
    state = [copy.deepcopy(each.state_dict()) for each in (model, optimizer, pruner)]
    step(model, optimizer, 6)
    again = start()
    for each, saved in zip(again, state, strict=True):
        each.load_state_dict(saved)
    step(*again[:2], 6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again[0].parameters(), strict=True))
    report = pruner.finalize()
    assert report.sparsity == 0.5
    assert sum(layer.pruned_weights for layer in report.layers) == 0.5 * (4096 + 8192)
    secateur.save(model, tmp_path / "model", report=report)
    # Without get_pattern_lock_masks, the class does not tell which weights are pruned together.
    assert secateur.verify(tmp_path / "model").tensors[0].verified_as == "1x1"


class LockedRows(PytorchBasePattern):
    """Whole output channels: those that are zero, and no other zeros, are kept."""

    def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:
        for name, mask in pre_masks.items():
            rows = scores[name].flatten(1).sum(1).argsort()
            mask[rows[: int(target_sparsity_ratio * len(rows))]] = False
        return pre_masks

    def get_pattern_lock_masks(self, modules: Any) -> dict[str, Any]:
        masks = {}
        for name, module in modules.items():
            alive = (module.weight.detach() != 0).flatten(1).any(1)
            masks[name] = alive.reshape(-1, *[1] * (module.weight.dim() - 1)).expand_as(module.weight)
        return masks


@pytest.mark.parametrize("interface", ["compat", "native"])
def test_pattern_lock_asks_the_class(interface: str) -> None:
    register_pattern("ptNxM")(LockedRows)
    model = make_model()
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight[:2] = 0
            layer.weight[5].view(-1)[0] = 0  # this zero is not part of a whole row, so it may change
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    if interface == "compat":
        config = WeightPruningConfig([{"pattern": "4x1", "pruning_type": "pattern_lock"}], end_step=9)
        pruning = prepare_pruning(model, config, optimizer)
    else:
        config = {"pattern": "ptNxM(4x1)", "kind": "pattern_lock", "op_names": ["^[03]$"]}
        pruning = secateur.prepare(model, config, optimizer)
    train(model, optimizer)
    assert [find_zero_rows(model[index]) for index in (0, 3)] == [[0, 1]] * 2
    assert bool(model[0].weight[5].all())
    assert bool(model[3].weight[5].all())
    pruning.on_train_end() if interface == "compat" else pruning.finalize()


def test_zeros_of_a_checkpoint_are_those_of_the_class() -> None:
    register_pattern("ptNxM")(LockedRows)
    model = make_model()
    with torch.no_grad():
        model[3].weight[:2] = 0
        model[3].weight[5, 0] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    element = {"pattern": "4x1", "pruning_type": "magnitude", "lock_init_sparsity": True, "op_names": ["3"]}
    config = WeightPruningConfig([element], target_sparsity=0.5, start_step=1, end_step=9, pruning_frequency=4)
    pruning = prepare_pruning(model, config, optimizer)
    train(model, optimizer, steps=1)
    assert find_zero_rows(model[3]) == [0, 1]
    assert bool(model[3].weight[5].all())
    train(model, optimizer)
    assert pruning.on_train_end().sparsity == 0.5
    assert find_zero_rows(model[3]) == [0, 1, 2, 3]


def test_verify_asks_the_class(tmp_path: Path) -> None:
    register_pattern("ptRows")(LockedRows)
    model = make_model()
    report = secateur.prune(model, {"pattern": "ptRows", "target_sparsity": 0.5, "op_names": ["^[03]$"]})
    secateur.save(model, tmp_path / "good", report=report)
    verified = secateur.verify(tmp_path / "good")
    assert {row.name: (row.pattern, row.verified_as) for row in verified.tensors if row.zeros} == {
        "0.weight": ("ptRows", None),
        "3.weight": ("ptRows", None),
    }
    with torch.no_grad():  # as many zeros, but not in whole rows
        model[3].weight[0, 0] = 1.0
        model[3].weight[7, 0] = 0.0
    with pytest.raises(ArtifactError, match=r"layer .* but 2?[0-9]+ of its units are zero, but \d+ were pruned"):
        secateur.save(model, tmp_path / "bad", report=report)


def test_verify_of_an_unknown_class_counts_single_weights(tmp_path: Path) -> None:
    register_pattern("ptRows")(LockedRows)
    model = make_model()
    report = secateur.prune(model, {"pattern": "ptRows", "target_sparsity": 0.5, "op_names": ["^[03]$"]})
    secateur.save(model, tmp_path / "model", report=report)
    del PATTERNS["ptRows"]
    verified = secateur.verify(tmp_path / "model")
    assert {row.verified_as for row in verified.tensors if row.zeros} == {"1x1"}
    assert "The zeros of 'ptRows' were verified as '1x1', because no registered class defines" in str(verified)
    assert verified.to_dict()["tensors"][0]["verified_as"] == "1x1"


def test_a_class_that_needs_its_own_layers_counts_single_weights(tmp_path: Path) -> None:
    @register_pattern("ptRows")
    class NamedRows(LockedRows):
        def __init__(self, config: Any, modules: Any) -> None:
            super().__init__(config, modules)
            self.width = modules["3"].weight.shape[0]

    model = make_model()
    report = secateur.prune(model, {"pattern": "ptRows", "target_sparsity": 0.5, "op_names": ["^[03]$"]})
    secateur.save(model, tmp_path / "model", report=report)
    assert {row.verified_as for row in secateur.verify(tmp_path / "model").tensors if row.zeros} == {"1x1"}


def test_weights_of_other_layers_count_single_weights(tmp_path: Path) -> None:
    register_pattern("ptRows")(LockedRows)
    model = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 4, 3), torch.nn.Flatten())
    report = secateur.prune(model, {"pattern": "ptRows", "target_sparsity": 0.5, "op_names": ["0"]})
    secateur.save(model, tmp_path / "model", report=report)
    assert {row.verified_as for row in secateur.verify(tmp_path / "model").tensors if row.zeros} == {"1x1"}


def test_a_layer_that_was_pruned_completely_may_come_back() -> None:
    @register_pattern("ptOneLayer")
    class OneLayer(PytorchBasePattern):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:  # noqa: ARG002
            first, second = pre_masks.values()
            is_dense = bool(first.any())
            first[:], second[:] = not is_dense, is_dense
            return pre_masks

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    config = {"pattern": "ptOneLayer", "criterion": "magnitude", "start_step": 1, "end_step": 4, "op_names": ["^[03]$"]}
    pruner = secateur.prepare(model, {**config, "pruning_frequency": 1}, optimizer)
    states = []
    for _ in range(4):
        train(model, optimizer, steps=1)
        states.append([bool(pruner.masks[name].all()) for name in ("0", "3")])
    assert states == [[False, True], [True, False]] * 2


def test_scores_are_reduced_and_copied() -> None:
    seen = []

    @register_pattern("ptNxM")
    class Blocks(PytorchPatternNxM):
        def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> Any:
            seen.append({name: (tuple(score.shape), score.is_contiguous()) for name, score in scores.items()})
            masks = super().get_masks(scores, target_sparsity_ratio, pre_masks)
            for tensor in (*scores.values(), *pre_masks.values()):
                tensor.zero_()
            return masks

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    element = {"pattern": "4x1", "pruning_type": "magnitude_progressive"}
    config = WeightPruningConfig([element], target_sparsity=0.5, start_step=1, end_step=17, pruning_frequency=8)
    pruning = prepare_pruning(model, config, optimizer)
    zeros = []
    for _ in range(20):
        train(model, optimizer, steps=1)
        zeros.append(sum(int((model[index].weight == 0).sum()) for index in (0, 3)))
    assert seen[0] == {"0": ((2, 18), True), "3": ((2, 8), True)}
    assert pruning.on_train_end().sparsity == 0.5
    assert len(set(zeros)) > 3  # in parts
    assert sorted(zeros) == zeros


def test_solvers_are_refused() -> None:
    register_pattern("ptPaired")(Paired)
    config = {"pattern": "ptPaired", "target_sparsity": 0.5, "op_names": ["^[03]$"]}
    with pytest.raises(ConfigError, match="selects the weights of torch or Keras layers, not of arrays or of parts of"):
        secateur.prune(make_model(), config, calibration=[torch.ones(2, 2, 5, 5)], solver="wanda")


@pytest.mark.parametrize("interface", ["compat", "native"])
def test_the_class_orders_the_parts_of_progressive_runs(interface: str) -> None:
    calls = []

    @register_pattern("ptNxM")
    class Ordered(Paired):
        def update_progressive_masks(
            self, pre_masks: Any, cur_masks: Any, scores: Any, progressive_step: int, progressive_configs: Any
        ) -> Any:
            calls.append((progressive_step, progressive_configs["progressive_steps"]))
            for name, mask in pre_masks.items():
                assert scores[name].shape == mask.shape
                rows = len(mask) * progressive_step // progressive_configs["progressive_steps"]
                mask[-rows:] &= cur_masks[name][-rows:].bool()  # the last rows first
            return pre_masks

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    keys = {"start_step": 1, "end_step": 9, "pruning_frequency": 8}
    if interface == "compat":
        element = {"pattern": "4x1", "pruning_type": "magnitude_progressive", "sparsity_decay_type": "linear"}
        later = {**keys, "end_step": 16}  # the parts follow the update after step 9
        prepare_pruning(model, WeightPruningConfig([element], target_sparsity=0.5, **later), optimizer)
    else:
        settings = {"pattern": "ptNxM(4x1)", "criterion": "magnitude", "kind": "progressive", "target_sparsity": 0.5}
        secateur.prepare(model, {**settings, **keys, "op_names": ["^[03]$"]}, optimizer)
    found = []
    for _ in range(20):
        train(model, optimizer, steps=1)
        if (rows := find_zero_rows(model[0])) and rows not in found:
            found.append(rows)
    assert found == [[6, 7], [4, 5, 6, 7], [2, 3, 4, 5, 6, 7], list(range(8))]
    assert calls[-3:] == [(1, 4), (2, 4), (3, 4)]


def test_masks_between_updates_are_checked() -> None:
    @register_pattern("ptWrong")
    class Wrong(Paired):
        def update_progressive_masks(self, pre_masks: Any, *_: Any) -> Any:
            return {name: mask[:1] for name, mask in pre_masks.items()}

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = {"pattern": "ptWrong", "criterion": "magnitude", "kind": "progressive", "start_step": 1, "end_step": 9}
    secateur.prepare(model, {**config, "pruning_frequency": 8, "op_names": ["^[03]$"]}, optimizer)
    with pytest.raises(ConfigError, match=r"Wrong\.update_progressive_masks, layer '0': the mask must"):
        train(model, optimizer)


@pytest.mark.parametrize("reduce_type", ["mean", "sum"])
def test_a_criterion_of_the_user_ranks_for_a_pattern_of_the_user(reduce_type: str) -> None:
    class Blocks(PytorchPatternNxM):
        pass

    class Squared(PruningCriterion):
        def on_step_begin(self) -> None:
            for name, module in self.modules.items():
                self.scores[name] = self.pattern.reduce_score(module.weight.detach() ** 2, name)

    def prune(*, with_classes: bool) -> list[list[bool]]:
        if with_classes:
            register_pattern("ptNxM")(Blocks)
            register_criterion("squared")(Squared)
        model = make_comparable_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        kind = "squared" if with_classes else "magnitude"
        element = {"pattern": "1xchannel", "pruning_type": kind, "criterion_reduce_type": reduce_type}
        config = WeightPruningConfig([element], target_sparsity=0.5, start_step=1, end_step=2)
        prepare_pruning(model, config, optimizer)
        for _ in range(4):
            model(torch.ones(2, 4, 6, 6)).square().mean().backward()
            optimizer.step()
        return [(model[index].weight != 0).flatten(1).any(1).tolist() for index in (0, 4)]

    builtin = prune(with_classes=False)
    own = prune(with_classes=True)
    assert sum(map(sum, own)) == sum(map(sum, builtin)) == (64 + 128) / 2
    weights = [make_comparable_model()[index].weight.detach() ** 2 for index in (0, 4)]
    sums = torch.cat([weight.flatten(1).sum(1) for weight in weights])
    assert [*own[0], *own[1]] == (sums > sums.sort().values[95]).tolist()
