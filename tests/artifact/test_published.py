"""Transformers models are written as they are published, which older versions and other tools read."""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import secateur
from secateur.artifact import Artifact, convert, examine
from secateur.artifact.manifest import Claim
from secateur.artifact.pattern_verification import restate_claim
from secateur.artifact.pytorch import published
from secateur.artifact.pytorch.published import Conversion, list_published
from secateur.errors import ArtifactError
from secateur.frameworks.view import WeightView
from tiny_transformers import DECODER, FAMILIES


def mixtral() -> nn.Module:
    """Stacks its experts, and joins two of their projections."""
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**DECODER, num_local_experts=2))


def nomic_bert() -> nn.Module:
    """Splits projections that are published as one."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 4}
    return transformers.NomicBertModel(transformers.NomicBertConfig(**sizes, intermediate_size=32))


CONVERTED: dict[str, Any] = {
    made.__name__: made
    for made in (FAMILIES["vit"], mixtral, nomic_bert)  # type: ignore[attr-defined]
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    return (CONVERTED | dict(FAMILIES))[name]().eval()


def same(mine: nn.Module, theirs: nn.Module) -> bool:
    first, second = mine.state_dict(), theirs.state_dict()
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("name", [*CONVERTED, "gpt2"])
def test_the_tensors_are_those_that_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    model = build(name)
    report = secateur.prune(model, {"pattern": "2:4"})
    model.save_pretrained(tmp_path / "theirs")
    secateur.save(model, tmp_path / "dense", report=report, dense=True)
    secateur.save(model, tmp_path / "packed", report=report)
    convert(tmp_path / "packed", tmp_path / "again", dense=True)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    for folder in ("dense", "again"):
        ours = load_file(tmp_path / folder / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert secateur.verify(tmp_path / "packed", pattern="2:4").problems == {}
    assert same(secateur.load(tmp_path / "packed"), model)


@pytest.mark.parametrize("name", CONVERTED)
def test_the_weights_load_into_a_model(name: str, tmp_path: Path) -> None:
    model = build(name)
    secateur.save(model, tmp_path / "saved")
    other = copy.deepcopy(model)
    for tensor in other.parameters():
        tensor.data.zero_()
    before = list(other.parameters())
    assert same(secateur.load(tmp_path / "saved", other), model)
    assert all(tensor is now for tensor, now in zip(before, other.parameters(), strict=True))
    with pytest.raises(ArtifactError, match=r"must be|in the model|does not belong"):
        secateur.load(tmp_path / "saved", copy.deepcopy(model).double())


@pytest.mark.parametrize("name", ["mixtral", "nomic_bert"])
def test_every_tensor_keeps_its_type(name: str, tmp_path: Path) -> None:
    model = build(name).bfloat16()
    for key, tensor in model.named_parameters():
        if "norm" in key or "gate.weight" in key:
            tensor.data = tensor.data.float()
    secateur.save(model, tmp_path / "saved")
    assert same(secateur.load(tmp_path / "saved"), model)


@pytest.mark.parametrize(
    ("name", "pattern"), [("mixtral", "4x1"), ("mixtral", "2:4"), ("mixtral", "1xchannel"), ("nomic_bert", "4x1")]
)
def test_the_manifest_states_the_pattern_of_converted_weights(name: str, pattern: str, tmp_path: Path) -> None:
    model = build(name)
    target = None if ":" in pattern else 0.5
    report = secateur.prune(model, {"pattern": pattern, "target_sparsity": target, "pruning_scope": "local"})
    secateur.save(model, tmp_path / "saved", report=report)
    entries = Artifact(tmp_path / "saved").manifest.tensors.values()
    pruned = [entry.pruned for entry in entries if entry.pruned is not None]
    assert {claim.pattern for claim in pruned} == {pattern}
    assert sum(entry.zeros for entry in entries) >= sum(layer.pruned_weights for layer in report.layers)
    assert secateur.verify(tmp_path / "saved", pattern=pattern).problems == {}


@pytest.mark.parametrize(("name", "has_errors"), [("mixtral", True), ("nomic_bert", False)])
def test_errors_of_layers_are_stated_for_weights_of_a_single_layer(name: str, has_errors: bool, tmp_path: Path) -> None:
    model = build(name)
    batches = [{"input_ids": torch.arange(16).view(2, 8)}]
    report = secateur.prune(
        model, {"pattern": "2:4", "op_names": [r".*(qkv|[qkv]_proj|experts.*)"]}, calibration=batches
    )
    assert report.errors
    secateur.save(model, tmp_path / "saved", report=report)
    claims = [entry.pruned for entry in Artifact(tmp_path / "saved").manifest.tensors.values() if entry.pruned]
    assert {claim.error for claim in claims} == (set(report.errors.values()) if has_errors else {None})


def test_weights_that_changed_after_pruning_are_an_error(tmp_path: Path) -> None:
    model = build("mixtral")
    report = secateur.prune(model, {"pattern": "2:4"})
    model.model.layers[0].mlp.experts.down_proj.data[0] = 1.0
    with pytest.raises(ArtifactError, match=r"layer 'model.layers.0.mlp.experts.down_proj': was pruned to '2:4', but"):
        secateur.save(model, tmp_path / "saved", report=report)


def test_dense_experts_fail_the_pattern_and_are_named(tmp_path: Path) -> None:
    model = build("mixtral")
    report = secateur.prune(model, {"pattern": "2:4", "op_names": [".*self_attn.*"]})
    secateur.save(model, tmp_path / "saved", report=report)
    model.save_pretrained(tmp_path / "theirs")
    for folder in ("saved", "theirs"):
        problems = examine(tmp_path / folder, pattern="2:4").problems
        assert len(problems) == 3 * 2 * 3  # blocks, experts and projections
        assert "model.layers.0.block_sparse_moe.experts.1.w3.weight" in problems


def test_of_a_checkpoint_the_layers_are_known_by_their_published_names(tmp_path: Path) -> None:
    build("vit").save_pretrained(tmp_path / "theirs")
    report = secateur.artifact.inspect(tmp_path / "theirs")
    layers = {row.name: row.layer for row in report.tensors}
    assert layers["vit.encoder.layer.0.attention.attention.key.weight"] == "vit.layers.0.attention.k_proj"
    assert layers["vit.embeddings.position_embeddings"] is None


STACK = WeightView.from_stack((2, 6, 4))
CONV = WeightView(shape=(6, 4, 3), output_axes=(0,), kernel_axes=(2,), input_axes=(1,))
LINEAR = WeightView(shape=(6, 4), output_axes=(0,), input_axes=(1,))


@pytest.mark.parametrize(
    ("view", "convert_one", "axes"),
    [
        (STACK, lambda weight: {"a": weight.transpose(1, 2).contiguous()}, {"a": ((0, 2), (), (1,), 2)}),
        (
            STACK,
            lambda weight: {"a": weight[0].clone(), "b": weight[1].T.clone()},
            {"a": ((0,), (), (1,), 1), "b": ((1,), (), (0,), 1)},
        ),
        (LINEAR, lambda weight: {"a": weight.T.contiguous()}, {"a": ((1,), (), (0,), 1)}),
        (LINEAR, lambda weight: {"a": weight.reshape(6, 2, 2)}, {"a": ((0,), (), (1, 2), 1)}),
        (LINEAR, lambda weight: {"a": weight[:, None] + 0}, {"a": ((0, 1), (), (2,), 1)}),
        (LINEAR, lambda weight: {"a": weight.reshape(2, 12)}, {}),
        (CONV, lambda weight: {"a": weight.permute(2, 1, 0).contiguous()}, {"a": ((2,), (0,), (1,), 1)}),
        (CONV, lambda weight: {"a": weight.flatten(1).clone()}, {}),
    ],
)
def test_the_axes_of_converted_weights_are_traced(
    view: WeightView, convert_one: Any, axes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(view.shape))
    monkeypatch.setattr(published, "_revert_conversion", lambda _, state: convert_one(state["weight"]))
    listed = list_published(module, module.state_dict())
    assert {tensor.sources for tensor in listed.values()} == {("weight",)}
    traced = Conversion(module, module.state_dict(), listed).trace_views("weight", {"weight": view})
    assert {
        name: (found.output_axes, found.kernel_axes, found.input_axes, found.groups) for name, found in traced.items()
    } == axes


def test_a_pattern_that_another_order_of_rows_breaks_is_not_stated() -> None:
    view = WeightView(shape=(8, 4), output_axes=(0,), input_axes=(1,))
    nonzero = np.ones((8, 4), bool)
    nonzero[:4] = False
    assert restate_claim("4x1", view, nonzero) == Claim(pattern="4x1", units=8, pruned_units=4)
    mixed = nonzero[[0, 4, 1, 5, 2, 6, 3, 7]]
    assert restate_claim("4x1", view, mixed) == Claim(pattern="1x1", units=32, pruned_units=16)
    assert restate_claim("16x1", view, nonzero) == Claim(pattern="1x1", units=32, pruned_units=16)
    assert restate_claim("4x1", view, ~np.zeros((8, 4), bool)) == Claim(pattern="4x1", units=8, pruned_units=0)
    sparse = np.tile([True, False, False, False], (8, 1))  # more zeros than 2:4 asks for
    assert restate_claim("2:4", view, sparse) == Claim(pattern="2:4", units=32, pruned_units=16)


def test_other_modules_are_as_they_are() -> None:
    model = nn.Linear(4, 2)
    listed = list_published(model, model.state_dict())
    assert {name: tensor.sources for name, tensor in listed.items()} == {"weight": ("weight",), "bias": ("bias",)}


def test_before_transformers_5_models_are_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    model = build("vit")
    assert list(list_published(model, state := model.state_dict())) == list(state)


def test_before_transformers_5_some_families_are_published_under_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    monkeypatch.setattr(transformers.modeling_utils, "VLMS", ["llava"], raising=False)
    prefixes = {"^language_model.model(?!\\.vision)": "model", "^language_model.lm_head": "lm_head"}

    class TinyLlava(transformers.LlamaForCausalLM):
        _checkpoint_conversion_mapping = prefixes

    model = TinyLlava(transformers.LlamaConfig(**DECODER))
    listed = list_published(model, state := model.state_dict())
    assert {tensor.sources for tensor in listed.values()} == {(name,) for name in state}
    assert all(name == f"language_model.{tensor.sources[0]}" for name, tensor in listed.items())
    monkeypatch.setattr(transformers.modeling_utils, "VLMS", ["paligemma"])
    assert list(list_published(model, state)) == list(state)
