"""Measure what a pruner adds to a training step under FSDP2, and what a mask update sends.

Steps of an encoder of the size of BERT-mini with and without a pruner alternate in the same processes, between mask
updates (batch 8, sequence 128). Run it while no other program is running:

    OMP_WAIT_POLICY=PASSIVE torchrun --nproc-per-node 2 benchmarks/distributed.py --threads 1
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.distributed.fsdp import fully_shard

import secateur
from _timing import measure_wall_seconds, parse_options
from secateur._table import Table
from secateur.distributed.pytorch.shards import ShardLayout
from step_overhead import Encoder, Steps

CASES: dict[str, dict[str, object]] = {
    "magnitude 4x1": {"criterion": "magnitude", "pattern": "4x1"},
    "magnitude 2:4": {"criterion": "magnitude", "pattern": "2:4"},
    "SNIP momentum 4x1": {"criterion": "snip_momentum", "pattern": "4x1"},
    "SNIP momentum 2:4": {"criterion": "snip_momentum", "pattern": "2:4"},
}
WIDTH = 2048
"""Rows and columns of the layer whose mask is updated."""

PATTERNS = ("1x1", "4x1", "16x1", "2:4", "1xchannel", "channelx1")


def shard(model: Encoder) -> Encoder:
    for layer in model.encoder.layers:
        fully_shard(layer)
    return fully_shard(model)


class Traffic:
    """Counts the bytes that a process receives from the collective calls of Secateur."""

    def __init__(self) -> None:
        self.received = 0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count until the end of the block."""
        reduce, gather, whole = dist.all_reduce, dist.all_gather, ShardLayout.gather
        dist.all_reduce = self._watch(reduce, lambda arguments, _: arguments[0].nbytes)
        dist.all_gather = self._watch(gather, lambda arguments, _: sum(part.nbytes for part in arguments[0]))
        ShardLayout.gather = self._watch(whole, lambda _, result: result.nbytes)
        try:
            yield
        finally:
            dist.all_reduce, dist.all_gather, ShardLayout.gather = reduce, gather, whole

    def _watch(self, call: Callable[..., Any], measure: Callable[[Any, Any], int]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            self.received += measure(arguments, result)
            return result

        return watched


def measure_traffic(pattern: str) -> int:
    """Return the bytes that a process receives at a mask update of one layer."""
    model = fully_shard(nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    timing = {"start_step": 1, "end_step": 1, "sparsity_decay_type": "one_shot"}
    config = {"pattern": pattern, "criterion": "magnitude", "target_sparsity": 0.5, "op_names": ["0"], **timing}
    secateur.prepare(model, config, optimizer)
    model(torch.ones(1, WIDTH)).sum().backward()
    traffic = Traffic()
    with traffic.count():
        optimizer.step()
    return traffic.received


def main() -> None:
    dist.init_process_group("gloo")
    arguments = parse_options(__doc__, rounds=20)
    model = Encoder()
    steps = {"no pruner": Steps(shard(copy.deepcopy(model)), None)}
    steps |= {name: Steps(shard(copy.deepcopy(model)), config) for name, config in CASES.items()}
    times = measure_wall_seconds(steps, arguments.rounds)
    plain = times["no pruner"]
    rows = [
        [name, f"{seconds * 1e3:.0f}", f"{seconds / plain - 1:+.1%}", f"{inside * 1e3:.1f}", f"{inside / plain:.1%}"]
        for name, seconds in times.items()
        for inside in [statistics.median(steps[name].in_hooks)]
    ]
    traffic = [[pattern, f"{measure_traffic(pattern) / 1024:,.1f}"] for pattern in PATTERNS]
    if dist.get_rank() == 0:
        size = dist.get_world_size()
        title = f"One training step under FSDP2, {size} processes, median of {arguments.rounds}"
        columns = ("pruner", ">ms", ">added", ">ms in hooks", ">of a step")
        Console().print(Table(title=title, columns=columns, rows=rows))
        title = f"Received by each of {size} processes at a mask update of a layer of {WIDTH} x {WIDTH}"
        Console().print(Table(title=title, columns=("pattern", ">KiB"), rows=traffic))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
