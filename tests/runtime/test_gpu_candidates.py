"""Candidates for GPUs, tested on the CPU."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import secateur
from secateur.errors import LayerError, StateError
from secateur.runtime.pytorch import LibraryLinear
from secateur.runtime.pytorch.candidates import build_library_layer, find_library_formats
from secateur.runtime.pytorch.layers.library import BlockSparseFormat, LibraryMatrix, SemiStructuredFormat
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight

CONV1D = transformers.pytorch_utils.Conv1D


def prune_model(layer: nn.Module, pattern: str = "16x16", sparsity: float = 0.75) -> nn.Module:
    secateur.prune(layer.eval(), {"pattern": pattern, "target_sparsity": sparsity, "op_names": [".*"]})
    return layer


def build_block_sparse_layer(layer: nn.Module) -> LibraryLinear:
    return build_library_layer(layer, RecognizedWeight.from_layer(layer), BlockSparseFormat(16))


@pytest.fixture(params=["linear", "no bias", "conv1d"])
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    factories = {"linear": lambda: nn.Linear(64, 96), "no bias": lambda: nn.Linear(64, 96, bias=False)}
    layer = {**factories, "conv1d": lambda: CONV1D(96, 64)}[request.param]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return prune_model(layer)


@pytest.mark.parametrize("shape", [(32, 64), (64,), (2, 5, 64), (0, 64), (2, 0, 64)])
def test_outputs_match_the_dense_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    with torch.no_grad():
        expected, actual = layer(inputs), build_block_sparse_layer(layer)(inputs)
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    assert torch.allclose(actual, expected, atol=1e-4)


def test_transforms_use_the_dense_weight(layer: nn.Module) -> None:
    inputs = torch.randn(3, 2, 64)
    with torch.no_grad():
        assert torch.allclose(torch.func.vmap(build_block_sparse_layer(layer))(inputs), layer(inputs), atol=1e-4)


def test_inference_mode_is_supported(layer: nn.Module) -> None:
    replaced = build_block_sparse_layer(layer)
    with torch.inference_mode():
        inputs = torch.randn(8, 64)
        for one in (replaced, build_block_sparse_layer(layer)):
            assert torch.allclose(one(inputs), layer(inputs), atol=1e-4)


def test_autocast_changes_only_the_type_of_outputs(layer: nn.Module) -> None:
    replaced, inputs = build_block_sparse_layer(layer), torch.randn(8, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        actual = replaced(inputs)
    with torch.no_grad():
        assert torch.equal(actual, replaced(inputs).bfloat16())


def test_changing_the_dense_bias_has_no_effect() -> None:
    layer = prune_model(nn.Linear(64, 64))
    replaced, inputs = build_block_sparse_layer(layer), torch.randn(8, 64)
    with torch.no_grad():
        expected = layer(inputs)
        layer.get_parameter("bias").zero_()
        assert torch.allclose(replaced(inputs), expected, atol=1e-4)


def test_inputs_can_have_any_strides(layer: nn.Module) -> None:
    replaced = build_block_sparse_layer(layer)
    with torch.no_grad():
        for inputs in (torch.randn(64, 8).T, torch.randn(5, 64, 2).permute(2, 0, 1)):
            assert torch.allclose(replaced(inputs), layer(inputs.contiguous()), atol=1e-4)


def test_state_and_copies_match_the_dense_layer(layer: nn.Module) -> None:
    replaced = build_block_sparse_layer(layer)
    copies = [replaced, copy.deepcopy(replaced), pickle.loads(pickle.dumps(replaced))]  # noqa: S301 - our own
    file = io.BytesIO()
    torch.save(replaced.state_dict(), file)
    file.seek(0)
    inputs = torch.randn(8, 64)
    for state in (torch.load(file), *(one.state_dict() for one in copies)):
        assert state.keys() == layer.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    with torch.no_grad():
        for one in copies[1:]:
            assert torch.equal(one(inputs), replaced(inputs))


def test_layers_compile_to_one_operator(layer: nn.Module) -> None:
    replaced, inputs = build_block_sparse_layer(layer), torch.randn(8, 64)
    traced = torch.compile(replaced, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(traced(inputs), replaced(inputs))


def test_only_nonzero_blocks_are_stored() -> None:
    torch.manual_seed(0)
    replaced = build_block_sparse_layer(prune_model(nn.Linear(64, 64)))
    assert replaced.nbytes == 4 * 16 * 16 * 4 + (5 + 4) * 8  # four blocks, five starts, four columns
    assert "16x16 blocks, Triton" in repr(replaced)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.ones(4, 64, requires_grad=True), StateError, "has no gradients"),
        (torch.ones(4, 64, dtype=torch.bfloat16), LayerError, r"of torch.float32 on cpu, found torch.bfloat16 on cpu"),
        (torch.ones(4, 64, device="meta"), LayerError, "found torch.float32 on meta"),
        (torch.ones(4, 63), LayerError, r"needs 64 input features, found an input of shape \(4, 63\)"),
        (torch.ones(()), LayerError, r"found an input of shape \(\)"),
    ],
)
def test_unsupported_inputs(inputs: torch.Tensor, error: type[Exception], message: str) -> None:
    replaced = build_block_sparse_layer(prune_model(nn.Linear(64, 64)))
    with pytest.raises(error, match=message):
        replaced(inputs).sum().backward()


def test_library_errors_are_quoted() -> None:
    with pytest.raises(
        LayerError, match=r"2:4, CUTLASS does not support a weight of shape \(32, 64\): .*cpu is not supported"
    ):
        LibraryMatrix(torch.zeros(32, 64), SemiStructuredFormat("CUTLASS"))


def test_library_errors_for_inputs_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = LibraryMatrix(torch.zeros(32, 64), BlockSparseFormat(16))

    def linear(*_: Any) -> None:
        raise RuntimeError("not supported on this GPU\nwith a trace")

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    with pytest.raises(LayerError, match=r"does not support a weight of shape \(32, 64\): not supported on this GPU$"):
        matrix.multiply(torch.zeros(2, 64), None)


def list_formats(layer: nn.Module) -> list[str]:
    """List the names of library formats, or the reason why there are none."""
    formats = find_library_formats(layer, RecognizedWeight.from_layer(layer))
    return [item if isinstance(item, str) else item.name for item in formats]


def test_formats_depend_on_the_zeros() -> None:
    torch.manual_seed(0)
    halves = nn.Linear(256, 128, dtype=torch.bfloat16)
    assert list_formats(prune_model(halves, "2:4", 0.5)) == ["2:4, cuSPARSELt", "2:4, CUTLASS"]
    assert list_formats(prune_model(nn.Linear(256, 128, dtype=torch.bfloat16), "3:4", 0.25)) == [
        "there are no sparse kernels for '3:4' in torch.bfloat16 on a GPU"
    ]
    blocks = ["64x64 blocks, Triton", "32x32 blocks, Triton", "16x16 blocks, Triton"]
    assert list_formats(prune_model(nn.Linear(256, 128), "64x64", 0.75)) == blocks
    # The rows of the transposed weight are not 2:4, but those of the canonical weight are.
    transposed = CONV1D(128, 256).to(torch.float16)
    assert list_formats(prune_model(transposed, "2:4", 0.5)) == ["2:4, cuSPARSELt", "2:4, CUTLASS"]


def test_a_layer_without_a_format_has_a_reason() -> None:
    layer = nn.Linear(64, 64)
    secateur.prune(layer, {"pattern": "4x1", "target_sparsity": 0.5})
    assert list_formats(layer) == ["there are no sparse kernels for '4x1' in torch.float32 on a GPU"]
    assert list_formats(prune_model(nn.Linear(64, 64), "2:4", 0.5)) == [
        "there are no sparse kernels for '2:4' in torch.float32 on a GPU"
    ]
    convolution = nn.Conv2d(16, 16, 1)
    secateur.prune(convolution, {"pattern": "16x16", "target_sparsity": 0.0})
    assert list_formats(convolution) == ["there are no sparse kernels for convolutions on a GPU"]
