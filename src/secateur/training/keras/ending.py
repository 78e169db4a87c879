"""The end of a run: a verified report and a plain model."""

from __future__ import annotations

import keras

from secateur.results import PruningReport
from secateur.training.keras.callback import pruning_optimizer

__all__ = ["finalize"]


def finalize(model: keras.Model) -> PruningReport:
    """Verify what was pruned, and take the pruning optimizer off the model.

    The model is compiled with the optimizer inside from then on, as if pruning had never been: what it saves loads
    where Secateur is not installed. Its zeros are in its weights, and further training is free to change them.

    Args:
        model: A model that is compiled with a `PruningOptimizer`.

    Returns:
        What was pruned, per layer and in all. Its `is_complete` is ``False`` if training ended before the target.

    Raises:
        StateError: The model is not compiled with a `PruningOptimizer` that was made for it, an update of the masks was
            due and not made, or masks and weights are not what they should be. The model is as it was then.
    """
    pruning = pruning_optimizer(model)
    pruning.attach(model)
    report = pruning.finalize() if pruning.is_active else pruning.report()
    outermost = model.optimizer
    if outermost is pruning:
        model.optimizer = pruning.inner_optimizer
    else:
        while outermost.inner_optimizer is not pruning:
            outermost = outermost.inner_optimizer
        outermost.inner_optimizer = pruning.inner_optimizer
    # What `model.save` writes, and the steps that were compiled with the optimizer before.
    arguments = model._compile_config.config
    if arguments.get("optimizer") is pruning:
        arguments["optimizer"] = pruning.inner_optimizer
    model.make_train_function(force=True)
    return report
