"""Slimmed models are saved, and loaded without tracing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Phi3Config, Phi3ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

import secateur
import tiny_transformers
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.saving import save_over
from secateur.errors import ArtifactError
from secateur.graph import Graph, Role, trace
from secateur.slimming.pytorch.tensors import list_tensors, locate_removed
from secateur.slimming.removal import Removal
from slim.test_surgery import Attention, attention_graph, conv_net, mlp, zero

Case = tuple[nn.Module, Graph, torch.Tensor]


def attention() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(Attention())
    zero(model, "0.out.weight", 1, [3, 4, 5])
    return model, attention_graph(model, "0."), torch.randn(2, 5, 10)


@pytest.mark.parametrize("make", [mlp, conv_net, attention])
def test_a_fresh_dense_model_gets_the_shapes(make: Callable[[], Case], tmp_path: Path) -> None:
    model, graph, inputs = make()
    fresh = copy.deepcopy(model)
    secateur.slim(model, example_inputs=inputs, graph=graph)
    saved = secateur.save(model, tmp_path / "saved")
    assert saved.tensors
    loaded = secateur.load(tmp_path / "saved", fresh)
    assert loaded is fresh
    assert torch.equal(loaded.eval()(inputs), model.eval()(inputs))
    for name, module in model.named_modules():
        assert module.extra_repr() == loaded.get_submodule(name).extra_repr()
    again = secateur.save(loaded, tmp_path / "again")
    assert again.to_dict()["tensors"] == saved.to_dict()["tensors"]
    assert torch.equal(secateur.load(tmp_path / "saved", copy.deepcopy(model))(inputs), model(inputs))
    secateur.artifact.convert(tmp_path / "saved", tmp_path / "dense", dense=True)
    assert torch.equal(secateur.load(tmp_path / "dense", make()[0].eval())(inputs), model(inputs))


def test_a_copy_is_saved_like_the_model(tmp_path: Path) -> None:
    model, graph, inputs = mlp()
    secateur.slim(model, example_inputs=inputs, graph=graph)
    secateur.save(copy.deepcopy(model), tmp_path)
    assert json.loads((tmp_path / "secateur.json").read_text())["sizes"] == {
        "0": {"out_features": 5},
        "2": {"in_features": 5},
    }


def test_ties_stay_tied(tmp_path: Path) -> None:
    from slim.graphs import CONSUMER, PER_CHANNEL, PRODUCER, GraphBuilder
    from slim.test_surgery import Tied

    model = Tied()
    zero(model, "second.weight", 1, [2, 3])
    members = [("first.weight", 0, PRODUCER), ("first.bias", 0, PER_CHANNEL), ("second.weight", 1, CONSUMER)]
    graph, tokens = GraphBuilder(model).add("hidden", 6, *members).build(), torch.arange(6).reshape(2, 3)
    secateur.slim(model, example_inputs=tokens, graph=graph)
    secateur.save(model, tmp_path)
    loaded = secateur.load(tmp_path, Tied())
    assert loaded.second.weight is loaded.copy_of_second.weight
    assert loaded.copy_of_second.in_features == 4
    assert torch.equal(loaded(tokens), model(tokens))


def test_another_model_does_not_change(tmp_path: Path) -> None:
    model, graph, inputs = mlp()
    secateur.slim(model, example_inputs=inputs, graph=graph)
    secateur.save(model, tmp_path)
    other = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ArtifactError, match=r"has '2.bias', which the model does not have"):
        secateur.load(tmp_path, other)
    reordered = nn.ModuleDict({"0": nn.Linear(6, 8), "2": nn.Bilinear(8, 1, 3)})
    with pytest.raises(ArtifactError, match="module '2' has no size 'in_features'"):
        secateur.load(tmp_path, reordered)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"0": {"training": 1}}, "module '0' has no size 'training'"),
        ({"0": {"__class__": 1}}, "String should match pattern"),
        ({"9": {}}, "there is no module '9'"),
        ({"0": {"out_features": [5]}}, "module '0' has no size 'out_features'"),
        ({"0": {"out_features": "5"}}, "Input should be"),
        ({"0": {"config.x": 5}}, "module '0' has no size 'config.x'"),
    ],
)
def test_forged_sizes_are_refused(sizes: Any, message: str, tmp_path: Path) -> None:
    from artifact.forgery import forged

    model, graph, inputs = mlp()
    secateur.slim(model, example_inputs=inputs, graph=graph)
    secateur.save(model, tmp_path)
    forged(tmp_path, lambda data: data.update(sizes=sizes))
    with pytest.raises(ArtifactError, match=message):
        secateur.load(tmp_path, mlp()[0])


# transformers models


def zero_readers(model: nn.Module, graph: Graph, kept: Callable[[str, int], int]) -> None:
    """Zero what reads the last units of each group that can be pruned."""
    keep = []
    for group in graph.groups:
        left = kept(group.name, group.units) if group.obstacle is None and group.inexact is None else group.units
        keep.append(torch.arange(group.units).numpy() < left)
    tensors = list_tensors(model)
    by_id = {id(tensor): tensor for tensor in tensors.values()}
    removal = Removal(graph=graph, keep=tuple(keep))
    with torch.no_grad():
        for key, axes in locate_removed(removal, tensors, {Role.CONSUMER}).items():
            for axis, indices in axes.items():
                by_id[key].index_fill_(axis, torch.from_numpy(indices), 0)


def build(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    decoder = {key: value for key, value in tiny_transformers.DECODER.items() if key != "head_dim"}
    experts = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}
    makers = {
        "phi3": lambda: Phi3ForCausalLM(Phi3Config(**tiny_transformers.DECODER)),
        "qwen2_moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(num_experts_per_tok=2, **(decoder | experts))),
    }
    model: nn.Module = makers.get(name, getattr(tiny_transformers, name, None))()
    return model.eval()


def slim_family(
    name: str, kept: Callable[[str, int], int], **options: Any
) -> tuple[Any, Any, secateur.slimming.SlimReport]:
    model = build(name)
    inputs = {"input_ids": torch.arange(10).reshape(2, 5) + 1}
    graph = trace(model, inputs)
    zero_readers(model, graph, kept)
    expected = model(**inputs).logits
    report = secateur.slim(model, example_inputs=inputs, graph=graph, **options)
    assert report.removed_units > 0
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    return model, inputs, report


def halve(_: str, units: int) -> int:
    return units // 2


def halve_feed_forward(name: str, units: int) -> int:
    return units // 2 if any(part in name for part in ("mlp", "fc1", "intermediate")) else units


def vary(name: str, units: int) -> int:
    """Keep another width in each layer."""
    layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
    return max(units - max(units // 4, 1) * (layer + 1), 1)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2", "phi3"])
def test_uniform_widths_are_in_the_configuration(name: str, tmp_path: Path) -> None:
    model, inputs, report = slim_family(name, halve)
    assert report.config == {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}
    model.save_pretrained(tmp_path / "plain")
    loaded = type(model).from_pretrained(tmp_path / "plain")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    secateur.save(model, tmp_path / "artifact")
    assert "sizes" not in json.loads((tmp_path / "artifact/secateur.json").read_text())
    assert torch.equal(secateur.load(tmp_path / "artifact")(**inputs).logits, model(**inputs).logits)


def test_experts_of_several_kinds_are_in_the_configuration(tmp_path: Path) -> None:
    """Two fields have the same width, a third one has it by chance, and heads have a size that is not a field."""
    model, inputs, report = slim_family("qwen2_moe", halve)
    assert report.config == {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    }
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "opt", "gpt2"])
def test_uniform_channels_are_in_the_configuration(name: str, tmp_path: Path) -> None:
    model, inputs, report = slim_family(name, halve_feed_forward)
    assert len(report.config) == 1
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "mixtral", "opt", "phi3"])
def test_different_widths_are_in_the_manifest(name: str, tmp_path: Path) -> None:
    model, inputs, report = slim_family(name, vary)
    assert report.config == {}
    secateur.save(model, tmp_path)
    assert json.loads((tmp_path / "secateur.json").read_text())["sizes"]
    loaded = secateur.load(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    fresh = secateur.load(tmp_path, build(name, seed=1))
    assert torch.equal(fresh(**inputs).logits, model(**inputs).logits)


def test_the_width_of_the_residual_stream_is_in_the_configuration(tmp_path: Path) -> None:
    model, inputs = build("llama"), {"input_ids": torch.arange(10).reshape(2, 5) + 1}
    graph = trace(model, inputs)
    (stream,) = (group for group in graph.groups if group.inexact and group.obstacle is None)
    keep = tuple(torch.arange(group.units).numpy() < (12 if group is stream else group.units) for group in graph.groups)
    removal, tensors = Removal(graph=graph, keep=keep), list_tensors(model)
    with torch.no_grad():
        for (name, axis), indices in removal.list_removed({Role.CONSUMER}).items():
            tensors[name].index_fill_(axis, torch.from_numpy(indices), 0)
    report = secateur.slim(model, example_inputs=inputs, graph=graph, allow_inexact=True)
    assert report.removed_units == 4
    assert report.config == {"hidden_size": 12}
    assert report.inexact_difference
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_slimmed_models_generate(name: str) -> None:
    tokens = torch.arange(10).reshape(2, 5) + 1
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens), "pad_token_id": 0}
    model = build(name)
    graph = trace(model, tokens)
    zero_readers(model, graph, vary)
    expected = model.generate(tokens, **options)
    secateur.slim(model, example_inputs=tokens, graph=graph)
    assert torch.equal(model.generate(tokens, **options), expected)


def test_configurations_inside_the_configuration(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 64, "max_position_embeddings": 16, "intermediate_size": 24, "bos_token_id": 0}
    vision = {"image_size": 8, "patch_size": 4, "intermediate_size": 40}
    config = CLIPConfig(text_config=sizes | text | {"eos_token_id": 2}, vision_config=sizes | vision, projection_dim=12)
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    inputs = {
        "input_ids": torch.arange(10).reshape(2, 5) + 3,
        "pixel_values": torch.randn(2, 3, 8, 8),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
    }
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mlp.fc2.weight"):
                weight[:, ::2] = 0
    report = secateur.slim(model, example_inputs=inputs)
    assert report.config == {"text_config.intermediate_size": 12, "vision_config.intermediate_size": 20}
    assert report.is_configured
    model.save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits_per_text, model(**inputs).logits_per_text)


@pytest.mark.parametrize("kept", [halve, vary])
def test_a_slimmed_model_is_saved_over_its_checkpoint(kept: Callable[[str, int], int], tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "source")
    (tmp_path / "source/README.md").write_text("a companion")
    checkpoint = open_checkpoint(tmp_path / "source", copies_files=True)
    model, inputs, report = slim_family("llama", kept)
    assert report.is_configured is (kept is halve)
    assert ("mode='uniform'" in str(report)) is (kept is vary)
    pruned = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    save_over(model, checkpoint, tmp_path / "saved", report=pruned)
    assert (tmp_path / "saved/README.md").exists()
    loaded = secateur.load(tmp_path / "saved")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert secateur.verify(tmp_path / "saved")


def test_uniform_mode_makes_the_widths_equal(tmp_path: Path) -> None:
    model, inputs, report = slim_family("llama", vary, mode="uniform")
    assert report.config == {"intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
