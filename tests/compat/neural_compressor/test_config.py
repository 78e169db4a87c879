"""Tests of the keys of Intel Neural Compressor: their translation, and the layers that they select."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.compat.neural_compressor import WeightPruningConfig
from secateur.errors import ConfigError, SecateurError, UnknownNameError, UnsupportedModelError
from secateur.schedules import get_schedule
from tiny_models import mlp

pytestmark = pytest.mark.usefixtures("registries_restored")


class Net(nn.Module):
    """Two blocks with the same names inside, an embedding, a convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.stem = nn.Conv1d(16, 16, 3)
        self.block1 = nn.ModuleDict({"query": nn.Linear(16, 16), "dense": nn.Linear(16, 16)})
        self.block2 = nn.ModuleDict({"query": nn.Linear(16, 16), "dense": nn.Linear(16, 16)})
        self.classifier = nn.Linear(16, 4)


LAYERS = ("stem", "block1.query", "block1.dense", "block2.query", "block2.dense")


def convert(pruning_configs: Any = None, model: nn.Module | None = None, **settings: Any) -> secateur.PruningConfig:
    return WeightPruningConfig(pruning_configs, **settings).for_model(Net() if model is None else model)


def get_layer_configs(
    config: secateur.PruningConfig, model: nn.Module | None = None
) -> dict[str, secateur.PruningConfig]:
    plan = secateur.plan(Net() if model is None else model, config)
    return {layer.name: layer.config for layer in plan.layers if layer.config is not None}


def find_layers(pruning_configs: list[dict[str, Any]], **settings: Any) -> list[list[str]]:
    """The names of the layers of each element."""
    configs = WeightPruningConfig(pruning_configs, **settings).to_configs(Net())
    return [list(get_layer_configs(config)) for config in configs]


def test_defaults_match_the_documentation() -> None:
    config = convert()
    documented = {
        "pattern": "4x1",
        "target_sparsity": 0.9,
        "criterion": "snip_momentum",
        "kind": "iterative",
        "pruning_scope": "global",
        "pruning_frequency": 1,
        "min_sparsity_ratio_per_op": 0.0,
        "max_sparsity_ratio_per_op": 0.98,
        "criterion_reduce_type": "mean",
        "score_dtype": "float32",
        "keep_zeros": False,
        "reg_type": None,
    }
    assert {key: getattr(config, key) for key in documented} == documented
    assert tuple(get_layer_configs(config)) == LAYERS
    assert WeightPruningConfig(target_sparsity=0.5).weight_compression["target_sparsity"] == 0.5


@pytest.mark.parametrize("empty", [None, [], [{}], ({},)])
def test_no_element_means_one_for_all_layers(empty: Any) -> None:
    assert tuple(get_layer_configs(convert(empty))) == LAYERS


@given(removed=st.integers(1, 15), group=st.integers(2, 16))
def test_n_of_m_counts_the_removed_weights(removed: int, group: int) -> None:
    if removed >= group:
        with pytest.raises(ConfigError, match="N must be less than M, because N of every M weights are removed"):
            WeightPruningConfig(pattern=f"{removed}:{group}")
        return
    model = nn.Sequential(nn.Linear(group * 2, 4), nn.Linear(4, 3))
    config = WeightPruningConfig(pattern=f"{removed}:{group}", pruning_type="magnitude").for_model(model)
    assert config.pattern == f"{group - removed}:{group}"
    assert secateur.prune(model, config).sparsity == pytest.approx(removed / group)


@pytest.mark.parametrize(
    ("target", "expected"), [({}, 0.25), ({"target_sparsity": 0.25}, 0.25), ({"target_sparsity": 0.125}, 0.125)]
)
def test_target_of_n_of_m(target: dict[str, float], expected: float) -> None:
    model = mlp()
    config = convert(pattern="1:4", pruning_type="magnitude", model=model, **target)
    assert secateur.prune(model, config).sparsity == expected


@pytest.mark.parametrize("pattern", ["4x1", "1x4", "8x8", "1x1", "1xchannel", "channelx1"])
def test_other_patterns_are_unchanged(pattern: str) -> None:
    assert convert(pattern=pattern).pattern == pattern
    assert convert(pattern=f"tile_pattern_{pattern}").pattern == pattern


@pytest.mark.parametrize(
    ("pruning_type", "criterion", "kind"),
    [
        ("snip_momentum", "snip_momentum", "iterative"),
        ("snip", "snip", "iterative"),
        ("magnitude", "magnitude", "iterative"),
        ("gradient", "gradient", "iterative"),
        ("snip_momentum_progressive", "snip_momentum", "progressive"),
        ("snip_progressive", "snip", "progressive"),
        ("magnitude_progressive", "magnitude", "progressive"),
        ("gradient_progressive", "gradient", "progressive"),
        ("pattern_lock", "magnitude", "pattern_lock"),
    ],
)
def test_pruning_types(pruning_type: str, criterion: str, kind: str) -> None:
    config = convert(pruning_type=pruning_type, start_step=1, end_step=21, pruning_frequency=4)
    assert (config.criterion, config.kind) == (criterion, kind)


@pytest.mark.parametrize(
    ("decay", "half"), [("exp", 1 - 0.36**0.5), ("linear", 0.32), ("cube", 0.08), ("cos", 0.64 * (1 - 0.5**0.5))]
)
def test_decay_types_keep_their_shapes(decay: str, half: float) -> None:
    schedule = get_schedule(convert(sparsity_decay_type=decay, start_step=1, end_step=9).sparsity_decay_type)
    assert schedule(0.0, 0.64, 0.5) == pytest.approx(half)
    assert (schedule(0.0, 0.64, 0.0), schedule(0.0, 0.64, 1.0)) == (pytest.approx(0.0), 0.64)


@pytest.mark.parametrize(
    ("given_keys", "expected"),
    [
        ({"start_step": 2, "end_step": 9}, (2, 9, "exponential")),
        ({"start_step": 0, "end_step": 9}, (0, 9, "exponential")),
        ({"start_step": 0.5, "end_step": 9.5}, (1, 9, "exponential")),
        ({"start_step": 1, "end_step": 10, "pruning_frequency": 4}, (1, 9, "exponential")),
        ({"start_step": 1, "end_step": 4, "pruning_frequency": 4}, (1, 1, "one_shot")),
        ({}, (1, 1, "one_shot")),
        ({"start_step": 5, "end_step": 5}, (5, 5, "one_shot")),
        ({"pruning_type": "magnitude"}, (0, 0, "one_shot")),
        ({"pruning_type": "magnitude", "end_step": 4}, (0, 4, "exponential")),
    ],
)
def test_steps(given_keys: dict[str, Any], expected: tuple[int, int, str]) -> None:
    config = convert(**given_keys)
    assert (config.start_step, config.end_step, config.sparsity_decay_type) == expected


@pytest.mark.parametrize(
    ("given_keys", "key", "value"),
    [
        ({"low_memory_usage": True}, "score_dtype", "bfloat16"),
        ({"resume_from_pruned_checkpoint": True}, "keep_zeros", True),
        ({"reg_type": "group_lasso", "parameters": {"reg_coeff": 0.2}}, "reg_coeff", 0.2),
        ({"reg_type": "group_lasso", "reg_coeff": 0.3}, "reg_coeff", 0.3),
        ({"reg_type": "group_lasso", "reg_coeff": 0.3, "parameters": {"reg_coeff": 0.3}}, "reg_coeff", 0.3),
        ({"criterion_reduce_type": "max"}, "criterion_reduce_type", "max"),
        ({"pruning_scope": "local"}, "pruning_scope", "local"),
        ({"criterion_type": "snip_momentum"}, "criterion", "snip_momentum"),
        ({"target_sparsity": None}, "target_sparsity", 0.9),
        ({"backend": "default"}, "pattern", "4x1"),
    ],
)
def test_other_keys(given_keys: dict[str, Any], key: str, value: Any) -> None:
    assert getattr(convert(**given_keys), key) == value


def test_an_element_overrides_the_common_keys() -> None:
    config = WeightPruningConfig(
        [
            {"op_names": ["query"], "target_sparsity": 0.5, "pattern": "channelx1", "pruning_scope": "local"},
            {
                "op_names": ["block2.dense"],
                "pruning_type": "magnitude_progressive",
                "start_step": 4,
                "pruning_frequency": 2,
            },
            {"pruning_op_types": ["Conv"], "pattern": "1:4", "target_sparsity": 0.25},
        ],
        target_sparsity=0.75,
        start_step=1,
        end_step=10,
    )
    query, dense, stem = config.to_configs(Net())
    assert [list(get_layer_configs(part)) for part in (query, dense, stem)] == [
        ["block1.query", "block2.query"],
        ["block2.dense"],
        ["stem"],
    ]
    assert (query.target_sparsity, query.pattern, query.pruning_scope, query.end_step) == (
        0.5,
        "channelx1",
        "local",
        10,
    )
    assert (dense.target_sparsity, dense.criterion, dense.kind, dense.start_step) == (
        0.75,
        "magnitude",
        "progressive",
        4,
    )
    assert (stem.pattern, stem.target_sparsity, stem.criterion) == ("3:4", 0.25, "snip_momentum")


def test_elements_may_name_the_same_layers() -> None:
    assert find_layers([{}, {"op_names": ["block1"]}]) == [list(LAYERS), ["block1.query", "block1.dense"]]


def test_common_keys_can_be_set_after_the_configuration_is_made() -> None:
    config = WeightPruningConfig([{"op_names": ["query"]}], pattern="4x1")
    config.weight_compression.pattern = "2:4"
    config.weight_compression["target_sparsity"] = 0.25
    found = config.for_model(Net())
    assert (found.pattern, found.target_sparsity) == ("2:4", 0.25)
    config.pruning_configs = [{"pattern": "1x1"}]
    assert config.for_model(Net()).pattern == "1x1"


def test_positional_arguments() -> None:
    config = WeightPruningConfig([{}], 0.5, "magnitude", "1x1", ["query"], ["block2"], None, 2, 8, "local", 3)
    found = config.for_model(Net())
    assert (found.target_sparsity, found.criterion, found.pattern) == (0.5, "magnitude", "1x1")
    assert list(get_layer_configs(found)) == ["block1.query"]
    assert (found.start_step, found.end_step, found.pruning_scope, found.pruning_frequency) == (2, 8, "local", 3)


def test_common_names_select_layers() -> None:
    assert set(get_layer_configs(convert(op_names=["dense"]))) == {"block1.dense", "block2.dense"}


@pytest.mark.parametrize(
    ("excluded", "left"),
    [
        ({"excluded_op_names": ["query"]}, {"stem", "block1.dense", "block2.dense"}),
        ({"excluded_op_names": ["^block1"]}, {"stem", "block2.query", "block2.dense"}),
        ({"excluded_op_names": ["dense$", "stem"]}, {"block1.query", "block2.query"}),
        ({"excluded_op_names": [r"block\d\.query"]}, {"stem", "block1.dense", "block2.dense"}),
        ({"excluded_op_names": [".*embedding.*"]}, set(LAYERS)),
        ({"excluded_op_names": "stem"}, set(LAYERS) - {"stem"}),
        ({"pruning_op_types": ["Conv"]}, {"stem"}),
        ({"pruning_op_types": ["Linear"]}, set(LAYERS) - {"stem"}),
    ],
)
def test_excluded_layers(excluded: dict[str, Any], left: set[str]) -> None:
    assert set(get_layer_configs(convert(**excluded))) == left
    assert set(get_layer_configs(convert([excluded]))) == left


def test_the_exclusions_of_an_element_replace_the_common_ones() -> None:
    assert find_layers([{"excluded_op_names": ["stem"]}, {}], excluded_op_names=["query"]) == [
        list(LAYERS[1:]),
        ["stem", "block1.dense", "block2.dense"],
    ]


def test_the_classifier_stays_dense_unless_named_exactly() -> None:
    assert "classifier" not in get_layer_configs(convert(op_names=[".*"]))
    assert set(get_layer_configs(convert(op_names=["classifier"]))) == {"classifier"}


def test_a_head_whose_name_is_part_of_another_excludes_only_itself() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12)))
    with_one = nn.Sequential(*(nn.Linear(8, 8) for _ in range(2)))
    assert len(get_layer_configs(convert(model=model), model)) == 11
    assert len(get_layer_configs(convert(model=with_one), with_one)) == 1


def test_a_part_of_a_class_name_selects_layers() -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv3d(8, 8, 1), nn.ConvTranspose2d(8, 8, 1), nn.Linear(8, 4)
    )
    assert len(get_layer_configs(convert(model=model), model)) == 4
    assert set(get_layer_configs(convert(model=model, pruning_op_types=["Conv2d"]), model)) == {"1"}


def test_the_converted_configuration_can_be_saved() -> None:
    config = convert([{"op_names": ["dense"], "pattern": "1:4", "target_sparsity": 0.25}])
    assert secateur.PruningConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("pattern", "target", "maximum", "expected"),
    [("4x1", 0.75, 0.5, 0.5), ("1:4", 0.5, 0.98, 0.25), ("4x1", 0.99, 0.98, 436 / 448)],
)
def test_the_target_is_at_most_what_is_allowed(
    pattern: str, target: float, maximum: float, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    config = convert(pattern=pattern, target_sparsity=target, max_sparsity_ratio_per_op=maximum)
    assert config.target_sparsity == expected
    assert caplog.text.count(f"target_sparsity={target} is above") == 1


@pytest.mark.parametrize(
    ("pruning_configs", "settings", "message"),
    [
        (
            None,
            {"pruning_frequence": 4},
            "WeightPruningConfig: unknown keys are ignored: 'pruning_frequence' (Did",
        ),
        ([{"op_name": ["a"]}], {}, "pruning_configs[0]: unknown keys are ignored: 'op_name' (Did you mean"),
        ([{}, {"patern": "4x1"}], {}, "pruning_configs[1]: unknown keys are ignored: 'patern' (Did you mean"),
    ],
)
def test_unknown_keys_are_ignored_with_a_warning(
    pruning_configs: Any, settings: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    WeightPruningConfig(pruning_configs, **settings)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"op_names": ["querry", "dense"]}, "op_names that match no layer: 'querry'"),
        ({"excluded_op_names": ["pooler"]}, "excluded_op_names that match no layer: 'pooler'"),
    ],
)
def test_names_that_match_nothing_are_ignored_with_a_warning(
    settings: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    convert(**settings)
    assert message in caplog.text


def test_an_element_without_layers_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert find_layers([{"op_names": ["embedding"]}, {"op_names": ["stem"]}]) == [["stem"]]
    assert "pruning_configs[0] matches no layer, so it prunes nothing" in caplog.text


@pytest.mark.parametrize(
    ("pruning_configs", "settings", "kind", "message"),
    [
        ({"pattern": "4x1"}, {}, ConfigError, "pruning_configs must be a list of dictionaries, found"),
        (["4x1"], {}, ConfigError, "pruning_configs must be a list of dictionaries, found"),
        (None, {"pruning_type": "snip_momentun"}, UnknownNameError, "Did you mean 'snip_momentum'"),
        (None, {"pattern": 4}, ConfigError, "pattern must be a string such as '4x1', found 4"),
        (None, {"pattern": "4:4"}, ConfigError, "pattern '4:4': N must be less than M"),
        (None, {"sparsity_decay_type": "cubic"}, UnknownNameError, "Did you mean 'cube'"),
        (None, {"start_step": 5, "end_step": 4}, ConfigError, "end_step must not be less than start_step, found 4 < 5"),
        (None, {"target_sparsity": -0.5}, ConfigError, "WeightPruningConfig: target_sparsity: .* found -0.5"),
        (
            [{"pruning_frequency": 0}],
            {},
            ConfigError,
            r"pruning_configs\[0\]: pruning_frequency must be at least 1, found 0",
        ),
        (None, {"pruning_scope": "layer"}, ConfigError, "pruning_scope: .* found 'layer'"),
        (None, {"parameters": 0.1}, ConfigError, "parameters must be a dictionary"),
        (None, {"reg_type": "lasso"}, ConfigError, "reg_type: .* found 'lasso'"),
        (None, {"min_sparsity_ratio_per_op": 0.99}, ConfigError, "must not be greater than max_sparsity_ratio_per_op"),
    ],
)
def test_invalid_settings(
    pruning_configs: Any, settings: dict[str, Any], kind: type[SecateurError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        WeightPruningConfig(pruning_configs, **settings)


def test_a_name_that_is_not_a_regular_expression() -> None:
    with pytest.raises(ConfigError, match="is not a regular expression"):
        convert(op_names=["("])


def test_one_configuration_for_a_model_needs_one_element() -> None:
    with pytest.raises(ConfigError, match=r"found 2\. Call to_configs\(model\) for all"):
        convert([{}, {}])


def test_unsupported_models() -> None:
    with pytest.raises(UnsupportedModelError, match=r"The model must be a torch.nn.Module or a keras.Model, found int"):
        WeightPruningConfig().for_model(3)


def test_repr_shows_the_arguments() -> None:
    config = WeightPruningConfig([{"pattern": "2:4"}], target_sparsity=0.5)
    assert repr(config) == "WeightPruningConfig([{'pattern': '2:4'}], target_sparsity=0.5)"
