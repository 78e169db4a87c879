"""At which steps a Keras optimizer updates masks, and to which sparsity: those of the torch pruner."""

from typing import Any

import pytest

from backends.kit import CONFIG, Watch, compiled, fit, pruned_units, pruning

LINEAR = {**CONFIG, "sparsity_decay_type": "linear"}


def count_units(config: dict[str, Any]) -> list[int]:
    """Train for twelve steps, and return how many of 320 units are pruned before the first step and after each."""
    model = compiled({**LINEAR, **config})
    counts, watch = [pruned_units(model)], Watch()
    fit(model, 2, watch)
    assert pruning(model).finalize().is_complete
    units: list[int] = watch.units
    return counts + units


def test_last_update_is_at_the_end_though_no_multiple_of_the_frequency() -> None:
    found = count_units({"start_step": 1, "end_step": 10, "pruning_frequency": 4})
    assert found == [0] * 5 + [107] * 4 + [213] + [240] * 3


@pytest.mark.parametrize("criterion", ["snip", "snip_momentum"])
def test_ranking_by_gradients_starts_at_zero_if_nothing_is_pruned_there(criterion: str) -> None:
    found = count_units({"start_step": 0, "end_step": 8, "criterion": criterion})
    assert found == [0] * 3 + [90] * 3 + [180] * 2 + [240] * 5
