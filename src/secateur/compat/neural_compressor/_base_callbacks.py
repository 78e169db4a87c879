"""Define the callbacks that all callbacks of a training loop derive from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["HOOKS", "BaseCallbacks"]

HOOKS = (
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_step_end",
    "on_after_compute_loss",
    "on_before_optimizer_step",
    "on_after_optimizer_step",
    "on_before_eval",
    "on_after_eval",
)


class BaseCallbacks:
    """Callbacks that call registered functions.

    Args:
        conf: The configuration.
        model: The model.

    Examples:
        >>> callbacks = BaseCallbacks()
        >>> callbacks.register_hook("on_epoch_end", lambda: print("end"))
        >>> callbacks.on_epoch_end()
        end
    """

    def __init__(self, conf: Any = None, model: Any = None) -> None:
        self.conf = conf
        self.model = model
        self.hooks_dict: dict[str, list[Callable[..., Any]]] = {name: [] for name in HOOKS}

    @property
    def hooks(self) -> dict[str, Callable[..., Any]]:
        """Name → callback."""
        return {name: getattr(self, name) for name in HOOKS}

    def register_hook(self, scope: str, hook: Callable[..., Any]) -> None:
        """Call a function in a callback, with the callback's arguments."""
        if hook not in self.hooks_dict[scope]:
            self.hooks_dict[scope].append(hook)

    def remove_hook(self, scope: str, hook: Callable[..., Any]) -> None:
        """Remove a function that `register_hook` added."""
        if hook in self.hooks_dict[scope]:
            self.hooks_dict[scope].remove(hook)

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Call before training."""
        self._call("on_train_begin", dataloader)

    def on_epoch_begin(self, epoch: int | None = None) -> None:
        """Call before each epoch."""
        self._call("on_epoch_begin", epoch)

    def on_step_begin(self, batch_id: int | None = None) -> None:
        """Call before each batch."""
        self._call("on_step_begin", batch_id)

    def on_after_compute_loss(
        self,
        input: Any,  # noqa: A002 - part of the interface
        student_output: Any,
        student_loss: Any,
        teacher_output: Any = None,
    ) -> Any:
        """Call after the loss is computed; returns the loss to minimize."""
        loss = student_loss
        for hook in self.hooks_dict["on_after_compute_loss"]:
            loss = hook(input, student_output, loss, teacher_output)
        return loss

    def on_before_optimizer_step(self) -> None:
        """Call between the backward pass and ``optimizer.step()``."""
        self._call("on_before_optimizer_step")

    def on_after_optimizer_step(self) -> None:
        """Call after ``optimizer.step()``."""
        self._call("on_after_optimizer_step")

    def on_step_end(self) -> None:
        """Call after each batch."""
        self._call("on_step_end")

    def on_epoch_end(self) -> None:
        """Call after each epoch."""
        self._call("on_epoch_end")

    def on_before_eval(self) -> None:
        """Call before an evaluation."""
        self._call("on_before_eval")

    def on_after_eval(self) -> None:
        """Call after an evaluation."""
        self._call("on_after_eval")

    def on_train_end(self) -> Any:
        """Call at the end of training."""
        self._call("on_train_end")

    def _call(self, scope: str, *args: Any) -> None:
        for hook in self.hooks_dict[scope]:
            hook(*args)
