"""Compiled models have the outputs of the dense model. Otherwise, layers stay dense and the report says why."""

import copy
import itertools
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import secateur
import secateur.runtime
from runtime.layer_clock import observe_calls
from runtime.sparse_layers import replace_always
from secateur._calls.pytorch.output_snapshot import measure_difference, take_snapshot
from secateur.errors import CalibrationError
from secateur.runtime import RuntimeReport
from secateur.runtime.pytorch import SparseLayer, SparseLinear, compilation, interleaved_timing, replacement


@pytest.fixture(autouse=True)
def always() -> Iterator[None]:
    with replace_always():
        yield


def prune_model(model: nn.Module, pattern: str = "4x1", sparsity: float = 0.75) -> nn.Module:
    config = {"pattern": pattern, "target_sparsity": sparsity, "op_names": [".*"], "pruning_scope": "local"}
    secateur.prune(model, config)
    return model.eval()


def compile_model(model: nn.Module, inputs: Any, **options: Any) -> tuple[nn.Module, nn.Module, RuntimeReport]:
    """Compile a model, and return a dense copy, the compiled model and the report."""
    dense = copy.deepcopy(model)
    return dense, *secateur.runtime.compile(model, inputs, **options)


def is_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 3e-5) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


class TwoLayers(nn.Module):
    """A model with two layers and a function that calls them."""

    def __init__(self, call: Callable[["TwoLayers", torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.call = nn.Linear(32, 64), nn.Linear(64, 32), call

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.call(self, inputs)


def run_both_layers(model: TwoLayers, x: torch.Tensor) -> torch.Tensor:
    return model.down(torch.relu(model.up(x)))


READERS: dict[str, Callable[[TwoLayers, torch.Tensor], torch.Tensor]] = {
    "tied by a function": lambda m, x: functional.linear(torch.relu(m.up(x)), m.up.weight.T) + m.down(m.up(x)),
    "device": lambda m, x: run_both_layers(m, x.to(m.up.weight.device)),
    "type": lambda m, x: run_both_layers(m, x.to(m.down.weight.dtype)),
    "zeros": lambda m, x: run_both_layers(m, x) * (m.up.weight == 0).float().mean(),
    "device of the first parameter": lambda m, x: run_both_layers(m, x.to(next(m.parameters()).device)),
    "type of the last parameter": lambda m, x: run_both_layers(m, x.to(list(m.parameters())[-1].dtype)),
    "bias": lambda m, x: run_both_layers(m, x) + m.down.bias,
    "slice": lambda m, x: run_both_layers(m, x) + m.down.weight[:, 0],
}


@pytest.mark.parametrize("reader", READERS.values(), ids=list(READERS))
def test_models_that_read_weights(reader: Callable[[TwoLayers, torch.Tensor], torch.Tensor]) -> None:
    inputs = torch.randn(8, 32)
    dense, model, report = compile_model(prune_model(TwoLayers(reader)), inputs)
    assert report.replaced == 2
    with torch.no_grad():
        for given in (inputs, torch.randn(3, 32)):
            assert is_close(model(given), dense(given))


Pair = namedtuple("Pair", "first second")


@dataclass
class Outputs:
    value: Any
    count: int = 3


class PlainObject:
    def __init__(self, value: Any) -> None:
        self.inside = [value]


SHAPES: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda y: (y, None, (1, "text", y)),
    "named tuple": lambda y: Pair(y, y),
    "mapping": lambda y: OrderedDict(a={"b": [y]}),
    "dataclass": Outputs,
    "object": PlainObject,
    "sparse": lambda y: y.to_sparse(),
    "complex": lambda y: torch.complex(y, y),
    "array": lambda y: y.detach().numpy(),
    "number": lambda y: [y.sum().item(), y],
    "nan": lambda y: torch.where(y > 0, y, float("nan")),
    "whole numbers": lambda y: (100 * y).int(),
}


@pytest.fixture
def break_layers_in_the_model() -> Iterator[None]:
    """Make layers with 64 inputs, which is every second layer, return wrong outputs in the model."""

    def observe(module: nn.Module, outputs: Any, is_alone: bool) -> Any:
        is_wrong = isinstance(module, SparseLinear) and module.in_features == 64 and not is_alone
        return 1.5 * outputs if is_wrong else None

    with observe_calls(observe):
        yield


@pytest.mark.usefixtures("break_layers_in_the_model")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_all_kinds_of_outputs_are_compared(shape: Callable[[Any], Any]) -> None:
    inputs = torch.randn(64, 32)
    model = prune_model(TwoLayers(lambda m, x: shape(m.down(torch.relu(m.up(x))) - 0.1)))
    _, model, report = compile_model(model, inputs)
    rows = {row.name: row for row in report.layers}
    assert rows["up"].chosen != "dense"
    assert rows["down"].chosen == "dense"
    assert "the model's outputs would differ by " in rows["down"].reason
    assert type(model.down) is nn.Linear


@pytest.mark.usefixtures("break_layers_in_the_model")
def test_wrong_layers_are_found_among_many() -> None:
    torch.manual_seed(0)
    sizes = [32, 48, 64, 32, 48, 48, 64, 48, 32]
    layers = [one for pair in itertools.pairwise(sizes) for one in (nn.Linear(*pair), nn.ReLU())]
    inputs = torch.randn(16, 32)
    dense, model, report = compile_model(prune_model(nn.Sequential(*layers)), inputs)
    assert [row.name for row in report.layers if row.chosen == "dense"] == ["4", "12"]
    with torch.no_grad():
        assert is_close(model(inputs), dense(inputs), 1e-4)


def test_a_model_that_fails_with_a_replaced_layer_keeps_it_dense() -> None:
    def forward(model: TwoLayers, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(model.up, nn.Linear)
        return run_both_layers(model, x)

    dense, model, report = compile_model(prune_model(TwoLayers(forward)), torch.randn(8, 32))
    rows = {row.name: row for row in report.layers}
    assert "the model fails with it: AssertionError" in rows["up"].reason
    assert rows["down"].chosen != "dense"
    with torch.no_grad():
        assert is_close(model(torch.ones(2, 32)), dense(torch.ones(2, 32)))


def test_a_model_that_fails_with_hooks_stays_dense() -> None:
    def forward(model: TwoLayers, x: torch.Tensor) -> torch.Tensor:
        assert not model.up._forward_hooks
        return run_both_layers(model, x)

    _, _, report = compile_model(prune_model(TwoLayers(forward)), torch.randn(8, 32))
    for row in report.layers:
        assert row.reason.startswith("the model fails while calls of its layers are recorded: AssertionError")


def test_a_layer_whose_inputs_have_another_type_stays_dense() -> None:
    def forward(model: TwoLayers, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.down(torch.relu(model.up(x)))

    _, _, report = compile_model(prune_model(TwoLayers(forward)), torch.randn(8, 32))
    assert {row.name: row.reason for row in report.layers}["down"] == (
        "its inputs are torch.bfloat16, but its weight is torch.float32"
    )


@pytest.mark.filterwarnings("ignore")  # both kinds of tensors are deprecated or a prototype
@pytest.mark.parametrize(
    "convert",
    [
        lambda y: torch.nested.nested_tensor([y[:1], y[1:]]),
        lambda y: torch.quantize_per_tensor(y, 0.5, 0, torch.qint8),
    ],
    ids=["nested", "quantized"],
)
def test_unusual_tensors_are_compared(convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    expected = take_snapshot(convert(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])))
    other = take_snapshot(convert(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])))
    assert measure_difference(expected, expected) == 0.0
    assert measure_difference(expected, other) > 0.1


def test_models_can_use_random_numbers() -> None:
    def forward(model: TwoLayers, x: torch.Tensor) -> torch.Tensor:
        return run_both_layers(model, x + torch.randn_like(x))

    state = torch.random.get_rng_state()
    _, _, report = compile_model(prune_model(TwoLayers(forward)), torch.ones(8, 32))
    assert report.replaced == 2
    torch.random.set_rng_state(state)
    model = prune_model(TwoLayers(run_both_layers))
    before = torch.random.get_rng_state()
    secateur.runtime.compile(model, torch.ones(8, 32))
    assert torch.equal(torch.random.get_rng_state(), before)


COUNTER = itertools.count()

INCOMPARABLE_OUTPUTS: dict[str, tuple[Callable[[TwoLayers, torch.Tensor], Any], str]] = {
    "outputs that change between calls": (
        lambda m, x: run_both_layers(m, x) + next(COUNTER),
        "the outputs of the dense model differ by .* between calls",
    ),
    "no outputs": (lambda m, x: (run_both_layers(m, x), None)[1], "the model returns no tensor to compare"),
    "only nan and infinity": (
        lambda m, x: {"nan": run_both_layers(m, x) * float("nan"), "inf": run_both_layers(m, x) / 0.0},
        "the outputs of the dense model are all nan or infinite",
    ),
}


@pytest.mark.parametrize(("forward", "reason"), INCOMPARABLE_OUTPUTS.values(), ids=list(INCOMPARABLE_OUTPUTS))
def test_models_with_incomparable_outputs_stay_dense(forward: Any, reason: str) -> None:
    model = prune_model(TwoLayers(forward))
    layers = list(model.children())
    _, report = secateur.runtime.compile(model, torch.randn(8, 32))
    assert list(model.children()) == layers
    for row in report.layers:
        assert row.chosen == "dense"
        assert pytest.approx(0.75) == row.sparsity
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(row.reason)


def test_amplified_rounding_errors_are_accepted() -> None:
    def forward(model: TwoLayers, x: torch.Tensor) -> torch.Tensor:
        y = model.up(x)
        return model.down((y - y.round(decimals=3)) * 1e4)

    _, _, report = compile_model(prune_model(TwoLayers(forward)), torch.randn(8, 32))
    assert report.replaced == 2


def test_example_inputs_are_not_modified() -> None:
    inputs, other = torch.randn(8, 32), [torch.ones(8, 32)]
    before = inputs.clone()
    model = prune_model(TwoLayers(lambda m, x: run_both_layers(m, x.mul_(2))))
    secateur.runtime.compile(model, inputs)
    assert torch.equal(inputs, before)

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = prune_model(TwoLayers(run_both_layers))

        def forward(self, x: torch.Tensor, others: list[torch.Tensor], scale: float) -> torch.Tensor:
            others[0].add_(1)
            return self.inner(x + others[0]) * scale

    _, report = secateur.runtime.compile(Takes().eval(), (inputs, other, 2.0))
    assert report.replaced == 2
    assert torch.equal(other[0], torch.ones(8, 32))


def test_example_inputs_that_cannot_be_copied_are_shared() -> None:
    lock = threading.Lock()

    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = prune_model(TwoLayers(run_both_layers))

        def forward(self, x: torch.Tensor, guard: threading.Lock) -> torch.Tensor:
            assert guard is lock
            with guard:
                return self.inner(x)

    _, report = secateur.runtime.compile(Locked().eval(), (torch.randn(8, 32), lock))
    assert report.replaced == 2


# The model is modified at the very end.


@pytest.mark.parametrize(
    "where",
    ["compilation.benchmark_layer", "compilation.time_layers", "interleaved_timing.median", "replacement._fill"],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_model_is_unchanged(
    where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prune_model(TwoLayers(run_both_layers))
    layers = list(model.named_modules())
    module, name = where.split(".")
    calls = itertools.count()

    def interrupt(places: Any, *_: Any, **__: Any) -> Any:
        if name == "_fill":
            if next(calls) < 3:
                return real(places)
            real(places[:1])
        raise error

    patched = {"compilation": compilation, "interleaved_timing": interleaved_timing, "replacement": replacement}[module]
    real = getattr(patched, name)
    monkeypatch.setattr(patched, name, interrupt)
    with pytest.raises(error):
        secateur.runtime.compile(model, torch.randn(8, 32))
    assert list(model.named_modules()) == layers
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize(
    ("example", "hint"),
    [
        ({"features": torch.ones(2, 32)}, r"pass it in a tuple: \(inputs,\)\."),
        ((torch.ones(2, 32), torch.ones(2)), r"leave out labels, as in \(inputs,\)\."),
        ((torch.ones(2, 31),), r"shapes cannot be multiplied \(2x31 and 32x64\)$"),
    ],
)
def test_example_inputs_in_another_form_are_suggested(example: Any, hint: str) -> None:
    with pytest.raises(CalibrationError, match=rf"The model fails with the example inputs: .*{hint}") as caught:
        secateur.runtime.compile(prune_model(TwoLayers(run_both_layers)), example)
    assert "calibration" not in str(caught.value)


def test_unsupported_example_inputs() -> None:
    with pytest.raises(CalibrationError, match="The model fails with the example inputs: RuntimeError"):
        secateur.runtime.compile(prune_model(TwoLayers(run_both_layers)), torch.randn(8, 31))
    with pytest.raises(CalibrationError, match=r"example_inputs must be a tensor, a tuple .*, found an empty tuple\."):
        secateur.runtime.compile(prune_model(TwoLayers(run_both_layers)), ())
    with pytest.raises(CalibrationError, match=r"found int\."):
        secateur.runtime.compile(prune_model(TwoLayers(run_both_layers)), 3)


# Layers that stay dense, each with its reason.


class Scaled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return 2 * super().forward(input)


def add_hook(kind: str) -> Callable[[nn.Linear], nn.Module]:
    def change(layer: nn.Linear) -> nn.Module:
        getattr(layer, f"register_{kind}")(lambda *_: None)
        return layer

    return change


def override_forward(layer: nn.Linear) -> nn.Module:
    layer.forward = lambda x: functional.linear(x, layer.weight, layer.bias) * 2  # type: ignore[method-assign]
    return layer


def assign_weight(layer: nn.Linear) -> nn.Module:
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


def add_buffer(layer: nn.Linear) -> nn.Module:
    layer.register_buffer("scale", torch.ones(1))
    return layer


def make_scaled(layer: nn.Linear) -> nn.Module:
    made = Scaled(64, 64)
    made.load_state_dict(layer.state_dict())
    return made


def mask_weight(layer: nn.Linear) -> nn.Module:
    return prune.custom_from_mask(layer, "weight", layer.weight != 0)


def convert_weight_to_buffer(layer: nn.Linear) -> nn.Module:
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    return layer


DENSE: dict[str, tuple[Callable[[nn.Linear], nn.Module], str]] = {
    "subclass": (make_scaled, "Scaled is not supported"),
    "forward of the instance": (override_forward, "its forward method is overridden"),
    "buffer": (add_buffer, "it has parameters, buffers or modules besides its weight and bias"),
    "weight as a buffer": (
        convert_weight_to_buffer,
        "it has parameters, buffers or modules besides its weight and bias",
    ),
    "weight as an attribute": (assign_weight, "its weight is computed and not a parameter"),
    "forward hook": (add_hook("forward_hook"), "it has hooks, which would be lost"),
    "forward pre-hook": (add_hook("forward_pre_hook"), "it has hooks, which would be lost"),
    "backward hook": (add_hook("full_backward_hook"), "it has hooks, which would be lost"),
    "state-dict hook": (add_hook("state_dict_post_hook"), "it has hooks, which would be lost"),
    "load hook": (add_hook("load_state_dict_post_hook"), "it has hooks, which would be lost"),
    "parametrization": (
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
        "ParametrizedLinear is not supported",
    ),
    "spectral norm": (
        lambda layer: nn.utils.parametrizations.spectral_norm(layer),
        "ParametrizedLinear is not supported",
    ),
    "mask of torch": (mask_weight, "it has parameters, buffers or modules besides its weight and bias"),
}


@pytest.mark.parametrize(("change", "reason"), DENSE.values(), ids=list(DENSE))
def test_unsupported_layers_stay_dense(change: Callable[[nn.Linear], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    model = prune_model(nn.Sequential(first, nn.ReLU(), second))
    model[0] = change(first).eval()
    expected = model(torch.ones(3, 64)).detach()
    model, report = secateur.runtime.compile(model, torch.randn(8, 64))
    assert [row.name for row in report.layers] == ["0", "2"]
    row = report.layers[0]
    assert (row.chosen, row.reason) == ("dense", reason)
    assert row.sparsity == pytest.approx(0.75, abs=0.01)
    assert report.layers[1].chosen != "dense"
    with torch.no_grad():
        assert is_close(model(torch.ones(3, 64)), expected)


def test_a_weight_shared_with_an_embedding_stays_dense() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(40, 32), nn.Linear(32, 40, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(tokens))

    torch.manual_seed(0)
    model = Language()
    with torch.no_grad():
        model.head.weight[:30] = 0
    _, report = secateur.runtime.compile(model.eval(), torch.arange(40)[None])
    assert {row.name: row.reason for row in report.layers} == {
        "embedding": "Embedding is not supported",
        "head": "its weight is shared with another layer",
    }


def test_a_layer_with_two_names_is_replaced_under_both() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    dense, model, report = compile_model(prune_model(nn.Sequential(layer, nn.ReLU(), layer)), torch.randn(8, 64))
    assert report.replaced == len(report.layers) == 1
    assert model[0] is model[2]
    assert isinstance(model[0], SparseLayer)
    with torch.no_grad():
        assert is_close(model(torch.ones(2, 64)), dense(torch.ones(2, 64)))


def test_a_layer_that_is_the_whole_model_stays_dense() -> None:
    layer = prune_model(nn.Linear(64, 64))
    _, report = secateur.runtime.compile(layer, torch.randn(8, 64))
    assert (
        report.layers[0].reason
        == "it is the model itself; to replace it, wrap it in another module, such as nn.Sequential"
    )


def test_layers_called_by_keyword() -> None:
    inputs = torch.randn(8, 32)
    model = prune_model(TwoLayers(lambda m, x: m.down(input=torch.relu(m.up(input=x)))))
    dense, model, report = compile_model(model, inputs)
    assert report.replaced == 2
    with torch.no_grad():
        assert is_close(model(inputs), dense(inputs))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("convert", "reason"),
    [
        (lambda x: torch.nested.nested_tensor([x[:2], x[2:]]), "its inputs are nested"),
        (lambda x: x.to_sparse(), "its inputs are stored as torch.sparse_coo"),
        (lambda x: x[:0], "its inputs are empty"),
    ],
)
def test_layers_that_are_only_called_with_unusual_tensors(convert: Callable[..., Any], reason: str) -> None:
    model = prune_model(TwoLayers(lambda m, x: (m.down(x), m.up(convert(torch.ones(4, 32))))[0]))
    _, report = secateur.runtime.compile(model, torch.randn(8, 64))
    assert [row.reason for row in report.layers if row.name == "up"] == [reason]


@pytest.mark.parametrize("int8", [False, True])
def test_half_precision_has_no_kernels_on_the_cpu(int8: bool) -> None:
    _, report = secateur.runtime.compile(
        prune_model(TwoLayers(run_both_layers)).half(), torch.randn(8, 32).half(), int8=int8
    )
    assert {row.reason for row in report.layers} == {"there are no kernels for torch.float16 on the CPU"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("is_nested", [False, True])
def test_encoders_of_torch(is_masked: bool, is_nested: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = prune_model(nn.TransformerEncoder(layer, 2, enable_nested_tensor=is_nested))
    inputs, padding = torch.randn(8, 16, 32), torch.arange(16).expand(8, 16) >= 12
    example = {"src": inputs, "src_key_padding_mask": padding} if is_masked else {"src": inputs}
    dense, encoder, report = compile_model(encoder, example)
    assert report.replaced == (0 if is_nested else 4)
    assert [row.name for row in report.layers][:3] == [
        f"layers.0.{n}" for n in ("self_attn", "self_attn.out_proj", "linear1")
    ]
    assert all(row.sparsity == pytest.approx(0.75, abs=0.01) for row in report.layers)
    if is_nested:
        assert "build it with enable_nested_tensor=False" in report.layers[2].reason
    with torch.no_grad():
        for given in (example, {"src": inputs, "src_key_padding_mask": padding}):
            assert is_close(encoder(**given), dense(**given), 1e-4)


# Differences.


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.25),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), 0.0),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 1.0]), float("inf")),
        (torch.tensor([1.0, 1.0]), torch.tensor([1.0, float("nan")]), float("inf")),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, -float("inf")]), float("inf")),
        (torch.tensor([1.0, float("inf")]), torch.tensor([1.0, float("nan")]), float("inf")),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5]), 0.25),
        (torch.zeros(3), torch.zeros(4), float("inf")),
        (torch.zeros(3), torch.zeros(3).double(), float("inf")),
        (torch.zeros(0), torch.zeros(0), 0.0),
        ([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)], float("inf")),
        ({"a": 1.0}, {"a": 1.5}, 0.5),
        ({"a": "text"}, {"a": "other"}, float("inf")),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16), 0.0),
    ],
)
def test_differences(expected: Any, actual: Any, difference: float) -> None:
    assert measure_difference(take_snapshot(expected), take_snapshot(actual)) == pytest.approx(difference)


def test_an_object_that_contains_itself() -> None:
    thing = PlainObject(torch.ones(1))
    thing.inside.append(thing)
    assert list(take_snapshot(thing)) == [".inside.0"]
