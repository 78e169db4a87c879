"""Data types of loaded tensors: those that are stored, whatever the configuration of the model says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import secateur
from secateur.artifact import convert
from tiny_transformers import llama, vit


def resnet() -> nn.Module:
    """Buffers of floating point and of integers."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config)


@pytest.mark.parametrize("build", [llama, resnet, vit])
@pytest.mark.parametrize(("stored", "configured"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_loading_keeps_the_stored_types(
    stored: str, configured: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = build().to(getattr(torch, stored))
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"dtype": configured}), "utf-8")
    convert(tmp_path / "model", tmp_path / "saved")
    loaded = secateur.load(tmp_path / "saved")
    assert torch.get_default_dtype() == torch.float32
    tensors = loaded.state_dict()
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("configured", ["float32", "bfloat16"])
def test_buffers_that_are_not_stored_have_the_type_that_their_module_gives_them(
    configured: str, tmp_path: Path
) -> None:
    model = llama()
    model.to(getattr(torch, configured))
    secateur.save(model, tmp_path / "saved")
    buffers = dict(secateur.load(tmp_path / "saved").named_buffers())
    fresh = dict(llama().named_buffers())
    assert buffers.keys() == fresh.keys()
    assert {name: buffer.dtype for name, buffer in buffers.items()} == {
        name: buffer.dtype for name, buffer in fresh.items()
    }
    assert all(torch.equal(buffer, fresh[name]) for name, buffer in buffers.items())
