"""Which layers a configuration means."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import secateur
from secateur.errors import ConfigError, LayerError, SecateurError, UnknownNameError, UnsupportedModelError
from secateur.planning import Plan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)


class Net(nn.Module):
    """One of everything: two blocks, a convolution, an embedding, a norm, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(4, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.classifier = nn.Linear(8, 4)


LAYERS = {"conv", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"}
FC1 = {"blocks.0.fc1", "blocks.1.fc1"}
FIRST = {"blocks.0.fc1", "blocks.0.fc2"}


def plan(model: nn.Module, **config: Any) -> Plan:
    return secateur.plan(model, {"pattern": "4x1", **config})


def test_a_module_without_a_matrix_has_nothing_to_prune() -> None:
    with pytest.raises(UnknownNameError, match="op_names: 'norm' has no weight with at least two axes, so there is"):
        plan(Net(), op_names=["norm"])


def test_weights_without_values_may_be_locked() -> None:
    """There are none to look at: the zeros are those of the weights that are loaded later."""
    model = nn.Sequential(nn.Linear(8, 8, device="meta"), nn.ReLU(), nn.LazyLinear(8), nn.Linear(8, 8))
    found = secateur.plan(model, {"kind": "pattern_lock", "op_names": [".*"]})
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert reasons["0"] is None
    assert str(reasons["2"]).startswith("its weight has no shape before the first batch")


def pruned(model: nn.Module, **config: Any) -> set[str]:
    return {layer.name for layer in plan(model, **config).layers if layer.is_pruned}


def reasons(model: nn.Module, **config: Any) -> dict[str, str]:
    return {layer.name: layer.reason for layer in plan(model, **config).layers if layer.reason is not None}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, LAYERS),
        ({"op_names": [r"blocks\.0\..*"]}, FIRST),
        ({"op_names": "conv"}, {"conv"}),
        ({"op_names": [".*fc1", "conv"]}, FC1 | {"conv"}),
        ({"excluded_op_names": [".*fc1"]}, LAYERS - FC1),
        ({"op_names": [r"blocks\..*"], "excluded_op_names": [r".*fc1"]}, LAYERS - FC1 - {"conv"}),
        ({"pruning_op_types": ["Conv"]}, {"conv"}),
        ({"pruning_op_types": ["Conv2d"]}, {"conv"}),
        ({"pruning_op_types": "Linear"}, LAYERS - {"conv"}),
        ({"layers": {r"blocks\.0\..*": None}}, LAYERS - FIRST),
        ({"layer_types": {"Linear": None}}, {"conv"}),
        ({"layer_types": {"Conv": None}}, LAYERS - {"conv"}),
        # A name goes before a type, and a type before the default.
        ({"layer_types": {"Linear": None}, "layers": {"blocks[.]0[.]fc1": {}}}, {"conv", "blocks.0.fc1"}),
        ({"layer_types": {"Conv2d": {}, "Conv": None}}, LAYERS),
        ({"pruning_op_types": ["Linear"], "layer_types": {"Conv": {}}}, LAYERS),
        ({"pruning_op_types": ["Conv"], "layers": {".*fc1": {}}}, FC1 | {"conv"}),
        ({"op_names": ["conv"], "layers": {".*fc1": {}}}, FC1 | {"conv"}),
        # What is excluded stays so.
        ({"excluded_op_names": [".*fc1"], "layers": {".*fc1": {}}}, LAYERS - FC1),
        # The last classifier is pruned where it is named.
        ({"op_names": ["classifier", "conv"]}, {"classifier", "conv"}),
        ({"op_names": [".*"]}, LAYERS | {"classifier"}),
        ({"layers": {"classifier": {}}}, LAYERS | {"classifier"}),
        ({"layer_types": {"Linear": {}}}, LAYERS),
    ],
)
def test_which_layers_are_pruned(config: dict[str, Any], expected: set[str]) -> None:
    assert pruned(Net(), **config) == expected


def test_rule_of_a_name_goes_before_rule_of_a_type() -> None:
    found = plan(
        Net(),
        target_sparsity=0.5,
        layer_types={"Linear": {"target_sparsity": 0.25, "pattern": "1x4"}},
        layers={"blocks.0.*": {"target_sparsity": 0.75}, "blocks.*": {"target_sparsity": 0.125}},
    )
    targets = {layer.name: (layer.target_sparsity, layer.config.pattern) for layer in found.layers if layer.config}
    assert targets == {
        "conv": (0.5, "4x1"),
        **dict.fromkeys(FIRST, (0.75, "4x1")),
        "blocks.1.fc1": (0.125, "4x1"),
        "blocks.1.fc2": (0.125, "4x1"),
    }
    assert len(found.patterns) == 3


def test_reasons() -> None:
    model = Net()
    model.blocks[1].fc2.requires_grad_(False)
    found = reasons(model, excluded_op_names=["con."], layers={".*1.fc1": None}, pattern="16x1")
    assert found == {
        "embedding": "Embedding is not a supported layer type",
        "conv": "excluded by 'con.'",
        "blocks.0.fc2": "8 output channels are not a multiple of N=16 in '16x1' (weight 8x16). "
        "Exclude the layer or pick N from 2, 4, 8.",
        "blocks.1.fc1": "left dense by a rule for its name or type",
        "blocks.1.fc2": "frozen (requires_grad=False)",
        "classifier": "output layer: dense unless op_names or layers name it",
    }
    assert reasons(Net(), op_names=["conv"])["classifier"] == "not among op_names"
    assert reasons(Net(), pruning_op_types=["Conv"])["classifier"] == "type is not among pruning_op_types (Conv)"


# The output layer.


def test_last_layer_is_the_output_in_a_plain_sequence() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert pruned(model) == {"0"}
    assert reasons(model)["2"].startswith("output layer")
    assert pruned(model, op_names=["2"]) == {"2"}


def net(**layers: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(layers)


def fc() -> nn.Linear:
    return nn.Linear(8, 8)


HEADS = {
    "name_inside": (net(enc=fc(), attn=net(score=fc()), fc=fc()), {"fc"}),
    "heads_in_blocks": (net(one=net(fc=fc(), head=fc()), two=net(fc=fc(), head=fc()), out=fc()), {"out"}),
    "heads_in_a_stack": (net(blocks=nn.ModuleList([net(fc=fc(), head=fc()) for _ in range(2)]), out=fc()), {"out"}),
    "heads_in_a_stack_only": (net(blocks=nn.ModuleList([net(fc=fc(), head=fc()) for _ in range(2)])), set()),
    "registered_first": (net(head=fc(), body=net(a=fc(), b=fc())), {"head"}),
    "wrapped": (net(model=net(head=fc(), body=net(a=fc(), b=fc()))), {"model.head"}),
    "hidden_layer_in_the_head": (net(body=fc(), classifier=nn.Sequential(fc(), fc())), {"classifier.1"}),
    "two_heads": (net(body=fc(), lm_head=fc(), classifier=fc(), loss=fc()), {"lm_head", "classifier"}),
    "list_of_heads": (net(body=fc(), head=nn.ModuleList([fc(), fc()])), {"head.0", "head.1"}),
    "last_of_a_block": (net(enc=fc(), decoder=net(a=fc(), out=fc())), {"decoder.out"}),
}


@pytest.mark.parametrize("case", HEADS)
def test_output_layers_by_name_and_order(case: str) -> None:
    model, outputs = HEADS[case]
    found = reasons(model)
    assert found.keys() == outputs
    assert all(reason.startswith("output layer") for reason in found.values())


def test_encoder_without_a_head_has_no_output_layer() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
    assert len(pruned(model)) == 4


def test_only_layer_is_pruned() -> None:
    assert pruned(nn.Sequential(nn.Flatten(), nn.Linear(8, 4))) == {"1"}


def test_trained_head_of_a_frozen_body_stays_dense() -> None:
    model = Net()
    for name in ("conv", "blocks"):
        model.get_submodule(name).requires_grad_(False)
    with pytest.raises(LayerError, match="classifier: output layer: dense unless"):
        plan(model)
    assert pruned(model, op_names=["classifier"]) == {"classifier"}


# Shared weights.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 16)
        self.second.weight = self.first.weight
        self.lm_head.weight = self.embedding.weight


def test_shared_weight_is_pruned_once() -> None:
    assert pruned(Tied()) == {"first"}
    assert reasons(Tied())["second"] == "shares its weight with 'first' and is pruned there"


def test_shared_weight_is_counted_once() -> None:
    assert sum(units.count for units in plan(Tied()).patterns[0].units.values()) == 16


@pytest.mark.parametrize("config", [{"excluded_op_names": ["second"]}, {"layers": {"second": None}}])
def test_weight_shared_with_a_layer_that_stays_dense_stays_dense(config: dict[str, Any]) -> None:
    config["layers"] = {"lm_head": {}, **config.get("layers", {})}
    assert pruned(Tied(), **config) == {"lm_head"}
    assert reasons(Tied(), **config)["first"] == "shares its weight with 'second', which stays dense"


def test_weight_shared_with_a_layer_that_was_not_named() -> None:
    for named, other in (("first", "second"), ("second", "first")):
        assert pruned(Tied(), op_names=[named]) == {named}
        assert reasons(Tied(), op_names=[named])[other] == f"shares its weight with {named!r} and is pruned there"


def test_layers_that_share_a_weight_can_both_be_named() -> None:
    assert pruned(Tied(), op_names=["first", "second"]) == {"first"}


def test_head_tied_to_an_embedding() -> None:
    assert "output layer" in reasons(Tied())["lm_head"]
    assert pruned(Tied(), op_names=["lm_head"]) == {"lm_head"}
    shared = reasons(Tied(), op_names=["lm_head"])["embedding"]
    assert shared == "shares its weight with 'lm_head' and is pruned there"
    with pytest.raises(
        LayerError, match="'lm_head' was named but cannot be pruned: shares its weight with 'embedding'"
    ):
        plan(Tied(), op_names=["lm_head"], excluded_op_names=["embedding"])


# Layers that cannot be pruned.


def unfit_layers() -> nn.ModuleDict:
    computed = parametrizations.orthogonal(nn.Linear(8, 8))
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
    grouped = nn.ConvTranspose2d(8, 8, 3, groups=2)
    layers = {
        "embedding": nn.Embedding(8, 8),
        "lstm": nn.LSTM(8, 8),
        "bilinear": nn.Bilinear(8, 8, 8),
        "attention": attention,
        "computed": computed,
        "grouped": grouped,
        "lazy": nn.LazyLinear(8),
        "empty": nn.Linear(8, 0),
        "fit": nn.Linear(8, 8),
        "head": nn.Linear(8, 8),
    }
    return nn.ModuleDict(layers)


@pytest.fixture(scope="module", name="unfit")
def fixture_unfit() -> nn.ModuleDict:
    with pytest.warns(UserWarning, match="zero-element"):
        return unfit_layers()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("embedding", "Embedding is not a supported layer type"),
        ("lstm", "LSTM is not a supported layer type"),
        ("bilinear", "Bilinear is not a supported"),
        ("attention", "attention with kdim or vdim stores separate query, key and value weights"),
        ("computed", r"its parameter 'weight' is computed from other parameters \(parametrized\)"),
        ("grouped", "transposed convolutions with groups are not supported"),
        ("lazy", "run one batch through the model first"),
        ("empty", r"the weight is empty \(shape \(0, 8\)\)"),
    ],
)
def test_unfit_layer_has_its_reason_and_cannot_be_named(unfit: nn.ModuleDict, name: str, reason: str) -> None:
    with pytest.raises(LayerError, match=f"layer '{name}' was named but cannot be pruned: .*{reason}"):
        plan(unfit, op_names=[name])
    with pytest.raises(LayerError, match=f"layer '{name}' was named but cannot be pruned: .*{reason}"):
        plan(unfit, layers={name: {"target_sparsity": 0.5}})


def test_unfit_layers_do_not_stop_the_others(unfit: nn.ModuleDict) -> None:
    assert pruned(unfit) == {"fit", "attention.out_proj"}
    assert {"embedding", "lstm", "bilinear", "attention", "computed", "grouped", "lazy", "empty"} < {*reasons(unfit)}


def test_attention_is_pruned_in_its_joint_projection() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    found = {layer.name: layer.shape for layer in plan(model).layers if layer.is_pruned}
    assert found == {"0": (24, 8), "0.out_proj": (8, 8)}


@pytest.mark.parametrize("name", ["blocks.0.fc1", "classifier"])
def test_named_layer_that_is_frozen(name: str) -> None:
    model = Net()
    model.get_submodule(name).requires_grad_(False)
    with pytest.raises(LayerError, match=rf"layer '{name}' was named but cannot be pruned: frozen"):
        plan(model, op_names=[name, "conv"])


def test_named_layer_that_the_pattern_does_not_fit() -> None:
    with pytest.raises(LayerError, match=r"'classifier' was named but cannot be pruned: 4 output channels are not a"):
        plan(Net(), pattern="8x1", op_names=["classifier", "conv"])


def test_nothing_to_prune_lists_reasons() -> None:
    with pytest.raises(
        LayerError, match=r"(?s)No layer .* pattern '7x1':\n  embedding: Emb.*\n  conv: 8 output .*classif"
    ):
        plan(Net(), pattern="7x1")
    with pytest.raises(LayerError, match=r"No layer of the model can be pruned with pattern '4x1':\n  it has none"):
        plan(nn.LayerNorm(8))


def test_frozen_model_is_told_what_prunes_it() -> None:
    message = r"frozen \(requires_grad=False\)\nTo train frozen layers, unfreeze them\. secateur\.prune prunes frozen"
    with pytest.raises(LayerError, match=message):
        plan(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False), pattern="2:4")


# Names that mean nothing.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"op_names": ["clasifier"]},
            r"op_names: 'clasifier' matches no layer\. Did you mean 'classifier'\? Layers: emb",
        ),
        (
            {"op_names": ["blocks"]},
            r"op_names: 'blocks' is not a layer but contains layers\. For all of them write 'blocks\[\.\]\.\*'",
        ),
        ({"excluded_op_names": ["conv1"]}, r"excluded_op_names: 'conv1' matches no layer\. Did you mean 'conv'\?"),
        (
            {"layers": {"blocks.2.fc1": None}},
            r"layers: 'blocks.2.fc1' matches no layer\. Did you mean 'blocks.\d.fc1'\?",
        ),
        (
            {"pruning_op_types": ["Linaer"]},
            r"pruning_op_types: no layer has type 'Linaer'\. Did you mean 'Linear'\? Types:",
        ),
        ({"layer_types": {"Conv3d": None}}, r"layer_types: no layer has type 'Conv3d'\. Did you mean 'Conv2d'\?"),
        ({"criterion": "snip_momentun"}, r"Unknown criterion 'snip_momentun'\. Did you mean 'snip_momentum'\?"),
        ({"pattern": "4x"}, r"Unknown pattern '4x'\. Did you mean '4x1'\?"),
        ({"sparsity_decay_type": "cubik"}, r"Unknown schedule 'cubik'\. Did you mean 'cubic'\?"),
        ({"layers": {"blocks[.]0[.].*": {"criterion": "magnitud"}}}, "Unknown criterion 'magnitud'"),
        ({"layer_types": {"Linear": {"criterion": "magnitud"}}}, "Unknown criterion 'magnitud'"),
        ({"layer_types": {"Linear": {"pattern": "4y1"}}}, "Unknown pattern '4y1'"),
        ({"layer_types": {"Linear": {"sparsity_decay_type": "quick"}}}, "Unknown schedule 'quick'"),
    ],
)
def test_unknown_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        plan(Net(), **config)


def test_unreachable_target() -> None:
    with pytest.raises(ConfigError, match=r"target_sparsity=0\.6 is out of reach for '2:4'"):
        plan(Net(), pattern="2:4", target_sparsity=0.6)


@pytest.mark.parametrize("model", [None, {"fc": nn.Linear(4, 4)}, nn.Linear])
def test_not_a_module(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"The model must be a torch.nn.Module or a keras.Model, found"):
        secateur.plan(model, {})
    assert issubclass(UnsupportedModelError, SecateurError)


def test_dtype_that_cannot_be_pruned() -> None:
    model = Net()
    model.conv.weight = nn.Parameter(torch.zeros(8, 4, 3, 3, dtype=torch.int8), requires_grad=False)
    assert reasons(model)["conv"] == "its weight has dtype torch.int8; patterns need floating point"


@pytest.mark.parametrize(
    ("key", "pattern", "hint"),
    [
        ("op_names", "fc", "occurs in 4 names; for all of them write '.*fc.*'"),
        ("excluded_op_names", "classif", "occurs in 1 name; for it write '.*classif.*'"),
        ("layers", r"blocks\.[0]", "occurs in 2 names"),
    ],
)
def test_a_part_of_a_name_says_that_whole_names_match(key: str, pattern: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match="matches no layer, because whole names must match") as caught:
        secateur.plan(Net(), {key: {pattern: {}} if key == "layers" else [pattern]})
    assert hint in str(caught.value)
