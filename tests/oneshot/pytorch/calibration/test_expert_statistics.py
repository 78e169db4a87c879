"""Solvers see what each of stacked experts reads, as if experts were separate layers."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur
from oneshot.problems import LAYER_SOLVERS

EXPERTS, WIDTH, INNER = 4, 8, 16
CONFIG = {"pattern": "2:4", "op_names": ["experts.*"]}


class Stacked(nn.Module):
    """Experts in two parameters; `use` says how their matrices are multiplied."""

    def __init__(self, use: str = "linear") -> None:
        super().__init__()
        self.num_experts, self.is_transposed, self.use = EXPERTS, use == "transposed", use
        up, down = torch.randn(EXPERTS, INNER, WIDTH), torch.randn(EXPERTS, WIDTH, INNER)
        if self.is_transposed:
            up, down = up.transpose(1, 2).contiguous(), down.transpose(1, 2).contiguous()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        if self.use == "together":
            every = torch.einsum("nf,erf->enr", hidden, self.up).relu()
            return torch.einsum("enr,efr->enf", every, self.down).mean(dim=0)
        output = torch.zeros_like(hidden)
        for expert in range(EXPERTS):
            rows = (chosen == expert).nonzero().flatten()
            part = hidden[rows] if self.use != "where" else hidden[chosen == expert]
            part = (hidden * 1)[rows] if self.use == "copy" else part
            if self.is_transposed:
                part = (part @ self.up[expert]).relu() @ self.down[expert]
            elif self.use == "cast":
                part = functional.linear(functional.linear(part, self.up[expert] * 1.0).relu(), self.down[expert])
            else:
                part = functional.linear(functional.linear(part, self.up[expert]).relu(), self.down[expert])
            output[rows] = part
        return output


class Separate(nn.ModuleList):
    """The same experts as layers."""

    def __init__(self, stacked: Stacked) -> None:
        pairs = ((up, down) for up, down in zip(stacked.up, stacked.down, strict=True))
        super().__init__(nn.ModuleList(map(make_linear, pair)) for pair in pairs)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(hidden)
        for expert, (up, down) in enumerate(self):
            output[chosen == expert] = down(up(hidden[chosen == expert]).relu())
        return output


class Mixture(nn.Module):
    """Routes each token by its first feature."""

    def __init__(self, experts: nn.Module, used: int = EXPERTS) -> None:
        super().__init__()
        self.experts, self.used = experts, used

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        hidden = x.reshape(-1, WIDTH)
        return self.experts(hidden, (hidden[:, 0].abs() * 100).long() % self.used).reshape(x.shape)


def make_linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.detach().clone())
    return layer


def make_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([4.0, 1, 1, 1, 0.1, 1, 1, 2])
    return [torch.randn(5, 20, WIDTH, generator=generator) * scale for _ in range(2)]


def build(use: str = "linear", used: int = EXPERTS) -> Mixture:
    torch.manual_seed(0)
    return Mixture(Stacked(use), used).eval()


def get_matrices(model: Mixture, name: str) -> torch.Tensor:
    weight = getattr(model.experts, name).detach()
    return weight.transpose(1, 2) if model.experts.is_transposed else weight


@pytest.mark.parametrize("use", ["linear", "transposed"])
@pytest.mark.parametrize("solver", LAYER_SOLVERS)
def test_each_expert_is_pruned_as_a_layer_of_its_own(solver: str, use: str) -> None:
    stacked = build(use)
    separate = Mixture(Separate(build().experts))
    report = secateur.prune(stacked, CONFIG, calibration=make_batches(), solver=solver)
    secateur.prune(separate, CONFIG, calibration=make_batches(), solver=solver)
    for name, index in (("up", 0), ("down", 1)):
        expected = torch.stack([pair[index].weight.detach() for pair in separate.experts])
        torch.testing.assert_close(get_matrices(stacked, name), expected, rtol=1e-4, atol=1e-5)
        assert 0 < report.errors[f"experts.{name}"] < 1
    assert report.magnitude_reasons == {}


def test_padding_does_not_count() -> None:
    keep = torch.ones(5, 20, dtype=torch.long)
    keep[:, 12:] = 0
    padded = [torch.where(keep[..., None] > 0, x, 100 * torch.randn_like(x)) for x in make_batches()]
    model, expected = build(), build()
    batches = [{"x": x, "attention_mask": keep} for x in padded]
    report = secateur.prune(model, CONFIG, calibration=batches, solver="wanda")
    secateur.prune(expected, CONFIG, calibration=[x[:, :12] for x in make_batches()], solver="wanda")
    assert report.magnitude_reasons == {}
    for name in ("up", "down"):
        assert torch.equal(get_matrices(model, name), get_matrices(expected, name))


@pytest.mark.parametrize("solver", ["wanda", "sparsegpt", "alps"])
def test_experts_without_tokens_are_pruned_by_magnitude_and_named(
    solver: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, dense, full = build(used=3), build(), build(used=3)
    report = secateur.prune(model, CONFIG, calibration=make_batches(), solver=solver)
    assert report.magnitude_reasons == dict.fromkeys(
        ("experts.up", "experts.down"), "its experts 3 read no calibration data"
    )
    assert "experts 3 read no calibration data" in caplog.text
    secateur.prune(full, CONFIG)
    for name in ("up", "down"):
        assert torch.equal(get_matrices(model, name)[3] != 0, get_matrices(full, name)[3] != 0)
        torch.testing.assert_close(get_matrices(model, name)[3], get_matrices(full, name)[3], rtol=1e-4, atol=1e-5)
        before, after = get_matrices(dense, name), get_matrices(model, name)
        assert not torch.equal((after != 0)[0], (get_matrices(full, name) != 0)[0])
        assert before.shape == after.shape
    assert all(0 < error < 1 for error in report.errors.values())


@pytest.mark.parametrize("solver", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("use", "reasons"),
    [
        ("together", {"experts.up": "not multiplied one by one", "experts.down": "not multiplied one by one"}),
        ("cast", {"experts.up": "not multiplied one by one"}),
    ],
)
def test_experts_that_cannot_be_measured_are_pruned_by_magnitude(
    use: str, reasons: dict[str, str], solver: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, expected = build(use), build(use)
    report = secateur.prune(model, CONFIG, calibration=make_batches(), solver=solver)
    secateur.prune(expected, CONFIG)
    assert report.magnitude_reasons.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in report.magnitude_reasons[name]
        assert torch.equal(model.get_parameter(name), expected.get_parameter(name))
        assert name not in report.errors
        assert repr(name) in caplog.text
    assert str(report).count("unknown") == len(reasons)


def test_padding_that_cannot_be_told_apart_is_a_reason() -> None:
    mask = torch.ones(5, 20, dtype=torch.long)
    mask[:, 15:] = 0
    batches: list[Any] = [{"x": x, "attention_mask": mask} for x in make_batches()]
    report = secateur.prune(build("where"), CONFIG, calibration=batches, solver="wanda")
    assert report.magnitude_reasons == {}  # a boolean index works too
    report = secateur.prune(build("copy"), CONFIG, calibration=batches, solver="wanda")
    reason = "padding cannot be distinguished from tokens in the inputs of its experts"
    assert report.magnitude_reasons == {"experts.up": reason, "experts.down": reason}


@pytest.mark.parametrize("allocation", ["global", "owl", "sensitivity"])
@pytest.mark.parametrize("used", [3, 4])
def test_allocations(allocation: str, used: int) -> None:
    config = CONFIG | {"pattern": "1x1", "target_sparsity": 0.5}
    report = secateur.prune(
        build(used=used), config, calibration=make_batches(), solver="sparsegpt", allocation=allocation
    )
    assert report.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("target", [0.37, 0.5, 0.9])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1xchannel"])
def test_every_expert_prunes_its_share_and_the_total_is_exact(pattern: str, target: float) -> None:
    model = build(used=3)
    config = CONFIG | {"pattern": pattern, "target_sparsity": target}
    report = secateur.prune(model, config, calibration=make_batches(), solver="wanda")
    for layer in report.layers:
        assert layer.pruned_units == round(target * layer.units)
        zeros = [int((matrix == 0).sum()) for matrix in get_matrices(model, layer.name.removeprefix("experts."))]
        assert max(zeros) - min(zeros) <= layer.weights // layer.units


def test_nothing_is_left_behind() -> None:
    model = build()
    secateur.prune(model, CONFIG, calibration=make_batches(), solver="wanda")
    assert not model.experts._forward_pre_hooks
