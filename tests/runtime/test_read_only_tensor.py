"""The weight of a replaced layer can be read but not written."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from runtime.sparse_layers import make_conv_pair, make_linear_pair
from secateur.errors import StateError
from secateur.runtime.pytorch import ChannelLinear, SparseLinear

ONES = torch.ones(32)


def _with_data(values: torch.Tensor) -> torch.Tensor:
    other = torch.zeros(1)
    other.data = values
    return other


READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "transposed product": lambda w: functional.linear(torch.ones(2, 24), w.T),
    "product": lambda w: torch.ones(3, 24) @ w,
    "zeros": lambda w: w == 0,
    "any": lambda w: torch.tensor(bool((w != 0).any())),
    "numpy": lambda w: torch.tensor(w.numpy()),
    "array": lambda w: torch.tensor(np.asarray(w)),
    "list": lambda w: torch.tensor(w.tolist()),
    "item": lambda w: torch.tensor(w[1, 2].item()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),  # noqa: S301 - our own
    "clone": torch.clone,
    "detach": lambda w: w.detach() + 0,
    "data": lambda w: w.data + 0,
    "double": lambda w: w.double(),
    "slice": lambda w: w[2:5][:, 1] + 0,
    "einsum": lambda w: torch.einsum("oi,bi->bo", w, torch.ones(2, 32)),
    "concatenated": lambda w: torch.cat([w, w]),
    "vmap": lambda w: torch.func.vmap(lambda x: functional.linear(x, w))(torch.ones(2, 32)),
    "added to another": lambda w: torch.zeros_like(w).add_(w),
    "written to another": lambda w: torch.add(w, 1, out=torch.empty(24, 32)),
    "iterated": lambda w: torch.stack(list(w)),
    "norm": torch.linalg.norm,
    "functional_call": lambda w: torch.func.functional_call(
        nn.Linear(32, 24, bias=False), {"weight": w}, torch.ones(32)
    ),
    "text": lambda w: torch.tensor(len(repr(w))),
    "formatted": lambda w: torch.tensor([len(f"{w}"), len(f"{w[0, 0]:.3f}"), len(f"{w.T:}")]),
    "data of another": lambda w: _with_data(w.data),
    "transposed data of another": lambda w: _with_data(w.T),
}

WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "zero_": lambda w: w.zero_(),
    "data": lambda w: w.data.mul_(0),
    "zeros_": nn.init.zeros_,
    "kaiming": nn.init.kaiming_uniform_,
    "copy_": lambda w: w.copy_(torch.ones(24, 32)),
    "item": lambda w: w.__setitem__(0, 1.0),
    "mask": lambda w: w.__setitem__(w > 0, 1.0),
    "transposed": lambda w: w.T.zero_(),
    "flat": lambda w: w.view(-1).fill_(0),
    "row": lambda w: w[0].add_(1),
    "part of a split": lambda w: w.chunk(2)[0].zero_(),
    "set data": lambda w: setattr(w, "data", torch.ones(24, 32)),
    "set gradient": lambda w: setattr(w, "grad", torch.ones(24, 32)),
    "ask for gradients": lambda w: w.requires_grad_(),
    "ask for gradients by name": lambda w: setattr(w, "requires_grad", True),
    "foreach": lambda w: torch._foreach_mul_([w], 2.0),
    "out": lambda w: torch.add(torch.ones(24, 32), 1, out=w),
    "relu": lambda w: functional.relu(w, inplace=True),
    "set_": lambda w: w.set_(torch.ones(24, 32)),
    "resize_": lambda w: w.resize_(3, 3),
    "parameter": nn.Parameter,
    "applied to every value": lambda w: w.apply_(lambda _: 0.0),
    "mapped with another": lambda w: w.map_(torch.ones(24, 32), lambda one, other: one + other),
    "mapped with two": lambda w: w.map2_(torch.ones(24, 32), torch.ones(24, 32), lambda one, *_: one),
    "applied to a row": lambda w: w[0].apply_(lambda _: 0.0),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
def test_reading_gives_the_dense_weight(read: Callable[[torch.Tensor], Any]) -> None:
    dense, replaced = make_linear_pair()
    with torch.no_grad():
        actual, expected = read(replaced.weight), read(dense.weight.detach())
    assert type(actual) is torch.Tensor
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_writing_raises(write: Callable[[torch.Tensor], Any]) -> None:
    dense, replaced = make_linear_pair()
    with torch.no_grad(), pytest.raises(StateError, match="packed and read-only"):
        write(replaced.weight)
    assert torch.equal(replaced.weight, dense.weight)


def test_arrays_are_read_only() -> None:
    _, replaced = make_linear_pair()
    with pytest.raises(ValueError, match="read-only"):
        replaced.weight.numpy()[0] = 1


def test_weights_cannot_be_the_data_of_another_tensor() -> None:
    _, replaced = make_linear_pair()
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        _with_data(replaced.weight)


def test_data_of_another_tensor_is_a_copy() -> None:
    dense, replaced = make_linear_pair()
    _with_data(replaced.weight.data).zero_()
    assert torch.equal(replaced.weight, dense.weight)
    with torch.no_grad():
        assert torch.allclose(replaced(ONES), dense(ONES), atol=1e-5)


def test_autocast_converts_weights() -> None:
    dense, replaced = make_linear_pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual, expected = replaced.weight @ replaced.weight.T, dense.weight @ dense.weight.T
    assert actual.dtype is expected.dtype is torch.bfloat16
    assert torch.equal(actual, expected)


def test_views_have_shapes_in_fake_mode() -> None:
    _, replaced = make_linear_pair()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert (torch.ones(2, 24) @ replaced.weight.T.T).shape == (2, 32)


def test_weights_have_no_address() -> None:
    _, replaced = make_linear_pair()
    for ask in (torch.Tensor.data_ptr, torch.Tensor.untyped_storage):
        with pytest.raises(StateError, match=r"has no memory of its own\. Call \.clone\(\)"):
            ask(replaced.weight)
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):  # torch would read from address 0
        torch.utils.dlpack.to_dlpack(replaced.weight)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_assigning_raises(name: str) -> None:
    dense, replaced = make_linear_pair()
    for assign in (setattr, nn.Module.register_parameter, type(replaced).register_parameter):
        with pytest.raises((StateError, KeyError)):
            assign(replaced, name, nn.Parameter(torch.zeros(24)))
    with pytest.raises(StateError, match="read-only"):
        replaced.bias.zero_()
    assert torch.equal(replaced.bias, dense.bias)


def test_shape_type_and_device_need_no_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseLinear, "unpack_weight", lambda _: pytest.fail("unpacked"))
    dense, replaced = make_linear_pair()
    for name in ("shape", "dtype", "device", "ndim", "layout", "nbytes", "is_cuda", "is_sparse", "grad"):
        assert getattr(replaced.weight, name) == getattr(dense.weight, name)
    assert not replaced.weight.requires_grad
    assert not replaced.weight.requires_grad_(False).requires_grad
    assert (len(replaced.weight), replaced.weight.size(1)) == (24, 32)


def test_attributes_match_the_dense_layer() -> None:
    dense, replaced = make_conv_pair()
    dense.custom_attribute = "first"
    again = type(replaced)(dense, replaced.matrix)
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_padding", "transposed")
    for name in (*names, "in_channels", "out_channels", "custom_attribute"):
        assert getattr(again, name) == getattr(dense, name)


def test_smaller_layers_have_read_only_weights() -> None:
    dense = nn.Linear(8, 6)
    with torch.no_grad():
        dense.weight[2:] = 0
    replaced = ChannelLinear(dense, torch.arange(6) < 2, torch.ones(8, dtype=torch.bool))
    assert torch.equal(replaced.weight, dense.weight)
    with pytest.raises(StateError, match="read-only"):
        replaced.weight.zero_()


class ReadsWeight(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(inputs.to(self.layer.weight.device, self.layer.weight.dtype)) + self.layer.bias
        return functional.linear(hidden, self.layer.weight.T)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_reading_under_torch_compile(backend: str) -> None:
    dense, replaced = make_linear_pair()
    inputs = torch.randn(5, 32)
    with torch.no_grad():
        traced = torch.compile(ReadsWeight(replaced), backend=backend, fullgraph=True)
        assert torch.allclose(traced(inputs), ReadsWeight(dense)(inputs), atol=1e-5)
    torch.compiler.reset()


def test_a_compiled_function_takes_a_weight() -> None:
    dense, replaced = make_linear_pair()
    with torch.no_grad():
        assert torch.equal(torch.compile(torch.neg, backend="eager")(replaced.weight), -dense.weight)
    torch.compiler.reset()
