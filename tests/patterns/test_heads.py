"""Whole attention heads, against groups and their masks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import secateur
import tiny_transformers as tiny
from secateur.errors import LayerError
from secateur.graph import AffineMap, ExplicitMap, Group, Member, Role
from secateur.graph.pytorch import find_heads
from secateur.patterns import SliceTiling, WeightView, get_pattern
from secateur.patterns.reduction import REDUCTIONS

HEADS = {"pattern": "heads", "target_sparsity": 0.5}
SIZES = {"vocab_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 16}


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SIZES, intermediate_size=32), add_pooling_layer=False)


def distilbert() -> nn.Module:
    sizes = {"vocab_size": 32, "n_layers": 3, "n_heads": 4, "dim": 16, "hidden_dim": 32}
    return transformers.DistilBertModel(transformers.DistilBertConfig(**sizes))


def t5() -> nn.Module:
    sizes = {"vocab_size": 32, "num_layers": 1, "num_heads": 4, "d_model": 16, "d_kv": 4, "d_ff": 32}
    return transformers.T5Model(transformers.T5Config(**sizes))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


# Model → attention modules, heads in each, and query heads per head.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    "bert": (bert, 3, 4, 1),
    "distilbert": (distilbert, 3, 4, 1),
    "t5": (t5, 3, 4, 1),
    "opt": (tiny.opt, 3, 4, 1),
    "llama, grouped queries": (tiny.llama, 3, 2, 2),
    "qwen3, grouped queries": (tiny.qwen3, 3, 2, 2),
    "torch": (encoder, 3, 4, 1),
}

every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]()


def find_pruned(model: nn.Module, group: Group) -> set[int]:
    """The heads of a group of which every number is zero; fails where only a part of a head is."""
    weights = dict(model.named_parameters())
    zeros = [
        (weights[member.parameter].movedim(member.axis, 0)[row] == 0).flatten()
        for member in group.members
        for row in member.index_map.indices()
    ]
    is_pruned = [bool(zero.all()) for zero in zeros]
    assert not any(bool(zero.any()) for zero, pruned in zip(zeros, is_pruned, strict=True) if not pruned)
    per_member = np.array(is_pruned).reshape(len(group.members), group.units)
    assert (per_member == per_member[0]).all()
    return set(np.flatnonzero(per_member[0]).tolist())


@every_model
def test_heads_are_found(name: str) -> None:
    groups = find_heads(make(name))
    _, modules, heads, queries = MODELS[name]
    assert [(group.units, len(group.members)) for group in groups] == [(heads, 4)] * modules
    for group in groups:
        widths = [member.index_map.width for member in group.members]
        assert widths == [4 * queries, 4, 4, 4 * queries]


@every_model
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("target", [0.2, 0.34, 0.5])
def test_exactly_the_share_of_heads_is_pruned(name: str, scope: str, target: float) -> None:
    model = make(name)
    secateur.prune(model, HEADS | {"target_sparsity": target, "pruning_scope": scope})
    counts = [len(find_pruned(model, group)) for group in find_heads(model)]
    _, modules, heads, _ = MODELS[name]
    if scope == "local":
        assert counts == [round(target * heads)] * modules
    else:
        assert sum(counts) == round(target * heads * modules)


@every_model
def test_scores_of_the_parts_add_up_as_in_groups(name: str) -> None:
    model = make(name)
    dense = {key: weight.detach().abs().numpy() for key, weight in copy.deepcopy(model).named_parameters()}
    secateur.prune(model, HEADS | {"criterion_reduce_type": "sum"})
    for group in find_heads(model):
        keep = group.select_units(group.score_units(dense), group.units // 2)
        assert find_pruned(model, group) == set(np.flatnonzero(~keep).tolist())
        for key, mask in group.masks(keep).items():
            np.testing.assert_array_equal(model.get_parameter(key).detach().abs().numpy(), dense[key] * mask)


@every_model
def test_a_saved_model_is_verified(name: str, tmp_path: Path) -> None:
    model = make(name)
    report = secateur.prune(model, HEADS)
    secateur.save(model, tmp_path / "saved", report=report)
    checked = secateur.verify(tmp_path / "saved")
    assert checked.problems == {}
    assert report.unit_sparsity == 0.5


@pytest.mark.parametrize("kind", ["iterative", "progressive"])
@pytest.mark.parametrize("criterion", ["magnitude", "snip_momentum", "mask_gradient"])
def test_heads_are_pruned_while_a_model_trains(kind: str, criterion: str) -> None:
    def train(pruner: Any, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            model(inputs_embeds=torch.randn(2, 5, 16)).last_hidden_state.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert pruner.is_active

    config = HEADS | {"kind": kind, "criterion": criterion, "start_step": 1, "end_step": 9, "pruning_frequency": 4}
    model = make("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = secateur.prepare(model, config, optimizer=optimizer)
    train(pruner, model, optimizer, 6)
    state = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    resumed = make("bert")
    other = torch.optim.AdamW(resumed.parameters(), lr=0.01)
    resumed.load_state_dict(state[1])
    again = secateur.prepare(resumed, config, optimizer=other)
    other.load_state_dict(state[2])
    again.load_state_dict(state[0])
    for run in ((pruner, model, optimizer), (again, resumed, other)):
        torch.manual_seed(1)
        train(*run, steps=6)
        assert run[0].finalize().is_complete
    assert sum(len(find_pruned(model, group)) for group in find_heads(model)) == 6
    assert all(torch.equal(weight, resumed.get_parameter(key)) for key, weight in model.named_parameters())


def test_heads_are_pruned_by_the_gradients_of_a_loss() -> None:
    model = make("bert")
    batches = [{"inputs_embeds": torch.randn(2, 5, 16)} for _ in range(3)]
    config = HEADS | {"criterion": "mask_fisher", "pruning_scope": "global"}
    report = secateur.prune(
        model, config, calibration=batches, loss=lambda outputs, _: outputs.last_hidden_state.pow(2).sum()
    )
    assert report.unit_sparsity == 0.5
    assert sum(len(find_pruned(model, group)) for group in find_heads(model)) == 6


def test_other_layers_stay_dense_for_a_reason() -> None:
    plan = secateur.plan(make("bert"), HEADS)
    assert plan.dense["encoder.layer.0.intermediate.dense"] == "no heads are known in it"
    pruned = [row for row in plan.layers if row.is_pruned]
    assert [(row.units, row.unit_size) for row in pruned] == [(4, 64)] * 12
    assert list(plan.patterns[0].units) == [f"encoder.layer.{block}.attention" for block in range(3)]


def test_attention_of_which_a_layer_is_excluded_stays_dense() -> None:
    excluded = HEADS | {"excluded_op_names": [".*layer.1.*key"]}
    plan = secateur.plan(make("bert"), excluded)
    assert sum(row.is_pruned for row in plan.layers) == 8
    reason = (
        "its heads have parts in encoder.layer.1.attention.self.key.weight, which this configuration does not prune"
    )
    assert plan.dense["encoder.layer.1.attention.output.dense"] == reason
    with pytest.raises(LayerError, match=r"was named but cannot be pruned: its heads have parts in .*query\.weight"):
        secateur.plan(make("bert"), HEADS | {"op_names": ["encoder.layer.0.attention.self.key"]})


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.MultiheadAttention(8, 2, kdim=4, vdim=4)])
def test_models_without_known_heads_are_refused(layer: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"can be pruned with pattern 'heads'(?s:.*)no heads are known in it"):
        secateur.prune(nn.Sequential(layer, nn.Linear(8, 8)), HEADS)


def test_keras_models_are_refused() -> None:
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    with pytest.raises(LayerError, match="no heads are known in it"):
        secateur.prune(model, HEADS)


class Gated(nn.Module):
    """The query projection also has the gates of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.o_proj = nn.Linear(16, 16)


def test_projections_that_do_not_fit_together_are_no_heads() -> None:
    assert find_heads(Gated()) == []
    unknown = Gated()
    del unknown.head_dim
    unknown.q_proj = nn.Linear(16, 16)
    assert find_heads(unknown) == []
    unknown.num_heads = 4
    assert [group.units for group in find_heads(unknown)] == [4]
    unknown.k_proj = nn.Linear(16, 6)
    assert find_heads(unknown) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_looked_through() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make("llama, grouped queries"), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    groups = find_heads(model)
    assert len(groups) == 3
    assert groups[0].members[0].parameter.endswith("q_proj.base_layer.weight")


def view(outputs: int, inputs: int) -> WeightView:
    return WeightView(shape=(outputs, inputs), output_axes=(0,), input_axes=(1,))


def member(parameter: str, shape: tuple[int, ...], axis: int, index_map: Any, role: Role) -> Member:
    return Member(parameter=parameter, shape=shape, axis=axis, index_map=index_map, role=role)


def test_groups_that_cannot_be_pruned() -> None:
    pair = AffineMap(units=2, width=2)
    pinned = Group(units=2, members=(member("a", (4, 3), 0, pair, Role.PINNED),))
    pattern = get_pattern(HEADS, {"a": view(4, 3)}, "array", groups=[pinned])
    assert pattern.invalid_layers == {"a": "its heads cannot be pruned: 'a' must keep its shape"}
    kernel = Group(units=2, members=(member("a", (4, 3, 4), 1, AffineMap(units=2), Role.CONSUMER),))
    shape = WeightView(shape=(4, 3, 4), output_axes=(0,), kernel_axes=(1,), input_axes=(2,))
    pattern = get_pattern(HEADS, {"a": shape}, "array", groups=[kernel])
    assert pattern.invalid_layers == {"a": "its heads are along axis 1 of the weight of 'a', which is not supported"}


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_equal_groups(axis: int, limit_chunks: Callable[[int], None]) -> None:
    limit_chunks(4)
    index_map = ExplicitMap(((5, 0), (3, 4), (1, 7)))
    one = member("a", (8, 8), axis, index_map, Role.PRODUCER)
    scores = np.random.default_rng(0).integers(0, 9, (8, 8)).astype(np.float32)
    tiling = SliceTiling((8, 1, 8), 2 * axis, index_map.indices())
    found = np.concatenate(list(tiling.unit_scores(scores[:, None], REDUCTIONS.find("sum"))))
    np.testing.assert_array_equal(found, one.score_units(scores))
    keep = np.array([True, False, True])
    np.testing.assert_array_equal(tiling.expand(keep)[:, 0], one.mask(keep))
    assert (tiling.unit_size, tiling.channel_blocks) == (16, ("1xchannel", 2) if axis == 0 else ("channelx1", 2))
    with pytest.raises(LayerError, match=r"channels must be in \[0, 7\), found 7"):
        SliceTiling((7, 1, 7), 2 * axis, index_map.indices())


@pytest.mark.parametrize(
    ("rows", "block"),
    [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], ("4xchannel", 1)),
        ([[0, 1, 4, 5], [2, 3, 6, 7]], ("2xchannel", 2)),
        ([[2, 3, 4, 5]], ("2xchannel", 2)),
        ([[1, 2]], ("1xchannel", 2)),
    ],
)
def test_blocks_of_slices(rows: list[list[int]], block: tuple[str, int]) -> None:
    assert SliceTiling((8, 1, 3), 0, np.array(rows)).channel_blocks == block


@pytest.mark.parametrize("name", [name for name in MODELS if name != "torch"])
def test_the_graph_of_a_model_has_the_heads_that_are_found_by_name(name: str) -> None:
    tokens = torch.randint(0, 32, (2, 6))
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens[:, :4]} if name == "t5" else {})
    traced, found = make(name), make(name)
    report = secateur.prune(traced, HEADS, example_inputs=inputs)
    secateur.prune(found, HEADS)
    assert all(torch.equal(weight, found.get_parameter(key)) for key, weight in traced.named_parameters())
    assert [(group.units, group.pruned_units) for group in report.groups] == [
        (MODELS[name][2], MODELS[name][2] // 2)
    ] * 3
