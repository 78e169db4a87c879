"""Tests that layers and data that cannot be used get their true reason, and what to do."""

import pytest
import torch
from torch import nn

import secateur
from secateur._wording import format_reasons
from secateur.errors import CalibrationError, LayerError


def test_separate_query_key_and_value_weights() -> None:
    plan = secateur.plan(nn.ModuleList([nn.MultiheadAttention(16, 2, kdim=8, vdim=4), nn.Linear(16, 4)]), "2:4")
    assert "attention with kdim or vdim stores separate query, key and value weights" in plan.dense["0"]


def test_transposed_convolutions_with_calibration() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    batches = [torch.randn(1, 8, 6, 6)]
    with pytest.raises(CalibrationError, match=r"layer '0'.*Exclude it.*different parts of the kernel"):
        secateur.prune(model, "4x1", calibration=batches, solver="wanda")


class Mixer(nn.Module):
    """Multiplies by the weight of a layer without calling it, as Mamba does."""

    def __init__(self) -> None:
        super().__init__()
        self.dt_proj, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.out(inputs @ self.dt_proj.weight.T)
        return output


def test_a_weight_that_is_used_without_its_layer() -> None:
    model = nn.Sequential(Mixer(), nn.Linear(8, 4))
    with pytest.raises(
        CalibrationError, match=r"'0.dt_proj' .*multiplies by their weight without calling them.*excluded_op_names"
    ):
        secateur.prune(model, "2:4", calibration=[torch.randn(4, 8)], solver="wanda")


def test_inputs_of_another_data_type() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    batches = [torch.randn(4, 8, dtype=torch.float64)]
    with pytest.raises(CalibrationError, match=r"has torch.float64 and the model torch.float32: .*to\(torch.float32\)"):
        secateur.prune(model, "2:4", calibration=batches, solver="wanda")


def test_layers_with_the_same_reason_are_one_line() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(200)))
    with pytest.raises(LayerError) as caught:
        secateur.plan(model, "2:4")
    assert len(str(caught.value).splitlines()) == 3
    assert "0, 1, 2, 3 and 195 more: 6 input" in str(caught.value)


def test_many_reasons_are_counted() -> None:
    lines = format_reasons((str(index), f"reason {index}") for index in range(20)).splitlines()
    assert len(lines) == 13
    assert lines[-1] == "  and 8 other reasons"
