"""Exchanged layers on a GPU, by what torch ships."""

import copy

import pytest
import torch
from torch import nn

import secateur
import secateur.runtime
from secateur.runtime.pytorch import compiling

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("pattern", "sparsity", "way"), [("2:4", None, "2:4 of the GPU"), ("64x64", 0.75, "blocks")])
def test_outputs_are_those_of_the_dense_model(
    pattern: str, sparsity: float | None, way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "NOTABLE", float("inf"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).to("cuda", dtype).eval()
    secateur.prune(model, {"pattern": pattern, "target_sparsity": sparsity, "op_names": [".*"]})
    dense, inputs = copy.deepcopy(model), torch.randn(128, 256, device="cuda", dtype=dtype)
    compiled, report = secateur.runtime.compile(model, inputs)
    assert all(way in row.chosen for row in report.layers)
    with torch.no_grad():
        expected = dense(inputs)
        assert (compiled(inputs) - expected).abs().max() <= 1e-2 * expected.abs().max()
