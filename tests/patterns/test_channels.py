"""Hidden channels and everything that is coupled to them, in models whose graph is traced or written by hand."""

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.criteria import CRITERIA
from secateur.errors import CalibrationError, ConfigError, LayerError, StateError
from secateur.graph import AffineMap, Constraints, Graph, Group, Member, Role, trace
from secateur.patterns import WeightView, get_pattern
from secateur.patterns.coupled import GroupPattern
from secateur.schedules import SCHEDULES

CHANNELS: dict[str, Any] = {"pattern": "channels", "target_sparsity": 0.5, "pruning_scope": "local"}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A residual block, a depthwise convolution, a concatenation and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 4, 1)
        self.classifier = nn.Linear(12 * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.norm(self.stem(images)))
        body = stem + self.conv2(torch.relu(self.depthwise(torch.relu(self.conv1(stem)))))
        both = torch.cat([body, self.side(body)], dim=1)
        return self.classifier(torch.nn.functional.adaptive_avg_pool2d(both, 2).flatten(1))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def perceptron(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def find_pruned(model: nn.Module, group: Group) -> set[int]:
    """The units of a group of which every weight of every producer and consumer is zero."""
    weights = dict(model.named_parameters())
    members = [member for member in group.members if member.role in (Role.PRODUCER, Role.CONSUMER)]
    members = [member for member in members if weights[member.parameter].ndim > 1]
    zero = np.ones(group.units, dtype=bool)
    for member in members:
        rows = weights[member.parameter].movedim(member.axis, 0)
        zero &= np.array([bool((rows[index] == 0).all()) for index in member.index_map.indices()])
    return set(np.flatnonzero(zero).tolist())


def get_usable(model: nn.Module, inputs: Any) -> list[Group]:
    groups = [group for group in trace(model, inputs).groups if group.kind == "channels"]
    return [group for group in groups if group.obstacle is None and group.inexact is None]


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", [0.25, 0.5, 0.7])
def test_exactly_the_share_of_channels_is_pruned(scope: str, target: float) -> None:
    model = residual()
    groups = get_usable(model, IMAGES)
    config = CHANNELS | {"target_sparsity": target, "pruning_scope": scope}
    report = secateur.prune(model, config, example_inputs=IMAGES)
    counts = [len(find_pruned(model, group)) for group in groups]
    units = [group.units for group in groups]
    assert sorted(units) == [4, 8, 12]
    if scope == "local":
        assert counts == [round(target * count) for count in units]
    else:
        assert sum(counts) == round(target * sum(units))
    assert report.unit_sparsity == pytest.approx(sum(counts) / sum(units))
    for layer in report.layers:
        weight = model.get_submodule(layer.name).weight
        assert layer.pruned_weights == int((weight == 0).sum())


def test_masked_channels_have_no_effect() -> None:
    model = residual()
    groups = get_usable(model, IMAGES)
    secateur.prune(model, CHANNELS, example_inputs=IMAGES)
    before = model(IMAGES)
    with torch.no_grad():
        for group in groups:
            for member in group.members:
                if member.role is not Role.CONSUMER:
                    values = model.get_parameter(member.parameter) if "running" not in member.parameter else None
                    for unit in find_pruned(model, group):
                        if values is not None:
                            values.movedim(member.axis, 0)[member.index_map.indices()[unit]] += 1.0
    torch.testing.assert_close(model(IMAGES), before)


def test_rows_show_the_groups_of_both_axes_and_reasons() -> None:
    plan = secateur.plan(residual(), CHANNELS, example_inputs=IMAGES)
    rows = {row.name: row for row in plan.layers}
    assert rows["conv1"].sizes == ((8, 108), (12, 72))
    assert rows["conv1"].weights == 12 * 8 * 9
    assert rows["conv1"].units == 20
    assert rows["conv1"].sparsity_range == (0.75, 0.75)
    assert len(rows["conv1"].groups) == 2
    table = str(plan)
    assert "group of channels" in table
    pruned = [group for group in plan.groups if group.is_pruned]
    members = "computed by conv1, depthwise; read by conv2"
    assert pruned[1].describe_members() == members
    assert [group.units for group in pruned] == [8, 12, 4]
    assert all(group.sparsity_range == (0.5, 0.5) for group in pruned)
    returned = next(group for group in plan.groups if group.units == 5)
    assert returned.reason is not None
    assert "returns" in returned.reason
    values = plan.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["groups"][0]["members"][0].keys() == {"parameter", "axis", "role"}
    assert "<table" in plan._repr_html_()


def test_layers_with_both_axes_are_reported_by_weight() -> None:
    model = residual()
    report = secateur.prune(model, CHANNELS, example_inputs=IMAGES)
    found = {layer.name: layer for layer in report.layers}
    assert found["conv1"].pattern == "channels"
    assert (found["conv1"].units, found["conv1"].pruned_units) == (20, 10)
    assert found["conv1"].sparsity == 0.75
    assert (found["stem"].pattern, found["stem"].units, found["stem"].pruned_units) == ("1xchannel", 8, 4)


def test_a_saved_model_is_verified(tmp_path: Path) -> None:
    model = residual()
    report = secateur.prune(model, CHANNELS, example_inputs=IMAGES)
    secateur.save(model, tmp_path / "saved", report=report)
    assert secateur.verify(tmp_path / "saved").problems == {}
    restored = secateur.load(tmp_path / "saved", model=residual())
    torch.testing.assert_close(restored(IMAGES), model(IMAGES))


@pytest.mark.parametrize("kind", ["iterative", "progressive"])
@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "magnitude"},
        {"criterion": "snip_momentum"},
        {"criterion": "snip_momentum", "criterion_reduce_type": "max"},
        {"criterion": "mask_gradient", "pruning_scope": "global"},
        {"reg_type": "group_lasso", "reg_coeff": 0.01},
        {"granularity": 4, "target_sparsity": 0.4},
        {"granularity": 4, "target_sparsity": 0.4, "pruning_scope": "global", "criterion": "snip_momentum"},
        {"keep_zeros": True},
    ],
    ids=str,
)
def test_training_prunes_and_resumes(kind: str, settings: dict[str, Any]) -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            model(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    config = CHANNELS | {"kind": kind, "start_step": 1, "end_step": 9, "pruning_frequency": 4} | settings
    runs = []
    for _ in range(2):
        model = residual()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        runs.append((model, optimizer, secateur.prepare(model, config, optimizer, example_inputs=IMAGES)))
    model, optimizer, pruner = runs[0]
    train(model, optimizer, range(6))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    for part, saved in zip(runs[1], state, strict=True):
        part.load_state_dict(saved)
    for trained, stepper, run in runs:
        train(trained, stepper, range(6, 12))
        report = run.finalize()
        assert report.is_complete
    assert all(torch.equal(weight, runs[1][0].get_parameter(name)) for name, weight in model.named_parameters())
    groups = get_usable(residual(), IMAGES)
    counts = [len(find_pruned(model, group)) for group in groups]
    total, step = sum(group.units for group in groups), settings.get("granularity", 1)
    target = config["target_sparsity"]
    if step > 1:
        assert all((group.units - count) % step == 0 for group, count in zip(groups, counts, strict=True))
        assert abs(sum(counts) - target * total) <= 4
    elif config["pruning_scope"] == "local":
        assert counts == [round(target * group.units) for group in groups]
    else:
        assert sum(counts) == round(target * total)


def test_locks_keep_the_zeros_of_channels() -> None:
    model = residual()
    secateur.prune(model, CHANNELS, example_inputs=IMAGES)
    zeros = {name: weight == 0 for name, weight in model.named_parameters() if weight.ndim > 1}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, {"pattern": "channels", "kind": "pattern_lock", "granularity": 4}, optimizer)
    for _ in range(3):
        model(IMAGES).square().mean().backward()
        optimizer.step()
    pruner.finalize()
    for name, flags in zeros.items():
        assert not model.get_parameter(name)[flags].any()


def test_gradients_of_a_loss_rank_channels_with_calibration_data_as_example_inputs() -> None:
    model = residual()
    batches = iter([(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(3)])
    config = CHANNELS | {"criterion": "mask_fisher"}
    report = secateur.prune(
        model, config, calibration=batches, loss=lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1])
    )
    assert report.unit_sparsity == 0.5


def test_solvers_of_single_layers_refuse_channels() -> None:
    model = residual()
    before = copy.deepcopy(model.state_dict())
    for solver in ("ria", "sparsegpt", "alps"):
        with pytest.raises(ConfigError, match=r"solver must support groups of units, .* Use one of .*'osscar'"):
            secateur.prune(model, CHANNELS, calibration=[IMAGES], solver=solver)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("solver", ["magnitude", "wanda", "osscar"])
def test_solvers_of_units_prune_channels_to_the_target(solver: str) -> None:
    report = secateur.prune(residual(), CHANNELS, calibration=[IMAGES], solver=solver)
    assert report.unit_sparsity == 0.5


def test_example_inputs_are_needed() -> None:
    match = r"The pattern 'channels' needs example inputs .* Pass example_inputs=batch"
    for call in (secateur.plan, secateur.prune, secateur.prepare):
        with pytest.raises(ConfigError, match=match):
            call(residual(), CHANNELS)
    with pytest.raises(CalibrationError, match="must accept the example inputs"):
        secateur.plan(residual(), CHANNELS, example_inputs=torch.randn(2, 7))
    with pytest.raises(CalibrationError, match="at least one batch"):
        secateur.prune(residual(), CHANNELS, calibration=[])


def test_a_graph_serves_as_example_inputs() -> None:
    first, second = residual(), residual()
    graph = trace(first, IMAGES)
    secateur.prune(first, CHANNELS, example_inputs=graph)
    secateur.prune(second, CHANNELS, example_inputs=IMAGES)
    assert all(torch.equal(weight, second.get_parameter(name)) for name, weight in first.named_parameters())


def test_a_target_of_everything_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"target_sparsity must be less than 1 for 'channels', found 1.0: at least one"
    ):
        secateur.prune(residual(), CHANNELS | {"target_sparsity": 1.0}, example_inputs=IMAGES)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_at_least_one_channel_of_each_group_stays(scope: str) -> None:
    model = perceptron(4, 4, 4, 4)
    config = CHANNELS | {"target_sparsity": 0.9, "pruning_scope": scope, "max_sparsity_ratio_per_op": 1.0}
    report = secateur.prune(model, config, example_inputs=torch.randn(2, 4))
    assert report.unit_sparsity == 0.75
    assert [group.units - len(find_pruned(model, group)) for group in get_usable(model, torch.randn(2, 4))] == [1, 1]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_granularity(scope: str) -> None:
    model = perceptron(4, 64, 48, 40, 3)
    config = CHANNELS | {"granularity": 16, "target_sparsity": 0.4, "pruning_scope": scope}
    plan = secateur.plan(model, config, example_inputs=torch.randn(2, 4))
    assert "Each group keeps a multiple of 16 units, or all; targets are rounded." in str(plan)
    ranges = [group.sparsity_range for group in plan.groups if group.is_pruned]
    secateur.prune(model, config, example_inputs=torch.randn(2, 4))
    groups = get_usable(perceptron(4, 64, 48, 40, 3), torch.randn(2, 4))
    pruned = [len(find_pruned(model, group)) for group in groups]
    kept = [group.units - count for group, count in zip(groups, pruned, strict=True)]
    if scope == "local":  # 26 of 64, 19 of 48 and 16 of 40 are wanted
        assert kept == [32, 32, 32]
    assert all(count % 16 == 0 or count == group.units for group, count in zip(groups, kept, strict=True))
    assert abs(sum(pruned) - 0.4 * 152) <= 8
    for (low, high), group, count in zip(ranges, groups, pruned, strict=True):
        assert low <= count / group.units <= high


def test_settings_of_coupled_patterns_are_refused_for_others() -> None:
    for settings, text in (({"granularity": 8}, "granularity=8"), ({"allow_inexact": True}, "allow_inexact=True")):
        with pytest.raises(ConfigError, match=rf"{text} has no effect with pattern '4x1'.*Set {text.split('=')[0]}="):
            secateur.plan(nn.Linear(8, 8), {"pattern": "4x1"} | settings)
    with pytest.raises(ConfigError, match="granularity: Input should be greater than or equal to 1, found 0"):
        secateur.PruningConfig(granularity=0)


class Normed(nn.Module):
    """A stream of channels that a layer norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(values)))


def test_inexact_groups_are_pruned_only_if_allowed() -> None:
    with pytest.raises(LayerError, match=r"removing its channels would change outputs: .*allow_inexact=True"):
        secateur.prune(Normed(), CHANNELS, example_inputs=torch.randn(2, 4))
    model = Normed()
    report = secateur.prune(model, CHANNELS | {"allow_inexact": True}, example_inputs=torch.randn(2, 4))
    assert report.unit_sparsity == 0.5
    assert int((model.last.weight == 0).all(dim=0).sum()) == 4


def view(outputs: int, inputs: int) -> WeightView:
    return WeightView(shape=(outputs, inputs), output_axes=(0,), input_axes=(1,))


def member(parameter: str, shape: tuple[int, ...], axis: int, role: Role, units: int = 2, **maps: int) -> Member:
    return Member(parameter=parameter, shape=shape, axis=axis, index_map=AffineMap(units=units, **maps), role=role)


def make_pattern(views: dict[str, WeightView], *groups: Group, **config: Any) -> GroupPattern:
    pattern = get_pattern(CHANNELS | config, views, "array", groups=groups)
    assert isinstance(pattern, GroupPattern)
    return pattern


def test_producers_may_be_missing_and_consumers_may_not() -> None:
    producer = member("embedding", (2, 5), 0, Role.PRODUCER)
    consumer = member("fc", (3, 2), 1, Role.CONSUMER)
    other = member("head", (7, 2), 1, Role.CONSUMER)
    pattern = make_pattern({"fc": view(3, 2)}, Group(units=2, members=(producer, consumer), name="g"))
    assert list(pattern.units["g"].parts) == ["fc"]
    pattern = make_pattern({"fc": view(3, 2)}, Group(units=2, members=(producer, consumer, other), name="g"))
    reason = "its channels have parts in head, which this configuration does not prune"
    assert pattern.invalid_layers == {"fc": reason}
    assert [text for _, text in pattern.unusable] == [reason]


def test_layers_that_only_pass_on_channels_have_a_reason() -> None:
    consumer = member("fc", (3, 2), 1, Role.CONSUMER)
    depthwise = WeightView(shape=(2, 1, 3), output_axes=(0,), kernel_axes=(2,), input_axes=(1,), groups=2)
    group = Group(units=2, members=(consumer, member("depthwise", (2, 1, 3), 0, Role.PER_CHANNEL)), name="g")
    pattern = make_pattern({"fc": view(3, 2), "depthwise": depthwise}, group)
    reason = "it only passes on the channels of 'g', each with its own weights"
    assert pattern.invalid_layers == {"depthwise": reason}
    lonely = Group(units=2, members=(group.members[1],), name="h")
    pattern = make_pattern({"depthwise": depthwise}, lonely)
    assert pattern.invalid_layers == {"depthwise": "no weight computes or reads its channels"}


@pytest.mark.parametrize("axis", [0, 1])
def test_grouped_convolutions_are_sliced(axis: int) -> None:
    grouped = WeightView(shape=(4, 2, 3), output_axes=(0,), kernel_axes=(2,), input_axes=(1,), groups=2)
    role = (Role.PRODUCER, Role.CONSUMER)[axis]
    group = Group(units=2, members=(member("conv", (4, 2, 3), axis, role, width=2 - axis),), name="g")
    pattern = make_pattern({"conv": grouped}, group)
    masks = pattern.weight_masks({"g": np.array([True, False])})
    np.testing.assert_array_equal(masks["conv"], group.masks(np.array([True, False]))["conv"])


def test_axes_of_stacked_weights_are_sliced() -> None:
    experts = WeightView.from_stack((3, 4, 5))
    for axis, role in ((1, Role.PRODUCER), (2, Role.CONSUMER), (0, Role.PRODUCER)):
        units = (3, 4, 5)[axis]
        group = Group(units=units, members=(member("experts", (3, 4, 5), axis, role, units=units),), name="g")
        pattern = make_pattern({"experts": experts}, group)
        keep = np.arange(units) % 2 == 0
        masks = pattern.weight_masks({"g": keep})
        np.testing.assert_array_equal(masks["experts"], group.masks(keep)["experts"])


def test_units_that_must_keep_equal_numbers_per_part() -> None:
    consumer = member("fc", (1, 6), 1, Role.CONSUMER, units=6)
    group = Group(units=6, members=(consumer,), name="g", constraints=Constraints(equal_parts=2))
    scores = {"fc": np.array([[1.0, 2.0, 3.0, 7.0, 8.0, 9.0]], dtype=np.float32)}
    for scope in ("local", "global"):
        pattern = make_pattern({"fc": view(1, 6)}, group, target_sparsity=0.34, pruning_scope=scope)
        masks = pattern.masks(scores)
        np.testing.assert_array_equal(masks["fc"], [[False, True, True, False, True, True]])
        later = pattern.masks(scores, sparsity=0.6, previous=masks)
        np.testing.assert_array_equal(later["fc"], [[False, False, True, False, False, True]])


def test_names_of_units_are_not_those_of_layers() -> None:
    first = Group(
        units=2, members=(member("a", (2, 3), 0, Role.PRODUCER), member("b", (2, 2), 1, Role.CONSUMER)), name="a"
    )
    second = Group(
        units=2, members=(member("b", (2, 2), 0, Role.PRODUCER), member("c", (3, 2), 1, Role.CONSUMER)), name="b"
    )
    pattern = make_pattern({"a": view(2, 3), "b": view(2, 2), "c": view(3, 2)}, first, second)
    assert list(pattern.units) == ["a.channels", "b.channels"]
    pattern.keep_mask_layers["b.channels"] = "mine"
    assert [pattern.is_frozen(name) for name in pattern.units] == [False, True]
    pattern.keep_mask_layers["b"] = "mine"
    assert [pattern.is_frozen(name) for name in pattern.units] == [True, True]


def test_a_graph_written_by_hand() -> None:
    model = perceptron(3, 2, 3)
    group = Group(
        units=2, members=(member("0.weight", (2, 3), 0, Role.PRODUCER), member("2.weight", (3, 2), 1, Role.CONSUMER))
    )
    secateur.prune(model, CHANNELS, example_inputs=Graph(groups=(group,)))
    assert len(find_pruned(model, group)) == 1


@pytest.mark.parametrize("make", [lambda: nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)])
def test_heads_come_from_the_graph_if_there_are_example_inputs(make: Callable[[], nn.Module]) -> None:
    group = Group(
        units=4,
        members=(member("linear1.weight", (32, 16), 0, Role.PRODUCER, units=4, width=8),),
        kind="heads",
        name="mine",
    )
    plan = secateur.plan(make(), {"pattern": "heads", "target_sparsity": 0.5}, example_inputs=Graph(groups=(group,)))
    assert [row.name for row in plan.layers if row.is_pruned] == ["linear1"]
    plan = secateur.plan(make(), {"pattern": "heads", "target_sparsity": 0.5})
    assert [row.name for row in plan.layers if row.is_pruned] == ["self_attn", "self_attn.out_proj"]


@pytest.mark.parametrize("inputs", [None, np.ones((2, 6))])
def test_keras_models_need_no_example_inputs(inputs: Any) -> None:
    import keras

    layers = [keras.layers.Dense(size, name=f"fc{size}") for size in (8, 3)]
    plan = secateur.plan(keras.Sequential([keras.Input((6,)), *layers]), CHANNELS, example_inputs=inputs)
    assert [(group.name, group.units) for group in plan.groups if group.is_pruned] == [("fc8.channels", 8)]


def test_a_graph_of_another_model_is_refused() -> None:
    graph = trace(perceptron(4, 8, 3), torch.randn(2, 4))
    match = r"the weight of '0' has shape \(6, 4\), but \(8, 4\) in the graph"
    with pytest.raises(LayerError, match=match):
        secateur.prune(perceptron(4, 6, 3), CHANNELS, example_inputs=graph)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_criterion_ranks_channels(criterion: str, scope: str) -> None:
    model, inputs = perceptron(4, 12, 8, 3), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = CHANNELS | {"criterion": criterion, "pruning_scope": scope, "start_step": 1, "end_step": 4}
    config |= {"pruning_frequency": 1, "min_sparsity_ratio_per_op": 0.25, "max_sparsity_ratio_per_op": 0.75}
    pruner = secateur.prepare(model, config, optimizer, example_inputs=inputs)
    for _ in range(5):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    report = pruner.finalize()
    assert report.unit_sparsity == 0.5
    assert all(0.25 <= group.pruned_units / group.units <= 0.75 for group in report.groups)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_schedule_prunes_channels(schedule: str) -> None:
    model, inputs = perceptron(4, 32, 32, 3), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = CHANNELS | {"sparsity_decay_type": schedule, "start_step": 1, "end_step": 6, "pruning_frequency": 1}
    config |= {"pruning_scope": "global", "granularity": 8}
    pruner = secateur.prepare(model, config, optimizer, example_inputs=inputs)
    seen = []
    for _ in range(7):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        groups = pruner.report().groups
        assert all((group.units - group.pruned_units) % 8 == 0 for group in groups)
        seen.append(sum(group.pruned_units for group in groups))
    assert seen == sorted(seen)
    assert pruner.finalize().unit_sparsity == 0.5


def test_states_of_versions_without_granularity_are_accepted() -> None:
    runs = []
    for _ in range(2):
        model = perceptron(4, 8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runs.append(secateur.prepare(model, {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 4}, optimizer))
    state = runs[0].state_dict()
    for key in ("granularity", "allow_inexact"):
        del state["runs"][0]["config"][key]
    runs[1].load_state_dict(state)
    state["runs"][0]["config"]["granularity"] = 8
    with pytest.raises(StateError, match="granularity was 8, is 1"):
        runs[1].load_state_dict(state)


def test_weights_that_cannot_be_pruned_may_compute_channels() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(9, 8), nn.Linear(8, 12), nn.Linear(12, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.down(torch.relu(self.up(self.table(tokens))))

    model, tokens = Embedded(), torch.randint(9, (2, 5))
    table = model.table.weight.detach().clone()
    plan = secateur.plan(model, CHANNELS, example_inputs=tokens)
    assert [group.units for group in plan.groups if group.is_pruned] == [8, 12]
    assert plan.groups[0].describe_members() == "computed by table; read by up"
    secateur.prune(model, CHANNELS, example_inputs=tokens)
    assert torch.equal(model.table.weight, table)
    assert int((model.up.weight == 0).all(dim=0).sum()) == 4


@pytest.mark.parametrize("settings", [{}, {"granularity": 4, "pruning_scope": "global"}], ids=str)
def test_slimming_removes_exactly_the_pruned_channels(settings: dict[str, Any]) -> None:
    model = residual()
    report = secateur.prune(model, CHANNELS | settings, example_inputs=IMAGES)
    kept = {group.units: group.units - group.pruned_units for group in report.groups}
    masked = model(IMAGES)
    secateur.slim(model, example_inputs=IMAGES)
    torch.testing.assert_close(model(IMAGES), masked, atol=1e-5, rtol=1e-5)
    widths = model.stem.out_channels, model.conv1.out_channels, model.side.out_channels
    assert widths == (kept[8], kept[12], kept[4])


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"granularity": 4, "pruning_scope": "global"}], ids=str)
def test_a_gpu_prunes_the_same_channels(settings: dict[str, Any]) -> None:
    graph, on_host, on_device = trace(residual(), IMAGES), residual(), residual().cuda()
    secateur.prune(on_host, CHANNELS | settings, example_inputs=graph)
    secateur.prune(on_device, CHANNELS | settings, example_inputs=graph)
    assert all(torch.equal(weight.cpu(), on_host.get_parameter(name)) for name, weight in on_device.named_parameters())


def test_a_report_lists_groups_that_the_granularity_keeps_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    config = CHANNELS | {"target_sparsity": 0.5, "pruning_scope": "local"}
    report = secateur.prune(copy.deepcopy(model), config | {"granularity": 8}, example_inputs=torch.randn(2, 4))
    line = "A multiple of granularity=8 units stays, so groups with no more units keep all: '0.channels' (4)."
    assert line in str(report).replace("\n", " ")
    report = secateur.prune(model, config | {"granularity": 2}, example_inputs=torch.randn(2, 4))
    assert "granularity" not in str(report)
