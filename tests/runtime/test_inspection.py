"""The report lists every layer that owns a weight, with its share of zeros and the reason if it stays dense."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import secateur.runtime
from secateur.errors import LayerError
from secateur.runtime.pytorch.inspection import inspect_layers


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.scale = nn.Parameter(torch.ones(4, 8, 16)), nn.Parameter(torch.ones(8))


def clear_quarters(module: nn.Module) -> nn.Module:
    """Set the first quarter of each weight with at least two axes to zero."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.fill_(1).view(-1)[: weight.numel() // 4] = 0
    return module.eval()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 8),
    "embedding": lambda: nn.Embedding(16, 8),
    "bag": lambda: nn.EmbeddingBag(16, 8),
    "recurrent": lambda: nn.LSTM(8, 8, num_layers=2),
    "recurrent cell": lambda: nn.GRUCell(8, 8),
    "bilinear": lambda: nn.Bilinear(8, 4, 8),
    "convolution of sequences": lambda: nn.Conv1d(8, 8, 3),
    "transposed convolution": lambda: nn.ConvTranspose2d(8, 8, 3),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention with three projections": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=12),
    "stacked experts": Experts,
    "hooked": lambda: _add_hook(nn.Linear(16, 8)),
    "masked linear": lambda: prune.custom_from_mask(nn.Linear(16, 8), "weight", torch.arange(128).view(8, 16) >= 32),
    "masked embedding": lambda: prune.custom_from_mask(
        nn.Embedding(16, 8), "weight", torch.arange(128).view(16, 8) >= 32
    ),
    "parametrized embedding": lambda: parametrizations.spectral_norm(nn.Embedding(16, 8)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripted_modules_are_listed() -> None:
    script: Any = torch.jit.script  # not annotated
    model = nn.Sequential(nn.Linear(16, 16), script(clear_quarters(nn.Linear(16, 8)).eval()))
    report = inspect_layers(model.eval())["1"]
    assert (report.sparsity, report.reason) == (0.25, "RecursiveScriptModule is not supported")


def _add_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize("make", LAYERS.values(), ids=list(LAYERS))
def test_every_kind_of_layer_has_its_share_of_zeros(make: Callable[[], nn.Module]) -> None:
    layer = make()
    if not hasattr(layer, "parametrizations"):
        clear_quarters(layer)
    else:
        with torch.no_grad():
            layer.parametrizations.weight.original[:4] = 0
    for model, name in ((nn.Sequential(layer.eval()), "0"), (layer, "")):
        report = inspect_layers(model)[name]
        assert report.sparsity == pytest.approx(0.25)
        assert report.reason or (name and type(layer) is nn.Linear)
        assert report.dense_bytes == report.bytes > 0
        assert all(weight.shape != () for weight in inspect_layers(model).values())


def test_modules_without_a_matrix_are_not_listed() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.LayerNorm(4), nn.ReLU())
    assert list(inspect_layers(model.eval())) == ["0"]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_weights_that_are_stored_as_sparse_tensors() -> None:
    class Product(nn.Module):
        def __init__(self, values: torch.Tensor) -> None:
            super().__init__()
            self.values = nn.Parameter(values, requires_grad=False)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.values @ inputs

    for values in (torch.eye(8).to_sparse(), torch.eye(8).to_sparse_csr()):
        report = secateur.runtime.compile(nn.Sequential(Product(values)).eval(), torch.ones(8, 8)).report
        assert (report.layers[0].sparsity, report.layers[0].dense_bytes) == (1 - 1 / 8, 256)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_unusual_weights_have_a_reason() -> None:
    stored, unusual, meta = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, device="meta")
    stored.weight = nn.Parameter(torch.eye(8).to_sparse_csr(), requires_grad=False)
    unusual.weight = nn.Parameter(torch.ones(2, 3, 4), requires_grad=False)
    reports = inspect_layers(nn.Sequential(stored, unusual, meta).eval())
    assert {name: report.reason for name, report in reports.items()} == {
        "0": "its weight is stored as torch.sparse_csr",
        "1": "",
        "2": "its weight is on the meta device and has no values",
    }
    assert reports["0"].sparsity == 1 - 1 / 8
    assert reports["1"].pattern is None


def test_bytes_of_a_shared_weight_are_counted_once() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(16, 8), "head": nn.Linear(8, 16, bias=False)})
    model["head"].weight = model["embedding"].weight
    reports = inspect_layers(model.eval())
    assert {name: report.dense_bytes for name, report in reports.items()} == {"embedding": 512, "head": 0}
    assert reports["head"].reason == "its weight is shared with another layer"


class Foreign(torch.Tensor):
    """A class of weights with operators of its own, such as sharded or quantized tensors."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.Tensor.count_nonzero, "reading a sharded tensor would communicate"
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.Embedding(8, 8), lambda: nn.LayerNorm(8)])
def test_models_with_tensor_subclasses_raise(make: Callable[[], nn.Module]) -> None:
    layer = make()
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Foreign), requires_grad=False)
    model = nn.Sequential(nn.Linear(8, 8), layer).eval()
    with pytest.raises(
        LayerError, match=r"cannot compile weights that are tensor subclasses: '1\.weight' is a Foreign"
    ):
        secateur.runtime.compile(model, torch.ones(2, 8))
