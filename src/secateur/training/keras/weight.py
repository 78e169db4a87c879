"""The kernels of a Keras model that an optimizer trains and prunes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from secateur._array import Array
from secateur.criteria import BaseCriterion
from secateur.frameworks.keras import apply_mask, get_tensor, make_contiguous, read_array, wrap_for_assign
from secateur.masking.keras import KernelWeight
from secateur.patterns import BasePattern
from secateur.training.keras.graph_array import as_array, as_tensor

__all__ = ["KernelSlot", "TrainedKernel", "find_slots"]


class TrainedKernel(KernelWeight):
    """A kernel that an optimizer trains. Its mask can be a variable, so that a compiled step can use it.

    Args:
        name: Name of the layer.
        pattern: The pattern of the layer.

    Attributes:
        mask_variable: Booleans in the kernel's shape, ``True`` = kept; ``None``: the mask is only on the host.
        latent: In a run of ``"sr_ste"``, the values of all weights after the last step, of which those of pruned
            weights count; see `secateur.training.pytorch.latent_weight`.
        gradient_sum: In a run of ``"rigl"``, the sum of the gradients since the last update, in the kernel's shape.
        is_revealed: Whether the step that is being traced has written the latent values to the kernel.
        slot: The optimizer that trains the kernel; ``None``: there is none.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        super().__init__(name, pattern)
        self.mask_variable: keras.Variable | None = None
        self.latent: keras.Variable | None = None
        self.gradient_sum: keras.Variable | None = None
        self.is_revealed = False
        self.slot: KernelSlot | None = None

    @property
    def mask(self) -> Array | None:
        """The mask as a NumPy array; ``None``: nothing is pruned yet."""
        return self._mask if self.mask_variable is None else read_array(self.mask_variable)

    @mask.setter
    def mask(self, mask: Array) -> None:
        if self.mask_variable is None:
            self._mask = mask
        else:
            self.mask_variable.assign(wrap_for_assign(make_contiguous(mask)))

    def apply_mask(self) -> None:
        """Set pruned weights to zero, in the kernel and in its moving average in the optimizer."""
        mask = self._mask if self.mask_variable is None else self.mask_variable
        if mask is None:
            return
        apply_mask(self.variable, mask)
        average = None if self.slot is None else self.slot.get_average()
        if average is not None:
            apply_mask(average, mask)

    def canonical(self) -> Array:
        """See `KernelWeight.canonical`; with the latent values of pruned weights."""
        return super().canonical() if self.latent is None else self._view.to_canonical(self._read_all())

    def write_mask(self, mask: Array) -> None:
        """See `PrunedWeight.write_mask`. Restored weights get their latent values."""
        if self.latent is not None:
            values = self._read_all()
            self.latent.assign(values)
            self.variable.assign(values)
        super().write_mask(mask)

    def reveal(self, gradient: Any, is_active: Any, decay: Any) -> Any:
        """Before a step, write the latent values to the kernel, and return the gradient with their decay.

        Args:
            gradient: The gradient of the step.
            is_active: Whether pruned weights still train.
            decay: The decay.
        """
        assert self.latent is not None
        self.is_revealed = True
        keep = ops.logical_or(get_tensor(self.mask_variable), ops.logical_not(is_active))
        latent = ops.where(keep, ops.zeros((), dtype=self.latent.dtype), get_tensor(self.latent))
        self.variable.assign(ops.where(keep, get_tensor(self.variable), latent))
        scale = None if self.slot is None else self.slot.optimizer.loss_scale_factor
        strength = ops.cast(decay if scale is None else decay * scale, latent.dtype)
        return gradient + ops.cast(strength * latent, gradient.dtype)

    def hide(self) -> None:
        """After a step that revealed the latent values, keep all values as the latent ones.

        `apply_mask` then sets pruned weights to zero.
        """
        if self.latent is not None and self.is_revealed:
            self.latent.assign(get_tensor(self.variable))
        self.is_revealed = False

    def add_gradient(self, gradient: Any, counts: Any) -> None:
        """Add the gradient of a step to `gradient_sum` in a compiled step.

        Args:
            gradient: The gradient.
            counts: Whether it counts.
        """
        assert self.gradient_sum is not None
        total, added = get_tensor(self.gradient_sum), as_tensor(self.trace_stored(gradient))
        added = ops.cast(ops.cast(total, added.dtype) + added, total.dtype)
        self.gradient_sum.assign(ops.where(counts, added, total))

    def read_gradient_sum(self) -> Array:
        """Return `gradient_sum` as an (O, K, I) NumPy array of at least float32."""
        wide = self._view.to_canonical(read_array(self.gradient_sum))
        return wide.astype(np.float32) if wide.dtype == np.float16 else wide

    def clear_gradient_sum(self) -> None:
        """Set `gradient_sum` to zero."""
        if self.gradient_sum is not None:
            self.gradient_sum.assign(np.zeros(tuple(self.gradient_sum.shape)))

    def trace_canonical(self, tensor: Any = None) -> Any:
        """Return the kernel, or a tensor of its shape, as an (O, K, I) array for a compiled step."""
        return self._view.to_canonical(self.trace_stored(tensor))

    def trace_stored(self, tensor: Any = None) -> Any:
        """Return the kernel, or a tensor of its shape, as an array for a compiled step."""
        array = as_array(self.variable if tensor is None else tensor)
        if keras.backend.standardize_dtype(array.dtype) in ("float16", "bfloat16"):
            return as_array(ops.cast(as_tensor(array), "float32"))
        return array

    def trace_scores(self, criterion: BaseCriterion, gradient: Any) -> Any:
        """Return one score per weight as an (O, K, I) array in a compiled step; `gradient` is a tensor or ``None``."""
        trace = self.trace_stored if criterion.is_elementwise else self.trace_canonical
        scores = criterion.score(trace(), None if gradient is None else trace(gradient))
        return self._view.to_canonical(scores) if criterion.is_elementwise else scores

    def _read_all(self) -> Array:
        """Return the kernel with the latent values of pruned weights, as a NumPy array of at least float32."""
        stored, mask = self.stored, self.mask
        values = np.array(stored) if mask is None else np.where(mask, stored, read_array(self.latent))
        return values.astype(np.float32) if values.dtype == np.float16 else values

    def shrink(self, factors: Any) -> None:
        """Multiply the kernel by (O, K, I) factors in a compiled step."""
        stored = as_tensor(self._view.to_stored(factors))
        self.variable.assign(self.variable * ops.cast(stored, self.variable.dtype))


class KernelSlot:
    """The optimizer that trains a kernel, and the index of the kernel in it.

    Args:
        optimizer: A built Keras optimizer that does not contain others.
        kernel: The kernel.

    Attributes:
        optimizer: The optimizer.
        accumulated: Number of calls of `apply` per step.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, kernel: keras.Variable) -> None:
        self.optimizer = optimizer
        self.accumulated = optimizer.gradient_accumulation_steps or 1
        self._kernel = kernel

    def read_learning_rate(self) -> Any:
        """Return the learning rate of the next step."""
        return get_tensor(self.optimizer.learning_rate)

    def makes_step(self) -> Any:
        """Return whether the next call of `apply` changes the kernel, as ``True`` or a tensor."""
        if self.accumulated == 1:
            return True
        return ops.equal((self.optimizer._iterations + 1) % self.accumulated, 0)

    def compute_gradient(self, gradient: Any) -> Any:
        """Return the gradient that the next step applies, without a static loss scale.

        Args:
            gradient: The gradient that `apply` is called with.
        """
        scale = self.optimizer.loss_scale_factor
        gradient = ops.convert_to_tensor(gradient) if scale is None else gradient / scale
        if self.accumulated == 1:
            return gradient
        return (gradient + self.optimizer._accumulated_gradients[self._index]) / self.accumulated

    def get_average(self) -> keras.Variable | None:
        """Return the moving average of the kernel in the optimizer, or ``None`` if there is none."""
        return self.optimizer._model_variables_moving_average[self._index] if self.optimizer.use_ema else None

    def clear_state(self, unchanged: Array) -> None:
        """Set what the optimizer knows of single weights of the kernel, such as momentum, to zero.

        Args:
            unchanged: Booleans in the shape of the kernel, ``False`` where the state is set to zero.
        """
        trained = self.optimizer._trainable_variables
        flat = (trained, self.optimizer._variables)
        # Each kind of state is a list with one variable for each trained variable.
        kinds = [kind for kind in vars(self.optimizer).values() if isinstance(kind, list) and len(kind) == len(trained)]
        for state in (kind[self._index] for kind in kinds if all(kind is not other for other in flat)):
            if isinstance(state, keras.Variable) and tuple(state.shape) == tuple(self._kernel.shape):
                apply_mask(state, make_contiguous(unchanged))

    @property
    def _index(self) -> int:
        index: int = self.optimizer._get_variable_index(self._kernel)
        return index


def find_slots(optimizer: keras.optimizers.Optimizer, kernels: dict[str, keras.Variable]) -> dict[str, KernelSlot]:
    """Find the slot of each kernel in a built optimizer, or in one of its inner optimizers."""
    return {name: KernelSlot(_find_optimizer(optimizer, kernel), kernel) for name, kernel in kernels.items()}


def _find_optimizer(optimizer: keras.optimizers.Optimizer, kernel: keras.Variable) -> keras.optimizers.Optimizer:
    for inner in getattr(optimizer, "optimizers", ()):
        if inner.built and inner._var_key(kernel) in inner._trainable_variables_indices:
            return inner
    return optimizer
