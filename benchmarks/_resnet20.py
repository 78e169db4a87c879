"""The ResNet-20 of He et al. (arXiv:1512.03385, section 4.2) for 28×28 images of Fashion-MNIST, and its training.

Shortcuts that change the size are 1×1 convolutions (option B of the paper). Images are in channels-last layout, which
takes a third less time on the CPU.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, relu

__all__ = ["SIZE", "Images", "ResNet20", "compute_accuracy", "count_flops", "read_images", "train"]

BATCH = 128
SIZE = 28
"""Height and width of the images."""

WIDTHS = (16, 32, 64)
BLOCKS_PER_WIDTH = 3


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(images)))
        return relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class ResNet20(nn.Module):
    """Classify images of one channel into ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks, inputs = [], WIDTHS[0]
        for outputs in WIDTHS:
            for _ in range(BLOCKS_PER_WIDTH):
                blocks.append(Block(inputs, outputs, stride=1 if inputs == outputs else 2))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.blocks(relu(self.norm(self.conv(images))))
        return self.head(hidden.mean((2, 3)))


class Images:
    """Standardized images of shape (count, 1, 28, 28), and their labels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.contiguous(memory_format=torch.channels_last), labels

    def draw(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch in a random order, half of the images mirrored."""
        order = torch.randperm(len(self.labels), generator=generator)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            is_mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
            images = self.images[chosen]
            yield torch.where(is_mirrored, images.flip(3), images), self.labels[chosen]


def read_images(folder: Path) -> tuple[Images, Images]:
    """Read the training and the test images from the four idx files of Fashion-MNIST."""
    training, test = (_read_side(folder, name) for name in ("train", "t10k"))
    return training, test


def _read_side(folder: Path, name: str) -> Images:
    pixels = _read_bytes(folder / f"{name}-images-idx3-ubyte.gz", header=16)
    images = (pixels.float().reshape(-1, 1, SIZE, SIZE) / 255 - 0.2860) / 0.3530
    return Images(images, _read_bytes(folder / f"{name}-labels-idx1-ubyte.gz", header=8).long())


def _read_bytes(path: Path, header: int) -> Tensor:
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an idx file of bytes.")
    return torch.tensor(np.frombuffer(content, np.uint8, offset=header))


def train(
    model: nn.Module, images: Images, epochs: int, rate: float, seed: int, *, small_epochs: int = 0
) -> Iterator[str]:
    """Train with Nesterov momentum and a one-cycle schedule up to ``rate``, and yield a line of progress per epoch.

    The first ``small_epochs`` get images of half the size, which take a quarter of the time.
    """
    steps = epochs * (len(images.labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        model.train()
        losses = []
        for batch, labels in images.draw(generator):
            loss = cross_entropy(model(avg_pool2d(batch, 2) if epoch < small_epochs else batch), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        model.eval()
        yield f"epoch {epoch + 1} of {epochs}: loss {torch.stack(losses).mean():.3f}"


@torch.no_grad()
def count_flops(model: nn.Module) -> int:
    """Count the multiplications of all convolutions and linear layers for one image."""
    total = 0

    def add(layer: nn.Module, _: Any, outputs: Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * outputs[0, 0].numel()

    handles = [
        layer.register_forward_hook(add) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        model(torch.zeros(1, 1, SIZE, SIZE))
    finally:
        for handle in handles:
            handle.remove()
    return total


@torch.no_grad()
def compute_accuracy(model: nn.Module, images: Images) -> float:
    """Compute the accuracy in percent."""
    pairs = zip(images.images.split(500), images.labels.split(500), strict=True)
    right = sum(int((model(batch).argmax(1) == labels).sum()) for batch, labels in pairs)
    return 100 * right / len(images.labels)
