"""Time the alternatives to a compiled model: the dense model in bfloat16, and `torch.compile`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from secateur._calls.pytorch.example_inputs import ExampleInputs
from secateur.errors import CalibrationError
from secateur.runtime.pytorch.output_check import COMPARISON_ERRORS, OutputCheck, summarize_error
from secateur.runtime.pytorch.timing import Clock, measure_medians, time_call
from secateur.runtime.report import BaselineReport

__all__ = ["BaselineTimer"]

BUDGET = 0.5
"""Seconds to spend on a baseline after its first calls. The minimum number of rounds may take longer."""

MAX_TIME_RATIO = 3.0
"""A baseline that takes longer than this multiple of the dense time is timed only once."""

MAX_COMPILED_MODULES = 200
"""Limit for the modules of a model that `torch.compile` is timed for. It takes up to a second for each of them."""

MAX_COPY_BYTES = 4 << 30
"""Models that take more bytes in bfloat16 are not copied, because running out of memory would kill the process."""

MAX_NOISE = 1e-2
"""Models whose outputs differ by more between calls, relative to the largest output, are not compared."""

DIFFERENT_OUTPUTS = "its outputs have another shape, or are nan or infinite in other places"
"""Reason for outputs whose difference is not a number."""

COMPILER_BACKEND = "inductor"
"""Backend of `torch.compile`."""


class Baseline(NamedTuple):
    """A dense model to time.

    Attributes:
        name: Name for the report.
        build: Builds the model.
        example: Inputs of the model.
    """

    name: str
    build: Callable[[], nn.Module]
    example: ExampleInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTimer:
    """Times dense models that are equivalent to a given one.

    Attributes:
        model: The dense model. It is left unchanged.
        example: The example inputs.
        check: Compares outputs with those of the dense model.
        device: Device of the model.
        clock: Returns the current time in seconds.
    """

    model: nn.Module
    example: ExampleInputs
    check: OutputCheck
    device: torch.device
    clock: Clock

    def measure(self, *, torch_compile: bool) -> tuple[BaselineReport, ...]:
        """Time a float32 model in bfloat16, and any model with `torch.compile` if requested.

        `torch.compile` is timed in bfloat16 only where the dense model is faster in bfloat16.
        """
        dtype = next((weight.dtype for weight in self.model.parameters() if weight.is_floating_point()), None)
        if dtype is None or self.check.get_unsupported_reason(MAX_NOISE):
            return ()
        if dtype is torch.float32 and (size := self._count_bytes() // 2) > MAX_COPY_BYTES:
            reason = f"a copy of the model would take {size:,} bytes"
            return (BaselineReport(name="dense bfloat16", reason=reason),)
        reports: list[BaselineReport] = []
        compiled = [Baseline(f"torch.compile {_get_name(dtype)}", lambda: _compile(self.model), self.example)]
        if dtype is torch.float32:
            inputs = self.example.convert(torch.bfloat16)
            reports.append(self._measure_baseline(Baseline("dense bfloat16", self._convert_model, inputs)))
            if (reports[0].speedup or 0) > 1:
                compiled.append(Baseline("torch.compile bfloat16", lambda: _compile(self._convert_model()), inputs))
        if torch_compile:
            reports += [self._measure_compiled(baseline) for baseline in compiled]
        else:
            reports.append(BaselineReport(name=compiled[0].name, reason="set torch_compile=True to include it"))
        return tuple(reports)

    def _count_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def _measure_compiled(self, baseline: Baseline) -> BaselineReport:
        count = sum(not module._modules for module in self.model.modules())
        if count > MAX_COMPILED_MODULES:
            return BaselineReport(name=baseline.name, reason=f"compiling {count} modules would take minutes")
        return self._measure_baseline(baseline)

    def _measure_baseline(self, baseline: Baseline) -> BaselineReport:
        try:
            model = baseline.build()
        except Exception as error:  # noqa: BLE001 - copying runs code of the model
            reason = f"the model cannot be copied: {summarize_error(error)}"
            return BaselineReport(name=baseline.name, reason=reason)
        calls = [partial(self.example.copy().call, self.model), partial(baseline.example.copy().call, model)]
        try:
            difference = self.check.measure_error(calls[1]())
            if math.isinf(difference):
                return BaselineReport(name=baseline.name, reason=DIFFERENT_OUTPUTS)
            dense_seconds, seconds = (time_call(call, self.device, self.clock) for call in calls)
            if seconds <= MAX_TIME_RATIO * dense_seconds:
                dense_seconds, seconds = measure_medians(calls, self.device, BUDGET, clock=self.clock)
        except (CalibrationError, *COMPARISON_ERRORS) as problem:
            return BaselineReport(name=baseline.name, reason=summarize_error(problem.__cause__ or problem))
        return BaselineReport(name=baseline.name, dense_seconds=dense_seconds, seconds=seconds, error=difference)

    def _convert_model(self) -> nn.Module:
        """Copy the model, with its floating-point parameters and buffers in bfloat16."""
        memo: dict[int, object] = {}
        for parameter in self.model.parameters():
            memo[id(parameter)] = nn.Parameter(_convert(parameter), requires_grad=False)
        for buffer in self.model.buffers():
            memo[id(buffer)] = _convert(buffer)
        return copy.deepcopy(self.model, memo)


def _convert(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.bfloat16 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _compile(model: nn.Module) -> nn.Module:
    compiled: Any = torch.compile(model, backend=COMPILER_BACKEND)
    return cast("nn.Module", compiled)


def _get_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
