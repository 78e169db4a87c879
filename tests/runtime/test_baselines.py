"""The report shows other ways to run the dense model, and which is fastest at which accuracy."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from runtime.layer_clock import compile_on_clock
from runtime.sparse_layers import replace_always
from secateur.runtime import BaselineReport, RuntimeReport
from secateur.runtime.pytorch import SparseLayer, baselines, compile_model

INPUTS = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with replace_always():
        yield


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight[torch.rand_like(layer.weight) < 0.75] = 0
    return net.eval()


def count_seconds(bfloat16: float) -> Callable[[nn.Module, bool], float]:
    """Return a clock for dense linear layers that take 2 s in float32, and sparse layers that take 1 s."""

    def count(module: nn.Module, _: bool) -> float:
        if isinstance(module, SparseLayer):
            return 1.0
        return 0.0 if not isinstance(module, nn.Linear) else bfloat16 if module.weight.dtype is torch.bfloat16 else 2.0

    return count


def test_dense_bfloat16_is_timed_beside_float32() -> None:
    net = make_net()
    _, report = compile_on_clock(net, INPUTS, count_seconds(0.5))
    assert (report.replaced, report.speedup) == (2, 2.0)
    bfloat16 = report.baselines[0]
    assert (bfloat16.name, bfloat16.dense_seconds, bfloat16.seconds, bfloat16.speedup) == ("dense bfloat16", 4, 1, 4)
    assert report.error < 1e-5 < (bfloat16.error or 0) < 0.02
    footer = "\n".join(report.footer)
    assert f"dense bfloat16 1000.00 ms (4.00×, outputs differ by {bfloat16.error:.1e})" in footer
    assert f"Fastest: dense bfloat16, 4.00× with a difference of {bfloat16.error:.1e}; this model, 2.00×" in footer
    assert "compile the model in bfloat16" in footer
    assert "prune to 16x1" in footer


def test_a_slow_baseline_is_timed_once() -> None:
    calls = 0

    def count(module: nn.Module, is_alone: bool) -> float:
        nonlocal calls
        calls += isinstance(module, nn.Linear) and module.weight.dtype is torch.bfloat16
        return count_seconds(20.0)(module, is_alone)

    _, report = compile_on_clock(make_net(), INPUTS, count)
    assert (report.baselines[0].seconds, report.baselines[0].speedup) == (40, 0.1)
    assert calls == 4  # two layers, called once for the error and once for the time
    assert "compile the model in bfloat16" not in str(report)
    assert [way.partition(",")[0] for way in report._list_fastest()] == ["this model", "the dense model"]


def test_the_model_stays_as_it_is() -> None:
    net = make_net()
    state = {name: (value.clone(), value.data_ptr()) for name, value in net[1].state_dict().items()}

    def write(layer: nn.Module, *_: Any) -> None:
        if layer.weight.dtype is torch.bfloat16:
            layer.num_batches_tracked.add_(1)
            layer.running_mean.zero_()

    net[1].register_forward_hook(write)
    compile_model(net, INPUTS)
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    for name, (value, address) in state.items():
        assert torch.equal(net[1].state_dict()[name], value)
        assert net[1].state_dict()[name].data_ptr() == address


class FailsInBfloat16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.net(inputs).numpy()


class Uncopyable(FailsInBfloat16):
    def forward(self, inputs: torch.Tensor) -> Any:
        return self.net(inputs)

    def __deepcopy__(self, memo: Any) -> Any:
        raise OSError("a file is open")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (FailsInBfloat16, "TypeError: Got unsupported ScalarType BFloat16"),
        (Uncopyable, "the model cannot be copied: OSError: a file is open"),
    ],
)
def test_a_baseline_that_fails_has_a_reason(make: Callable[[], nn.Module], reason: str) -> None:
    report = compile_model(make().eval(), INPUTS)
    assert report.replaced == 2
    assert report.baselines[0] == BaselineReport(name="dense bfloat16", reason=reason)
    assert f"dense bfloat16 was not timed: {reason}" in str(report)


class NanInBfloat16(FailsInBfloat16):
    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = self.net(inputs)
        return outputs.log() if outputs.dtype is torch.bfloat16 else outputs


def test_a_baseline_without_the_same_finite_values_is_not_recommended() -> None:
    report = compile_on_clock(NanInBfloat16().eval(), INPUTS, count_seconds(0.5))[1]
    reason = "its outputs have another shape, or are nan or infinite in other places"
    assert report.baselines[0] == BaselineReport(name="dense bfloat16", reason=reason)
    assert "compile the model in bfloat16" not in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_only_float32_is_compared_with_bfloat16(dtype: torch.dtype) -> None:
    report = compile_model(make_net().to(dtype), INPUTS.to(dtype))
    name = f"torch.compile {str(dtype).removeprefix('torch.')}"
    assert report.baselines == (BaselineReport(name=name, reason="set torch_compile=True to include it"),)


def test_models_without_comparable_outputs_have_no_baselines() -> None:
    class ReturnsNothing(FailsInBfloat16):
        def forward(self, inputs: torch.Tensor) -> None:
            self.net(inputs)

    assert compile_model(ReturnsNothing().eval(), INPUTS).baselines == ()


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_torch_compile_is_timed_on_request(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    times = iter([1.0, seconds] * 3)
    monkeypatch.setattr(baselines, "COMPILER_BACKEND", "eager")
    monkeypatch.setattr(baselines, "time_call", lambda *_: next(times))
    monkeypatch.setattr(baselines, "measure_medians", lambda *_, **__: [1.0, seconds])
    report = compile_model(make_net(), INPUTS, torch_compile=True)
    names = ["dense bfloat16", "torch.compile float32", *(["torch.compile bfloat16"] if seconds < 1 else [])]
    assert [(row.name, row.seconds) for row in report.baselines] == [(name, seconds) for name in names]
    assert report.baselines[1].error == 0.0
    torch.compiler.reset()


def test_large_models_are_not_compiled_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_COMPILED_MODULES", 3)
    report = compile_model(make_net(), INPUTS, torch_compile=True)
    assert report.baselines[1].reason == "compiling 4 modules would take minutes"


def test_large_models_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_COPY_BYTES", 6000)
    net = make_net()
    size = sum(weight.numel() for weight in net.parameters()) * 2
    reason = f"a copy of the model would take {size:,} bytes"
    assert compile_model(net, INPUTS).baselines == (BaselineReport(name="dense bfloat16", reason=reason),)


REPORT = RuntimeReport(layers=(), threads=1, device="cpu", dense_seconds=1.0, seconds=1.0)


def test_the_dense_model_can_be_the_fastest() -> None:
    slow = BaselineReport(name="dense bfloat16", dense_seconds=1.0, seconds=2.0, error=1e-3)
    assert replace(REPORT, baselines=(slow,))._list_fastest() == ["the dense model, 1.00× exactly"]


def test_equal_outputs_are_called_the_same() -> None:
    equal = BaselineReport(name="torch.compile float32", dense_seconds=1.0, seconds=0.5, error=0.0)
    assert str(equal) == "torch.compile float32 500.00 ms (2.00×, the same outputs)"


def test_baselines_are_part_of_the_json() -> None:
    fast = BaselineReport(name="dense bfloat16", dense_seconds=1.0, seconds=0.5, error=1e-3)
    assert replace(REPORT, baselines=(fast,)).to_dict()["baselines"] == [
        {"name": "dense bfloat16", "dense_seconds": 1.0, "seconds": 0.5, "error": 1e-3, "reason": "", "speedup": 2.0}
    ]
