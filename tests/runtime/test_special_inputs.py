"""Unusual tensors, tracers and transforms give the result of the dense layer or a clear error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from runtime.sparse_layers import make_conv_pair, make_linear_pair
from secateur.errors import LayerError, StateError

ROWS = (5, 32)
IMAGES = (3, 4, 9, 8)

Call = Callable[[nn.Module, torch.Tensor], Any]


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class DispatchRecorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class FunctionRecorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def pairs() -> list[tuple[str, nn.Module, nn.Module, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        ("linear", *make_linear_pair(), torch.randn(ROWS, generator=generator)),
        ("conv", *make_conv_pair(), torch.randn(IMAGES, generator=generator)),
    ]


@pytest.fixture(params=pairs(), ids=lambda pair: pair[0])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    _, dense, replaced, inputs = request.param
    return dense, replaced, inputs


def is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and bool(torch.allclose(actual, expected, atol=1e-5))


UNUSUAL_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "negative view": torch._neg_view,
    "imaginary part of a conjugate": lambda x: torch.complex(x, x).conj().imag,
    "lazy zeros": lambda x: torch._efficientzerotensor(x.shape),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand_as(x),
    "overlapping": lambda x: x.as_strided(x.shape, [1] * x.ndim),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "no rows": lambda x: x[:0],
    "parameter": lambda x: nn.Parameter(x, requires_grad=False),
    "subclass": lambda x: x.as_subclass(Plain),
    "inference tensor": torch.inference_mode()(lambda x: x + 0),
}


@pytest.mark.parametrize("convert", UNUSUAL_TENSORS.values(), ids=list(UNUSUAL_TENSORS))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_unusual_tensors(pair: tuple[nn.Module, nn.Module, torch.Tensor], convert: Any, mode: Any) -> None:
    dense, replaced, inputs = pair
    with mode():
        tensor = convert(inputs)
        actual, expected = replaced(tensor), dense(tensor)
        assert type(actual) is type(expected)
        assert is_close(actual, expected)


def make_nested(x: torch.Tensor, layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([x[:2], x[2:]], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("convert", "plain"),
    [
        (lambda x: x.to_sparse(), lambda y: y),
        (lambda x: x.to_sparse_csr(), lambda y: y),
        (lambda x: make_nested(x, torch.strided), lambda y: torch.cat(y.unbind())),
        (lambda x: make_nested(x, torch.jagged), lambda y: y.values()),
    ],
    ids=["sparse", "csr", "nested", "jagged"],
)
def test_unsupported_layouts_are_multiplied_densely(convert: Any, plain: Any) -> None:
    dense, replaced = make_linear_pair()
    inputs = torch.randn(ROWS)
    with torch.no_grad():
        assert is_close(plain(replaced(convert(inputs))), plain(dense(convert(inputs))))
        with forward_ad.dual_level():
            assert is_close(plain(replaced(convert(inputs))), plain(dense(convert(inputs))))


def test_inputs_that_dense_layers_do_not_support_raise() -> None:
    _, replaced = make_linear_pair()
    _, convolution = make_conv_pair()
    with torch.no_grad():
        with pytest.raises(LayerError, match=r"needs inputs of torch\.float32 on the CPU, found torch\.complex64"):
            replaced(torch.randn(ROWS, dtype=torch.complex64).conj())
        with pytest.raises(LayerError, match="SparseConv2d does not support this Tensor"):
            convolution(torch.randn(IMAGES).to_sparse())
        freed = torch.randn(ROWS)
        freed.untyped_storage().resize_(0)
        with pytest.raises(LayerError, match=r"an input of shape \(5, 32\) has no memory"):
            replaced(freed)


WATCHED: dict[str, Call] = {
    "make_fx": lambda layer, x: make_fx(layer)(torch.zeros_like(x))(x),
    "make_fx before autograd": lambda layer, x: make_fx(layer, pre_dispatch=True)(torch.zeros_like(x))(x),
    "symbolic_trace": lambda layer, x: torch.fx.symbolic_trace(nn.Sequential(layer))(x),
    "vmap": lambda layer, x: torch.func.vmap(layer)(x),
    "vmap of batches": lambda layer, x: torch.func.vmap(layer, in_dims=1)(torch.stack([x, 2 * x], 1)),
    "vmap of vmap": lambda layer, x: torch.func.vmap(torch.func.vmap(layer))(torch.stack([x, 2 * x])),
    "functionalize": lambda layer, x: torch.func.functionalize(layer)(x),
}


@pytest.mark.parametrize("watch", WATCHED.values(), ids=list(WATCHED))
def test_tracers_and_transforms(pair: tuple[nn.Module, nn.Module, torch.Tensor], watch: Call) -> None:
    dense, replaced, inputs = pair
    with torch.no_grad():
        assert is_close(watch(replaced, inputs), watch(dense, inputs))


@pytest.mark.parametrize("tracing", ["fake", "symbolic"])
def test_make_fx_without_values(pair: tuple[nn.Module, nn.Module, torch.Tensor], tracing: str) -> None:
    dense, replaced, inputs = pair
    with torch.no_grad():
        assert is_close(make_fx(replaced, tracing_mode=tracing)(torch.zeros_like(inputs))(inputs), dense(inputs))


def test_modes_see_one_operator(pair: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
    dense, replaced, inputs = pair
    with torch.no_grad():
        for seen in (DispatchRecorder(), FunctionRecorder()):
            with seen:
                actual = replaced(inputs)
            assert [name for name in seen.names if "apply_layer" in name]
            assert is_close(actual, dense(inputs))
        with FlopCounterMode(display=False):
            assert is_close(replaced(inputs), dense(inputs))
        with torch.device("meta"):
            assert is_close(replaced(inputs), dense(inputs))


def test_the_default_dtype_changes_nothing(
    pair: tuple[nn.Module, nn.Module, torch.Tensor], request: pytest.FixtureRequest
) -> None:
    dense, replaced, inputs = pair
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    with torch.no_grad():
        expected = dense(inputs)
        torch.set_default_dtype(torch.float64)
        assert is_close(replaced(inputs), expected)
        assert is_close(replaced(inputs[:2]), expected[:2])


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_sets_the_output_type(pair: tuple[nn.Module, nn.Module, torch.Tensor], given: torch.dtype) -> None:
    dense, replaced, inputs = pair
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = replaced(inputs.to(given)), dense(inputs.to(given))
        assert actual.dtype == expected.dtype == torch.bfloat16
        assert torch.allclose(actual.float(), expected.float(), atol=3e-2)
        compiled = torch.compile(replaced, backend="eager", fullgraph=True)
        assert torch.equal(compiled(inputs.to(given)), actual)
    torch.compiler.reset()


def with_tangent(layer: nn.Module, x: torch.Tensor) -> None:
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x, torch.ones_like(x)))


DERIVED: dict[str, Call] = {
    "backward": lambda layer, x: layer(x.clone().requires_grad_()).sum().backward(),
    "gradient of the inputs": lambda layer, x: torch.autograd.grad(
        layer(scaled := x.clone().requires_grad_()).sum(), scaled
    ),
    "dual": with_tangent,
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "jvp of vmap": lambda layer, x: torch.func.jvp(torch.func.vmap(layer), (x,), (x,)),
    "vmap of jvp": lambda layer, x: torch.func.vmap(lambda one: torch.func.jvp(layer, (one,), (one,)))(x),
    "grad": lambda layer, x: torch.func.grad(lambda one: layer(one).sum())(x),
    "jacfwd": lambda layer, x: torch.func.jacfwd(layer)(x),
    "jacrev": lambda layer, x: torch.func.jacrev(layer)(x),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("derive", DERIVED.values(), ids=list(DERIVED))
def test_gradients_and_tangents_raise(pair: tuple[nn.Module, nn.Module, torch.Tensor], derive: Call) -> None:
    _, replaced, inputs = pair
    with pytest.raises(StateError, match=r"no gradients or tangents\. .* derivatives with the dense model"):
        derive(replaced, inputs)


def test_models_run_without_no_grad(pair: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
    """Trainable layers before a replaced one make its inputs require a gradient, as embeddings do."""
    dense, replaced, inputs = pair
    scale = nn.Parameter(torch.tensor(2.0))
    for given in (inputs, inputs[:1], inputs.transpose(0, -1).contiguous().transpose(0, -1)):
        actual, expected = replaced(given * scale), dense(given * scale)
        assert actual.requires_grad
        assert is_close(actual, expected)


def test_a_dual_level_without_tangents_changes_nothing(pair: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
    dense, replaced, inputs = pair
    with forward_ad.dual_level():
        assert is_close(replaced(inputs), dense(inputs))
