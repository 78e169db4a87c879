"""Cost and result of refiners do not depend on how the calibration data is cut into batches."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.oneshot.pytorch.calibration.batches import calibration_mode, read_batches
from secateur.oneshot.pytorch.calibration.sequences import regroup_by_sequences
from secateur.refiners import Block, Distill
from tiny_models import bits, deep_mlp
from tiny_transformers import family

CONFIG = {"pattern": "2:4"}
CPU = torch.device("cpu")


def make_tokens() -> dict[str, torch.Tensor]:
    """Eight sequences, some of which are padded."""
    tokens = torch.randint(1, 64, (8, 10), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(10) < torch.tensor([10, 9, 10, 4, 10, 10, 7, 10])[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def cut(batch: Any, size: int) -> list[Any]:
    if isinstance(batch, torch.Tensor):
        return list(batch.split(size))
    parts = {key: value.split(size) for key, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


class Counter:
    """Counts the calls of a module, and the rows that it reads."""

    def __init__(self, module: nn.Module) -> None:
        self.calls, self.rows = 0, 0
        module.register_forward_pre_hook(self.count)

    def count(self, module: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002
        self.calls += 1
        self.rows += len(args[0]) if args[0].ndim > 1 else 1


@pytest.mark.parametrize("refine", [Block(steps=3), Distill(steps=2)])
def test_sequences_count_and_not_batches(refine: Any) -> None:
    outcomes = []
    for size in (1, 4, 8):
        model = family("llama")
        counter = Counter(model.model.layers[0].mlp)
        secateur.prune(model, CONFIG, calibration=cut(make_tokens(), size), solver="sparsegpt", refine=refine)
        outcomes.append((bits(model), counter.rows))
    assert outcomes[0][0] == outcomes[1][0] == outcomes[2][0]
    spread = [rows for _, rows in outcomes]
    assert max(spread) - min(spread) <= 6  # to find out whether rows are independent
    assert spread[0] >= 8 + 4 * refine.steps


@pytest.mark.parametrize("solver", ["wanda", "sparsegpt"])
def test_solvers_differ_by_rounding_only(solver: str) -> None:
    errors = []
    for size in (1, 4, 8):
        report = secateur.prune(family("llama"), CONFIG, calibration=cut(make_tokens(), size), solver=solver)
        errors.append(report.errors)
    for other in errors[1:]:
        assert other == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize(
    ("inputs", "sizes"),
    [
        (torch.zeros(1100, 16), [512, 512, 76]),
        (torch.zeros(20, 16, 8, 8), [8, 8, 4]),
        (torch.zeros(3, 16, 32, 32), [1, 1, 1]),
        (torch.zeros(3, 400, 16), [1, 1, 1]),
        (torch.zeros(230, 5, 16), [102, 102, 26]),
    ],
)
def test_short_rows_are_grouped(inputs: torch.Tensor, sizes: list[int]) -> None:
    model = nn.Conv2d(16, 4, 1).eval() if inputs.ndim == 4 else deep_mlp().eval()
    for size in (1, 3, len(inputs)):
        with calibration_mode(model):
            groups = regroup_by_sequences(model, read_batches(model, inputs.split(size)), CPU)
        assert [len(group.args[0]) for group in groups] == sizes
        assert [group.number for group in groups] == list(range(len(sizes)))
        assert torch.equal(torch.cat([group.args[0] for group in groups]), inputs)


def test_sequences_of_padding_are_left_out() -> None:
    given = {"input_ids": torch.ones(60, 10, dtype=torch.long), "attention_mask": torch.ones(60, 10, dtype=torch.long)}
    given["attention_mask"][51:] = 0  # the second group of 51 rows
    model = family("llama")
    with calibration_mode(model):
        groups = regroup_by_sequences(model, read_batches(model, [given]), CPU)
    assert [len(group.kwargs["input_ids"]) for group in groups] == [51]


def test_batches_of_other_lengths_are_not_joined() -> None:
    tokens = [torch.ones(rows, length, dtype=torch.long) for rows, length in ((4, 6), (3, 6), (5, 9))]
    model = family("llama")
    with calibration_mode(model):
        groups = regroup_by_sequences(model, read_batches(model, [{"input_ids": part} for part in tokens]), CPU)
    assert [tuple(group.kwargs["input_ids"].shape) for group in groups] == [(7, 6), (5, 9)]


class Graph(nn.Module):
    """Rows are nodes, which read their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.body = deep_mlp()

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.body(edges @ nodes)


class Centered(nn.Module):
    """Rows are compared with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.body = deep_mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x - x.mean(dim=0))


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (Graph(), (torch.randn(6, 16), torch.eye(6))),
        (Centered(), torch.randn(6, 16)),
        (Graph(), (torch.randn(6, 16), torch.eye(6)[:2])),
    ],
)
def test_rows_that_depend_on_each_other_stay_together(model: nn.Module, batch: Any) -> None:
    with calibration_mode(model):
        batches = read_batches(model, [batch])
        assert regroup_by_sequences(model, batches, CPU) == batches
