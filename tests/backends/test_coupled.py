"""Units with slices in several kernels, under each backend; the groups are written by hand."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import secateur
from backends.kit import Watch, bits, compiled, feed, fit, host, kernels, pruning, saved
from secateur.errors import StateError
from secateur.graph import AffineMap, Constraints, Graph, Group, Member, Role
from secateur.keras import PruningCallback, PruningOptimizer, finalize
from secateur.training.keras.state import SavedPlan

LAYERS = ("first", "second", "third")
SIZES = (64, 12, 8, 4)
CONFIG: dict[str, Any] = {
    "pattern": "channels",
    "target_sparsity": 0.5,
    "pruning_scope": "local",
    "start_step": 2,
    "end_step": 9,
    "pruning_frequency": 3,
}


def perceptron() -> Any:
    """Two hidden layers, of which the kernel in between has units of both."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(size, name=name) for name, size in zip(LAYERS, SIZES[1:], strict=True)]
    return keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Flatten(), *layers])


def groups() -> tuple[Group, ...]:
    found = []
    for index in (0, 1):
        units = SIZES[index + 1]
        members = tuple(
            Member(
                parameter=f"{LAYERS[at]}/kernel",
                shape=(SIZES[at], SIZES[at + 1]),
                axis=axis,
                index_map=AffineMap(units=units),
                role=role,
            )
            for at, axis, role in ((index, 1, Role.PRODUCER), (index + 1, 0, Role.CONSUMER))
        )
        limits = Constraints(equal_parts=2)
        found.append(Group(units=units, members=members, name=f"hidden{index}", constraints=limits))
    return tuple(found)


def make(config: dict[str, Any]) -> Any:
    model = perceptron()
    optimizer = PruningOptimizer(model, config, keras.optimizers.AdamW(0.01), example_inputs=Graph(groups=groups()))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def find_pruned(model: Any) -> list[set[int]]:
    """The units of each group of which every weight is zero; fails where only one slice is."""
    found, weights = [], kernels(model, LAYERS)
    for index in (0, 1):
        columns = (weights[LAYERS[index]] == 0).all(axis=0)
        rows = (weights[LAYERS[index + 1]] == 0).all(axis=1)
        assert (columns == rows).all()
        found.append(set(np.flatnonzero(columns).tolist()))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"criterion": "snip_momentum", "kind": "progressive", "progressive_steps": 2},
        {"criterion": "snip_momentum", "criterion_reduce_type": "max"},
        {"reg_type": "group_lasso", "reg_coeff": 0.01, "pruning_scope": "global", "granularity": 2},
    ],
    ids=str,
)
def test_training_prunes_whole_units(settings: dict[str, Any]) -> None:
    config, watch = CONFIG | settings, Watch()
    model = make(config)
    fit(model, 2, watch)
    pruned = find_pruned(model)
    counts = [len(units) for units in pruned]
    if config["pruning_scope"] == "local":
        assert counts == [6, 4]
    else:
        assert sum(counts) == 10
        assert all(count % 2 == 0 for count in counts)
    for units, size in zip(pruned, (12, 8), strict=True):
        assert sum(unit < size // 2 for unit in units) == len(units) // 2
    report = finalize(model)
    assert [group.pruned_units for group in report.groups] == counts
    assert report.layers[1].pattern == "channels"
    assert report.layers[1].pruned_weights == (host(model.get_layer("second").kernel) == 0).sum()


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    config = CONFIG | {"criterion": "snip_momentum", "kind": "progressive"}
    straight = make(config)
    fit(straight, 2)
    first = make(config)
    fit(first, 1)
    second = keras.saving.load_model(saved(first, tmp_path / "model.keras"))
    assert list(pruning(second).patterns[0].units) == ["hidden0", "hidden1"]
    second.fit(**feed(), epochs=1, verbose=0, callbacks=[PruningCallback()])
    assert find_pruned(second) == find_pruned(straight)
    assert bits(second, optimizer=False) == bits(straight, optimizer=False)


def test_damaged_groups_are_refused() -> None:
    model = make(CONFIG)
    plan = pruning(model)._plan.to_dict()
    assert SavedPlan.from_dict(json.loads(json.dumps(plan))).to_dict() == plan
    for change, message in (
        ({"units": 4}, "the group has 4 units"),
        ({"units": 1 << 60}, "the group has"),
        ({"units": 0}, "damaged"),
        ({"constraints": {"multiple": 1, "divisor": 1, "equal_parts": 5, "minimum": 1}}, "cannot be split into 5"),
        ({"members": []}, "needs at least one member"),
    ):
        damaged = json.loads(json.dumps(plan))
        damaged["patterns"][0]["groups"][0] |= change
        with pytest.raises(StateError, match=message):
            SavedPlan.from_dict(damaged).bind(model.trainable_variables)
    member = {"parameter": "first/kernel", "axis": 1, "rows": [[unit] for unit in range(12)], "role": "producer"}
    for change, message in (
        ({"parameter": "fourth"}, "have parts in 'fourth', which is not pruned"),
        ({"axis": 2}, "'first/kernel' has no axis 2"),
        ({"rows": [[unit] for unit in range(1, 13)]}, "index 12 is out of range"),
        ({"rows": [[1 << 70]] * 12}, "damaged"),
        ({"role": "pinned"}, "'first/kernel' must keep its shape"),
    ):
        damaged = json.loads(json.dumps(plan))
        damaged["patterns"][0]["groups"][0]["members"] = [member | change]
        with pytest.raises(StateError, match=message):
            SavedPlan.from_dict(damaged).bind(model.trainable_variables)


def test_one_shot_pruning() -> None:
    model = perceptron()
    once = {key: value for key, value in CONFIG.items() if "step" not in key and "frequency" not in key}
    report = secateur.prune(model, once, example_inputs=Graph(groups=groups()))
    assert [len(units) for units in find_pruned(model)] == [6, 4]
    assert report.unit_sparsity == 0.5


def test_other_models_are_not_affected() -> None:
    model = compiled()
    assert pruning(model)._plan.to_dict()["patterns"][0]["groups"] == []
