"""Outputs of a model with layers replaced, against those of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from secateur.errors import CalibrationError, SecateurError
from secateur.runtime.pytorch.example import Example, fixed_seed
from secateur.runtime.pytorch.outputs import Snapshot, largest_difference, take_snapshot
from secateur.runtime.pytorch.turns import replaced_layers

__all__ = ["Candidate", "OutputCheck"]

MAX_CALLS = 64
"""Calls of the model to find out which layers are to blame."""

MAX_REASON_CHARACTERS = 200

SAFETY = 4.0
"""How much more than small errors in each layer a replacement may change the outputs."""

ASSUMED_ERROR = 2.0
"""The small error of a layer, over what was measured with random inputs."""


class Candidate(NamedTuple):
    """A layer that may be replaced.

    Attributes:
        layer: What takes its place.
        error: Largest difference of the layer's outputs, over the largest of these.
        tolerance: What that difference may be.
    """

    layer: nn.Module
    error: float
    tolerance: float


class OutputCheck:
    """Compares all outputs of the example call, dense against replaced.

    The dense model is called twice, with the same random numbers of torch and Python, to learn how much its outputs
    differ by themselves.

    Args:
        model: The dense model; every method leaves it as it was.
        example: How to call it.
        device: Where it is.

    Attributes:
        obstacle: Why outputs cannot be compared; empty if they can.

    Raises:
        CalibrationError: The model refuses the example inputs.
    """

    def __init__(self, model: nn.Module, example: Example, device: torch.device) -> None:
        self.obstacle = ""
        self._model, self._example, self._device = model, example, device
        self._calls, self._noise, self._expected = 0, 0.0, Snapshot()
        raw = self._call()
        try:
            self._expected = take_snapshot(raw)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            self.obstacle = f"the model's outputs cannot be compared: {shortened(error)}"
            return
        self._noise = largest_difference(self._expected, take_snapshot(self._call()))

    def judge_noise(self, tolerance: float) -> str:
        """Why outputs cannot be compared where they may differ by so much; empty if they can."""
        if self.obstacle:
            return self.obstacle
        if not any(isinstance(value, torch.Tensor) for value in self._expected.values()):
            return "the model returns no tensor that could be compared"
        if self._noise > max(tolerance, 0.0):
            return f"the dense model's own outputs differ by {self._noise:.1e} from call to call"
        return ""

    def find_wrong_layers(self, others: Mapping[str, Candidate]) -> dict[str, str]:
        """The layers that must stay dense so that the outputs are right, each with the reason."""
        self._calls = 0
        return self._search(others)

    def _search(self, others: Mapping[str, Candidate]) -> dict[str, str]:
        if not others or not (problem := self._problem(others)):
            return {}
        names = list(others)
        if len(names) == 1 or self._calls > MAX_CALLS:
            return dict.fromkeys(names, problem)
        wrong: dict[str, str] = {}
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            wrong |= self._search({name: others[name] for name in half})
        rest = {name: other for name, other in others.items() if name not in wrong}
        if rest and (problem := self._problem(rest)):
            wrong |= dict.fromkeys(rest, problem)
        return wrong

    def _problem(self, others: Mapping[str, Candidate]) -> str:
        """What is wrong with the outputs; empty if nothing is."""
        tolerance = max(other.tolerance for other in others.values())
        if reason := self.judge_noise(tolerance):
            return reason
        try:
            with replaced_layers(self._model, {name: other.layer for name, other in others.items()}):
                difference = largest_difference(self._expected, take_snapshot(self._call()))
        except SecateurError as error:
            return f"the model fails with it: {shortened(error.__cause__ or error)}"
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return f"the model's outputs cannot be compared: {shortened(error)}"
        if difference <= max(tolerance, SAFETY * self._noise):
            return ""
        if difference < float("inf") and difference <= SAFETY * self._sensitivity(others):
            return ""
        return f"the model's outputs would differ by {difference:.1e}"

    def _sensitivity(self, others: Mapping[str, Candidate]) -> float:
        """How much the outputs of the dense model change when each of these layers is wrong by a little."""
        generator = torch.Generator(self._device).manual_seed(1)

        def disturb(size: float) -> Callable[..., torch.Tensor | None]:
            def hook(_: nn.Module, __: Any, outputs: Any) -> torch.Tensor | None:
                if not isinstance(outputs, torch.Tensor) or not outputs.numel():
                    return None
                signs = torch.empty(outputs.shape, device=self._device).bernoulli_(generator=generator) * 2 - 1
                return outputs + (signs * (size * outputs.abs().max())).to(outputs.dtype)

            return hook

        with ExitStack() as hooks:
            for name, other in others.items():
                size = max(ASSUMED_ERROR * other.error, torch.finfo(torch.float32).eps)
                layer = self._model.get_submodule(name)
                hooks.callback(layer.register_forward_hook(disturb(size)).remove)
            try:
                return largest_difference(self._expected, take_snapshot(self._call()))
            except (CalibrationError, NotImplementedError, RuntimeError, TypeError, ValueError):
                return 0.0

    def _call(self) -> Any:
        self._calls += 1
        with fixed_seed(self._device):
            return self._example.copy().run(self._model)


def shortened(error: BaseException) -> str:
    """The type of an error and the beginning of its message."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return said if len(said) <= MAX_REASON_CHARACTERS else f"{said[:MAX_REASON_CHARACTERS]}…"
