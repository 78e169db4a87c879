"""Graphs with replaced layers, which only work in the process that created them."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from runtime.sparse_layers import make_conv_pair, make_linear_pair
from secateur.errors import StateError
from secateur.runtime.pytorch import SparseLayer
from secateur.runtime.pytorch.layers.operator import LAYERS

EXPORTS: dict[str, Callable[[nn.Module, torch.Tensor, Path], Any]] = {
    "export": lambda model, x, _: torch.export.export(model, (x,)),
    "strict export": lambda model, x, _: torch.export.export(model, (x,), strict=True),
    "trace": lambda model, x, _: torch.jit.trace(model, (x,)),
    "script": lambda model, *_: torch.jit.script(model),
    "ONNX": lambda model, x, folder: torch.onnx.export(model, (x,), str(folder / "model.onnx"), dynamo=False),
}


class ReadsWeight(nn.Module):
    """A model whose graph contains only the weight."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.layer.weight.T


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch recommends torch.export
@pytest.mark.parametrize("export", EXPORTS.values(), ids=list(EXPORTS))
@pytest.mark.parametrize("pair", [make_linear_pair, make_conv_pair])
def test_export_raises(export: Any, pair: Any, tmp_path: Path) -> None:
    _, replaced = pair()
    inputs = torch.randn(5, 32) if pair is make_linear_pair else torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        replaced(inputs)
        with pytest.raises((StateError, RuntimeError), match="A replaced layer cannot be exported, traced or scripted"):
            export(nn.Sequential(replaced), inputs, tmp_path)


def test_export_of_the_weight_raises() -> None:
    with torch.no_grad(), pytest.raises(StateError, match="cannot be exported"):
        torch.export.export(ReadsWeight(make_linear_pair()[1]), (torch.randn(5, 32),))


def test_graphs_of_a_deleted_layer_raise() -> None:
    _, replaced = make_linear_pair()
    inputs = torch.randn(5, 32)
    with torch.no_grad():
        handle = replaced.handle
        unpacked = make_fx(lambda x: x[0] + torch.ops.secateur.unpack_weight(handle))(inputs)
        graphs = [make_fx(replaced)(inputs), unpacked]
        expected = [graph(inputs) for graph in graphs]
        other = make_linear_pair()[1]
        assert all(torch.equal(graph(inputs), value) for graph, value in zip(graphs, expected, strict=True))
        del replaced
        gc.collect()
        assert handle not in LAYERS
        for graph in graphs:
            with pytest.raises(
                StateError, match="calls a replaced layer that no longer exists, or that belongs to another"
            ):
                graph(inputs)
        assert other.handle != handle


OTHER_PROCESS = """
import pickle, sys, torch
from runtime.sparse_layers import make_linear_pair
from secateur.errors import StateError
layers = [make_linear_pair()[1] for _ in range(20)]
graph = pickle.load(open(sys.argv[1], "rb"))
try:
    graph(torch.ones(5, 32))
except StateError as error:
    print(error)
"""


def test_graphs_from_another_process_raise(tmp_path: Path) -> None:
    _, replaced = make_linear_pair()
    with torch.no_grad():
        graph = torch.fx.GraphModule({}, torch.fx.symbolic_trace(nn.Sequential(replaced)).graph)
        (tmp_path / "graph.pickle").write_bytes(pickle.dumps(graph))
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "graph.pickle")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "belongs to another process" in ran.stdout, ran.stderr


def test_copies_have_different_handles() -> None:
    _, replaced = make_linear_pair()
    copies: list[SparseLayer] = [copy.deepcopy(replaced), pickle.loads(pickle.dumps(replaced))]  # noqa: S301 - our own
    assert len({layer.handle for layer in (replaced, *copies)}) == 3
    with torch.no_grad():
        graph, inputs = make_fx(copies[0])(torch.randn(5, 32)), torch.randn(5, 32)
        expected = replaced(inputs)
        del replaced
        gc.collect()
        assert torch.equal(graph(inputs), expected)


@pytest.mark.parametrize("pair", [make_linear_pair, make_conv_pair])
def test_dynamic_shapes_under_torch_compile(pair: Any) -> None:
    dense, replaced = pair()
    compiled = torch.compile(replaced, backend="aot_eager", fullgraph=True, dynamic=True)
    shapes = [(3, 32), (7, 32), (2, 5, 32)] if pair is make_linear_pair else [(1, 4, 9, 8), (3, 4, 12, 11), (4, 10, 9)]
    with torch.no_grad():
        for shape in shapes:
            inputs = torch.randn(shape)
            assert torch.allclose(compiled(inputs), dense(inputs), atol=1e-5)
    torch.compiler.reset()
