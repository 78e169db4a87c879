"""Replaced layers on a GPU, with the libraries that torch includes."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import secateur
import secateur.runtime
from runtime.sparse_layers import replace_always
from secateur.errors import LayerError, StateError

pytestmark = pytest.mark.gpu

HALVES = [torch.float16, torch.bfloat16]

ZEROS: list[tuple[dict[str, Any], str]] = [
    ({"pattern": "2:4"}, "2:4, "),
    ({"pattern": "32x32", "target_sparsity": 0.75}, "blocks, Triton"),
    ({"pattern": "1xchannel", "target_sparsity": 0.5}, "smaller dense"),
]
"""Configurations, and parts of the names of the sparse layers."""


@pytest.fixture(autouse=True)
def always() -> Iterator[None]:
    """Choose the fastest candidate, even if it is slower than dense."""
    with replace_always(is_quick=False):
        yield


def compile_model(config: dict[str, Any], dtype: torch.dtype, rows: int = 128) -> tuple[nn.Module, nn.Module, Any]:
    """Compile a model, and return a dense copy, the compiled model and the report."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256, bias=False)).to("cuda", dtype).eval()
    secateur.prune(model, {**config, "op_names": [".*"], "pruning_scope": "local"})
    dense, inputs = copy.deepcopy(model), torch.randn(rows, 256, device="cuda", dtype=dtype)
    return dense, *secateur.runtime.compile(model, inputs)


def is_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-2) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("config", "name"), ZEROS, ids=lambda given: str(given))
def test_outputs_match_the_dense_model(config: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    dense, model, report = compile_model(config, dtype)
    assert all(name in row.chosen for row in report.layers), report
    assert all(row.bytes < row.dense_bytes for row in report.layers)
    for shape in ((128, 256), (1, 256), (3, 256), (17, 256), (256,), (2, 5, 256)):
        inputs = torch.randn(shape, device="cuda", dtype=dtype)
        with torch.no_grad():
            assert is_close(model(inputs), dense(inputs)), shape
        with torch.inference_mode():
            assert is_close(model(inputs), dense(inputs)), shape
    with torch.no_grad():
        inputs = torch.randn(5, 256, 2, device="cuda", dtype=dtype).permute(2, 0, 1)
        assert is_close(model(inputs), dense(inputs))
        assert model(inputs).is_contiguous()
        assert model(torch.zeros(0, 256, device="cuda", dtype=dtype)).shape == (0, 256)


def test_float32_in_blocks_is_float32() -> None:
    dense, model, report = compile_model({"pattern": "32x32", "target_sparsity": 0.75}, torch.float32)
    assert all("blocks, Triton" in row.chosen for row in report.layers)
    inputs = torch.randn(64, 256, device="cuda")
    with torch.no_grad():
        assert is_close(model(inputs), dense(inputs), 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch during compilation
@pytest.mark.parametrize(("config", "name"), ZEROS[:2], ids=lambda given: str(given))
def test_copies_states_and_graphs(config: dict[str, Any], name: str) -> None:  # noqa: ARG001 - one table for all tests
    dense, model, _ = compile_model(config, torch.bfloat16)
    inputs = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())
    with torch.no_grad():
        expected = model(inputs)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.compile(model, fullgraph=True)):  # noqa: S301
            assert is_close(other(inputs), expected)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        model(inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            actual = model(inputs)
    inputs.neg_()
    graph.replay()
    torch.cuda.synchronize()
    with torch.no_grad():
        assert is_close(actual, dense(inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside torch during compilation
def test_layers_can_be_timed_in_graphs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096)).to("cuda", torch.bfloat16).eval()
    secateur.prune(model, {"pattern": "128x128", "target_sparsity": 0.9, "op_names": [".*"]})
    dense, inputs = copy.deepcopy(model), torch.randn(2048, 4096, device="cuda", dtype=torch.bfloat16)
    model, report = secateur.runtime.compile(model, inputs, cuda_graphs=True)
    assert report.cuda_graphs
    assert "Layers were timed in CUDA graphs" in str(report)
    assert all(row.chosen.endswith("blocks, Triton") for row in report.layers)
    fast = torch.compile(model, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):
            assert is_close(fast(inputs), dense(inputs))


def test_unsupported_inputs() -> None:
    _, model, _ = compile_model({"pattern": "2:4"}, torch.bfloat16)
    with pytest.raises(LayerError, match=r"of torch.bfloat16 on cuda:0, found torch.float32 on cuda:0"):
        model(torch.zeros(4, 256, device="cuda"))
    with pytest.raises(LayerError, match=r"found torch.bfloat16 on cpu"):
        model(torch.zeros(4, 256, dtype=torch.bfloat16))
    outputs = model(torch.zeros(4, 256, dtype=torch.bfloat16, device="cuda", requires_grad=True))
    with pytest.raises(StateError, match="has no gradients"):
        outputs.sum().backward()


def test_a_shape_that_no_library_supports_stays_dense() -> None:
    model = nn.Linear(100, 100).to("cuda", torch.bfloat16).eval()
    secateur.prune(model, {"pattern": "2:4"})
    model, report = secateur.runtime.compile(nn.Sequential(model).eval(), torch.zeros(4, 100, device="cuda").bfloat16())
    (row,) = report.layers
    assert row.chosen == "dense"
    assert "cuSPARSELt does not support a weight of shape (100, 100)" in row.reason
    assert "CUTLASS does not support" in row.reason
