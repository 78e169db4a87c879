"""Tests of pruning and slimming in one call: to a target, and under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import secateur
from secateur.errors import CalibrationError, ConfigError, LayerError, StateError, UnknownNameError


def make_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def make_images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 3, 8, 8, generator=generator) for _ in range(3)]


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


def make_tokens() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(60, (2, 12), generator=generator)} for _ in range(3)]


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], state[name]) for name in state)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_budget_of_parameters_is_never_exceeded_and_nearly_used(share: float) -> None:
    model = make_net()
    dense = count(model)
    report = secateur.slim(model, budget={"parameters": share}, calibration=make_images())
    assert report.budget is not None
    assert report.weights == count(model) == report.budget.measured == report.budget.predicted
    largest = 16 * 9 + 1 + 10  # one channel of the second convolution
    assert share * dense - largest < count(model) <= share * dense
    assert f"parameters at {share:.1%}" in str(report)


def test_a_run_under_a_budget_is_complete_and_has_no_target(tmp_path: Path) -> None:
    """Its counts are those of the budget, whatever share of units that is."""
    report = secateur.slim(make_net(), budget={"parameters": 0.6}, calibration=make_images(), solver="osscar")
    assert report.pruning is not None
    assert report.pruning.is_complete
    summary = report.summarize()
    assert summary.interruption is None
    assert all("target_sparsity" not in config for config in summary.configs)
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "not complete" not in text
    assert "not reached" not in text


def test_kinds_that_regrow_are_refused_under_a_budget() -> None:
    model = make_net()
    state = copy_state(model)
    with pytest.raises(ConfigError, match="kind='rigl' regrows weights while the model trains"):
        secateur.slim(
            model,
            {"pattern": "channels", "kind": "rigl", "end_step": 9},
            budget={"parameters": 0.6},
            calibration=make_images(),
        )
    assert_unchanged(model, state)


def test_an_absolute_budget_of_bytes() -> None:
    model = make_net()
    report = secateur.slim(model, "channels", budget={"bytes": 12_000}, calibration=make_images())
    tensors = [*model.parameters(), *model.buffers()]
    assert report.budget is not None
    assert report.budget.measured == sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= 12_000


def test_a_budget_of_flops_counts_the_slim_model() -> None:
    from secateur.slimming.pytorch.costs.flops import count_flops

    model, images = make_net(), make_images()
    dense = count_flops(model, images[0])
    report = secateur.slim(model, budget={"flops": 0.5}, calibration=images)
    assert report.budget is not None
    assert report.budget.measured == count_flops(model, images[0]) <= 0.5 * dense
    assert report.budget.dense == dense


def test_groups_compete_for_a_budget() -> None:
    """Units that the model does not need go first, from whatever group."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[4].weight[:, 16:] *= 1e-3  # half of the second group is worth little
    batches = [torch.randn(64, 8) for _ in range(2)]
    expected = model(batches[0])
    report = secateur.slim(model, budget={"parameters": 0.62}, calibration=batches)
    assert [group.removed_units for group in report.groups if group.units == 32 and not group.reason] == [0, 16]
    assert torch.allclose(model(batches[0]), expected, atol=1e-2)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


def test_a_block_that_is_worth_little_goes_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Residual(), Residual(), Residual(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[2].mlp[2].weight *= 1e-4
    batches = [torch.randn(64, 8) for _ in range(3)]
    expected = model(batches[0])
    report = secateur.slim(model, budget={"parameters": 0.69}, calibration=batches)
    assert (report.branches, report.blocks) == ((), ("2",))
    assert not [entry for entry in caplog.records if entry.name.startswith("secateur")]  # the budget says so
    assert report.budget is not None
    assert report.weights == count(model) == report.budget.measured
    assert torch.allclose(model(batches[0]), expected, atol=1e-2)


@pytest.mark.parametrize("refine", ["ridge", ["block", "distill"]])
def test_uniform_widths_under_a_budget_load_without_secateur(tmp_path: Path, refine: Any) -> None:
    model, tokens = make_llama(), make_tokens()
    dense = count(model)
    report = secateur.slim(
        model, {"granularity": 4}, budget={"parameters": 0.8}, calibration=tokens, mode="uniform", refine=refine
    )
    assert report.is_configured
    assert report.removed_units
    assert count(model) <= 0.8 * dense
    assert model.config.intermediate_size % 4 == 0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**tokens[0]).logits, model(**tokens[0]).logits)


def test_a_target_is_pruned_and_removed_as_in_two_calls() -> None:
    config = {"pattern": "channels", "target_sparsity": 0.5}
    model, images = make_net(), make_images()
    report = secateur.slim(model, config, calibration=images)
    apart = make_net()
    secateur.prune(apart, config, calibration=images, solver="osscar")
    secateur.slim(apart, example_inputs=images[0])
    assert report.removed_units == 8 + 16
    assert report.pruning is not None
    assert report.budget is None
    assert_unchanged(model, apart.state_dict())


def test_without_calibration_data_the_criterion_ranks() -> None:
    config = {"pattern": "channels", "target_sparsity": 0.5}
    model, images = make_net(), make_images()
    secateur.slim(model, config, example_inputs=images[0])
    apart = make_net()
    secateur.prune(apart, config, example_inputs=images[0])
    secateur.slim(apart, example_inputs=images[0])
    assert_unchanged(model, apart.state_dict())


def test_osscar_is_nearer_to_the_dense_model_than_magnitude() -> None:
    torch.manual_seed(0)
    mixing, batches = torch.randn(6, 24), [torch.randn(128, 6) for _ in range(4)]
    batches = [batch @ mixing for batch in batches]  # the inputs have six dimensions
    errors = {}
    for solver in ("magnitude", "osscar"):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
        expected = model(batches[0])
        secateur.slim(model, budget={"parameters": 0.5}, calibration=batches, solver=solver)
        errors[solver] = float((model(batches[0]) - expected).square().mean().detach())
    assert errors["osscar"] < errors["magnitude"] / 4


def test_a_failure_after_pruning_restores_every_bit() -> None:
    model, images = make_net(), make_images()
    model[3].weight.register_hook(lambda gradient: gradient)  # a hook of the old tensor would be lost
    state = copy_state(model)
    with pytest.raises(LayerError, match="hook"):
        secateur.slim(model, budget={"parameters": 0.5}, calibration=images)
    assert_unchanged(model, state)


def test_an_optimizer_of_another_model_is_refused_before_the_work() -> None:
    model = make_net()
    state = copy_state(model)
    optimizer = torch.optim.SGD(make_net(1).parameters(), lr=0.1)

    def images() -> Any:
        raise AssertionError
        yield

    with pytest.raises(StateError, match="optimizer"):
        secateur.slim(model, budget={"parameters": 0.5}, calibration=images(), optimizer=optimizer)
    assert_unchanged(model, state)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"budget": {"latncy": 0.5}}, UnknownNameError, "Did you mean 'latency'"),
    ({"budget": {"parameters": 0.01}}, ConfigError, "out of reach: it allows"),
    ({"budget": {"parameters": 0.5}, "calibration": None}, CalibrationError, "needs calibration data"),
    ({"budget": {"parameters": 0.5}, "config": {"target_sparsity": 0.5}}, ConfigError, "two targets"),
    (
        {"budget": {"parameters": 0.5}, "config": {"pattern": "channels", "layers": {"0": {"target_sparsity": 0.1}}}},
        ConfigError,
        "two targets",
    ),
    ({"budget": {"parameters": 0.5}, "config": "2:4"}, ConfigError, "'channels' or 'heads', found '2:4'"),
    ({"budget": {"parameters": 0.5}, "allocation": "global"}, ConfigError, "contradict"),
    ({"solver": "osscar"}, ConfigError, "solver has no effect|calibration has no effect"),
    ({"config": "channels", "solver": "sparsegpt"}, ConfigError, "groups of units"),
    ({"config": "channels", "refine": "pcg"}, ConfigError, "groups of units"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_refused_and_change_nothing(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = make_net()
    state = copy_state(model)
    with pytest.raises(error, match=text):
        secateur.slim(model, **{"calibration": make_images(), **arguments})
    assert_unchanged(model, state)


class ResidualNet(nn.Module):
    """A residual stream of channels that can go, with branches that can go too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.up, self.down = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.norm(self.down(self.up(x).relu()))).relu()
        return self.head(x.mean(dim=(2, 3)))


def test_a_branch_and_the_channels_of_its_output_are_pruned_together() -> None:
    torch.manual_seed(0)
    model, images = ResidualNet().eval(), make_images()
    with torch.no_grad():
        model.down.weight.zero_()  # the branch computes nothing
        model.up.weight[:, :4] = 0
        model.head.weight[:, :4] = 0  # and four channels of its output are not read
    expected = model(images[0])
    report = secateur.slim(model, example_inputs=images[0])
    assert {group.name: group.kept_units for group in report.groups if group.removed_units} == {"stem": 12, "up": 1}
    assert torch.allclose(model(images[0]), expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.15])
def test_budgets_of_residual_networks_of_channels(share: float) -> None:
    torch.manual_seed(0)
    model = ResidualNet().eval()
    report = secateur.slim(model, budget={"flops": share}, calibration=make_images())
    assert report.budget is not None
    assert report.budget.share <= share
