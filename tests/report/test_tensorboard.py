"""Tests of what is written to TensorBoard while a model trains."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ConfigError
from secateur.report import TensorBoardCallback


class Recorder:
    """Records what a ``SummaryWriter`` would write."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.images: dict[tuple[str, int], Any] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))

    def add_image(self, tag: str, img_tensor: Any, global_step: int, *, dataformats: str) -> None:
        assert dataformats == "HW"
        self.images[tag, global_step] = img_tensor


def train(every: int, images: int = 8) -> tuple[Recorder, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 16), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    config = {"pattern": "4x1", "target_sparsity": 0.5, "end_step": 7, "pruning_frequency": 1}
    pruner = secateur.prepare(net, config, optimizer=optimizer)
    recorder = Recorder()
    callback = TensorBoardCallback(pruner, recorder, every=every, images=images)
    for _ in range(12):
        net(torch.ones(2, 4, 3, 3)).square().sum().backward()
        optimizer.step()
        callback.after_step()
        callback.after_step()  # a second call without a step writes nothing
    return recorder, pruner


def test_scalars_are_written_every_few_steps_and_when_the_target_is_reached() -> None:
    recorder, pruner = train(every=5)
    totals = [(step, value) for tag, value, step in recorder.scalars if tag == "sparsity"]
    assert [step for step, _ in totals] == [5, 7, 10]
    assert totals[-1][1] == pruner.sparsity == 0.5
    layers = {tag: value for tag, value, step in recorder.scalars if step == 10 and tag != "sparsity"}
    assert layers == {f"sparsity/{layer.name}": layer.sparsity for layer in pruner.report().layers}


def test_masks_are_drawn_with_pruned_weights_white() -> None:
    recorder, pruner = train(every=5)
    assert {tag for tag, _ in recorder.images} == {"mask/0", "mask/2"}
    for name in ("0", "2"):
        image = recorder.images[f"mask/{name}", 10]
        assert image.dtype == np.float32
        assert np.array_equal(image, ~pruner.masks[name].numpy().reshape(len(image), -1))


def test_masks_of_keras_have_their_outputs_last() -> None:
    mask = np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5) % 2 == 0

    class Pruner:
        step = 3

        @property
        def masks(self) -> dict[str, Any]:
            return {"conv": mask}

        def report(self) -> Any:
            return secateur.prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), "2:4")

    recorder = Recorder()
    TensorBoardCallback(Pruner(), recorder).write()  # type: ignore[arg-type]
    assert np.array_equal(recorder.images["mask/conv", 3], ~mask.reshape(24, 5))


def test_the_number_of_pictures_is_limited() -> None:
    assert {tag for tag, _ in train(every=5, images=1)[0].images} == {"mask/0"}
    assert train(every=5, images=0)[0].images == {}


@pytest.mark.parametrize("wrong", [{"every": 0}, {"images": -1}])
def test_impossible_numbers_are_refused(wrong: dict[str, int]) -> None:
    optimizer = torch.optim.SGD((net := nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))).parameters())
    with pytest.raises(ConfigError, match="every must be at least 1"):
        TensorBoardCallback(secateur.prepare(net, "2:4", optimizer=optimizer), Recorder(), **wrong)
