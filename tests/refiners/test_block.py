"""Test how long `Block` goes on."""

from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.refiners import Block
from secateur.refiners.base import BlockTask


def count_steps(refiner: Block, **options: Any) -> int:
    """Return the number of steps on one batch, of which each takes a second."""
    block, states = nn.Linear(4, 4), {0: torch.randn(2, 3, 4)}
    seconds = 0

    def forward(number: int) -> torch.Tensor:
        nonlocal seconds
        seconds += 1
        output: torch.Tensor = block(states[number])
        return output

    task = BlockTask(
        block=block,
        masks={},
        forward=forward,
        inputs=states,
        outputs={0: torch.zeros(2, 3, 4)},
        shifted_outputs={0: torch.zeros(2, 3, 4)},
        keeps={0: None},
        clock=lambda: 100.0 + seconds,
        **options,
    )
    refiner.refine(task)
    return seconds


@pytest.mark.parametrize(
    ("settings", "time_share", "steps"),
    [
        ({}, 1.0, 48),
        ({}, 0.1, 48),
        ({"minutes": 0.5}, 1.0, 29),  # the step that would end at the limit is not taken
        ({"minutes": 0.5}, 0.25, 7),
        ({"minutes": 0.5, "steps": 5}, 0.25, 5),
    ],
)
def test_a_block_gets_its_share_of_the_time(settings: dict[str, Any], time_share: float, steps: int) -> None:
    assert count_steps(Block(**settings), time_share=time_share) == steps


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_minutes_must_be_positive(minutes: float) -> None:
    with pytest.raises(ConfigError, match=f"minutes must be above 0, found {minutes}"):
        Block(minutes=minutes)


@pytest.mark.parametrize("dense_share", [-0.1, 1.1, float("nan")])
def test_the_dense_share_is_checked(dense_share: float) -> None:
    with pytest.raises(ConfigError, match=rf"dense_share must be in \[0, 1\], found {dense_share}"):
        Block(dense_share=dense_share)
