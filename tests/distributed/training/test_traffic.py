"""How many bytes a mask update sends, for layers of realistic size that three processes divide unevenly."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import secateur
from distributed.processes import run_ranks
from distributed.traffic import Traffic
from distributed.units import ONCE, Attention

MAX_BYTES = 1 << 20
"""Bytes per layer and mask update."""

ROWS, COLUMNS = 1024, 4096  # as the key projection of an LLM; more rows send hardly more
STEPS = {"start_step": 1, "end_step": 2, "sparsity_decay_type": "linear"}
PROGRESSIVE = {**STEPS, "kind": "progressive", "progressive_steps": 2, "pruning_frequency": 2, "end_step": 3}

MATRIX: dict[str, dict[str, Any]] = {
    "1x1": {"pattern": "1x1"},
    "4x1": {"pattern": "4x1"},
    "2:4 in part": {"pattern": "2:4", "target_sparsity": 0.3},
    "1xchannel": {"pattern": "1xchannel"},
    "channelx1": {"pattern": "channelx1"},
    "channelx1, progressive": {"pattern": "channelx1", **PROGRESSIVE},
    "4x1, progressive": {"pattern": "4x1", **PROGRESSIVE},
    "4x1, random": {"pattern": "4x1", "criterion": "random"},
    "channelx1, momentum": {"pattern": "channelx1", **STEPS, "criterion": "snip_momentum"},
    "4x1, momentum": {"pattern": "4x1", **STEPS, "criterion": "snip_momentum"},
}
"""Of one matrix."""

HEADS: dict[str, dict[str, Any]] = {"heads": {"pattern": "heads"}}
"""Of attention with eight heads of 128 channels."""

WHOLE: dict[str, dict[str, Any]] = {"lock": {"kind": "pattern_lock", "pattern": "1x1"}}
"""Weights that every process needs as a whole."""


def measure(cases: dict[str, dict[str, Any]], model: nn.Module) -> dict[str, list[int]]:
    """Return the bytes that preparing a run sends, and each of its steps."""
    fully_shard(model)
    dense = [weight.detach().clone() for weight in model.parameters()]
    sent = {}
    for name, config in cases.items():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for weight, values in zip(model.parameters(), dense, strict=True):
            weight.detach().copy_(values)
            weight.grad = values.clone()
        with Traffic(dist.get_world_size()) as traffic:
            pruner = secateur.prepare(model, {**ONCE, "op_names": [".*"], **config}, optimizer)
            sent[name] = [traffic.bytes]
            for _ in range(config.get("end_step", 0)):
                before = traffic.bytes
                optimizer.step()
                sent[name].append(traffic.bytes - before)
        pruner.close()
    return sent


def measure_all() -> tuple[dict[str, list[int]], dict[str, list[int]], dict[str, list[int]]]:
    matrix, small = (nn.Sequential(nn.Linear(COLUMNS, rows, bias=False)) for rows in (ROWS, ROWS // 8))
    attention = Attention(width=1024, head_dim=128, heads=8, queries=1)
    return measure(MATRIX, matrix), measure(HEADS, attention), measure(WHOLE, small)


def test_a_mask_update_sends_at_most_a_mebibyte_per_layer() -> None:
    for matrix, heads, whole in run_ranks(measure_all, 3):
        for name, sent in matrix.items():
            assert max(sent) <= MAX_BYTES, name
            assert max(sent) >= 2000, name  # something is counted
        assert 0 < max(heads["heads"]) <= MAX_BYTES  # of four layers
        assert max(whole["lock"]) >= 2 * 4 * COLUMNS * ROWS // 8 // 3  # a third to each of the two others
