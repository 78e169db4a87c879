"""What every pruner must do, whatever the framework. See `secateur.training.Pruner`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

from secateur.errors import LayerError, StateError
from secateur.training import Pruner


class Case(NamedTuple):
    """A run of 4x1 to a sparsity of 0.75 in nine steps.

    Attributes:
        pruner: The pruner.
        train: Makes that many steps.
        copy: A copy of the model whose weights are all 1.
        other: A model without the pruned layers.
        weights: Layer → the weights of a model, for the pruned layers.
    """

    pruner: Pruner
    train: Callable[[int], None]
    copy: Callable[[], Any]
    other: Callable[[], Any]
    weights: Callable[[Any], Mapping[str, Any]]


def check_pruner(start: Callable[[], Case]) -> None:
    """Run every check of the contract."""
    case = start()
    assert isinstance(case.pruner, Pruner)
    assert (case.pruner.step, case.pruner.sparsity) == (0, 0.0)
    case.train(5)
    check_middle(case)
    check_resume(case, start())
    case.train(4)
    check_end(case)
    check_close(start())


def check_middle(case: Case) -> None:
    """A run that is under way reports on itself and masks copies of its model."""
    pruner = case.pruner
    assert pruner.step == 5
    report = pruner.report()
    assert 0 < pruner.sparsity == report.sparsity < 0.75
    assert not report.is_complete
    masks = {name: np.asarray(mask) for name, mask in pruner.masks.items()}
    assert all(mask.dtype == bool for mask in masks.values())
    copy = case.copy()
    pruner.apply_masks(copy)
    weights = case.weights(copy)
    assert all((weights[name] == mask).all() for name, mask in masks.items())
    pruner.apply_masks()
    with pytest.raises(LayerError, match="was pruned, "):
        pruner.apply_masks(case.other())


def check_resume(case: Case, resumed: Case) -> None:
    """Another run continues from the state; what is no state is refused."""
    state = case.pruner.state_dict()
    with pytest.raises(StateError):
        resumed.pruner.load_state_dict({})
    assert resumed.pruner.step == 0
    resumed.pruner.load_state_dict(state)
    assert resumed.pruner.step == 5
    assert resumed.pruner.sparsity == case.pruner.sparsity
    expected = case.pruner.masks
    assert all((np.asarray(mask) == np.asarray(expected[name])).all() for name, mask in resumed.pruner.masks.items())
    resumed.pruner.close()


def check_end(case: Case) -> None:
    """`finalize` verifies and ends the run."""
    state = case.pruner.state_dict()
    report = case.pruner.finalize()
    assert report.is_complete
    assert report.unit_sparsity == 0.75
    for call in (case.pruner.finalize, lambda: case.pruner.load_state_dict(state)):
        with pytest.raises(StateError, match="has already been finalized or closed"):
            call()


def check_close(case: Case) -> None:
    """`close` ends the run and can be called again."""
    case.pruner.close()
    case.pruner.close()
    with pytest.raises(StateError, match="has already been finalized or closed"):
        case.pruner.finalize()
