"""Damaged states, second runs and interrupts: refused whole, or pruned weights are zero."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from backends.kit import CONFIG, bits, compiled, fit, kernels, pruning, revived
from interleaving import before_calls, raising
from secateur.errors import StateError
from secateur.keras import PruningOptimizer, finalize
from secateur.training.keras.run import KerasRun
from tiny_keras_models import net

RUNS: dict[str, dict[str, Any]] = {
    "iterative": CONFIG,
    "progressive": {**CONFIG, "kind": "progressive", "progressive_steps": 2, "pattern": "8x1"},
    "weights": {**CONFIG, "pattern": "1x1", "criterion": "magnitude"},
    "lock": {"kind": "pattern_lock"},
    "keep_zeros": {**CONFIG, "keep_zeros": True},
}


class Store(dict[str, Any]):
    """A state as Keras hands it over."""


def state_of(model: Any) -> Store:
    store = Store()
    pruning(model).save_own_variables(store)
    return store


def places(optimizer: PruningOptimizer, ending: str) -> list[str]:
    """Keys of the variables whose names end so."""
    return [str(index) for index, variable in enumerate(optimizer._variables) if variable.name.endswith(ending)]


@pytest.mark.parametrize("run", RUNS)
def test_states_of_every_step_are_read(run: str) -> None:
    model = compiled(RUNS[run])
    for _ in range(2):
        fit(model, 1)
        before = bits(model)
        pruning(model).load_own_variables(state_of(model))
        assert bits(model) == before


def flip(ending: str) -> Callable[[PruningOptimizer, Store], None]:
    def change(optimizer: PruningOptimizer, store: Store) -> None:
        key = places(optimizer, ending)[0]
        store[key] = np.array(store[key])
        store[key].reshape(-1)[3] ^= True

    return change


def put(ending: str, value: Any) -> Callable[[PruningOptimizer, Store], None]:
    def change(optimizer: PruningOptimizer, store: Store) -> None:
        store[places(optimizer, ending)[0]] = value

    return change


def put_nan(optimizer: PruningOptimizer, store: Store) -> None:
    key = places(optimizer, "_scores")[0]
    store[key] = np.full_like(store[key], np.nan)


def drop(optimizer: PruningOptimizer, store: Store) -> None:
    del store[places(optimizer, "_mask")[0]]


def describe(text: bytes) -> Callable[[PruningOptimizer, Store], None]:
    def change(optimizer: PruningOptimizer, store: Store) -> None:  # noqa: ARG001
        store["secateur"] = np.frombuffer(text, np.uint8)

    return change


DAMAGES = {
    "flipped mask": (flip("_mask"), "masks of 'conv' do not match progress"),
    "flipped keep": (flip("_keep"), r"masks of 'conv'|units are pruned"),
    "nan": (put_nan, "scores of 'conv' must be numbers, found nan"),
    "missing": (drop, "the variable 'conv_mask' is missing"),
    "shape": (put("_mask", np.ones(3, bool)), r"'conv_mask' must be bool of shape .*, found bool of shape \(3,\)"),
    "type": (put("_keep", np.ones(32, np.float32)), "'conv_keep' must be bool of shape"),
    "text": (put("_mask", "x"), "'conv_mask' must be bool of shape"),
    "ahead": (put("updated_step", np.int32(1000)), "masks must have followed 0 to 6 steps, found 1000"),
    "negative": (put("updated_step", np.int32(-1)), "found -1"),
    "other step": (put("updated_step", np.int32(1)), "prune before the first update"),
    "initial": (put("initial_sparsity", np.full(8, 255, np.uint8)), "initial sparsity must lie in"),
    "no json": (describe(b"{"), "the description of the run cannot be read"),
    "other json": (describe(b"[1]"), "the description of the run cannot be read"),
    "deep json": (describe(b"[" * 100_000), "the description of the run cannot be read"),
}


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model in the middle of its run, which no test may change."""
    model = compiled()
    fit(model, 1)
    return model


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_refused_whole(name: str, trained: Any) -> None:
    damage, message = DAMAGES[name]
    store = state_of(trained)
    before = bits(trained)
    damage(pruning(trained), store)
    with pytest.raises(StateError, match=message):
        pruning(trained).load_own_variables(store)
    assert bits(trained) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("pruning"), "lacks 'pruning'"),
        (lambda config: config.pop("inner_optimizer"), "lacks 'inner_optimizer'"),
        (lambda config: config["pruning"].pop("variables"), "description of a pruning run is damaged"),
        (lambda config: config["pruning"]["patterns"][0]["kernels"]["conv"].update(index=77), "is variable 77 of 4"),
        (lambda config: config["pruning"]["patterns"][0]["kernels"]["conv"].update(index=1), "its variable"),
        (lambda config: config["pruning"]["variables"].clear(), "is variable 0 of 0"),
    ],
)
def test_a_damaged_configuration_is_refused(change: Callable[[Any], Any], message: str) -> None:
    config = pruning(compiled()).get_config()
    change(config)
    with pytest.raises(StateError, match=message):
        PruningOptimizer.from_config(config)


def test_two_optimizers_of_one_model() -> None:
    model = compiled()
    before = kernels(model)
    at_once = {**CONFIG, "criterion": "magnitude", "start_step": 0, "end_step": 0}
    with pytest.raises(StateError, match="Another PruningOptimizer already prunes 'conv', 'fc'"):
        PruningOptimizer(model, at_once, keras.optimizers.SGD())
    assert all((before[name] == kernel).all() for name, kernel in kernels(model).items())
    fit(model, 2)
    finalize(model)
    assert PruningOptimizer(model, {**CONFIG, "keep_zeros": True}, keras.optimizers.SGD()).is_active


def test_an_optimizer_that_nobody_can_reach_is_no_second_one() -> None:
    model = net()
    for _ in range(3):
        PruningOptimizer(model, CONFIG, keras.optimizers.SGD())


class Unlucky(keras.optimizers.SGD):
    """Changes the weights and then raises."""

    should_raise = False

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        super().apply(grads, trainable_variables)
        if self.should_raise:
            raise KeyboardInterrupt


def test_an_interrupt_after_the_update_leaves_zeros() -> None:
    inner = Unlucky(0.1, momentum=0.9)
    config = {**CONFIG, "criterion": "magnitude", "start_step": 0, "sparsity_decay_type": "one_shot", "end_step": None}
    model = compiled(config, inner=inner)
    gradients = [keras.ops.ones(variable.shape) for variable in model.trainable_variables]
    inner.should_raise = True
    with pytest.raises(KeyboardInterrupt):
        model.optimizer.apply(gradients, model.trainable_variables)
    assert revived(model) == []
    assert pruning(model).step == 0
    inner.should_raise = False
    model.optimizer.apply(gradients, model.trainable_variables)
    assert finalize(model).sparsity == 0.75


def test_an_interrupt_of_an_update_is_seen_when_it_is_made() -> None:
    model = compiled({**CONFIG, "criterion": "magnitude"})
    gradients = [keras.ops.ones(variable.shape) for variable in model.trainable_variables]
    for _ in range(2):
        model.optimizer.apply(gradients, model.trainable_variables)
    with before_calls(KerasRun.write, raising(KeyboardInterrupt())), pytest.raises(KeyboardInterrupt):
        pruning(model).update_masks()
    assert revived(model) == []
    assert pruning(model).next_update == 5
    pruning(model).load_own_variables(state_of(model))
    assert pruning(model).next_update == 5
