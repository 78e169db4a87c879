"""At which steps the torch pruner updates masks, and to which sparsity."""

import copy
from typing import Any

import pytest

from tiny_models import mlp
from training.models import CONFIG, NeverRevived, begin, equal_states, pruned_units

LINEAR = {**CONFIG, "sparsity_decay_type": "linear"}
"""192 of 256 units; the last step is no multiple of the frequency."""


def count_units(config: dict[str, Any], steps: int) -> list[int]:
    """Train, and return how many units are pruned before the first step and after each."""
    trial = begin(config)
    counts, watch = [pruned_units(trial.pruner)], NeverRevived(trial.pruner)

    def follow(step: int) -> None:
        watch(step)
        counts.append(pruned_units(trial.pruner))

    trial.train(range(steps), follow)
    assert trial.pruner.finalize().is_complete
    return counts


def test_last_update_is_at_the_end_though_no_multiple_of_the_frequency() -> None:
    found = count_units({**LINEAR, "start_step": 1, "end_step": 10, "pruning_frequency": 4}, 11)
    assert found == [0] * 5 + [85] * 4 + [171] + [192] * 2


@pytest.mark.parametrize("criterion", ["snip", "snip_momentum", "taylor", "gradient"])
def test_ranking_by_gradients_starts_at_zero_if_nothing_is_pruned_there(criterion: str) -> None:
    found = count_units({**LINEAR, "start_step": 0, "criterion": criterion}, 10)
    assert found == [0, 0, 43, 43, 85, 85, 128, 128, 171, 192, 192]


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_run_that_starts_at_zero_resumes(stop: int) -> None:
    config = {**LINEAR, "start_step": 0}
    straight, resumed = begin(config).train(range(stop)), begin(config)
    resumed.model.load_state_dict(straight.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(straight.optimizer.state_dict()))
    resumed.pruner.load_state_dict(straight.pruner.state_dict())
    states = [trial.train(range(stop, 10)).pruner.state_dict() for trial in (straight, resumed)]
    assert equal_states(*states)


def test_zeros_of_the_model_are_the_first_to_be_pruned_from_zero_on() -> None:
    model = mlp()
    model[0].weight.data[:4, :10] = 0
    trial = begin({**LINEAR, "start_step": 0, "keep_zeros": True}, model=model)
    assert pruned_units(trial.pruner) == 10
    found: list[int] = []
    trial.train(range(9), lambda step: found.append(pruned_units(trial.pruner)))  # noqa: ARG005
    # From 10 to 192 in nine steps.
    assert found == [10, 50, 50, 91, 91, 131, 131, 172, 192]
