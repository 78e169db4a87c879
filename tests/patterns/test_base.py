import copy
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest

from installed_packages import hide_packages
from patterns import oracle
from patterns.cases import DTYPES, SPECS, VIEWS, array_pattern, random_scores, share_of, view
from secateur import patterns
from secateur.config import PruningConfig
from secateur.errors import (
    ConfigError,
    LayerError,
    MissingPackageError,
    ScoreError,
    UnknownNameError,
    UnsupportedModelError,
)
from secateur.patterns import (
    PATTERNS,
    ArrayBasePattern,
    BasePattern,
    BlockTiling,
    ChannelsPattern,
    HeadsPattern,
    WeightView,
    base,
    get_pattern,
    register_pattern,
)
from secateur.patterns.base import get_pattern_class
from secateur.patterns.selection import Scores

torch = pytest.importorskip("torch")

every_pattern = pytest.mark.parametrize("spec", SPECS)
LABELS = {spec: {name: oracle.labels(spec, one.canonical_shape) for name, one in VIEWS.items()} for spec in SPECS}


def pruned_units(spec: str, masks: dict[str, Any]) -> dict[str, int]:
    """The pruned units (groups, of N:M) of each layer; fails where a unit is torn."""
    counts = {}
    for name, mask in masks.items():
        unit_of = LABELS[spec][name].ravel()
        size = np.bincount(unit_of)
        survivors = np.bincount(unit_of, weights=np.asarray(mask).ravel())
        left = size * float(1 - share_of(spec))
        assert np.all((survivors == size) | (survivors == left)), f"{name}: torn units"
        counts[name] = int((survivors == left).sum())
    return counts


def units_in(spec: str) -> dict[str, int]:
    return {name: int(unit_of.max()) + 1 for name, unit_of in LABELS[spec].items()}


# What holds for every pattern.


def test_every_registered_pattern_is_here() -> None:
    # Those with units in several layers: tests/patterns/test_heads.py and test_channels.py.
    assert {get_pattern_class(spec) for spec in SPECS} == set(PATTERNS.values()) - {ChannelsPattern, HeadsPattern}


@every_pattern
@pytest.mark.parametrize("part", [0.0, 0.13, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_counts_are_exact(spec: str, part: float, scope: str) -> None:
    share = share_of(spec)
    pattern = array_pattern(spec, target_sparsity=part * float(share), pruning_scope=scope)
    found, units = pruned_units(spec, pattern.masks(random_scores())), units_in(spec)
    wanted = {name: round(pattern.target_sparsity * count / share) for name, count in units.items()}
    if scope == "local":
        assert found == wanted
    else:
        assert sum(found.values()) == round(pattern.target_sparsity * sum(units.values()) / share)


@every_pattern
def test_a_complete_target_leaves_no_unit_and_zero_takes_none(spec: str) -> None:
    pattern = array_pattern(spec)
    assert all(mask.all() for mask in pattern.masks(random_scores(), sparsity=0.0).values())
    assert pruned_units(spec, pattern.masks(random_scores(), sparsity=float(share_of(spec)))) == units_in(spec)


@every_pattern
def test_a_schedules_rounding_is_no_sparsity_out_of_range(spec: str) -> None:
    pattern, most = array_pattern(spec), float(share_of(spec))
    masks = pattern.masks(random_scores(), math.nextafter(most, 2))
    assert pruned_units(spec, masks) == units_in(spec)


@every_pattern
@pytest.mark.parametrize("beyond", [-0.1, 0.01, math.inf, math.nan])
def test_an_impossible_sparsity_is_refused(spec: str, beyond: float) -> None:
    pattern, most = array_pattern(spec), float(share_of(spec))
    sparsity = beyond if beyond < 0 else most + beyond
    streams = {name: Scores(name, lambda: iter([]), units.count) for name, units in pattern.units.items()}
    for call in (lambda: pattern.masks(random_scores(), sparsity), lambda: pattern.select(streams, sparsity)):
        with pytest.raises(ConfigError, match=rf"sparsity must be in \[0, {most:g}\] for '{spec}', found {sparsity}"):
            call()


@every_pattern
def test_of_equal_scores_the_lower_index_survives(spec: str) -> None:
    sparsity = 0.4 * float(share_of(spec))
    masks = array_pattern(spec).masks({name: np.ones(one.shape) for name, one in VIEWS.items()}, sparsity)
    found = pruned_units(spec, masks)
    for name, mask in masks.items():
        unit_of = LABELS[spec][name]
        stay = unit_of < units_in(spec)[name] - found[name]
        keep, group = oracle.parse_counts(spec) if ":" in spec else (0, 1)
        first = np.arange(mask.shape[2]) % group < keep
        if spec.endswith("transposable"):  # the other rows take the other columns
            first = first == (np.arange(mask.shape[0]) % group < keep)[:, None, None]
        np.testing.assert_array_equal(mask, stay | first)
    assert found["fc"] == 0 or found["conv"] == units_in(spec)["conv"]


@every_pattern
def test_infinities_are_scores(spec: str) -> None:
    pattern = array_pattern(spec, target_sparsity=0.5 * float(share_of(spec)), criterion_reduce_type="max")
    scores = random_scores()
    best, worst = LABELS[spec]["fc"] == 1, LABELS[spec]["conv"] == 0
    scores["fc"][best] = np.inf
    scores["conv"][worst] = -np.inf
    masks = pattern.masks(scores)
    assert masks["fc"][best].all()
    assert masks["conv"][worst].mean() == 1 - share_of(spec)


@every_pattern
def test_minus_zero_is_zero(spec: str) -> None:
    zeros = {name: np.zeros(one.shape, dtype=np.float32) for name, one in VIEWS.items()}
    signed = {name: np.copysign(array, random_scores()[name] - 0.5) for name, array in zeros.items()}
    pattern = array_pattern(spec, target_sparsity=0.3 * float(share_of(spec)))
    for name, mask in pattern.masks(signed).items():
        np.testing.assert_array_equal(mask, pattern.masks(zeros)[name])


@every_pattern
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_nan_raises_with_the_name_of_the_layer(spec: str, part: float) -> None:
    scores = random_scores()
    scores["conv"][3, 4, 5] = np.nan
    with pytest.raises(ScoreError, match="layer 'conv': scores must be numbers, found nan"):
        array_pattern(spec).masks(scores, sparsity=part * float(share_of(spec)))


@every_pattern
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores_of_any_dtype_give_equal_masks(spec: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.integers(-99, 99, one.shape).astype(np.float32) for name, one in VIEWS.items()}
    pattern = array_pattern(spec, target_sparsity=0.3 * float(share_of(spec)))
    expected = pattern.masks(scores)
    tensors = {name: torch.tensor(array).to(getattr(torch, dtype)) for name, array in scores.items()}
    for name, mask in pattern.masks(tensors).items():
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), expected[name])


@every_pattern
def test_equal_inputs_give_equal_masks_and_stay_as_they_are(spec: str) -> None:
    scores = random_scores()
    first = array_pattern(spec).masks(scores, previous=None)
    again = array_pattern(spec).masks(scores)
    for name in VIEWS:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(scores[name], random_scores()[name])


@every_pattern
@pytest.mark.parametrize("scope", ["global", "local"])
def test_the_pruned_never_come_back(spec: str, scope: str) -> None:
    pattern, share = array_pattern(spec, pruning_scope=scope), share_of(spec)
    previous = pattern.masks(random_scores(), sparsity=0.0)
    for seed, part in enumerate([0.2, 0.5, 0.4, 0.8, 1.0]):
        masks = pattern.masks(random_scores(seed=seed), part * float(share), previous)
        assert not any((mask & ~previous[name]).any() for name, mask in masks.items())
        total, units = sum(pruned_units(spec, masks).values()), units_in(spec)
        reached = max(part, 0.5 if part == 0.4 else 0.0)
        if scope == "global":
            assert total == round(reached * sum(units.values()))
        else:
            assert total == sum(round(reached * count) for count in units.values())
        previous = masks


@every_pattern
def test_bounds_hold_and_the_total_is_exact(spec: str) -> None:
    share = float(share_of(spec))
    bounds = {"min_sparsity_ratio_per_op": 0.25 * share, "max_sparsity_ratio_per_op": 0.75 * share}
    pattern = array_pattern(spec, target_sparsity=0.5 * share, **bounds)
    scores = random_scores()
    scores["conv"] += 10.0
    units, previous = units_in(spec), None
    for part in (0.125, 0.25, 0.5):
        previous = pattern.masks(scores, part * share, previous)
        found = pruned_units(spec, previous)
        assert sum(found.values()) == round(part * sum(units.values()))
        assert all(count <= 0.75 * units[name] for name, count in found.items())
        assert all(count >= int(0.25 * units[name] * part / 0.5) for name, count in found.items())


@every_pattern
def test_a_frozen_layer_keeps_its_mask_and_the_others_make_up_for_it(spec: str) -> None:
    pattern, share = array_pattern(spec), float(share_of(spec))
    previous = pattern.masks(random_scores(), sparsity=0.2 * share)
    pattern.keep_mask_layers["fc"] = "frozen by hand"
    masks = pattern.masks(random_scores(seed=1), 0.5 * share, previous)
    np.testing.assert_array_equal(masks["fc"], previous["fc"])
    found, units = pruned_units(spec, masks), units_in(spec)
    assert sum(found.values()) == min(round(0.5 * sum(units.values())), found["fc"] + units["conv"])


@every_pattern
def test_its_own_masks_are_no_violation(spec: str) -> None:
    pattern = array_pattern(spec)
    assert pattern.violations(pattern.masks(random_scores())) == {}


@every_pattern
def test_units_and_masks_are_two_ways_to_say_one_thing(spec: str) -> None:
    pattern = array_pattern(spec)
    masks = pattern.masks(random_scores())
    again = pattern.weight_masks(pattern.find_kept_units(masks))
    for name in VIEWS:
        np.testing.assert_array_equal(again[name], masks[name])


# What a pattern is told, and what it says.


def test_attributes_come_from_the_configuration() -> None:
    config = PruningConfig(
        pattern="1x4",
        target_sparsity=0.5,
        pruning_scope="local",
        min_sparsity_ratio_per_op=0.25,
        max_sparsity_ratio_per_op=0.75,
    )
    pattern = array_pattern("1x4", **config.model_dump(exclude={"pattern"}))
    assert (pattern.pattern, pattern.is_global, pattern.target_sparsity) == ("1x4", False, 0.5)
    assert (pattern.min_sparsity_ratio_per_op, pattern.max_sparsity_ratio_per_op) == (0.25, 0.75)
    assert (pattern.config, pattern.modules, pattern.keep_mask_layers) == (config, VIEWS, {})


@pytest.mark.parametrize(("spec", "target"), [("4x1", 0.9), ("2:4", 0.5), ("1:3", 2 / 3)])
def test_the_target_where_none_is_named(spec: str, target: float) -> None:
    assert array_pattern(spec, {}).target_sparsity == target


@pytest.mark.parametrize("given", [{"pattern": "4x1"}, PruningConfig(pattern="4x1")])
def test_a_mapping_serves_as_well_as_a_configuration(given: Any) -> None:
    assert get_pattern(given, {}).config == PruningConfig(pattern="4x1")


def test_no_valid_layers_no_masks() -> None:
    pattern = array_pattern("1x16", {"odd": view(4, 1, 5)}, exactly=False)
    assert pattern.masks({}) == {}
    assert list(pattern.invalid_layers) == ["odd"]


@pytest.mark.parametrize("kind", ["scores", "masks"])
def test_every_valid_layer_is_needed(kind: str) -> None:
    pattern, some = array_pattern("4x1"), {"fc": random_scores()["fc"]}
    with pytest.raises(LayerError, match=f"{kind} must include every valid layer, missing: conv"):
        pattern.masks(some) if kind == "scores" else pattern.masks(random_scores(), previous=some)


def test_another_shape_raises_with_the_name_of_the_layer() -> None:
    with pytest.raises(LayerError, match=r"layer 'fc': the array must have shape \(32, 1, 16\), found \(16, 9, 8\)"):
        array_pattern("4x1").masks(dict.fromkeys(VIEWS, random_scores()["conv"]))


def test_an_impossible_target_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"target_sparsity=0.9 is out of reach over all layers: it means .* of 416 units"
    ):
        array_pattern("4x1", max_sparsity_ratio_per_op=0.5)


# The registry.


class Pairs(BasePattern):
    """A user's own pattern: whole output channels, two at a time."""

    def tile(self, view: WeightView) -> BlockTiling:
        outputs, positions, inputs = view.canonical_shape
        if outputs % 2:
            raise LayerError("it is odd")
        return BlockTiling(view.canonical_shape, (2, positions, inputs))


def torch_layer() -> Any:
    return torch.nn.Linear(3, 4)


def keras_layer() -> Any:
    keras = pytest.importorskip("keras")
    layer = keras.layers.Dense(4)
    layer.build((None, 3))
    return layer


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize(("framework", "layer"), [("pytorch", torch_layer), ("keras", keras_layer)])
def test_a_pattern_of_ones_own_works_everywhere(framework: str, layer: Any) -> None:
    assert register_pattern("pairs")(Pairs) is Pairs
    module = layer()
    pattern = get_pattern({"pattern": "pairs", "target_sparsity": 0.5}, {"fc": module}, framework)
    assert isinstance(pattern, Pairs)
    assert pattern.framework.name == framework
    stored = pattern.views["fc"].to_stored(np.arange(12.0).reshape(4, 1, 3))
    scores = torch.from_numpy(stored) if framework == "pytorch" else stored
    kept = np.asarray(pattern.masks({"fc": scores})["fc"])
    assert pattern.views["fc"].to_canonical(kept).any(axis=(1, 2)).tolist() == [False, False, True, True]


@pytest.mark.usefixtures("registries_restored")
def test_a_pattern_for_one_framework_serves_only_that() -> None:
    class Bound(patterns.PytorchBasePattern, Pairs):
        pass

    register_pattern("bound")(Bound)
    assert type(get_pattern({"pattern": "bound"}, {})) is Bound
    with pytest.raises(ConfigError, match="Bound only supports 'pytorch', found 'keras'"):
        get_pattern({"pattern": "bound"}, {}, "keras")


def test_a_name_taken_twice_raises() -> None:
    with pytest.raises(ConfigError, match=r"The pattern name 'NxM' is taken by .*BlockPattern.*\. Choose another name"):
        register_pattern("NxM")(Pairs)
    assert PATTERNS["NxM"] is patterns.BlockPattern


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "1xchanel",
            r"Unknown pattern '1xchanel'\. Did you mean '1xchannel'\? Known pattern types: N:M, N:M-transposable, ",
        ),
        ("butterfly", r"Unknown pattern 'butterfly'\. Known pattern types"),
    ],
)
def test_an_unknown_pattern_suggests_and_lists(spec: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        get_pattern({"pattern": spec}, {})


def test_an_unknown_framework_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown framework 'jax'\. Known: pytorch, keras, array\."):
        get_pattern({"pattern": "4x1"}, {}, "jax")


@pytest.mark.parametrize(("framework", "package"), [("pytorch", "torch"), ("keras", "keras")])
def test_a_framework_that_is_not_installed(framework: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, package)
    with pytest.raises(MissingPackageError, match=rf'needs the package {package!r}.*\[{package}\]"'):
        get_pattern({"pattern": "4x1"}, {}, framework)


@pytest.mark.parametrize("thing", [dict, BasePattern, lambda: None, "4x1"])
def test_only_patterns_are_registered(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mine' must be a subclass of .*BasePattern, found .*\. Derive"):
        register_pattern("mine")(thing)
    assert "mine" not in PATTERNS


@pytest.mark.usefixtures("registries_restored")
def test_a_pattern_without_a_tiling_names_what_is_missing() -> None:
    class Unfinished(BasePattern):
        pass

    register_pattern("unfinished")(Unfinished)
    with pytest.raises(ConfigError, match=r"Unfinished does not define how to tile a weight\. Override tile\(view\)\."):
        get_pattern({"pattern": "unfinished"}, {"fc": torch_layer()})


def test_a_pattern_that_tiles_in_layout_still_works() -> None:
    class Old(ArrayBasePattern):
        def layout(self, view: WeightView) -> BlockTiling:
            return BlockTiling(view.canonical_shape, (1, 1, 1))

    with pytest.deprecated_call(match=r"Pattern\.layout\(view\) is deprecated\. Use tile\(view\)"):
        pattern = Old({"pattern": "old"}, {"fc": VIEWS["fc"]})
    assert pattern.units["fc"].count == 512


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BlockLayout", "BlockTiling"),
        ("KeepOfGroupPattern", "NMPattern"),
        ("Layout", "Tiling"),
        ("TurnedLayout", "OutputsLastTiling"),
    ],
)
def test_old_names_still_work(old: str, new: str) -> None:
    with pytest.deprecated_call(match=f"patterns.{old} is deprecated"):
        assert getattr(patterns, old) is getattr(patterns, new)


def test_base_classes_can_be_made_without_modules() -> None:
    for kind in (BasePattern, patterns.PytorchBasePattern):
        made = kind({"pattern": "4x1"}, {})
        assert (made.pattern, made.target_sparsity, made.masks({})) == ("4x1", 0.9, {})
    with pytest.raises(ConfigError, match=r"PytorchBasePattern does not define how to tile"):
        patterns.PytorchBasePattern({}, {"fc": torch_layer()})
    with pytest.raises(ConfigError, match=r"has no framework, so it cannot read Linear layers\. Create it"):
        Pairs({}, {"fc": torch_layer()})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pattern: pickle.loads(pickle.dumps(pattern))])  # noqa: S301
@pytest.mark.parametrize("spec", ["4x1", "2:4"])
def test_a_bound_pattern_can_be_copied_and_pickled(duplicate: Any, spec: str) -> None:
    pattern = get_pattern({"pattern": spec, "target_sparsity": 0.5}, {"fc": torch.nn.Linear(4, 8)})
    again, scores = duplicate(pattern), {"fc": torch.rand(8, 4)}
    assert type(again) is type(pattern)
    assert again.masks(scores)["fc"].equal(pattern.masks(scores)["fc"])


@pytest.mark.parametrize("framework", ["pytorch", "keras", "array"])
def test_a_pattern_is_of_the_registered_class_with_every_framework(framework: str) -> None:
    if framework == "keras":
        pytest.importorskip("keras")
    assert type(get_pattern({"pattern": "4x1"}, {}, framework)) is patterns.BlockPattern


def test_public_names_exist_and_others_do_not() -> None:
    assert all(hasattr(patterns, name) for name in patterns.__all__)


# A unit with parts in several layers.


class Coupled(Pairs, ArrayBasePattern):
    """All layers lose the same pairs of channels."""

    def couple(self, tilings: dict[str, Any]) -> dict[str, patterns.Units]:
        return {"all": patterns.Units(tilings)}


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5])
def test_coupled_layers_lose_the_same_units(sparsity: float) -> None:
    views = {"made": view(8, 1, 3), "norm": view(8, 1, 1)}
    pattern = Coupled({"pattern": "any", "criterion_reduce_type": "sum"}, views)
    scores, unit_of = random_scores(views), oracle.labels("2xchannel", (8, 1, 1)).ravel()
    masks = pattern.masks(scores, sparsity)
    total = sum(array.sum(axis=(1, 2)) for array in scores.values())
    worst = np.argsort([total[unit_of == unit].sum() for unit in range(4)])[: round(sparsity * 4)]
    for mask in masks.values():
        np.testing.assert_array_equal(mask.all(axis=(1, 2)), ~np.isin(unit_of, worst))
    assert pattern.violations(masks) == {}
    masks["norm"][:] = True
    assert list(pattern.violations(masks)) == ([] if sparsity == 0 else ["made"])


def test_all_layers_of_coupled_units_are_frozen_together() -> None:
    views = {"made": view(8, 1, 3), "norm": view(8, 1, 1)}
    pattern = Coupled({"pattern": "any"}, views)
    pattern.keep_mask_layers["all"] = "frozen by hand"
    masks = pattern.masks(random_scores(views), 0.5)
    assert all(itertools.chain.from_iterable(mask.all(axis=(1, 2)) for mask in masks.values()))


@pytest.mark.parametrize("name", ["BasePattern", "KerasBasePattern", "PytorchBasePattern", "get_pattern"])
def test_the_fixed_names_come_from_base_too(name: str) -> None:
    assert getattr(base, name) is getattr(patterns, name)
