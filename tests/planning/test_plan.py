"""The plan as a whole: it misses no layer, changes nothing, and says so to people and machines."""

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.planning import Plan
from tiny_models import bits, mlp


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=4, **sizes))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=False, **heads, **sizes))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=4, **sizes))


def headless() -> nn.Module:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=20, **sizes), add_pooling_layer=False)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(20, 16), encoder, nn.GRU(16, 16), nn.Linear(16, 4))


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, str]]] = {
    "bert": (
        bert,
        13,
        {
            "bert.embeddings.word_embeddings": "Embedding is",
            "bert.embeddings.position_embeddings": "Embedding is",
            "bert.embeddings.token_type_embeddings": "Embedding is",
            "classifier": "output layer",
        },
    ),
    "gpt2": (
        gpt2,
        8,
        {"transformer.wte": "Embedding is", "transformer.wpe": "Embedding is", "lm_head": "output layer"},
    ),
    "llama": (llama, 14, {"model.embed_tokens": "Embedding is", "lm_head": "output layer"}),
    "vit": (vit, 13, {"vit.embeddings": "ViTEmbeddings is", "classifier": "output layer"}),
    "headless": (
        headless,
        12,
        {
            "embeddings.word_embeddings": "Embedding is",
            "embeddings.position_embeddings": "Embedding is",
            "embeddings.token_type_embeddings": "Embedding is",
        },
    ),
    "torch": (transformer, 8, {"0": "Embedding is", "2": "GRU is", "3": "output layer"}),
}


@pytest.fixture(scope="module", params=TRANSFORMERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, int, dict[str, str]]:
    if request.param != "torch":
        pytest.importorskip("transformers")
    build, pruned, dense = TRANSFORMERS[request.param]
    return build(), pruned, dense


def owners(model: nn.Module) -> set[str]:
    """Every module that itself owns a parameter of two axes or more, under one of its names."""
    return {
        name
        for name, module in model.named_modules()
        if any(weight.dim() >= 2 for weight in module.parameters(recurse=False))
    }


def missing(found: Plan, model: nn.Module) -> set[str]:
    return owners(model) - {layer.name for layer in found.layers}


def test_no_layer_of_a_transformer_is_missing(case: tuple[nn.Module, int, dict[str, str]]) -> None:
    model, pruned, dense = case
    found = secateur.plan(model, {"pattern": "4x1"})
    reasons = {layer.name: layer.reason for layer in found.layers if layer.reason is not None}
    assert missing(found, model) == set()
    assert len(found.layers) - len(reasons) == pruned
    assert reasons.keys() == dense.keys()
    assert all(reasons[name].startswith(start) for name, start in dense.items()), reasons


def test_missing_layer_would_be_found() -> None:
    model = mlp()
    found = secateur.plan(model, {})
    assert missing(Plan(found.config, found.layers[1:], found.patterns), model) == {"0"}


def test_plan_changes_nothing(case: tuple[nn.Module, int, dict[str, str]]) -> None:
    model = case[0]
    before, modes = bits(model), [module.training for module in model.modules()]
    secateur.plan(model, {"pattern": "1x1"})
    assert bits(model) == before
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())


def test_tied_head_of_a_language_model() -> None:
    pytest.importorskip("transformers")
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    rows = {layer.name: layer for layer in secateur.plan(model, {"op_names": ["lm_head"]}).layers}
    assert rows["lm_head"].is_pruned
    assert rows["transformer.wte"].reason == "shares its weight with 'lm_head' and is pruned there"


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_wrapped_model_has_the_plan_of_the_model(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = mlp()
    assert str(secateur.plan(wrap(model), {})) == str(secateur.plan(model, {}))


def test_public_names_are_not_hidden_by_modules() -> None:
    for module in pkgutil.walk_packages(secateur.__path__, "secateur."):
        if not module.name.endswith((".keras", ".cli", "__main__")) and ".demo" not in module.name:
            importlib.import_module(module.name)
    assert [name for name in secateur.__all__ if isinstance(getattr(secateur, name), ModuleType)] == []


def test_units_and_targets() -> None:
    rows = secateur.plan(mlp(), {"pattern": "4x1", "target_sparsity": 0.5, "layers": {"2": {"pattern": "2:4"}}}).layers
    assert [(row.kind, row.shape, row.units, row.unit_size, row.target_sparsity) for row in rows] == [
        ("Linear", (32, 16), 128, 4, 0.5),
        ("Linear", (16, 32), 512, 1, 0.5),
        ("Linear", (4, 16), 0, 0, 0.0),
    ]


def test_to_dict_is_json() -> None:
    found = secateur.plan(mlp(), {"pattern": "4x1", "pruning_scope": "local"}).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["layers"][0] == {
        "name": "0",
        "type": "Linear",
        "shape": [32, 16],
        "pattern": "4x1",
        "units": 128,
        "unit_size": 4,
        "target_sparsity": 0.9,
        "sparsity_range": [115 / 128, 115 / 128],
        "scope": "local",
        "groups": [],
        "reason": None,
    }


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"end_step": 90},
            "4x1: units with the lowest magnitude are pruned every 10 steps from step 1 to 90, on a cubic schedule.",
        ),
        ({"start_step": 7}, "4x1: units with the lowest magnitude are pruned all at once at step 7."),
        (
            {"end_step": 9, "sparsity_decay_type": "one_shot"},
            "4x1: units with the lowest magnitude are pruned all at once at step 1.",
        ),
        (
            {"kind": "progressive", "end_step": 9, "sparsity_decay_type": max},
            "pruned weight by weight every 10 steps from step 1 to 9, on a max schedule.",
        ),
    ],
)
def test_text(config: dict[str, Any], line: str) -> None:
    text = str(secateur.plan(mlp(), {"pattern": "4x1", "target_sparsity": 0.9, **config}))
    assert line in text
    assert "2 of 3 layers with 1,024 weights will be pruned." in text
    assert "128 × 4" in text
    assert "output layer: dense unless op_names or layers name it" in " ".join(text.split())


def test_layers_with_a_fixed_share_are_ranked_locally() -> None:
    fixed, ranked = secateur.plan(mlp(), {"pattern": "2:4"}), secateur.plan(mlp(), {"pattern": "4x1"})
    for word in ("globally", "pruning_scope"):
        assert word not in str(fixed)
        assert word in str(ranked)


def test_text_of_a_locked_run() -> None:
    found = secateur.plan(mlp(), {"pattern": "7x1", "kind": "pattern_lock"})
    text = str(found)
    assert "3 of 3 layers will be pruned" not in text
    assert "3 of 3 layers with 1,088 weights keep their zeros." in text
    assert "%" not in text
    assert {row["target_sparsity"] for row in found.to_dict()["layers"]} == {0.0}


SIZES = "Channels differ in size: the share of pruned weights will differ from the target."


@pytest.mark.parametrize(
    ("config", "differ"),
    [
        ({"pattern": "1xchannel"}, True),
        ({"pattern": "1xchannel", "pruning_scope": "local"}, False),
        ({"pattern": "1xchannel", "op_names": ["0"]}, False),
        ({"pattern": "1xchannel", "kind": "pattern_lock"}, False),
        ({"pattern": "2:4"}, False),
    ],
)
def test_text_says_where_units_differ_in_size(config: dict[str, Any], differ: bool) -> None:
    assert (SIZES in str(secateur.plan(mlp(), config))) == differ


def test_layers_of_different_groups_are_ranked_apart() -> None:
    rules = {"2": {"pruning_group": "second"}}
    found = secateur.plan(mlp(), {"target_sparsity": 0.5, "layers": rules})
    assert [list(pattern.modules) for pattern in found.patterns] == [["0"], ["2"]]
    assert len({layer.sparsity for layer in secateur.prune(mlp(), found.config).layers}) == 1


class Mixture(nn.Module):
    """A mixture of experts as in transformers 4, with a shared expert."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.router = nn.ModuleDict({"layer": nn.Linear(8, 4), "wide": nn.Linear(8, 16)})
        self.experts = experts
        self.shared_expert = nn.ModuleDict({"up": nn.Linear(8, 4)})
        self.shared_expert_gate = nn.Linear(8, 1)
        self.other = nn.Linear(8, 16)


class StackedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.is_transposed = 4, False
        self.up = nn.Parameter(torch.ones(4, 16, 8))


@pytest.mark.parametrize("experts", [lambda: nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), StackedExperts])
def test_routers_of_experts_stay_dense_unless_they_are_named(experts: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = nn.ModuleDict({"block": Mixture(experts()), "gate": nn.Linear(8, 4), "head": nn.Linear(8, 8)})
    reason = "router of experts: dense unless op_names or layers name it"
    routers = ["block.gate", "block.router.layer", "block.shared_expert_gate"]
    plan = secateur.plan(model, {"pattern": "2:4"})
    assert [layer.name for layer in plan.layers if layer.reason == reason] == routers
    everything = secateur.plan(model, {"pattern": "2:4", "op_names": [".*"]})
    assert all(layer.reason is None for layer in everything.layers)
    report = secateur.prune(model, {"pattern": "2:4"})
    secateur.save(model, tmp_path / "pruned", report=report)
    secateur.verify(tmp_path / "pruned", pattern="2:4")
