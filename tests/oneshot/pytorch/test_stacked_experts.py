"""One-shot pruning of mixtures of experts whose weights hold one matrix per expert."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "GptOssForCausalLM"):
    pytest.skip("needs a version of transformers with stacked experts", allow_module_level=True)

from tiny_transformers import gpt_oss, inputs_of, mixtral  # noqa: E402

EXPERTS = [f"model.layers.{block}.mlp.experts.{name}" for block in (0, 1) for name in ("gate_up_proj", "down_proj")]


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_a_mixture_of_experts_is_pruned_and_counted(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = build(make)
    plan = secateur.plan(model, {"pattern": "2:4"})
    assert {layer.name for layer in plan.layers if layer.is_pruned} >= {*EXPERTS}
    report = secateur.prune(model, {"pattern": "2:4"})
    sparsity = {layer.name: layer.sparsity for layer in report.layers}
    assert {sparsity[name] for name in EXPERTS} == {0.5}
    zeros = sum(int((weight == 0).sum()) for name, weight in model.named_parameters() if name in EXPERTS)
    assert zeros == sum(layer.pruned_weights for layer in report.layers if layer.name in EXPERTS)
    for expert in model.get_parameter(EXPERTS[1]).detach():
        matrix = expert.T if make is gpt_oss else expert
        assert (matrix.reshape(len(matrix), -1, 4) != 0).sum(dim=2).eq(2).all()
    secateur.save(model, tmp_path / "model", report=report)
    verified = secateur.verify(tmp_path / "model", pattern="2:4").tensors
    patterns = [tensor.pattern for tensor in verified if ".experts." in tensor.name and "bias" not in tensor.name]
    assert len(patterns) >= len(EXPERTS)
    assert set(patterns) == {"2:4"}


def test_dense_experts_fail_verification(tmp_path: Path) -> None:
    model = build(mixtral)
    report = secateur.prune(model, {"pattern": "2:4", "op_names": [".*self_attn.*"]})
    secateur.save(model, tmp_path / "model", report=report)
    with pytest.raises(secateur.SecateurError, match=r"experts\..*: not '2:4': it has no zeros"):
        secateur.verify(tmp_path / "model", pattern="2:4")


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
@pytest.mark.parametrize("padded", [False, True])
def test_experts_of_transformers_are_measured(make: Callable[[], nn.Module], padded: bool) -> None:
    model = build(make)
    before = model.config._experts_implementation
    report = secateur.prune(model, {"pattern": "2:4"}, calibration=inputs_of("mixtral", padded=padded), solver="wanda")
    assert model.config._experts_implementation == before
    assert all(0 < report.errors[name] < 0.5 for name in EXPERTS)
    assert report.magnitude_reasons == {}
