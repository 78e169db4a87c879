"""Which input features of which layers belong to which units, compared with the masks of the graph's own groups."""

import pytest
import torch
from torch import nn

from oneshot.unit_cases import CASES
from secateur.errors import ConfigError
from secateur.oneshot.magnitude import drop_schedule
from secateur.oneshot.pytorch.calibration.batches import read_batches
from secateur.oneshot.pytorch.calibration.input_features import iterate_features
from secateur.oneshot.pytorch.units.unit_groups import UnitGroup, UnitMasks, build_groups
from secateur.oneshot.pytorch.units.unit_problems import LayerInputs, LossGradients, build_task, score_units
from secateur.oneshot.pytorch.units.unit_stages import sort_by_execution
from secateur.planning.planner import Plan
from secateur.planning.pytorch import plan


def make_plan(name: str, model: nn.Module) -> Plan:
    case = CASES[name]
    return plan(model, drop_schedule(case.config), example_inputs=case.graph)


def find_groups(name: str) -> tuple[nn.Module, list[UnitGroup]]:
    model = CASES[name].create()
    return model, build_groups(model, make_plan(name, model))


def mask_by_graph(group: UnitGroup, keep_U: torch.Tensor, layer: str) -> torch.Tensor:
    """The mask of a layer's weight along the axes of all members of the group, one index at a time."""
    weight = group.pattern.framework.get_parameter_name(layer, group.pattern.modules[layer])
    mask = torch.ones(group.pattern.views[layer].shape, dtype=torch.bool)
    for member in group.pattern.group_by_name[group.name].members:
        if weight in (member.parameter, *member.aliases):
            for unit, indices in enumerate(member.index_map.indices()):
                if not keep_U[unit]:
                    mask.movedim(member.axis, 0)[torch.from_numpy(indices)] = False
    return mask


@pytest.mark.parametrize("name", CASES)
def test_features_of_units_are_where_the_graph_says(name: str) -> None:
    _, groups = find_groups(name)
    assert groups
    generator = torch.Generator().manual_seed(1)
    for group in groups:
        keep_U = torch.rand(group.rule.units, generator=generator) < 0.5
        masks = UnitMasks([group])
        masks.keep[group.name] = keep_U
        for layer in group.layers:
            # The other groups keep all of their units here.
            for name_of_other in group.pattern.units:
                masks.keep.setdefault(name_of_other, torch.ones(group.pattern.units[name_of_other].count).bool())
            assert torch.equal(masks.mask_weight(group.pattern, layer), mask_by_graph(group, keep_U, layer))
        assert group.readers
        for reader in group.readers:
            view = reader.pattern.views[reader.name]
            ones_GRF = torch.ones_like(reader.read_matrix())
            kept_F = keep_U[reader.unit_of.clamp(min=0)] | (reader.unit_of < 0)
            by_features = view.to_stored((ones_GRF * kept_F).reshape(view.canonical_shape)) != 0
            # Rows of removed units go too where a layer computes the units that it reads.
            by_graph = mask_by_graph(group, keep_U, reader.name)
            rows = view.to_canonical(by_graph).flatten(1).any(dim=1)
            canonical = view.to_canonical(by_features)
            assert torch.equal(canonical[rows], view.to_canonical(by_graph)[rows])


@pytest.mark.parametrize("name", ["convolutions", "encoder", "llama", "gpt2"])
def test_features_times_weights_are_the_outputs(name: str) -> None:
    """Without some units, the features in a problem give the outputs that the layer has without them."""
    model, groups = find_groups(name)
    batch = read_batches(model, CASES[name].batches())[0]
    for group in groups:
        keep_U = torch.arange(group.rule.units) % 3 > 0
        for reader in group.readers:
            seen: list[torch.Tensor] = []
            if isinstance(reader.module, nn.modules.linear.NonDynamicallyQuantizableLinear):
                continue
            hook = reader.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                batch.run(model, None)
            hook.remove()
            rows_NGF = torch.cat(list(iterate_features(reader.name, reader.module, (seen[0],), None)))
            task = build_task(group, {}, UnitMasks(groups), LossGradients(), with_gram=False)
            parts = [part for part in task.parts if part.reader is reader]
            found = torch.cat(
                [
                    rows_NGF[:, part.index] @ (part.consumer.weight * part.consumer.mask_features(keep_U)).T
                    for part in parts
                ],
                dim=1,
            )
            with torch.no_grad():
                masked = seen[0].clone()
                channels = reader.unit_of[: reader.pattern.views[reader.name].canonical_shape[2]]
                flags = (keep_U[channels.clamp(min=0)] | (channels < 0)).float()
                masked *= flags[:, None, None] if masked.ndim == 4 else flags
                expected = reader.module(masked)
                if reader.module.bias is not None:
                    bias = reader.module.bias
                    expected = expected - (bias[:, None, None] if masked.ndim == 4 else bias)
            expected = expected.movedim(1, -1) if masked.ndim == 4 else expected
            torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-4)


def test_features_that_another_group_removed_are_left_out() -> None:
    model, groups = find_groups("convolutions")
    by_name = {group.name: group for group in groups}
    stem, side = by_name["stem.channels"], by_name["side.channels"]
    masks = UnitMasks(groups)
    masks.keep[stem.name][[0, 3]] = False
    reader = next(reader for reader in side.readers if reader.name == "mixed")
    features = masks.find_features(reader).tolist()
    kernel, channels = 3, 12
    assert features == [k * channels + c for k in range(kernel) for c in range(channels) if c not in (0, 3)]
    size = kernel * channels
    gram = torch.arange(float(size * size)).reshape(1, size, size)
    inputs = {"mixed": LayerInputs(norms=torch.arange(float(size))[None], gram=gram, means=torch.ones(1, size))}
    (consumer,) = build_task(side, inputs, masks, LossGradients(), with_gram=True).problem.consumers
    assert consumer.norms.tolist() == features
    assert torch.equal(consumer.known_gram, gram[0][features][:, features])
    assert consumer.unit_of.tolist() == [c - 8 if c >= 8 else -1 for f in features for c in [f % channels]]
    weight = model.mixed.weight.detach().permute(0, 2, 3, 1).reshape(6, -1)
    assert torch.equal(consumer.weight, weight[:, features])


def test_the_scores_are_those_of_the_configured_criterion() -> None:
    model, groups = find_groups("perceptron")
    expected = model[0].weight.abs().mean(dim=1) + model[2].weight.abs().mean(dim=0)
    torch.testing.assert_close(score_units(groups[0]), expected.detach())


class Deconvolution(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


class Tied(nn.Module):
    """Two layers share the weight that reads the hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.again = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.again.weight = self.down.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(inputs))
        return self.down(hidden) + self.again(hidden)


@pytest.mark.parametrize(
    ("build", "inputs", "layer", "reason"),
    [
        (Deconvolution, torch.randn(2, 3, 8, 8), "2", "its output positions read different parts of the kernel"),
        (Tied, torch.randn(5, 4), "down", "down.weight and again.weight are one parameter"),
    ],
)
def test_layers_that_cannot_be_measured_say_why(
    build: type[nn.Module], inputs: torch.Tensor, layer: str, reason: str
) -> None:
    model = build().eval()
    config = drop_schedule({"pattern": "channels", "target_sparsity": 0.5})
    groups = build_groups(model, plan(model, config, example_inputs=inputs))
    blind = {reader.name: reader.blind for group in groups for reader in group.readers if reader.blind is not None}
    assert list(blind) == [layer]
    assert blind[layer].startswith(reason)


def test_groups_are_sorted_by_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
            self.early = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.late(inputs + self.early(inputs))

    model = Backwards()
    inputs = torch.randn(3, 4)
    groups = build_groups(model, plan(model, drop_schedule("channels"), example_inputs=inputs))
    batch = read_batches(model, [inputs])[0]
    ordered = sort_by_execution(model, groups, batch, torch.device("cpu"))
    assert [group.readers[0].name for group in groups] == ["late.2", "early.2"]
    assert [group.readers[0].name for group in ordered] == ["early.2", "late.2"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_settings_without_effect_are_refused() -> None:
    model = CASES["perceptron"].create()
    config = drop_schedule({"pattern": "channels", "keep_zeros": True})
    with pytest.raises(ConfigError, match="solvers do not support keep_zeros=True"):
        build_groups(model, plan(model, config, example_inputs=torch.randn(2, 6)))
