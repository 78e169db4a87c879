import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import secateur
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.pytorch import get_type_names, get_weight_name, is_plain_tensor
from secateur.patterns import BasePattern, get_pattern

torch = pytest.importorskip("torch")
nn = torch.nn


def transformers_conv1d() -> Any:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)


LAYERS = {
    "Linear": lambda: (nn.Linear(4, 6), (2, 4), -1),
    "Conv1D of transformers": lambda: (transformers_conv1d(), (2, 4), -1),
    "Conv1d": lambda: (nn.Conv1d(4, 6, 3), (2, 4, 5), 1),
    "Conv2d": lambda: (nn.Conv2d(4, 6, (3, 2)), (2, 4, 5, 5), 1),
    "Conv3d": lambda: (nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3), 1),
    "grouped": lambda: (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), 1),
    "depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5), 1),
    "ConvTranspose1d": lambda: (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5), 1),
    "ConvTranspose2d": lambda: (nn.ConvTranspose2d(4, 6, (3, 2)), (2, 4, 5, 5), 1),
    "ConvTranspose3d": lambda: (nn.ConvTranspose3d(4, 6, 2), (2, 4, 3, 3, 3), 1),
}
"""Name → a layer, the shape of its input, and the axis of its channels."""


def bound(spec: str, module: Any) -> BasePattern:
    pattern = get_pattern({"pattern": spec, "target_sparsity": 0.5}, {"layer": module})
    assert not pattern.invalid_layers
    return pattern


def without(pattern: BasePattern, unit: int) -> Any:
    """A copy of the pattern's layer, with one unit set to zero."""
    keep = torch.arange(pattern.units["layer"].count) != unit
    module = copy.deepcopy(pattern.modules["layer"])
    with torch.no_grad():
        module.weight.mul_(pattern.weight_masks({"layer": keep})["layer"])
    return module


def changed_channels(first: Any, second: Any, axis: int) -> list[int]:
    differs = (first != second).movedim(axis, 0).flatten(1).any(1)
    return differs.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_makes_one_output_channel(name: str) -> None:
    module, shape, axis = LAYERS[name]()
    pattern, inputs = bound("1xchannel", module), torch.randn(shape)
    outputs = module(inputs)
    assert pattern.units["layer"].count == outputs.shape[axis]
    for channel in range(outputs.shape[axis]):
        assert changed_channels(outputs, without(pattern, channel)(inputs), axis) == [channel]


@pytest.mark.parametrize("name", LAYERS)
def test_a_column_reads_one_input_channel(name: str) -> None:
    module, shape, axis = LAYERS[name]()
    pattern, inputs = bound("channelx1", module), torch.randn(shape)
    assert pattern.units["layer"].count == shape[axis]
    for channel in range(shape[axis]):
        pruned = without(pattern, channel)
        silenced = [
            other
            for other in range(shape[axis])
            if torch.equal(pruned(inputs), pruned(inputs.index_fill(axis, torch.tensor([other]), 9.0)))
        ]
        assert silenced == [channel]


def test_the_input_projection_of_attention_is_one_matrix() -> None:
    attention = nn.MultiheadAttention(8, 2)
    pattern = bound("4x1", attention)
    assert get_weight_name(attention) == "in_proj_weight"
    assert pattern.views["layer"].canonical_shape == (24, 1, 8)
    assert pattern.framework.read_weight(attention).data_ptr() == attention.in_proj_weight.data_ptr()


def test_the_output_projection_of_attention_is_a_layer_of_its_own() -> None:
    assert bound("4x1", nn.MultiheadAttention(8, 2).out_proj).views["layer"].canonical_shape == (8, 1, 8)


def parametrized() -> Any:
    layer = nn.Linear(4, 4)
    nn.utils.parametrizations.weight_norm(layer)
    return layer


def of_integers() -> Any:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


def sparse() -> Any:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.eye(4).to_sparse())
    return layer


class Wrapped(nn.Parameter):
    """A weight that answers operators itself, as sharded and quantized ones do."""

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(call, types, args, kwargs or {})


def wrapped() -> Any:
    layer = nn.Linear(4, 4)
    layer.weight = Wrapped(torch.ones(4, 4))
    return layer


def flat() -> Any:
    """As sharded by FSDP with its original parameters."""
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(8))
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.LayerNorm(4), "LayerNorm is not a supported layer type"),
        (lambda: nn.Embedding(4, 4), "Embedding is not a supported layer type"),
        (parametrized, "its parameter 'weight' is computed from other parameters (parametrized)"),
        (
            lambda: nn.MultiheadAttention(8, 2, kdim=4),
            "attention with kdim or vdim stores separate query, key and value weights, which are not supported; its "
            "output projection is",
        ),
        (
            lambda: nn.LazyLinear(4),
            "its weight has no shape before the first batch; run one batch through the model first",
        ),
        (
            lambda: nn.LazyConv2d(4, 3),
            "its weight has no shape before the first batch; run one batch through the model first",
        ),
        (of_integers, "its weight has dtype torch.int8; patterns need floating point"),
        (sparse, "its weight is stored as torch.sparse_coo; patterns need a dense tensor"),
        (
            wrapped,
            "its weight is a Wrapped; patterns need a plain tensor. Prune before the model is sharded or quantized",
        ),
        (flat, "its weight has shape (8,); patterns need at least two axes. Prune before the model is sharded"),
        (
            lambda: nn.ConvTranspose2d(4, 4, 3, groups=2),
            "transposed convolutions with groups are not supported",
        ),
    ],
)
def test_a_layer_that_cannot_be_pruned_has_a_reason(make: Any, reason: str) -> None:
    pattern = get_pattern({"pattern": "1x1"}, {"layer": make(), "fits": nn.Linear(4, 4)})
    assert pattern.invalid_layers == {"layer": reason}
    assert list(pattern.views) == ["fits"]


@pytest.fixture
def mesh() -> Iterator[Any]:
    """One process, as a mesh of devices."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_sharded_weights_are_refused_by_name_except_in_training(mesh: Any) -> None:
    from torch.distributed.tensor import distribute_module

    model = distribute_module(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), mesh)
    config = {"pattern": "4x1", "target_sparsity": 0.5}
    for verb in (
        lambda: secateur.prune(model, config),
        lambda: secateur.prune(model, config, calibration=[torch.ones(2, 8)], solver="wanda"),
    ):
        with pytest.raises(LayerError, match="0, 1: its weight is a DTensor; patterns need a plain tensor"):
            verb()
    assert secateur.prepare(model, config, optimizer=torch.optim.SGD(model.parameters())).sparsity == 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_weights_that_are_sums_over_processes_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model[0].weight = nn.Parameter(DTensor.from_local(torch.ones(8, 8), mesh, [Partial()]))
    config = {"pattern": "4x1", "target_sparsity": 0.5}
    with pytest.raises(LayerError, match=r"0: its weight is a DTensor with placements \(Partial.*sums to be computed"):
        secateur.prepare(model, config, optimizer=torch.optim.SGD(model.parameters()))


class Named(nn.Parameter):
    """A parameter with an attribute."""

    def __new__(cls, data: Any) -> Any:
        made = super().__new__(cls, data)
        made.origin = "checkpoint"
        return made


class Untouched(torch.Tensor):
    """A subclass that changes nothing, whose operators return its own type."""


class Watched(nn.Parameter):
    @classmethod
    def __torch_function__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(call, types, args, kwargs or {})


@pytest.mark.parametrize(
    ("weight", "plain"),
    [
        (lambda data: nn.Parameter(data), True),
        (lambda data: data, True),
        (lambda data: torch.nn.Buffer(data), True),
        (Named, True),
        (lambda data: nn.Parameter(data.as_subclass(Untouched)), False),
        (Wrapped, False),
        (Watched, False),
    ],
)
def test_plain_tensors_use_the_operators_of_torch(weight: Any, plain: Any) -> None:
    assert is_plain_tensor(weight(torch.ones(4, 4))) is plain


@pytest.mark.parametrize("verb", ["plan", "prune", "prepare", "calibrated"])
def test_one_tensor_subclass_among_plain_weights_is_refused_unless_excluded(verb: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].weight = nn.Parameter(model[1].weight.detach().as_subclass(Untouched))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verbs = {
        "plan": secateur.plan,
        "prune": secateur.prune,
        "prepare": lambda model, config: secateur.prepare(model, config, torch.optim.SGD(model.parameters())),
        "calibrated": lambda model, config: secateur.prune(model, config, calibration=[torch.ones(2, 8)]),
    }
    config = {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 2}
    message = "1 layer cannot be pruned:\n  1: its weight is a Untouched; .*name them in excluded_op_names"
    with pytest.raises(LayerError, match=f"(?s){message}"):
        verbs[verb](model, config)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if verb != "calibrated":
        verbs[verb](model, {**config, "excluded_op_names": ["1"]})
    for narrow in (
        {"op_names": ["0"]},
        {"layers": {"1": None}},
        {"pruning_op_types": ["Conv", "Linear"], "op_names": ["0"]},
    ):
        assert secateur.plan(model, {**config, **narrow}).layers[0].is_pruned


def test_a_lazy_layer_is_valid_once_it_has_a_shape() -> None:
    lazy = nn.LazyLinear(4)
    lazy(torch.ones(1, 8))
    assert bound("1x8", lazy).views["layer"].shape == (4, 8)


def test_only_modules_are_taken() -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch patterns need torch\.nn\.Module layers, found Tensor"):
        get_pattern({"pattern": "1x1"}, {"layer": torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.Linear(1, 1), ("Linear", "Linear")),
        (lambda: nn.MultiheadAttention(2, 1), ("MultiheadAttention", "Linear")),
        (transformers_conv1d, ("Conv1D", "Linear")),
        (lambda: nn.Conv2d(1, 1, 1), ("Conv2d", "Conv")),
        (lambda: nn.ConvTranspose1d(1, 1, 1), ("ConvTranspose1d", "Conv")),
        (lambda: nn.LazyConv2d(1, 1), ("LazyConv2d", "Conv")),
        (lambda: nn.ReLU(), ()),
    ],
)
def test_type_names(make: Any, names: tuple[str, ...]) -> None:
    assert get_type_names(make()) == names


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("spec", ["1x1", "1xchannel", "channelx1", "2:4"])
def test_masks_are_ready_for_use(spec: str, dtype: str) -> None:
    module = nn.Conv2d(4, 6, 3).to(getattr(torch, dtype))
    pattern = bound(spec, module)
    mask = pattern.masks({"layer": module.weight.abs()})["layer"]
    assert (mask.dtype, mask.shape, mask.device) == (torch.bool, module.weight.shape, module.weight.device)
    pruned = (pattern.framework.read_weight(module) * mask).to(module.weight.dtype)
    assert pattern.masks({"layer": pruned.abs()}, previous={"layer": pruned != 0})["layer"].equal(mask)
    mask.fill_(True)
    assert mask.all()


def test_from_array_undoes_to_array() -> None:
    pattern = bound("1x1", nn.Linear(2, 2))
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    assert pattern.framework.from_array(pattern.framework.to_array(scores), scores).equal(scores.detach())


@pytest.mark.parametrize("spec", ["4x1", "2:4"])
def test_numpy_scores_give_numpy_masks(spec: str) -> None:
    pattern, scores = bound(spec, nn.Linear(4, 8)), torch.rand(8, 4)
    mask = pattern.masks({"layer": scores.numpy()})["layer"]
    assert isinstance(mask, np.ndarray)
    assert mask.tolist() == pattern.masks({"layer": scores})["layer"].tolist()
    assert pattern.violations({"layer": mask}) == {}
    again = pattern.masks({"layer": scores.numpy()}, previous={"layer": torch.from_numpy(mask)})["layer"]
    np.testing.assert_array_equal(again, mask)


def test_modules_of_one_weight_are_pruned_once() -> None:
    first, second = torch.nn.Linear(4, 8), torch.nn.Linear(4, 8)
    second.weight = first.weight
    pattern = get_pattern({"pattern": "4x1"}, {"first": first, "second": second, "again": first})
    assert list(pattern.views) == ["first"]
    assert pattern.invalid_layers == dict.fromkeys(
        ("second", "again"), "shares its weight with 'first' and is pruned there"
    )
