"""Tests that a copy of a configuration prunes exactly like the original, however it was copied."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
from secateur import PruningConfig
from tiny_models import bits, mlp
from training.models import batch, begin

COPIES: dict[str, Callable[[PruningConfig], PruningConfig | None]] = {
    "dict": lambda config: PruningConfig.from_dict(config.to_dict()),
    "keys": lambda config: PruningConfig(**dict(config)),
    "yaml": lambda config: PruningConfig.from_yaml(config.to_yaml()),
    "json": lambda config: PruningConfig.from_json(config.to_json()),
    "validate": lambda config: PruningConfig.model_validate_json(config.model_dump_json()),
    "copy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),  # noqa: S301
    "model_copy": lambda config: config.model_copy(update={"seed": config.seed}),
}


def draw_share(high: float) -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, high / 2, high])


@st.composite
def draw_keys(draw: st.DrawFn) -> dict[str, Any]:
    """Draw some keys with values, including `None` where it is allowed."""
    pattern = draw(st.sampled_from(["4x1", "2:4", "1x1", "1xchannel"]))
    values = {
        "pattern": st.just(pattern),
        "target_sparsity": st.none() | draw_share(0.5),
        "pruning_scope": st.sampled_from([None, "global", "local"]),
        "criterion": st.sampled_from(["magnitude", "random"]),
        "criterion_reduce_type": st.sampled_from(["mean", "max"]),
        "kind": st.sampled_from(["iterative", "progressive"]),
        "end_step": st.none() | st.just(2),
        "pruning_frequency": st.just(1),
        "keep_zeros": st.booleans(),
        "max_sparsity_ratio_per_op": st.just(0.9),
        "seed": st.integers(0, 2),
    }
    found: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=values))
    return found


def measure_behavior(config: PruningConfig) -> tuple[Any, ...]:
    """Return the plan, and the weights after training and after one-shot pruning without and with calibration data."""

    def attempt(run: Callable[[], Any]) -> Any:
        try:
            return run()
        except secateur.SecateurError as error:
            return str(error)

    def prune(**more: Any) -> dict[str, bytes]:
        model = mlp()
        secateur.prune(model, config, **more)
        return bits(model)

    batches = [batch(step)[0] for step in range(2)]
    return (
        attempt(lambda: secateur.plan(mlp(), config).to_dict()),
        attempt(lambda: bits(begin(config, optimizer="sgd").train(range(2)).model)),
        attempt(prune),
        attempt(lambda: prune(calibration=batches, solver="wanda")),
    )


@settings(max_examples=15)
@given(top=draw_keys(), rule=st.none() | draw_keys(), how=st.sampled_from(sorted(COPIES)))
def test_a_copy_prunes_identically(top: dict[str, Any], rule: dict[str, Any] | None, how: str) -> None:
    config = PruningConfig(**top, layers={"2": rule})
    other = COPIES[how](config)
    assert other is not None
    assert other == config
    assert measure_behavior(other) == measure_behavior(config)


@settings(max_examples=5)
@given(draw_keys())
def test_the_settings_of_a_layer_prune_identically(top: dict[str, Any]) -> None:
    config = PruningConfig(**top)
    other = config.for_layer("0", ("Linear",))
    assert other == config
    assert measure_behavior(other) == measure_behavior(config)


@pytest.mark.parametrize("how", COPIES)
def test_an_unset_scope_stays_unset(how: str) -> None:
    """One-shot pruning only ranks all layers together if the scope is set; training does either way."""
    config = PruningConfig(pattern="4x1", target_sparsity=0.5)
    other, loud = COPIES[how](config), config.model_copy(update={"pruning_scope": "global"})
    assert measure_behavior(config) == measure_behavior(other)  # type: ignore[arg-type]
    unset, explicit = measure_behavior(config), measure_behavior(loud)
    assert [one == two for one, two in zip(unset, explicit, strict=True)] == [True, True, False, False]


def test_an_unset_scope_is_ranked_with_global() -> None:
    config = PruningConfig(target_sparsity=0.5, layers={"2": {"pruning_scope": "global"}})
    assert len(secateur.plan(mlp(), config).patterns) == 1


def test_old_files_keep_their_meaning() -> None:
    """Old files always contain ``pruning_scope: global``, which ranks all layers together."""
    old = PruningConfig(target_sparsity=0.5).to_dict() | {"pruning_scope": "global"}
    config = PruningConfig.from_dict(old)
    model = mlp()
    report = secateur.prune(model, config, calibration=[torch.ones(2, 16)], solver="wanda")
    assert len({layer.sparsity for layer in report.layers}) > 1
