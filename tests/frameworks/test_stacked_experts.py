"""Weights with one matrix per expert: they behave like as many separate layers."""

from typing import Any

import pytest

import secateur
from secateur.errors import LayerError
from secateur.frameworks import WeightView
from secateur.frameworks.pytorch import find_stacked_weights, get_layer, get_parameter_name, get_view
from secateur.patterns import get_pattern

torch = pytest.importorskip("torch")
nn = torch.nn

EXPERTS = 3


class Experts(nn.Module):
    """Stacked experts, as transformers stores them."""

    def __init__(self, *, is_transposed: bool | None = False, inner: int = 8, width: int = 4) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        if is_transposed is not None:
            self.is_transposed = is_transposed
        up, down = (2 * inner, width), (width, inner)
        if is_transposed:
            up, down = up[::-1], down[::-1]
        generator = torch.Generator().manual_seed(0)
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, *up, generator=generator))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, *down, generator=generator))

    def forward(self, inputs: Any) -> Any:
        outputs = 0
        for expert in range(EXPERTS):
            up, down = self.gate_up_proj[expert], self.down_proj[expert]
            up, down = (up.T, down.T) if self.is_transposed else (up, down)
            gate, value = nn.functional.linear(inputs, up).chunk(2, dim=-1)
            outputs = outputs + nn.functional.linear(gate * value, down)
        return outputs


class Block(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.experts, self.fc = Experts(**options), nn.Linear(4, 4)

    def forward(self, inputs: Any) -> Any:
        return self.fc(self.experts(inputs))


def matrices(weight: Any, *, is_transposed: bool) -> list[Any]:
    return [matrix.T if is_transposed else matrix for matrix in weight.detach()]


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("spec", ["1x1", "4x1", "1x4", "1xchannel", "channelx1", "2:4"])
def test_units_are_those_of_separate_matrices(spec: str, is_transposed: bool) -> None:
    module = Experts(is_transposed=is_transposed)
    config = {"pattern": spec, "target_sparsity": 0.5, "pruning_scope": "global"}
    stacked = get_pattern(config, {"up": find_stacked_weights(module)["gate_up_proj"]})
    mask = stacked.masks({"up": module.gate_up_proj.detach().abs()})["up"]
    parts = matrices(module.gate_up_proj, is_transposed=is_transposed)
    linears = {str(i): nn.Linear(part.shape[1], part.shape[0]) for i, part in enumerate(parts)}
    alone = get_pattern(config, linears)
    masks = alone.masks({name: part.abs() for name, part in zip(linears, parts, strict=True)})
    expected = torch.stack([masks[name].T if is_transposed else masks[name] for name in linears])
    assert torch.equal(mask, expected)
    assert stacked.units["up"].count == sum(units.count for units in alone.units.values())


def test_the_view_has_one_group_per_expert() -> None:
    view = WeightView.from_stack((3, 8, 4))
    assert (view.canonical_shape, view.groups) == ((24, 1, 4), 3)
    assert view == get_view(find_stacked_weights(Experts(inner=4))["gate_up_proj"])
    values = torch.arange(96.0).reshape(3, 4, 8)
    transposed = WeightView.from_stack((3, 4, 8), is_transposed=True)
    assert torch.equal(transposed.to_canonical(values)[8, 0], values[1, :, 0])
    assert torch.equal(transposed.to_stored(transposed.to_canonical(values)), values)


def test_blocks_do_not_extend_over_two_experts() -> None:
    pattern = get_pattern({"pattern": "3x1"}, {"up": find_stacked_weights(Experts())["gate_up_proj"]})
    assert "16 output channels in each of 3 groups are not a multiple of N=3" in pattern.invalid_layers["up"]


@pytest.mark.parametrize("is_transposed", [False, True])
def test_axes_follow_from_shapes_if_they_are_not_declared(is_transposed: bool) -> None:
    module = Experts(is_transposed=is_transposed, inner=2)  # outputs of the first weight are as many as its inputs
    del module.is_transposed
    found = find_stacked_weights(module)
    assert {name: weight.is_transposed for name, weight in found.items()} == {
        "gate_up_proj": is_transposed,
        "down_proj": is_transposed,
    }


def test_axes_follow_from_sizes() -> None:
    module = nn.Module()
    module.num_experts, module.input_size, module.output_size = 2, 3, 4
    module.weight = nn.Parameter(torch.zeros(2, 4, 3))
    assert not find_stacked_weights(module)["weight"].is_transposed
    module.weight = nn.Parameter(torch.zeros(2, 3, 4))
    assert find_stacked_weights(module)["weight"].is_transposed


def test_other_parameters_of_three_axes_are_not_experts() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(2, 4, 3))
    assert find_stacked_weights(module) == {}  # a table of positions, say
    module.num_experts = 2
    assert find_stacked_weights(module) == {}  # unknown axes
    model = nn.Sequential(module, nn.Linear(4, 4), nn.Linear(4, 4))
    assert secateur.plan(model, {"pattern": "1x1"}).dense["0"] == "Module is not a supported layer type"


def test_names() -> None:
    model = Block()
    layer = get_layer(model, "experts.down_proj")
    assert get_parameter_name("experts.down_proj", layer) == "experts.down_proj"
    assert get_parameter_name("fc", get_layer(model, "fc")) == "fc.weight"
    for missing in ("experts.up", "fc.weight", "other"):
        with pytest.raises(AttributeError):
            get_layer(model, missing)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"excluded_op_names": ["fc"]}, {"gate_up_proj", "down_proj"}),
        ({"excluded_op_names": ["experts"]}, set()),
        ({"excluded_op_names": ["experts.down_proj"]}, {"gate_up_proj"}),
        ({"op_names": ["experts"]}, {"gate_up_proj", "down_proj"}),
        ({"op_names": ["experts.gate.*"]}, {"gate_up_proj"}),
        ({"layers": {"experts": None}}, set()),
        ({"layers": {"experts.down_proj": None}}, {"gate_up_proj"}),
        ({"layer_types": {"Experts": None}}, set()),
        ({"pruning_op_types": ["Experts"]}, {"gate_up_proj", "down_proj"}),
    ],
)
def test_a_configuration_names_the_weights_or_their_module(settings: dict[str, Any], expected: set[str]) -> None:
    model = nn.Sequential()
    model.experts, model.fc, model.head = Experts(), nn.Linear(4, 4), nn.Linear(4, 4)
    plan = secateur.plan(model, {"pattern": "1x1"} | settings)
    pruned = {layer.name for layer in plan.layers if layer.is_pruned}
    assert {name.removeprefix("experts.") for name in pruned if name.startswith("experts.")} == expected


def test_named_experts_that_do_not_fit() -> None:
    model = nn.ModuleDict({"experts": Experts(), "fc": nn.Linear(4, 4)})
    with pytest.raises(LayerError, match=r"layer 'experts\.gate_up_proj' was named but cannot be pruned: 4 input"):
        secateur.plan(model, {"pattern": "1x3", "op_names": ["experts"]})


def test_they_are_pruned_in_training_and_after() -> None:
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with secateur.prepare(model, {"pattern": "2:4", "op_names": ["experts"]}, optimizer) as pruner:
        for _ in range(3):
            model(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        copied = Block()
        pruner.apply_masks(copied)
    report = pruner.report()
    assert [layer.sparsity for layer in report.layers] == [0.5, 0.5]
    for block in (model, copied):
        weight = block.experts.gate_up_proj.detach()
        assert (weight.reshape(-1, 4) != 0).sum(dim=1).eq(2).all()


def test_a_weight_that_was_replaced_is_noticed() -> None:
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, {"pattern": "2:4", "op_names": ["experts"]}, optimizer)
    model.experts.down_proj = nn.Parameter(model.experts.down_proj.detach().clone())
    with pytest.raises(secateur.SecateurError, match=r"experts\.down_proj"):
        pruner.finalize()


def test_the_own_weight_of_a_layer_is_no_stack_and_stays_a_layer() -> None:
    router, convolution = nn.Linear(8, 4), nn.Conv1d(4, 4, 1)
    router.num_experts, router.is_transposed = 4, False  # type: ignore[assignment]
    router.experts = nn.Parameter(torch.randn(4, 8, 8))
    convolution.num_experts, convolution.is_transposed = 4, True  # type: ignore[assignment]
    model = nn.ModuleDict({"router": router, "convolution": convolution, "head": nn.Linear(8, 8)})
    report = secateur.prune(model, "1x4")
    assert {row.name: row.shape for row in report.layers} == {
        "router": (4, 8),
        "router.experts": (4, 8, 8),
        "convolution": (4, 4, 1),
    }
