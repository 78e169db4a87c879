"""Whole branches and blocks go, exactly, or nothing changes."""

import copy
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

import secateur
import tiny_transformers
from artifact.forgery import forged
from secateur._calls.pytorch.example_run import ExampleRun
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.manifest import Manifest
from secateur.artifact.saving import save_over
from secateur.errors import ArtifactError, LayerError
from secateur.graph import Graph, Role, trace
from secateur.slimming.pytorch.depth.depth_plan import find_branches
from secateur.slimming.pytorch.surgery import Surgery
from slim.test_surgery import everything

Branches = dict[str, str]
"""Name of a group → the module that goes with it."""


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.gate(x)) * self.up(x))


class ResidualMlp(nn.Module):
    """Blocks with one branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.blocks = nn.ModuleList(Mlp() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        queries, keys, values = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, mask)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention, self.mlp = SelfAttention(), Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))[0]
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build(name: str) -> tuple[Any, Any]:
    """Return a model with random values everywhere, in evaluation mode, and inputs."""
    torch.manual_seed(0)
    makers: dict[str, Callable[[], nn.Module]] = {"residual": ResidualMlp, "transformer": Transformer}
    model = makers[name]() if name in makers else getattr(tiny_transformers, name)()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    if name == "residual":
        return model.eval(), torch.randn(4, 6)
    if name == "transformer":
        return model.eval(), torch.arange(10).reshape(2, 5)
    return model.eval(), tiny_transformers.inputs_of("vit" if name == "vit" else "llama")[0]


def zero_branches(model: nn.Module, graph: Graph, names: Iterable[str], *, biases: bool = True) -> None:
    """Zero what reads the units of groups, with the biases of these layers, unless they are kept."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group in graph.groups:
            readers = [member for member in group.members if member.role is Role.CONSUMER]
            for member in readers if group.name in names else ():
                tensors[member.parameter].index_fill_(
                    member.axis, torch.from_numpy(member.index_map.indices().reshape(-1)), 0
                )
                bias = tensors.get(member.parameter.removesuffix("weight") + "bias")
                if biases and bias is not None:
                    bias.zero_()


def run(model: nn.Module, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, torch.Tensor) else output.logits


def measure(model: nn.Module, inputs: Any, expected: torch.Tensor) -> float:
    return float((run(model, inputs) - expected).abs().max() / expected.abs().max())


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def name_all(model: nn.Module, graph: Graph, inputs: Any) -> Branches:
    found = find_branches(model, graph, ExampleRun(model, inputs))
    return {graph.groups[number].name: name for number, name in found.items()}


@cache
def trace_once(name: str) -> tuple[Any, Any, Graph, Branches]:
    model, inputs = build(name)
    graph = trace(model, inputs)
    return model, inputs, graph, name_all(model, graph, inputs)


def prepare(name: str) -> tuple[Any, Any, Graph, Branches]:
    """Return a new model, its inputs, its graph and its branches."""
    model, inputs, graph, branches = trace_once(name)
    return copy.deepcopy(model), inputs, graph, branches


CODE = {"residual", "transformer"}
"""Models without a configuration."""

# Finding

FOUND = {
    "llama": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "qwen3": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "gemma3": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "mixtral": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "gpt2": ("transformer.h.1.attn", "transformer.h.1.mlp"),
    "opt": ("model.decoder.layers.1.self_attn", "model.decoder.layers.1.fc2"),
    "vit": ("vit.layers.1.attention", "vit.layers.1.mlp"),
    "bert": ("bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.1.output.dense"),
    "transformer": ("blocks.1.attention", "blocks.1.mlp"),
    "residual": ("blocks.1",),
}
"""Model → the branches of its second block."""


@pytest.mark.parametrize("name", FOUND)
def test_branches_are_found_and_the_model_stays(name: str) -> None:
    model, inputs, graph, _ = prepare(name)
    before = everything(model)
    branches = name_all(model, graph, inputs)
    assert everything(model) == before
    assert [module for module in branches.values() if ".1." in f"{module}."] == [*FOUND[name]]
    assert len(branches) % len(FOUND[name]) == 0


def test_what_has_no_shortcut_is_no_branch() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.Linear(6, 2))
    assert name_all(model, trace(model, torch.ones(2, 4)), torch.ones(2, 4)) == {}


# Removing


WITHOUT_BIASES = {"llama", "qwen3", "gemma3", "mixtral"}


def list_with_biases(*names: str) -> list[tuple[str, bool]]:
    """Models and whether the biases of branches are zero; they may stay where there are some."""
    return [(name, zero) for name in names for zero in (True, False) if zero or name not in WITHOUT_BIASES]


@pytest.mark.parametrize(("name", "biases"), list_with_biases(*FOUND))
def test_a_branch_goes(name: str, biases: bool) -> None:
    model, inputs, graph, branches = prepare(name)
    for group, module in branches.items():
        if ".1." not in f"{module}.":
            continue
        slim = copy.deepcopy(model)
        zero_branches(slim, graph, [group], biases=biases)
        expected = run(slim, inputs)
        report = secateur.slim(slim, example_inputs=inputs, graph=graph)
        assert module in (*report.branches, *report.blocks)
        assert measure(slim, inputs, expected) <= 1e-6
        assert count(slim) == report.weights < report.weights_before == count(model)
        row = next(row for row in report.groups if row.name == group)
        assert row.removed_units == row.zero_units == row.units
        assert row.reason == ""
        assert module in str(report)


NORMS = {
    "llama": {"input_layernorm", "post_attention_layernorm"},
    "gpt2": {"ln_1", "ln_2"},
    "opt": {"self_attn_layer_norm", "final_layer_norm"},
    "bert": {"self"},
    "transformer": {"first", "second"},
}
"""Model → what only computes the inputs of branches: norms, and attention before its projection."""


@pytest.mark.parametrize("name", NORMS)
def test_what_only_computes_the_inputs_of_a_branch_goes_with_it(name: str) -> None:
    model, inputs, graph, branches = prepare(name)
    first, second = [group for group in branches if ".1." in f"{group}."]
    zero_branches(model, graph, [first, second.replace(".1.", ".2.")], biases=False)
    for weight in [*model.parameters()][::2]:
        weight.requires_grad_(False)
    flags = {id(weight): weight.requires_grad for weight in model.parameters()}
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert NORMS[name] <= {module.rpartition(".")[2] for module in report.branches}
    assert {id(weight): weight.requires_grad for weight in model.parameters()}.items() <= flags.items()


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.second(torch.relu(self.norm(self.first(x))))).relu()


def test_convolutions_of_a_branch_go(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = [ConvBlock() for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()
    fresh, inputs = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    graph = trace(model, inputs)
    zero_branches(model, graph, ["2.first"])
    expected = run(model, inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert {*report.branches} == {"2.first", "2.norm", "2.second"}
    assert report.weights == report.weights_before - count(blocks[0])
    assert measure(model, inputs, expected) <= 1e-6
    secateur.save(model, tmp_path)
    assert torch.equal(run(secateur.load(tmp_path, fresh), inputs), run(model, inputs))


def test_experts_and_shared_experts_are_different_branches() -> None:
    sizes = {key: value for key, value in tiny_transformers.DECODER.items() if key != "head_dim"}
    experts = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}
    torch.manual_seed(0)
    config = Qwen2MoeConfig(num_experts_per_tok=2, **(sizes | experts | {"num_hidden_layers": 2}))
    model, inputs = Qwen2MoeForCausalLM(config).eval(), tiny_transformers.inputs_of("llama")[0]
    graph = trace(model, inputs)
    branches = name_all(model, graph, inputs)
    mlp = "model.layers.1.mlp"
    experts, shared = [group for group in branches if mlp in group]
    assert (branches[experts], branches[shared]) == (f"{mlp}.experts", f"{mlp}.shared_expert")
    zero_branches(model, graph, [experts, shared])
    expected = run(model, inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert report.branches == (mlp, "model.layers.1.post_attention_layernorm")
    assert measure(model, inputs, expected) <= 1e-6


def test_a_branch_that_the_code_of_a_model_needs_stays_with_a_reason() -> None:
    """The code of torch's layer reads the weights of its parts."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2)]
    model, inputs = nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 2)).eval(), torch.randn(2, 5, 4)
    graph = trace(model, inputs)
    group = next(group for group in graph.groups if group.name == "2.linear1")
    zero_branches(model, graph, [group.name])
    expected = run(model, inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    row = next(row for row in report.groups if row.name == group.name)
    assert (report.branches, row.kept_units) == ((), 1)
    assert "the model does not work without '2.linear2'" in row.reason
    assert measure(model, inputs, expected) <= 1e-6


# Whole blocks


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        *[("llama", gone) for gone in [(0,), (1,), (2,), (0, 2), (0, 1, 2)]],
        *[(name, gone) for name in ("gpt2", "opt") for gone in [(0, 2), (0, 1, 2)]],
    ],
)
def test_blocks_go_and_other_programs_load_the_model(name: str, gone: tuple[int, ...], tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare(name)
    zero_branches(model, graph, [group for group in branches if any(f".{n}." in f"{group}." for n in gone)])
    expected, tokens = run(model, inputs), generate(model)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    left = max(3 - len(gone), 1)
    assert model.config.num_hidden_layers == left
    assert len(report.blocks) == 3 - left
    assert measure(model, inputs, expected) <= 1e-6
    assert torch.equal(generate(model), tokens)
    assert report.is_configured is (len(gone) < 3)
    if report.is_configured:
        assert report.branches == ()
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(run(loaded, inputs), run(model, inputs))
        assert torch.equal(generate(loaded), tokens)


@pytest.mark.parametrize("name", ["gemma3", "mistral", "qwen3"])
def test_blocks_of_several_kinds_keep_theirs(name: str, tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare(name)
    zero_branches(model, graph, [group for group in branches if ".0." in f"{group}."])
    expected, tokens = run(model, inputs), generate(model)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert report.blocks == ("model.layers.0",)
    assert report.config["num_hidden_layers"] == 2
    if name == "gemma3":
        assert report.config["layer_types"] == ["sliding_attention", "full_attention"]
    assert measure(model, inputs, expected) <= 1e-6
    assert torch.equal(generate(model), tokens)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(type(model).from_pretrained(tmp_path), inputs), run(model, inputs))


def generate(model: Any, **options: Any) -> torch.Tensor:
    """Generate from two texts, one of which is padded."""
    tokens = torch.tensor([[5, 9, 2, 6, 5], [0, 0, 3, 1, 4]])
    mask = (tokens != 0).long()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | options
    return model.generate(tokens, attention_mask=mask, **options)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3"])
def test_models_without_attention_generate(name: str, cache: str | None) -> None:
    """Models take positions from the length of the cache of any layer."""
    for layers in ("0", "012") if cache else ("0", "1", "2", "012"):
        model, inputs, graph, branches = prepare(name)
        groups = [group for group in branches if "attn" in group and any(f".{n}." in f"{group}." for n in layers)]
        zero_branches(model, graph, groups)
        tokens = generate(model, cache_implementation=cache)
        report = secateur.slim(model, example_inputs=inputs, graph=graph)
        assert len(report.branches) == 2 * len(layers)  # with the norms before them
        assert torch.equal(generate(model, cache_implementation=cache), tokens)
        assert torch.equal(generate(model, use_cache=False), tokens)
        assert torch.equal(generate(model, num_beams=2), generate(model, num_beams=2, use_cache=False))


# Saving


@pytest.mark.parametrize(
    ("name", "biases"), list_with_biases("llama", "gpt2", "opt", "bert", "mixtral", "transformer", "residual")
)
def test_branches_are_saved(name: str, biases: bool, tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare(name)
    gone = [group for group in branches if ".1." in f"{group}."][:1]
    zero_branches(model, graph, gone, biases=biases)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert report.branches
    assert report.is_configured is (None if name in CODE else False)
    saved = secateur.save(model, tmp_path / "saved")
    assert saved.tensors
    loaded = [secateur.load(tmp_path / "saved", other) for other in (build(name)[0], copy.deepcopy(model))]
    if report.is_configured is not None:
        loaded.append(secateur.load(tmp_path / "saved"))
    for other in loaded:
        assert torch.equal(run(other, inputs), run(model, inputs))
        assert count(other) == count(model)
        assert repr(other) == repr(model)
    secateur.save(loaded[0], tmp_path / "again")
    assert Manifest.read(tmp_path / "again").branches == Manifest.read(tmp_path / "saved").branches
    secateur.artifact.convert(tmp_path / "saved", tmp_path / "dense", dense=True)
    assert torch.equal(run(secateur.load(tmp_path / "dense", build(name)[0]), inputs), run(model, inputs))


def test_blocks_of_models_of_code_are_saved(tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare("transformer")
    zero_branches(model, graph, [group for group in branches if ".0." in f"{group}." or group == "blocks.2.mlp.up"])
    expected = run(model, inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert (report.blocks, report.branches) == (("blocks.0",), ("blocks.2.mlp", "blocks.2.second"))
    assert measure(model, inputs, expected) <= 1e-6
    again = trace(model, inputs)
    zero_branches(model, again, [group.name for group in again.groups if group.name.startswith("blocks.0.")])
    assert secateur.slim(model, example_inputs=inputs, graph=again).blocks == ("blocks.0",)
    secateur.save(model, tmp_path)
    manifest = Manifest.read(tmp_path)
    assert manifest.blocks == {"blocks": (0, 1)}
    assert {*(manifest.branches or ())} == {"blocks.0.mlp", "blocks.0.second"}
    loaded = secateur.load(tmp_path, build("transformer")[0])
    assert torch.equal(run(loaded, inputs), run(model, inputs))
    assert torch.equal(run(secateur.load(tmp_path, copy.deepcopy(model)), inputs), run(model, inputs))


def test_a_model_without_blocks_is_saved_over_its_checkpoint(tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare("llama")
    model.save_pretrained(tmp_path / "source")
    checkpoint = open_checkpoint(tmp_path / "source", copies_files=True)
    zero_branches(model, graph, [group for group in branches if ".1." in f"{group}."])
    secateur.slim(model, example_inputs=inputs, graph=graph)
    pruned = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    save_over(model, checkpoint, tmp_path / "saved", report=pruned)
    loaded = secateur.load(tmp_path / "saved")
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(run(loaded, inputs), run(model, inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": {"blocks.7.mlp": {"input": "x"}}}, "no attribute `7`"),
        ({"branches": {"blocks.1.mlp": {"input": "y"}}}, "Mlp has no argument 'y'"),
        ({"branches": {"blocks.1.mlp": {"input": "x", "bias": "b"}}}, "Mlp has no parameter 'b'"),
        ({"branches": {"blocks.1.mlp": {"input": "x", "axis": -1}}}, "axis and size need each other"),
        ({"branches": {"blocks.1.mlp": {"input": "x", "axis": 1, "size": 3}}}, "less than 0"),
        ({"branches": {"blocks.1.mlp": {"input": "__class__.x"}}}, "String should match pattern"),
        ({"branches": {}}, "lacks .*'blocks.1.mlp.up.weight'"),
        ({"blocks": {"blocks": [5]}}, "has 3 modules, and its module 5 was removed"),
        ({"blocks": {"blocks": [2]}}, "blocks.2"),
    ],
)
def test_forged_branches_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, inputs, graph, _ = prepare("transformer")
    zero_branches(model, graph, ["blocks.1.mlp.up"])
    secateur.slim(model, example_inputs=inputs, graph=graph)
    secateur.save(model, tmp_path)
    forged(tmp_path, lambda data: data.update(changes))
    other = build("transformer")[0]
    before = everything(other)
    with pytest.raises(ArtifactError, match=message):
        secateur.load(tmp_path, other)
    assert everything(other) == before


# Undoing


class Fragile(ResidualMlp):
    """Does not work in a form that only the last check finds."""

    calls = 0
    limit = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not all(isinstance(block, Mlp) for block in self.blocks):
            Fragile.calls += 1
        return super().forward(x) + float(Fragile.calls > self.limit)


@pytest.mark.parametrize("limit", range(5))
def test_a_failing_proof_leaves_the_model(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, inputs = Fragile().eval(), torch.randn(4, 6)
    graph = trace(model, inputs)
    zero_branches(model, graph, ["blocks.1.up"])
    optimizer = torch.optim.Adam(model.parameters())
    before, groups = everything(model), copy.deepcopy([len(group["params"]) for group in optimizer.param_groups])
    modules = {name: id(module) for name, module in model.named_modules()}
    monkeypatch.setattr(Fragile, "limit", limit)
    monkeypatch.setattr(Fragile, "calls", 0)
    try:
        report = secateur.slim(model, example_inputs=inputs, graph=graph, optimizer=optimizer)
    except LayerError:
        assert everything(model) == before
        assert {name: id(module) for name, module in model.named_modules()} == modules
        assert [len(group["params"]) for group in optimizer.param_groups] == groups
    else:
        assert Fragile.calls <= limit or report.branches == ()


def test_a_later_failure_puts_branches_and_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, graph, branches = prepare("llama")
    zero_branches(model, graph, [group for group in branches if ".0." in f"{group}." or "1.mlp" in group])
    before, config = everything(model), copy.deepcopy(model.config.to_dict())
    modules = [(name, id(module)) for name, module in model.named_modules()]

    def fail(self: Any, *_: object) -> None:
        assert len(self._model.model.layers) == 2
        raise LayerError("it fails")

    monkeypatch.setattr(Surgery, "_collect_sizes", fail)
    with pytest.raises(LayerError, match="it fails"):
        secateur.slim(model, example_inputs=inputs, graph=graph)
    assert everything(model) == before
    assert model.config.to_dict() == config
    assert [(name, id(module)) for name, module in model.named_modules()] == modules


# Optimizers and training


@pytest.mark.parametrize("name", ["llama", "gpt2", "transformer"])
def test_optimizers_forget_what_went(name: str) -> None:
    model, inputs, graph, branches = prepare(name)
    model.train()
    mlps = [group for group in branches if "mlp" in group]
    zero_branches(model, graph, [group for group in branches if ".0." in f"{group}."])
    zero_branches(model, graph, mlps[2:], biases=False)
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=1e-3)
    step(model, inputs, optimizer)
    zero_branches(model, graph, [group for group in branches if ".0." in f"{group}."])
    zero_branches(model, graph, mlps[2:], biases=False)
    report = secateur.slim(model, example_inputs=inputs, graph=graph, optimizer=optimizer)
    assert report.blocks
    assert report.branches
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in model.parameters()}
    assert {id(weight) for weight in optimizer.state} <= held
    assert all(state["exp_avg"].shape == weight.shape for weight, state in optimizer.state.items())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    step(model, inputs, optimizer)
    assert all(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert model.training


def step(model: nn.Module, inputs: Any, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(0)
    output = model(**inputs).logits if isinstance(inputs, dict) else model(inputs)
    output.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


# Together with widths, and afterwards


@pytest.mark.parametrize("mode", ["exact", "uniform"])
def test_depth_and_width_together(mode: str, tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare("llama")
    gone = [group for group in branches if ".1." in f"{group}."]
    zero_branches(model, graph, [*gone, "model.layers.2.self_attn"])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, :8] = 0
        model.model.layers[2].mlp.down_proj.weight[:, 8:16] = 0
    expected, tokens = run(model, inputs), generate(model)
    report = secateur.slim(model, example_inputs=inputs, graph=graph, mode=mode)
    assert report.blocks == ("model.layers.1",)
    parts = ("model.layers.2.self_attn", "model.layers.2.input_layernorm")
    assert report.branches == (parts if mode == "exact" else ())
    assert [block.mlp.up_proj.out_features for block in model.model.layers] == [24, 24]
    assert measure(model, inputs, expected) <= 1e-6
    assert torch.equal(generate(model), tokens)
    assert report.is_configured is (mode == "uniform")
    secateur.save(model, tmp_path)
    assert torch.equal(generate(secateur.load(tmp_path)), tokens)
    if mode == "uniform":
        assert report.config == {"num_hidden_layers": 2, "intermediate_size": 24}
        model.save_pretrained(tmp_path / "plain")
        assert torch.equal(generate(type(model).from_pretrained(tmp_path / "plain")), tokens)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "transformer", "residual"])
def test_a_model_without_any_branch_works(name: str, tmp_path: Path) -> None:
    model, inputs, graph, branches = prepare(name)
    zero_branches(model, graph, branches, biases=False)
    expected = run(model, inputs)
    secateur.slim(model, example_inputs=inputs, graph=graph)
    assert measure(model, inputs, expected) <= 1e-6
    secateur.save(model, tmp_path)
    loaded = secateur.load(tmp_path, build(name)[0]) if name in CODE else secateur.load(tmp_path)
    assert torch.equal(run(loaded, inputs), run(model, inputs))


@pytest.mark.parametrize("name", ["llama", "opt", "bert"])
def test_models_without_branches_are_ordinary(name: str) -> None:
    """They can be exported, compiled, copied, traced and slimmed again."""
    model, inputs, graph, branches = prepare(name)
    gone = [group for group in branches if ".1." in f"{group}."][1:]
    zero_branches(model, graph, gone, biases=False)
    secateur.slim(model, example_inputs=inputs, graph=graph)
    expected = run(model, inputs)
    assert torch.equal(run(copy.deepcopy(model), inputs), expected)
    exported = torch.export.export(model, (), inputs | {"use_cache": False} if name != "bert" else inputs, strict=False)
    assert torch.equal(run(exported.module(), inputs | {"use_cache": False} if name != "bert" else inputs), expected)
    again = trace(model, inputs)
    assert {group.name for group in again.groups if group.obstacle is None and not group.inexact} == {
        group.name for group in graph.groups if group.obstacle is None and not group.inexact and group.name not in gone
    }
    assert secateur.slim(model, example_inputs=inputs, graph=again).removed_units == 0


def test_the_runtime_compiles_models_without_branches() -> None:
    model, inputs, graph, _ = prepare("llama")
    zero_branches(model, graph, ["model.layers.1.self_attn", "model.layers.2.mlp.gate_proj"])
    secateur.slim(model, example_inputs=inputs, graph=graph)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(run(compiled, inputs), run(model, inputs))


def test_a_bias_of_an_uneven_branch_follows_the_stream() -> None:
    """The residual stream can lose channels in the same call, with the bias that is left of a branch."""
    model, inputs, graph, branches = prepare("opt")
    stream = next(group for group in graph.groups if group.inexact and group.obstacle is None)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    zero_branches(model, graph, [group for group in branches if ".1." in f"{group}."], biases=False)
    with torch.no_grad():
        for member in stream.members:
            if member.role is Role.CONSUMER:
                tensors[member.parameter].index_fill_(member.axis, torch.tensor([3, 4]), 0)
    report = secateur.slim(model, example_inputs=inputs, graph=graph, allow_inexact=True)
    assert next(row for row in report.groups if row.name == stream.name).removed_units == 2
    assert model.model.decoder.layers[1].fc2.bias.shape == (14,)
    run(model, inputs)
