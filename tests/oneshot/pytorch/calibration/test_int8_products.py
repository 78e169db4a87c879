"""Test products in 8 bits: exact sums of rounded numbers, one scale per row, and only where they are faster."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur
from oneshot.problems import ProgressRecorder
from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.calibration.int8_products import MIN_ROWS, MIN_SIZE, Int8Products, has_fast_int8
from tiny_models import bits

needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="float32 is as fast as 8 bits on this processor")

ROWS, FEATURES, OUTPUTS = MIN_ROWS, MIN_SIZE + 4, MIN_SIZE
BATCHES = 3


class Counter:
    """Counts the products in 8 bits."""

    def __init__(self, multiply: Callable[..., torch.Tensor]) -> None:
        self.calls = 0
        self._multiply = multiply

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self._multiply(*args)


class FeedForward(nn.Module):
    """A block whose second layer reads many zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = hidden + self.down(torch.relu(self.up(self.norm(hidden))))
        return outputs


@pytest.fixture(autouse=True)
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter = Counter(torch._int_mm)
    monkeypatch.setattr(torch, "_int_mm", counter)
    torch.manual_seed(0)
    with torch.no_grad():
        yield counter


def multiply(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    with Int8Products():
        return functional.linear(inputs, weight, bias)


def make_weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(OUTPUTS, FEATURES))


def multiply_plainly(inputs: torch.Tensor, weight: torch.Tensor) -> np.ndarray[Any, Any]:
    """Multiply with numpy, by 64-bit integers."""

    def quantize(matrix: torch.Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        values = matrix.detach().float().numpy()
        scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        return np.rint(values / np.where(scales > 0, scales, 1)).astype(np.int64), scales

    (rows, row_scales), (columns, column_scales) = quantize(inputs), quantize(weight)
    return np.asarray((rows @ columns.T) * row_scales.astype(np.float64) * column_scales.T)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_exact_sums_of_rounded_numbers(dtype: torch.dtype, counter: Counter) -> None:
    inputs, weight = torch.randn(ROWS, FEATURES).to(dtype), nn.Parameter(make_weight().to(dtype))
    outputs = multiply(inputs, weight)
    assert counter.calls == 1
    assert outputs.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    np.testing.assert_allclose(outputs.float(), multiply_plainly(inputs, weight), rtol=tolerance, atol=1e-6)


@needs_int8
def test_products_are_close_to_those_in_float32() -> None:
    inputs, weight, bias = torch.randn(2, ROWS, FEATURES), make_weight(), nn.Parameter(torch.randn(OUTPUTS))
    exact = functional.linear(inputs, weight, bias)
    outputs = multiply(inputs, weight, bias)
    assert outputs.shape == exact.shape
    assert 0 < float((outputs - exact).norm() / exact.norm()) < 0.02
    assert torch.equal(outputs, multiply(inputs, weight) + bias)


@needs_int8
def test_rows_and_outputs_of_zeros_stay_zero() -> None:
    inputs, weight = torch.randn(ROWS, FEATURES), make_weight()
    inputs[3], weight[5] = 0, 0
    weight[6] = torch.finfo(torch.float32).tiny / 4  # smaller than any scale
    outputs = multiply(inputs, weight)
    assert not outputs[3].any()
    assert not outputs[:, 5].any()
    assert outputs.isfinite().all()
    assert outputs.abs().sum(dim=1)[torch.arange(ROWS) != 3].min() > 0


@needs_int8
def test_outliers_affect_only_their_own_row() -> None:
    """As do padding, and the other rows of a batch."""
    inputs, weight = torch.randn(ROWS + 1, FEATURES), make_weight()
    plain = multiply(inputs[:-1].clone(), weight)
    inputs[-1] *= 1e4
    assert torch.equal(multiply(inputs, weight)[:-1], plain)
    weight[0] *= 1e4
    assert torch.equal(multiply(inputs, weight)[:-1, 1:], plain[:, 1:])


@needs_int8
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_not_finite_stay_visible(value: float) -> None:
    inputs, weight = torch.randn(ROWS, FEATURES), make_weight()
    inputs[3, 7] = value
    outputs = multiply(inputs, weight)
    assert not outputs[3].isfinite().any()
    assert outputs[torch.arange(ROWS) != 3].isfinite().all()
    inputs[3, 7], weight[5, 1] = 1, value
    outputs = multiply(inputs, weight)
    assert not outputs[:, 5].isfinite().any()
    assert outputs[:, torch.arange(OUTPUTS) != 5].isfinite().all()


@needs_int8
def test_strides_do_not_matter() -> None:
    inputs, weight = torch.randn(ROWS, FEATURES), make_weight()
    expected = multiply(inputs, weight)
    assert torch.equal(multiply(inputs.T.contiguous().T, weight), expected)
    swapped = inputs.reshape(2, -1, FEATURES).transpose(0, 1)
    assert torch.equal(multiply(swapped, weight), multiply(swapped.contiguous(), weight))
    assert torch.equal(multiply(inputs, nn.Parameter(weight.T.contiguous().T)), expected)


@needs_int8
def test_inputs_and_weights_that_change_are_rounded_again(counter: Counter) -> None:
    inputs, weight = torch.randn(ROWS, FEATURES), make_weight()
    with Int8Products():
        first = functional.linear(inputs, weight)
        inputs *= 2
        assert torch.equal(functional.linear(inputs, weight), 2 * first)
        weight *= 2
        assert torch.equal(functional.linear(inputs, weight), 4 * first)
    assert counter.calls == 3


@needs_int8
def test_tensors_without_versions_are_rounded_again(counter: Counter) -> None:
    weight = make_weight()
    with torch.inference_mode():
        inputs = torch.randn(ROWS, FEATURES)
        with Int8Products():
            first = functional.linear(inputs, weight)
            inputs *= 2
            assert torch.equal(functional.linear(inputs, weight), 2 * first)
    assert counter.calls == 2


def test_other_products_are_computed_as_usual(counter: Counter) -> None:
    inputs, weight = torch.randn(ROWS, FEATURES), make_weight()
    double = nn.Parameter(weight.double())
    experts = nn.Parameter(torch.randn(2, OUTPUTS, FEATURES))
    narrow = nn.Parameter(torch.randn(MIN_SIZE - 1, FEATURES))
    with Int8Products():
        assert torch.equal(functional.linear(inputs[:-1], weight), inputs[:-1] @ weight.T)
        functional.linear(inputs, narrow)
        functional.linear(torch.randn(ROWS, MIN_SIZE - 1), nn.Parameter(torch.randn(OUTPUTS, MIN_SIZE - 1)))
        functional.linear(inputs.double(), double)
        functional.linear(inputs, experts[0])
        functional.linear(inputs, weight.detach())
        assert functional.linear(inputs, nn.Parameter(weight[0])).shape == (ROWS,)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert functional.linear(inputs, weight).dtype == torch.bfloat16
        with torch.enable_grad():
            assert functional.linear(inputs, weight).requires_grad
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            functional.linear(torch.randn(2 * ROWS, FEATURES + 1), weight)
        functional.conv2d(torch.randn(1, FEATURES, 16, 16), torch.randn(OUTPUTS, FEATURES, 1, 1))
    assert counter.calls == 0


@needs_int8
def test_attention_is_observed_before_it_is_rounded(counter: Counter) -> None:
    attention = nn.MultiheadAttention(OUTPUTS, 2, batch_first=True).eval()
    inputs = torch.randn(2, ROWS, OUTPUTS)
    expected = attention(inputs, inputs, inputs)[0]
    norms = []
    for products in (None, Int8Products()):
        statistics = InputStatistics({"out": attention.out_proj}, with_gram=False)
        statistics.start_batch(None)
        with products or torch.no_grad(), statistics.record_inputs():
            outputs = attention(inputs, inputs, inputs)[0]
        torch.testing.assert_close(outputs, expected, atol=0.02, rtol=0)
        norms.append(statistics.norms("out"))
    assert torch.equal(norms[0], norms[1])
    assert counter.calls == 1


def test_processors_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    assert not has_fast_int8()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx_vnni": True}, raising=False)
    assert has_fast_int8()
    with monkeypatch.context() as context:
        context.delattr(torch.cpu, "get_capabilities")
        assert not has_fast_int8()
    monkeypatch.delattr(torch, "_int_mm")
    assert not has_fast_int8()


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(FeedForward(MIN_SIZE) for _ in range(3)))


def make_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, ROWS, MIN_SIZE, generator=generator) for _ in range(BATCHES)]


def prune(model: nn.Module, *, refine: Any = (), **settings: Any) -> Any:
    execution = secateur.Execution(**settings)
    return secateur.prune(
        model, "2:4", calibration=make_batches(), solver="sparsegpt", refine=refine, execution=execution
    )


@needs_int8
def test_pruning_with_rounded_inputs(counter: Counter) -> None:
    rounded, plain = make_model(), make_model()
    reports = [prune(rounded), prune(plain, allow_int8=False)]
    # Inputs: two blocks up to their last layer, and each block once to its end. Outputs: two blocks.
    assert counter.calls == 2 * (BATCHES + 1) + 2 + 2 * 2 * BATCHES
    for name, error in reports[0].errors.items():
        assert error == pytest.approx(reports[1].errors[name], rel=0.02)
    for name, weight in plain.named_parameters():
        assert float(((weight == 0) == (rounded.get_parameter(name) == 0)).float().mean()) > 0.95
        if name.startswith("0.up"):
            assert torch.equal(weight, rounded.get_parameter(name))  # its inputs are not rounded
    assert bits(rounded) != bits(plain)


@needs_int8
def test_rounded_runs_are_repeatable_and_resume(tmp_path: Path) -> None:
    expected = make_model()
    prune(expected)
    again = copy.deepcopy(interrupted := make_model())
    prune(again)
    assert bits(again) == bits(expected)
    with pytest.raises(RuntimeError, match="stop"):
        prune(interrupted, folder=tmp_path, progress=ProgressRecorder(lambda: RuntimeError("stop"), 2))
    prune(interrupted, folder=tmp_path)
    assert bits(interrupted) == bits(expected)


def test_processors_without_instructions_do_not_round(monkeypatch: pytest.MonkeyPatch, counter: Counter) -> None:
    models = make_model(), make_model()
    prune(models[0], allow_int8=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    prune(models[1])
    assert counter.calls == 0
    assert bits(models[0]) == bits(models[1])


def test_refiners_of_blocks_read_what_was_not_rounded(counter: Counter) -> None:
    with torch.enable_grad():
        prune(make_model(), refine=secateur.refiners.Block(steps=1))
    assert counter.calls == 0


@needs_int8
def test_infinite_outputs_are_refused_by_the_next_layer() -> None:
    model = make_model()
    model[0].down.weight.data[3, 5] = torch.inf
    before = bits(model)
    config = {"pattern": "2:4", "op_names": ["1.*", "2.*"]}
    with pytest.raises(CalibrationError, match=r"layer '1\.up': its inputs must be finite"):
        secateur.prune(model, config, calibration=make_batches(), solver="wanda")
    assert bits(model) == before
