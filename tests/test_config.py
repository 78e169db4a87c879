import json
import math
import os
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from secateur.config import NOT_PER_LAYER, PruningConfig
from secateur.errors import ConfigError, UnknownNameError
from secateur.schedules import SCHEDULES

FULL: dict[str, Any] = {
    "format_version": 1,
    "pattern": "2:4",
    "target_sparsity": 0.3,
    "pruning_scope": "local",
    "pruning_group": "encoder",
    "criterion": "taylor",
    "criterion_reduce_type": "l2",
    "score_dtype": "bfloat16",
    "kind": "progressive",
    "start_step": 3,
    "end_step": 70,
    "pruning_frequency": 7,
    "sparsity_decay_type": "linear",
    "progressive_steps": 2,
    "regrow_fraction": 0.2,
    "sr_ste_decay": 0.001,
    "sparsity_distribution": "er",
    "keep_zeros": True,
    "granularity": 8,
    "allow_inexact": True,
    "min_sparsity_ratio_per_op": 0.1,
    "max_sparsity_ratio_per_op": 0.4,
    "op_names": ["encoder\\..*"],
    "excluded_op_names": [".*head"],
    "pruning_op_types": ["Conv"],
    "reg_type": "group_lasso",
    "reg_coeff": 0.01,
    "seed": 7,
    "layers": {"encoder\\.0\\..*": None, "encoder\\.1": {"pattern": "4x1", "target_sparsity": 0.2}},
    "layer_types": {"Conv2d": {"pattern": "1xchannel"}},
}
"""Every key, with a value that differs from its default."""


def test_every_key_is_here_and_differs_from_its_default() -> None:
    default = PruningConfig().to_dict()
    same = {key for key, value in FULL.items() if default[key] == value}
    assert (set(FULL), same) == (set(default), {"format_version"})


@pytest.mark.parametrize("data", [{}, FULL])
def test_every_form_is_lossless(data: dict[str, Any], tmp_path: Path) -> None:
    config = PruningConfig(**data)
    file = tmp_path / "pruning.yaml"
    file.write_text(config.to_yaml(), "utf-8")
    copies = [
        PruningConfig.from_dict(config.to_dict()),
        PruningConfig.from_yaml(config.to_yaml()),
        PruningConfig.from_json(config.to_json()),
        PruningConfig.from_yaml(file),
    ]
    assert copies == [config] * 4
    assert json.loads(config.to_json()) == config.to_dict()
    assert all(config.to_dict()[key] == value for key, value in data.items())


@given(st.floats(0, 1), st.floats(0, allow_infinity=False))
def test_numbers_keep_every_bit(target: float, coefficient: float) -> None:
    config = PruningConfig(target_sparsity=target, reg_coeff=coefficient)
    assert PruningConfig.from_yaml(config.to_yaml()) == PruningConfig.from_json(config.to_json()) == config


def test_json_rules_are_lossless() -> None:
    """A YAML parser would read 1e-05 as a string, and an escaped character beyond 16 bits as two surrogates."""
    config = PruningConfig(layers={"fc\U0001f33f": {"reg_coeff": 1e-05}})
    assert PruningConfig.from_json(config.to_json()) == config


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PruningConfig().pattern = "2:4"  # type: ignore[misc]


@pytest.mark.parametrize("key", [key for key in FULL if key != "format_version"])
def test_a_misspelled_key_is_rejected_with_a_suggestion(key: str) -> None:
    with pytest.raises(
        ConfigError, match=f"Unknown key '{key}z'. Did you mean '{key}'. Known: allow_inexact, criterion, "
    ):
        PruningConfig(**{f"{key}z": FULL[key]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            (key, value)
            for key in FULL
            if "sparsity_" in key and "ratio" in key
            for value in (-0.1, 1.1, math.nan, "much")
        ],
        *[("target_sparsity", value) for value in (-0.1, 1.1, math.nan, "much")],
        *[(key, value) for key in ("start_step", "end_step", "seed") for value in (-1, 1.5, "soon")],
        *[(key, 0) for key in ("pruning_frequency", "progressive_steps")],
        *[("reg_coeff", value) for value in (-1.0, math.inf, math.nan)],
        *[(key, "no such") for key in ("pruning_scope", "criterion_reduce_type", "score_dtype", "kind", "reg_type")],
        ("format_version", 2),
        ("pattern", 4),
    ],
)
def test_a_value_out_of_bounds_is_rejected(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key}.*: Input should be .*, found {value!r}\."):
        PruningConfig(**{key: value})


def test_every_problem_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"seed: .* found -1\.\nlayers: .* found 3\."):
        PruningConfig(seed=-1, layers=3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "pattern_lock", "reg_type": "group_lasso"}, "reg_type has no effect with kind='pattern_lock'"),
        ({"start_step": 9, "end_step": 5}, r"start_step must not be greater than end_step, found 9 > 5\."),
        (
            {"min_sparsity_ratio_per_op": 0.6, "max_sparsity_ratio_per_op": 0.5},
            r"min_sparsity_ratio_per_op must not be greater than max_sparsity_ratio_per_op, found 0\.6 > 0\.5\.",
        ),
        (
            {"kind": "one_shot"},
            r"kind: .*, found 'one_shot'\. one_shot is a schedule: sparsity_decay_type='one_shot'\.",
        ),
        ({"op_names": ["(open"]}, r"op_names: '\(open' is not a regular expression: missing \)"),
        ({"layers": {"*": None}}, r"layers: '\*' is not a regular expression: nothing to repeat"),
        (
            {"criterion": "snip", "pruning_type": "snip"},
            "'criterion' and 'pruning_type' are two names for the same setting",
        ),
        ({"layers": {"fc": {"patern": "2:4"}}}, r"layers\['fc'\]: Unknown key 'patern'\. Did you mean 'pattern'\?"),
        (
            {"layer_types": {"Conv2d": {"target_sparsity": 2}}},
            r"layer_types\['Conv2d'\]: target_sparsity: Input should",
        ),
        ({"layers": {"fc": {"kind": "one_shot"}}}, r"layers\['fc'\]: kind: .* one_shot is a schedule"),
    ],
)
def test_contradictory_values_are_rejected(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruningConfig(**data)


@pytest.mark.parametrize("key", sorted(NOT_PER_LAYER))
def test_a_rule_cannot_select_layers(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"layers\['fc'\]: {key} cannot be set per layer\."):
        PruningConfig(layers={"fc": {key: FULL[key]}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pattern: [", "The configuration is not valid YAML: "),
        ("- 4x1", r"A configuration must be a mapping of names to values, found list\."),
        ("", "found NoneType"),
        ("1: 2", "A configuration must be a mapping of names to values"),
        ("runs/c.yaml", r"found the text 'runs/c\.yaml'\. To read a file, pass a pathlib\.Path\."),
    ],
)
def test_an_invalid_text_is_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruningConfig.from_yaml(text)


LAUGHS = "a: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
MERGED = "a: &a0 {a: 1, b: 2}\n" + "".join(
    f"b{level}: &a{level} {{<<: [{','.join([f'*a{level - 1}'] * 9)}]}}\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 20 levels of nesting"),
        ("[" * 30 + "]" * 30, "more than 20 levels of nesting"),
        ("{a: " * 50_000, "more than 20 levels of nesting"),
        ("a: &a [*a]", "more than 20 levels of nesting"),
        (LAUGHS, "more than 100,000 values"),
        (MERGED, "more than 10,000 keys"),
        ("a: &a 1\n" + "".join(f"b{index}: *a\n" for index in range(2_000)), "more than 1,000 aliases"),
        ("x" * 2_000_000, "longer than 250,000 characters"),
        ("pattern: 1x1\npattern: 2:4", "the key 'pattern' occurs twice"),
        ('{"layers": {"fc": null, "fc": {}}}', "the key 'fc' occurs twice"),
        ("seed: " + "9" * 5_000, "is not a valid int"),
        ('{"seed": ' + "9" * 5_000 + "}", "not valid JSON: Exceeds the limit"),
        ("seed: 2001-99-99", "'2001-99-99' is not a valid timestamp"),
        ("seed: !!timestamp x", "'x' is not a valid timestamp"),
        ("seed: !!int ''", "'' is not a valid int"),
        ("seed: !!bool x", "'x' is not a valid bool"),
        ("seed: !!python/object:os.system {}", "could not determine a constructor for the tag"),
        ("? [a] : b", "found unhashable key"),
        ("pattern: a\0b", "special characters are not allowed"),
        (r'{"op_names": ["\ud800"]}', "lone surrogate"),
        (r'{"op_names": ["a{99999999999999999}"]}', "is not a regular expression: the repetition number is too large"),
        ('{"op_names": ["' + "(" * 5_000 + ")" * 5_000 + '"]}', "is not a regular expression"),
    ],
    ids=lambda value: value[:12].strip(),
)
def test_a_hostile_text_is_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PruningConfig.from_yaml(text)
    assert len(str(caught.value)) < 1_000


def test_aliases_and_merges_are_supported() -> None:
    text = "layers: {a: &rule {pattern: '2:4'}, b: *rule, c: {<<: *rule, seed: 3, pattern: 4x1}}"
    rule = {"pattern": "2:4"}
    assert PruningConfig.from_yaml(text).layers == {"a": rule, "b": rule, "c": {"seed": 3, "pattern": "4x1"}}


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pruning.json"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"reg_coeff": 1e-05}')
    assert PruningConfig.from_yaml(file).reg_coeff == 1e-05


@pytest.mark.parametrize("content", ["pattern: 2:4".encode("utf-16"), "pattern: é".encode("latin-1"), b"x" * 5_000_000])
def test_a_binary_file_is_rejected(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "pruning.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="The configuration cannot be read: "):
        PruningConfig.from_yaml(file)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes and devices among the files")
def test_pipes_and_devices_are_rejected_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("no\0path")):
        with pytest.raises(ConfigError, match="The configuration cannot be read: "):
            PruningConfig.from_yaml(path)


def test_pruning_type_is_an_alias_of_criterion() -> None:
    config = PruningConfig(pruning_type="magnitude", layers={"fc": {"pruning_type": "random"}})
    rule = config.for_layer("fc", ())
    assert (config.criterion, config.pruning_type) == ("magnitude", "magnitude")
    assert rule is not None
    assert rule.criterion == "random"
    assert PruningConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("spec", ["2:4", "1:4", "4:8"])
def test_a_pattern_needs_no_quotes_in_yaml(spec: str) -> None:
    """YAML 1.1 reads 2:4 as 124, in base 60."""
    config = PruningConfig.from_yaml(f"pattern: {spec}\nseed: 7\nlayers:\n  fc: {{pattern: {spec}, seed: 0x10}}")
    assert config == PruningConfig(pattern=spec, seed=7, layers={"fc": {"pattern": spec, "seed": 16}})
    assert PruningConfig.from_yaml(config.to_yaml()) == config


def test_bounds_that_exclude_the_target_are_checked_by_the_plan() -> None:
    config = PruningConfig(target_sparsity=0.9, max_sparsity_ratio_per_op=0.5, layers={"fc": {"target_sparsity": 0.6}})
    assert config.target_sparsity == 0.9


def test_pydantic_constructors_raise_the_same_errors() -> None:
    config = PruningConfig.model_validate(FULL)
    assert PruningConfig.model_validate(config) == PruningConfig.model_validate_json(config.to_json()) == config
    for data in ({"seed": -1}, {"sed": 1}, 3):
        with pytest.raises(ConfigError, match=r"seed|Input should be"):
            PruningConfig.model_validate(data)
        with pytest.raises(ConfigError, match=r"seed|Input should be"):
            PruningConfig.model_validate_json(json.dumps(data))


def test_equal_configurations_have_equal_hashes() -> None:
    rules = [{"a": {"target_sparsity": 1}, "b": None}, {"b": None, "a": {"target_sparsity": 1.0}}]
    first, second = (PruningConfig(**{**FULL, "layers": rule}) for rule in rules)
    assert first == second
    assert len({first, second, PruningConfig(), PruningConfig(seed=1)}) == 3


def test_a_string_is_a_list_of_one_name() -> None:
    assert PruningConfig(op_names="fc", pruning_op_types="Conv") == PruningConfig(
        op_names=("fc",), pruning_op_types=("Conv",)
    )


@pytest.mark.parametrize(
    ("config", "last_step"),
    [({}, 4), ({"end_step": 9}, 9), ({"end_step": 9, "sparsity_decay_type": "one_shot"}, 4)],
)
def test_last_step(config: dict[str, Any], last_step: int) -> None:
    assert PruningConfig(start_step=4, **config).last_step == last_step


def test_a_schedule_function_cannot_be_saved() -> None:
    config = PruningConfig(sparsity_decay_type=max)
    assert config.sparsity_decay_type is max
    with pytest.raises(
        ConfigError, match=r"a file can only contain a name\. Register it with @secateur.register_schedule"
    ):
        config.to_yaml()


@pytest.mark.parametrize("where", ["layers", "layer_types"])
def test_a_schedule_function_in_a_rule_cannot_be_saved(where: str) -> None:
    config = PruningConfig(**{where: {"fc": {"sparsity_decay_type": max}, "conv": None}})
    with pytest.raises(ConfigError, match=rf"{where}\['fc'\]: sparsity_decay_type is a function, and a file can only"):
        config.to_dict()


RULES = PruningConfig(
    target_sparsity=0.5,
    layers={r"encoder\.0\..*": None, r"encoder\..*": {"pattern": "1x4"}, r".*\.fc": {"pattern": "2:4"}},
    layer_types={"Linear": {"target_sparsity": 0.25}, "Conv2d": None, "Conv": {"pattern": "1x1"}},
)


@pytest.mark.parametrize(
    ("name", "types", "expected"),
    [
        ("encoder.0.fc", ("Linear", "Linear"), None),
        ("encoder.1.fc", ("Linear", "Linear"), ("1x4", 0.5)),  # the first that matches; a name beats a type
        ("head.fc", (), ("2:4", 0.5)),
        ("my.encoder.0.x", (), ("4x1", 0.5)),  # the whole name has to match
        ("head.fc2", (), ("4x1", 0.5)),
        ("stem", ("Conv2d", "Conv"), None),  # the most specific type first
        ("stem", ("Conv3d", "Conv"), ("1x1", 0.5)),
        ("stem", ("Linear", "Linear"), ("4x1", 0.25)),
        ("stem", ("Embedding",), ("4x1", 0.5)),
    ],
)
def test_precedence_of_names_types_and_defaults(
    name: str, types: tuple[str, ...], expected: tuple[str, float] | None
) -> None:
    found = RULES.for_layer(name, types)
    assert (None if found is None else (found.pattern, found.target_sparsity)) == expected
    assert found is None or (found.layers, found.layer_types) == ({}, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"pattern": "4y1"}, "Unknown pattern '4y1'. Did you mean '4x1'? Known pattern types: "),
        ({"criterion": "magnitud"}, "Unknown criterion 'magnitud'. Did you mean 'magnitude'? Known: "),
        ({"pruning_type": "magnitud"}, "Unknown criterion 'magnitud'. Did you mean 'magnitude'? Known: "),
        ({"sparsity_decay_type": "cubik"}, "Unknown schedule 'cubik'. Did you mean 'cubic'? Known: "),
        ({"layers": {"fc": {"pattern": "4y1"}}}, "layers['fc']: Unknown pattern '4y1'. Did you mean '4x1'? "),
        ({"layer_types": {"Linear": {"criterion": "snap"}}}, "layer_types['Linear']: Unknown criterion 'snap'. Did"),
    ],
)
def test_an_unknown_name_is_rejected(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        PruningConfig(**data)
    assert str(caught.value).startswith(message)
    assert "must be registered before its name is used." in str(caught.value)


def test_an_unknown_name_among_other_problems_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"Unknown pattern '4y1'.*\nseed: .* found -1\.") as caught:
        PruningConfig(pattern="4y1", seed=-1)
    assert not isinstance(caught.value, UnknownNameError)


def test_a_registered_name_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "mine", SCHEDULES["linear"])
    assert PruningConfig(sparsity_decay_type="mine").sparsity_decay_type == "mine"


def test_sequences_and_mappings_of_any_type_are_accepted() -> None:
    config = PruningConfig(op_names=["a"], pruning_op_types="Conv", layers=MappingProxyType({"a": {"seed": 1}}))
    assert (config.op_names, config.pruning_op_types, config.layers) == (("a",), ("Conv",), {"a": {"seed": 1}})
    assert type(config.layers) is dict
