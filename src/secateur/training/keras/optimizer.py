"""The Keras pruner, an optimizer that wraps another optimizer and keeps pruned weights at zero."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from secateur._array import Array
from secateur.config import ConfigLike
from secateur.errors import StateError, UnsupportedModelError
from secateur.frameworks.keras import get_tensor, read_array
from secateur.masking.run import adopt_maxima
from secateur.patterns import BasePattern
from secateur.planning.keras import plan as plan_keras
from secateur.results import PruningReport
from secateur.training.checks import warn_if_already_sparse, warn_if_no_zeros, warn_if_pruned_at_once
from secateur.training.keras.arguments import accept_old_arguments
from secateur.training.keras.graph_array import trace_as_written
from secateur.training.keras.layouts import distribute_values, get_replicated_layout
from secateur.training.keras.state import SavedPlan, make_damage_error, read_header, read_values, require_keys
from secateur.training.keras.step import ACTIVE, PruningStep
from secateur.training.resume import FORMAT_VERSION, refuse_other_state

__all__ = ["PruningOptimizer"]

logger = logging.getLogger(__name__)

HEADER_KEY = "secateur"
"""Key of the entry in a weights file that describes the run of a pruning optimizer."""


@keras.saving.register_keras_serializable(package="secateur")
class PruningOptimizer(keras.optimizers.Optimizer):
    """Train with any Keras optimizer while the model is pruned.

    After each step of the inner optimizer, pruned weights are exactly zero. This is part of the compiled step on every
    backend. Masks, scores and counters are variables of this optimizer, so they are saved and restored with it. Masks
    are updated between steps: by `PruningCallback` in ``fit``, or by `update_masks` in your own loop. `finalize` raises
    an error if an update was missed.

    Args:
        model: The built model to prune. Masks that are due before the first step are applied immediately.
        config: A `PruningConfig`, a plain mapping with the same keys, or a pattern such as ``"2:4"``.
        optimizer: The optimizer that trains the model. A `keras.optimizers.LossScaleOptimizer` wraps this optimizer,
            not the other way round; ``compile`` adds it under ``mixed_float16``.
        name: Name of this optimizer.
        example_inputs: See `secateur.prepare`.
        inner_optimizer: Deprecated name of `optimizer`.

    Attributes:
        inner_optimizer: The optimizer that trains.

    Raises:
        SecateurError: The configuration is invalid or does not fit the model, the model is not built, a weight is
            ``nan``, or the optimizer already prunes. In these cases the model is unchanged.

    Examples:
        >>> import keras, secateur.keras
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
        >>> config = {"pattern": "4x1", "target_sparsity": 0.5}
        >>> config |= {"start_step": 0, "sparsity_decay_type": "one_shot"}
        >>> optimizer = secateur.keras.PruningOptimizer(model, config, keras.optimizers.Adam())
        >>> optimizer.sparsity
        0.5
    """

    def __init__(
        self,
        model: keras.Model,
        config: ConfigLike,
        optimizer: keras.optimizers.Optimizer | None = None,
        name: str | None = None,
        *,
        example_inputs: Any = None,
        inner_optimizer: keras.optimizers.Optimizer | None = None,
    ) -> None:
        model, optimizer = accept_old_arguments(model, optimizer, inner_optimizer)
        _check_inner_optimizer(optimizer)
        if not isinstance(model, keras.Model):
            raise UnsupportedModelError(f"model must be a keras.Model, found {type(model).__name__}.")
        plan = plan_keras(model, config, example_inputs=example_inputs)
        pruner = PruningStep(plan.patterns)
        pruner.refuse_shared()
        warn_if_pruned_at_once(pruner.runs)
        warn_if_already_sparse(pruner.runs)
        self._initialize(optimizer, SavedPlan.of(plan, model), name)
        self._start(pruner, model.trainable_variables)
        warn_if_no_zeros(pruner.runs)

    def _initialize(self, inner_optimizer: keras.optimizers.Optimizer, record: SavedPlan, name: str | None) -> None:
        # A separate learning rate would be a variable that nothing reads.
        super().__init__(learning_rate=lambda: inner_optimizer.learning_rate, name=name or "pruning_optimizer")
        self.inner_optimizer = inner_optimizer
        self._plan = record
        self._pruning: PruningStep | None = None
        self._is_active = True
        self._is_read = False
        self._awaits_state = False

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the variables of this optimizer, which is only necessary after it was loaded from a file.

        Args:
            variables: The trainable variables of the model.

        Raises:
            StateError: The optimizer was made for another model.
        """
        if not self.built:
            pruner = PruningStep(self._plan.bind(list(variables)), is_new=False)
            pruner.refuse_shared()
            self._start(pruner, variables)
            self._awaits_state = True

    def _start(self, pruner: PruningStep, variables: Sequence[keras.Variable]) -> None:
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(list(variables))
        super().build(list(variables))
        pruner.start(self.inner_optimizer, self._add_variable)
        self._pruning = pruner
        if self._is_active:
            ACTIVE.add(pruner)

    def _add_variable(
        self, shape: tuple[int, ...], initializer: str = "zeros", *, dtype: str, layout: Any = None, name: str
    ) -> keras.Variable:
        layout = layout or get_replicated_layout(len(shape))
        return self.add_variable(
            shape=shape, initializer=initializer, dtype=dtype, layout=layout, name=name.replace("/", ">")
        )

    # The interface of Keras optimizers.

    @trace_as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Iterable[keras.Variable] | None = None) -> None:
        """Make one step of the inner optimizer, and set pruned weights to zero. See `keras.optimizers.Optimizer`."""
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        if not self._is_active or not len(grads) or self._pruning is None:
            self.inner_optimizer.apply(grads, trainable_variables)
            return
        pruner = self._pruning
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        step = get_tensor(self._iterations) + 1
        made, rates = pruner.before_step(step, {id(key): grad for key, grad in zip(variables, grads, strict=True)})
        try:
            self.inner_optimizer.apply(pruner.reveal(step, variables, grads), trainable_variables)
            pruner.after_step(step, made, rates)
        except BaseException:
            # After Ctrl-C between the two, the step is not counted, but pruned weights must be zero. While a step is
            # being traced, nothing has changed, and tracing more of it may fail.
            with contextlib.suppress(Exception):
                pruner.apply_masks()
            raise
        self._iterations.assign_add(ops.cast(made, self._iterations.dtype))

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of this optimizer and of the inner one."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Steps of the inner optimizer; `step` counts the steps since pruning started."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Use averaged weights if the inner optimizer averages, with pruned weights at zero."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if not self._is_active or self._pruning is None or self._has_no_values():
            return
        if self._pruning.is_averaged:
            self._pruning.apply_masks()
        if (due := self._pruning.next_update) is not None and due <= self.step:
            logger.warning(
                "Masks were to change after step %d, and %d steps have been made without it. Pass "
                "secateur.keras.PruningCallback() as a callback to fit.",
                due,
                self.step,
            )

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from the weight decay of the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def _model_variables_moving_average(self) -> Any:
        # `keras.callbacks.SwapEMAWeights` reads it here if a loss-scale optimizer wraps this one.
        return self.inner_optimizer._model_variables_moving_average

    def get_config(self) -> dict[str, Any]:
        """Return plain values for `from_config`.

        Raises:
            ConfigError: The schedule is a function without a registered name.
        """
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "pruning": self._plan.to_dict(),
            "is_active": self._is_active,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Create the optimizer that `get_config` described. It must be built with the variables of the same model.

        Raises:
            StateError: The description is damaged.
        """
        require_keys(["name", "inner_optimizer", "pruning", "is_active"], config)
        record = SavedPlan.from_dict(config["pruning"])
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects=custom_objects)
        try:
            _check_inner_optimizer(inner)
        except (StateError, UnsupportedModelError) as error:
            raise make_damage_error(f"its inner optimizer does not fit: {error}") from error
        optimizer = cls.__new__(cls)
        optimizer._initialize(inner, record, config["name"])
        optimizer._is_active = bool(config["is_active"])
        optimizer._is_read = True
        return optimizer

    def save_own_variables(self, store: Any) -> None:
        """Write masks, scores and counters, and a description of their run; the inner optimizer writes its own."""
        self._require_built().write_frozen()
        store[HEADER_KEY] = np.frombuffer(self._describe().encode(), dtype=np.uint8)
        for index, variable in enumerate(self._variables):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Read what `save_own_variables` wrote.

        Before the first step, a file without a state is accepted with a warning, and pruning starts with the weights in
        the file.

        Raises:
            StateError: The state is damaged or belongs to another model, configuration or format; or there is none, and
                this run is under way. In these cases nothing is read here, but Keras may have read the weights of the
                model.
        """
        if HEADER_KEY not in store.keys():  # noqa: SIM118 - not a mapping
            self._start_without_state()
            return
        saved = read_header(store[HEADER_KEY])
        refuse_other_state(saved, self._require_built().describe())
        values = read_values(self._variables, store)
        by_variable = {id(variable): value for variable, value in zip(self._variables, values, strict=True)}
        with adopt_maxima(self._require_built().runs, saved["runs"]):
            self._require_built().check_values(by_variable, int(by_variable[id(self._iterations)]))
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        self._require_built().read_frozen()
        self._awaits_state = False

    def _start_without_state(self) -> None:
        """Start from weights that were loaded without a state, and start again once all of them are loaded."""
        if self._is_read or self.step > 0:
            raise StateError(
                "The file holds no state of a pruning run, and this run is under way. Create the PruningOptimizer "
                "after the weights are loaded, and load a model with the dtype policy that it was saved with."
            )
        warnings.warn(
            "The file holds no state of a pruning run, so pruning starts with the weights in the file. Save with a "
            "PruningOptimizer to resume a run.",
            stacklevel=3,
        )
        self._require_built().restart()
        self._awaits_state = True

    # The interface of pruners.

    @property
    def is_active(self) -> bool:
        """Whether steps of this optimizer keep pruned weights at zero; ``False`` after `finalize` or `close`."""
        return self._is_active

    @property
    def patterns(self) -> tuple[BasePattern, ...]:
        """The patterns of the run. Layers that you add to their `keep_mask_layers` keep their masks."""
        return tuple(run.pattern for run in self._require_built().runs)

    @property
    def step(self) -> int:
        """Number of steps since pruning started, without steps that accumulate gradients or overflow."""
        if self._has_no_values():
            raise StateError(
                "Under fit, JAX does not update variables. Access the optimizer as "
                "self.model.optimizer in a callback, which restores them. After an error in fit, recreate the model."
            )
        return int(read_array(self._iterations))

    @property
    def next_update(self) -> int | None:
        """The step after which masks change next, or ``None`` if they are final."""
        return self._require_built().next_update

    @property
    def batches_per_step(self) -> int:
        """Number of batches whose gradients are accumulated for one step."""
        return self._require_built().accumulated

    @property
    def masks(self) -> dict[str, Array]:
        """Layer → booleans in the kernel's shape, ``True`` = kept, as NumPy arrays."""
        return self._require_built().masks()

    @property
    def sparsity(self) -> float:
        """Current share of pruned weights, over all pruned layers."""
        return self._require_built().sparsity()

    def update_masks(self) -> bool:
        """Update masks if an update is due. Call this after each step of your own loop.

        If no update is due, the call does nothing and is cheap.

        Returns:
            Whether masks may have changed.

        Raises:
            ScoreError: A score is ``nan``. In this case masks and weights are unchanged.
        """
        return self._is_active and self._require_started().update(self.step)

    def stateless_update_masks(
        self, optimizer_variables: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run `update_masks` in a loop that manages the state itself, as with JAX. Do not compile this method.

        Args:
            optimizer_variables: Values of `variables`, as `stateless_apply` returns them.
            trainable_variables: Values of the model's trainable variables.

        Returns:
            The updated `trainable_variables` and `optimizer_variables`, in the order of `stateless_apply`.

        Raises:
            ScoreError: A score is ``nan``.
        """
        mapping = [
            *zip(self._trainable_variables, trainable_variables, strict=True),
            *zip(self.variables, optimizer_variables, strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.update_masks()
        return distribute_values(self._trainable_variables, scope), distribute_values(self.variables, scope)

    def report(self) -> PruningReport:
        """Return a report on what is pruned now."""
        return self._require_started().report(self.step, self._plan.dense, self._plan.model_weights)

    def finalize(self) -> PruningReport:
        """Verify that masks follow their patterns and that pruned weights are zero, and end the run.

        Afterwards this optimizer only calls the inner one, except in a step that was compiled before.
        `secateur.keras.finalize` also removes it from the model.

        Returns:
            A report for each layer and in total. `is_complete` is ``False`` if training ended before the target.

        Raises:
            StateError: The run has already ended, a due update of the masks was missed, or masks or weights are
                invalid.
        """
        self._require_active()
        self._require_started().verify(self.step)
        report = self.report()
        report.warn_if_incomplete()
        report.warn_of_nearly_empty_layers()
        self.close()
        return report

    def close(self) -> None:
        """End the run without verifying it. Calling it again does nothing.

        Afterwards nothing keeps pruned weights at zero, except a step that was compiled before.
        """
        self._is_active = False
        if self._pruning is not None:
            ACTIVE.discard(self._pruning)

    def state_dict(self) -> dict[str, Any]:
        """Return masks, scores and counters as NumPy arrays: what a run needs to resume besides model and optimizer.

        ``model.save`` saves all of this together.
        """
        state: dict[str, Any] = {}
        self.save_own_variables(state)
        return {key: np.array(value) for key, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that `state_dict` returned, with a model of the same layers and the same configuration.

        Raises:
            StateError: The state is damaged, or belongs to another model, configuration or format, or this run has
                ended. In that case, nothing is changed.
        """
        self._require_active()
        if HEADER_KEY not in state:
            raise make_damage_error("it has no description of the run")
        self.load_own_variables(state)

    def apply_masks(self, model: keras.Model | None = None) -> None:
        """Set pruned weights to zero in `model`, by the names of its layers; ``None``: in the pruned model.

        This is necessary if something else writes weights, such as `keras.callbacks.EarlyStopping`, which can restore
        weights of an epoch in which less was pruned.

        Raises:
            LayerError: A pruned layer is missing in `model` or has another shape. In that case, nothing is changed.
        """
        if model is None:
            self._require_started().apply_masks()
        else:
            self._require_started().apply_masks_to(model)

    def attach(self, model: keras.Model, *, restores_zeros: bool = False) -> None:
        """Check before training that this optimizer was made for a model, and set overwritten zeros to zero again.

        Raises:
            StateError: The optimizer was made for another model.
        """
        self.build(model.trainable_variables)
        (pruner := self._require_started()).refuse_other_model(model)
        if restores_zeros and self._is_active:
            pruner.restore_zeros()

    def _require_started(self) -> PruningStep:
        """Return the pruner, and start it if no state was loaded."""
        pruner = self._require_built()
        if self._awaits_state:
            self._awaits_state = False
            pruner.restart()
        return pruner

    def _has_no_values(self) -> bool:
        """Whether JAX has moved the values out of the variables, as it does in ``fit``."""
        return keras.backend.backend() == "jax" and getattr(self._iterations, "_value", ...) is None

    def _require_active(self) -> None:
        if not self._is_active:
            raise StateError("This optimizer has already been finalized or closed. Create another one for another run.")

    def _require_built(self) -> PruningStep:
        if self._pruning is None:
            raise StateError(
                "This optimizer was loaded from a file and has no variables yet. Call build(model.trainable_variables)."
            )
        return self._pruning

    def _describe(self) -> str:
        """Describe the run of the variables as JSON."""
        return json.dumps({"format_version": FORMAT_VERSION, "runs": self._require_built().describe()})


def _check_inner_optimizer(inner: Any) -> None:
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise UnsupportedModelError(f"optimizer must be a keras.optimizers.Optimizer, found {type(inner).__name__}.")
    within = inner
    while within is not None:
        if isinstance(within, PruningOptimizer):
            raise StateError("The optimizer is already wrapped in a PruningOptimizer. Pass the inner one.")
        within = getattr(within, "inner_optimizer", None)
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise UnsupportedModelError(
            "A LossScaleOptimizer must wrap the PruningOptimizer, so that skipped steps are not counted: "
            "LossScaleOptimizer(PruningOptimizer(model, config, inner)). With mixed_float16, compile adds it."
        )
