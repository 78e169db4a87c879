"""Runs with stored results: their settings, weights, gradients, and what they end with, in every framework.

Weights and gradients are small multiples of 1/1024, so that sums and products are exact, and what is rounded is rounded
in a fixed order: neither a processor, a library nor the number of threads shows in the result.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def exact(count: int, seed: int) -> torch.Tensor:
    """Distinct multiples of 1/1024 of both signs, in an order that is written down here."""
    order = (np.arange(count) * 7919 + 13 * seed) % 1021
    signs = np.where((np.arange(count) + seed) % 3 == 0, -1, 1)
    return torch.from_numpy(((order + 1) * signs / 1024).astype(np.float32))


def model_of_given_weights() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(16, 24), nn.Linear(24, 4))
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            weight.copy_(exact(weight.numel(), seed).reshape(weight.shape))
    return model


def digest(masks: Mapping[str, torch.Tensor]) -> str:
    """The masks bit by bit, with the names of the layers."""
    hashed = hashlib.sha256()
    for name, mask in masks.items():
        hashed.update(name.encode() + np.packbits(mask.cpu().numpy()).tobytes())
    return hashed.hexdigest()[:16]


AT_ONCE = {"criterion": "magnitude", "start_step": 0, "sparsity_decay_type": "one_shot"}
GROWING = {"criterion": "snip_momentum", "end_step": 7, "pruning_frequency": 3}

GOLDEN: dict[str, tuple[dict[str, Any], list[int], str]] = {
    "1x1": (
        {**AT_ONCE, "pattern": "1x1", "target_sparsity": 0.75},
        [504] * 8,
        "010fc7706c227d2d",
    ),
    "4x1": (
        {**AT_ONCE, "pattern": "4x1", "target_sparsity": 0.75},
        [504] * 8,
        "459d6f7710d1497e",
    ),
    "1x4": (
        {**AT_ONCE, "pattern": "1x4", "target_sparsity": 0.75},
        [504] * 8,
        "1f600fbc6921cbfb",
    ),
    "2x2 local": (
        {**AT_ONCE, "pattern": "2x2", "target_sparsity": 0.75, "pruning_scope": "local"},
        [504] * 8,
        "0acbe0166ef9ef44",
    ),
    "1xchannel": (
        {**AT_ONCE, "pattern": "1xchannel", "target_sparsity": 0.5, "criterion_reduce_type": "l2"},
        [256] * 8,
        "4ee9335bb446d2bc",
    ),
    "channelx1": (
        {**AT_ONCE, "pattern": "channelx1", "target_sparsity": 0.5, "criterion_reduce_type": "max"},
        [288] * 8,
        "8abd8f6bcc4c2344",
    ),
    "2:4": ({**AT_ONCE, "pattern": "2:4"}, [336] * 8, "55c16c33fefca49e"),
    "2:4 in part": (
        {**AT_ONCE, "pattern": "2:4", "target_sparsity": 0.3},
        [202] * 8,
        "a32a60b741dd595b",
    ),
    "random": (
        {**AT_ONCE, "pattern": "1x1", "target_sparsity": 0.5, "criterion": "random", "seed": 5},
        [336] * 8,
        "25b55789bbf703e0",
    ),
    "snip_momentum": (
        {**GROWING, "pattern": "4x1", "target_sparsity": 0.75},
        [0, 0, 0, 440, 440, 440, 504, 504],
        "0508b524050c1539",
    ),
    "snip_momentum bfloat16": (
        {**GROWING, "pattern": "4x1", "target_sparsity": 0.7, "score_dtype": "bfloat16"},
        [0, 0, 0, 412, 412, 412, 472, 472],
        "d38bff744bd07344",
    ),
    "taylor": (
        {**GROWING, "pattern": "1x4", "target_sparsity": 0.75, "criterion": "taylor"},
        [0, 0, 0, 440, 440, 440, 504, 504],
        "e0e019c545238993",
    ),
    "movement": (
        {**GROWING, "pattern": "4x1", "target_sparsity": 0.6, "criterion": "movement", "pruning_scope": "local"},
        [0, 0, 0, 352, 352, 352, 404, 404],
        "cb196a04db06a788",
    ),
    "progressive": (
        {**GROWING, "pattern": "4x1", "target_sparsity": 0.8, "kind": "progressive", "progressive_steps": 3},
        [0, 156, 314, 472, 493, 514, 536, 536],
        "2ace53d474413cd2",
    ),
    "bounds": (
        {**GROWING, "pattern": "4x1", "target_sparsity": 0.7, "max_sparsity_ratio_per_op": 0.72},
        [0, 0, 0, 412, 412, 412, 472, 472],
        "463cf14a80913b17",
    ),
    "rules": (
        {
            **GROWING,
            "pattern": "4x1",
            "target_sparsity": 0.8,
            "layers": {"0": {"pattern": "2:4", "target_sparsity": 0.5}},
        },
        [0, 0, 0, 394, 394, 394, 452, 452],
        "06e1daee7b96cffe",
    ),
}
