"""Training steps with hybrid sharding, tensor parallelism, and experts, tied and frozen weights: as in one process."""

import traceback
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import secateur
from distributed.models import CONFIG, Trained, check_equal, describe, leave, make_model, shard_hybrid, train
from distributed.models import shard_with_tensors as shard_tensors
from distributed.processes import run_ranks
from distributed.units import ONCE
from secateur.errors import RankError

ROUNDING = 1e-5
"""By how much sums differ that tensor parallelism adds in another order."""


class Experts(nn.Module):
    """Four experts, whose outputs are averaged."""

    num_experts, is_transposed = 4, False

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 8)), nn.Parameter(torch.randn(4, 8, 12))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.einsum("ni,eoi->neo", inputs, self.up).relu()
        return torch.einsum("nei,eoi->no", hidden, self.down) / self.num_experts


def make_experts() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Experts(), nn.Linear(8, 2))


def make_tied() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    return model


def make_frozen() -> nn.Module:
    model = make_model()
    model[0].weight.requires_grad_(requires_grad=False)
    return model


class Case(NamedTuple):
    make: Callable[[], Any]
    divide: Callable[[Any], nn.Module]
    config: dict[str, Any]
    tolerance: float = 0.0


TENSORS = {
    f"tensors {name}": Case(make_model, shard_tensors, {"pattern": name, **more}, ROUNDING)
    for name, more in {"1x1": {}, "2:4": {}, "4x1": {"criterion": "magnitude"}, "channelx1": {}}.items()
}
IN_TWO = {
    **TENSORS,
    "experts": Case(make_experts, fully_shard, {"pattern": "4x1"}),
    "tied": Case(make_tied, fully_shard, {"pattern": "4x1"}),
    "frozen": Case(make_frozen, fully_shard, {"pattern": "4x1", "criterion": "magnitude"}),
}
IN_FOUR = {
    "tensors 1x1": TENSORS["tensors 1x1"],
    **{f"hybrid {name}": Case(make_model, shard_hybrid, {"pattern": name}) for name in ("4x1", "channelx1")},
}
CASES = IN_TWO | IN_FOUR


def run_case(case: Case, divide: Callable[[Any], nn.Module]) -> Any:
    try:
        model = divide(case.make())
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
        pruner = secateur.prepare(model, {**CONFIG, **case.config}, optimizer)
        train(model, optimizer, range(4))
        return describe(Trained(model, optimizer, pruner))
    except Exception:  # noqa: BLE001 -- the test of the case shows it
        return traceback.format_exc()


def run_cases() -> dict[str, Any]:
    cases = IN_TWO if dist.get_world_size() == 2 else IN_FOUR
    return {name: run_case(case, case.divide) for name, case in cases.items()}


@cache
def run_whole(name: str) -> Any:
    return run_case(CASES[name], leave)


@pytest.mark.parametrize("ranks", [2, 4])
def test_steps_are_those_of_one_process(ranks: int) -> None:
    for found in run_ranks(run_cases, ranks, limit=200):
        for name, end in found.items():
            expected = run_whole(name)
            check_equal(end, expected, CASES[name].tolerance)
            assert 0 < expected["sparsity"] < 1, name


def divide_experts() -> tuple[Any, str]:
    """Give each process some experts: as shards of stacked weights, and as weights of its own."""
    mesh, model = init_device_mesh("cpu", (2,)), make_experts()
    for name, weight in list(model[0].named_parameters()):
        setattr(model[0], name, nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)])))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = secateur.prepare(model, {**ONCE, "pattern": "4x1"}, optimizer)
    masks = {name: getattr(mask, "full_tensor", lambda mask=mask: mask)() for name, mask in pruner.masks.items()}
    pruner.close()
    own = make_model()
    with torch.no_grad():
        own[2].weight += dist.get_rank()
    fully_shard(own[0])
    with pytest.raises(RankError) as error:
        secateur.prepare(own, {**ONCE, "pattern": "4x1"}, torch.optim.SGD(own.parameters(), lr=0.1))
    return masks, str(error.value)


def test_experts_of_each_process_are_sharded_or_refused() -> None:
    model = make_experts()
    expected = secateur.prepare(model, {**ONCE, "pattern": "4x1"}, torch.optim.SGD(model.parameters(), lr=0.1)).masks
    for masks, error in run_ranks(divide_experts, 2):
        torch.testing.assert_close(masks, expected)
        assert error.startswith("Ranks must have the same weight of layer '2', but rank 1 has another than rank 0.")
