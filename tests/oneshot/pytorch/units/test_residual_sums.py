"""What repairs add to the outputs of layers, compared with both models run side by side."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur
from oneshot.unit_cases import CASES
from secateur.graph import trace
from secateur.oneshot.pytorch.units import residual_sums
from secateur.oneshot.pytorch.units.residual_sums import Comparison, DenseSums
from secateur.oneshot.pytorch.units.unit_problems import Correction


class Branch(nn.Module):
    """Adds a branch to its input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = inputs + self.down(torch.relu(self.up(self.norm(inputs))))
        return outputs


class Twice(Branch):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(inputs))


class Scaled(Branch):
    """The output is not what is added."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = inputs + 2 * self.down(torch.relu(self.up(self.norm(inputs))))
        return outputs


class InPlace(Branch):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.down(torch.relu(self.up(self.norm(inputs))))
        outputs += inputs
        return outputs


def compare(block: Branch, batches: list[torch.Tensor], keeps: list[torch.Tensor | None]) -> Comparison:
    """Compare a block that reads the batches with one that reads other inputs."""
    layers = {"down": block.down, "norm": block.norm}
    sums = DenseSums("memory")
    with torch.no_grad():
        with sums.record(layers):
            for batch in batches:
                block(batch + 1)
        comparison = sums.start(layers, len(batches))
        with comparison.watch(lambda _: None):
            for batch, keep in zip(batches, keeps, strict=True):
                comparison.start_batch(keep)
                block(batch)
    sums.close()
    return comparison


@pytest.mark.parametrize("kind", [Branch, InPlace])
@torch.no_grad()
def test_corrections_are_half_of_the_differences_of_tokens_that_count(kind: Callable[..., Branch]) -> None:
    torch.manual_seed(0)
    block = kind(4, 6)
    batches = [torch.randn(2, 5, 4) for _ in range(3)]
    keeps = [torch.rand(2, 5) > 0.3 for _ in batches]
    found = compare(block, batches, [*keeps]).read(["down", "norm"])
    differences, inputs = [], []
    for batch, keep in zip(batches, keeps, strict=True):
        hidden = torch.relu(block.up(block.norm(batch)))
        differences.append((block(batch + 1) - batch - block.down(hidden))[keep])
        inputs.append(hidden[keep])
    assert [*found] == ["down"]
    rows_NR, rows_NF = torch.cat(differences), torch.cat(inputs)
    torch.testing.assert_close(found["down"].products, 0.5 * torch.einsum("nr,nf->rf", rows_NR, rows_NF))
    torch.testing.assert_close(found["down"].mean, 0.5 * rows_NR.mean(dim=0))


@pytest.mark.parametrize("kind", [Twice, Scaled])
def test_layers_without_one_sum_per_batch_are_not_corrected(kind: Callable[..., Branch]) -> None:
    batches = [torch.randn(2, 4) for _ in range(3)]
    comparison = compare(kind(4, 6), batches, [None] * 3)
    assert not comparison.layers
    assert not comparison.read(["down"])


@pytest.mark.parametrize("offload", ["memory", "disk"])
def test_repairs_make_up_for_errors_of_earlier_blocks(offload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [torch.randn(256, 8, generator=torch.Generator().manual_seed(number)) for number in range(4)]
    errors = []
    for share in (0.0, 0.5):
        monkeypatch.setattr(residual_sums, "DENSE_SHARE", share)
        torch.manual_seed(0)
        model = nn.Sequential(*(Branch(8, 32) for _ in range(4)))
        with torch.no_grad():
            expected = torch.cat([model(batch) for batch in batches])
        secateur.prune(
            model,
            {"pattern": "channels", "target_sparsity": 0.5},
            calibration=batches,
            solver="osscar",
            example_inputs=trace(model, batches[0]),
            execution=secateur.Execution(offload=offload),  # type: ignore[arg-type]
        )
        with torch.no_grad():
            errors.append(float((torch.cat([model(batch) for batch in batches]) - expected).square().mean()))
    assert errors[1] < 0.98 * errors[0], errors


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_layers_that_read_units_of_transformers_are_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    read = Comparison.read

    def record(self: Comparison, names: list[str]) -> dict[str, Correction]:
        corrections = read(self, names)
        seen.update(corrections)
        return corrections

    monkeypatch.setattr(Comparison, "read", record)
    case = CASES[name]
    model = case.create()
    secateur.prune(model, case.config, calibration=case.batches(), solver="osscar", example_inputs=case.graph)
    readers = ("o_proj", "down_proj", "output.dense", "c_proj")
    assert seen == {
        key for key, module in model.named_modules() if key.endswith(readers) and "encoder" in key + "encoder"
    }
