"""Find, insert and remove the pruning optimizer of a compiled model."""

from __future__ import annotations

from typing import Any

import keras

from secateur.config import ConfigLike
from secateur.errors import StateError
from secateur.results import PruningReport
from secateur.training.keras.optimizer import PruningOptimizer

__all__ = ["finalize", "find_pruning_optimizer", "prepare_compiled"]


def find_pruning_optimizer(model: keras.Model) -> PruningOptimizer:
    """Find the pruning optimizer that a model is compiled with.

    Raises:
        StateError: The model is not compiled with a `PruningOptimizer`.
    """
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None and not isinstance(optimizer, PruningOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    if optimizer is None:
        raise StateError(
            f"The model {model.name!r} is not compiled with a PruningOptimizer. Compile it with "
            f"secateur.keras.PruningOptimizer(model, config, optimizer)."
        )
    return optimizer


def prepare_compiled(model: keras.Model, config: ConfigLike, example_inputs: Any = None) -> PruningOptimizer:
    """Wrap the optimizer that a model is compiled with; the model then trains with the wrapper.

    Raises:
        SecateurError: See `PruningOptimizer`; or the model is not compiled. In these cases the model is unchanged.
    """
    outer = getattr(model, "optimizer", None)
    if outer is None:
        name = getattr(model, "name", type(model).__name__)
        raise StateError(
            f"The model {name!r} is not compiled, so it has no optimizer to prune with. Compile it first, or pass the "
            f"optimizer: secateur.prepare(model, config, optimizer)."
        )
    has_loss_scale = isinstance(outer, keras.optimizers.LossScaleOptimizer)
    inner = outer.inner_optimizer if has_loss_scale else outer
    pruning = PruningOptimizer(model, config, inner, example_inputs=example_inputs)
    _replace_optimizer(model, inner, pruning)
    return pruning


def finalize(model: keras.Model) -> PruningReport:
    """Verify what was pruned, and remove the pruning optimizer from the model.

    Afterwards the model is compiled with the inner optimizer, as if it had never been pruned, and a saved model loads
    without Secateur. Pruned weights are zero, but further training may change them.

    Args:
        model: A model that is compiled with a `PruningOptimizer`.

    Returns:
        A report for each layer and in total. `is_complete` is ``False`` if training ended before the target.

    Raises:
        StateError: The model is not compiled with a `PruningOptimizer` that was created for it, a due update of the
            masks was missed, or masks or weights are invalid. In these cases the model is unchanged.
    """
    pruning = find_pruning_optimizer(model)
    pruning.attach(model)
    report = pruning.finalize() if pruning.is_active else pruning.report()
    _replace_optimizer(model, pruning, pruning.inner_optimizer)
    return report


def _replace_optimizer(model: keras.Model, old: keras.optimizers.Optimizer, new: keras.optimizers.Optimizer) -> None:
    """Replace the optimizer of a compiled model, which may be wrapped in other optimizers."""
    outer = model.optimizer
    if outer is old:
        model.optimizer = new
    else:
        while outer.inner_optimizer is not old:
            outer = outer.inner_optimizer
        outer.inner_optimizer = new
    # `model.save` writes these arguments.
    arguments = model._compile_config.config
    if arguments.get("optimizer") is old:
        arguments["optimizer"] = new
    # The compiled step uses the old optimizer.
    model.make_train_function(force=True)
