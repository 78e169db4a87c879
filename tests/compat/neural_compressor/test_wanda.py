"""`prune_wanda` prunes the blocks of a language model to the ratio, with and without DSnoT."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from secateur.compat.neural_compressor.compression.pruner.dsnot import DSnoT
from secateur.compat.neural_compressor.compression.pruner.wanda import prune_wanda
from secateur.compat.neural_compressor.compression.pruner.wanda.utils import (
    find_layers,
    get_module_list,
    get_tensor_sparsity_ratio,
)
from secateur.compat.neural_compressor.compression.pruner.wanda.wrapper import WrappedGPT
from secateur.compat.neural_compressor.data import Datasets
from secateur.compat.neural_compressor.data.dataloaders.pytorch_dataloader import PyTorchDataLoader
from secateur.errors import UnsupportedModelError
from secateur.refiners import REFINERS
from tiny_transformers import family


def loader() -> PyTorchDataLoader:
    samples = Datasets("pytorch")["dummy"](shape=(10, 16), low=0.0, high=10.0, label=True, dtype="int64")
    return PyTorchDataLoader(samples)


@pytest.mark.parametrize(
    "options", [{}, {"use_variant": True}, {"dsnot": True}, {"dsnot": True, "use_variant": True}], ids=str
)
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_every_layer_of_the_blocks_reaches_the_ratio(name: str, options: dict[str, Any]) -> None:
    model = family(name)
    head = model.get_output_embeddings().weight.detach().clone()
    prune_wanda(model, loader(), 0.75, nsamples=4, **options)
    for layer in find_layers(get_module_list(model)).values():
        assert get_tensor_sparsity_ratio(layer.weight.data) == 0.75
        rows = (layer.weight == 0).sum(dim=1).unique()
        assert len(rows) == 1 or options == {"use_variant": True}
    assert torch.equal(model.get_output_embeddings().weight, head)


@pytest.mark.parametrize("dsnot", [False, True])
def test_groups_lose_n_of_m(dsnot: bool) -> None:
    model = family("opt")
    prune_wanda(model, loader(), 0.5, prune_n=1, prune_m=4, dsnot=dsnot)
    for layer in find_layers(get_module_list(model)).values():
        assert ((layer.weight == 0).reshape(-1, 4).sum(dim=1) == 1).all()


def test_statistics_of_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 4, 3, generator=generator) + 1 for count in (2, 1, 3)]
    wrapped = WrappedGPT(nn.Linear(3, 2))
    for batch in batches:
        wrapped.add_batch(batch, None)
    # Measured with Neural Compressor, whose variance is the mean of those of the batches, and not that of all tokens.
    assert wrapped.scaler_row.tolist() == pytest.approx([5.79032, 8.10397, 9.60069], abs=1e-5)
    assert wrapped.sum_metric_row.tolist() == pytest.approx([3.43450, 4.28766, 4.18027], abs=1e-5)
    assert wrapped.mean.tolist() == pytest.approx([0.858624, 1.071916, 1.045067], abs=1e-5)
    tokens = torch.cat([batch.reshape(-1, 3) for batch in batches])
    assert torch.allclose(wrapped.var, tokens.var(0, unbiased=False), atol=1e-5)
    assert (wrapped.rows, wrapped.columns, wrapped.nsamples, wrapped.ntokens) == (2, 3, 6, 24)
    wrapped.add_batch(torch.ones(5, 3), None)  # tokens of one sequence
    assert (wrapped.nsamples, wrapped.ntokens) == (7, 29)
    assert not WrappedGPT(nn.Linear(3, 2)).mean.any()


def test_a_module_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Wrapped'"):
        import_module("secateur.compat.neural_compressor.compression.pruner.wanda.wrapper").Wrapped  # noqa: B018


def test_a_model_without_blocks() -> None:
    with pytest.raises(UnsupportedModelError, match="must contain a list of blocks"):
        get_module_list(nn.Linear(2, 2))


def test_dsnot_is_the_refiner() -> None:
    assert DSnoT is REFINERS.find("dsnot")
