"""Draw the pictures of the gallery: sections of report pages, of models that packages ship, as a browser shows them.

Run this file to renew them. It needs Chromium, Pillow, and the extras `demo`, `report` and `search`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageChops
from sklearn.datasets import load_digits
from torch import nn

import secateur
from secateur.demo.sentences import Encoder, load_english_sentences
from secateur.searching import Range

PATTERNS = ("1x1", "2:4", "4x1", "16x1", "1x16", "16x16")
WIDTH, MAX_HEIGHT, SCALE = 820, 2400, 2
COLORS = 64
MARGIN = 12


def draw_patterns(encoder: Encoder, folder: Path) -> None:
    """Draw the masks of six layers of equal shape, each pruned in another pattern."""
    layers = {
        f"encoder.layer.{block}.intermediate.dense": {"pattern": pattern, "target_sparsity": 0.5}
        for block, pattern in enumerate(PATTERNS)
    }
    config = {"layers": layers, "op_names": [".*intermediate[.]dense"]}
    report = secateur.prune(encoder.model, config)
    report.to_html(folder / "page.html", model=encoder.model)
    draw_section(folder / "page.html", "mask_gallery", "gallery-masks.png")


def draw_sensitivity(encoder: Encoder, sentences: list[str], folder: Path) -> None:
    """Draw how much each layer of a sentence encoder loses."""
    batches = [dict(encoder.tokenizer(sentences[:64], padding=True, return_tensors="pt"))]
    report = secateur.sensitivity(encoder.model, batches, patterns=["1x1", "2:4", "4x1"], sparsities=[0.5, 0.75])
    report.to_html(folder / "page.html")
    draw_section(folder / "page.html", "sensitivity_chart", "gallery-sensitivity.png")


def draw_training(folder: Path) -> None:
    """Train and prune a small network, and draw its sparsity at each step."""
    torch.manual_seed(0)
    model = build_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    config = {"pattern": "4x1", "target_sparsity": 0.9, "end_step": 200}
    pruner = secateur.prepare(model, config, optimizer)
    train(model, optimizer)
    pruner.finalize().to_html(folder / "page.html")
    draw_section(folder / "page.html", "history", "gallery-training.png")


def draw_search(folder: Path) -> None:
    """Draw the trade-off between accuracy and size of a small network."""
    torch.manual_seed(0)
    model = build_net()
    train(model, torch.optim.AdamW(model.parameters(), lr=2e-3))
    images, labels = read_digits()

    @torch.no_grad()
    def accuracy(pruned: Any) -> float:
        return float((pruned.eval()(images[1200:]).argmax(dim=1) == labels[1200:]).float().mean())

    space = {"pattern": ["1x1", "4x1"], "sparsity": Range(0.0, 0.95), "solver": "sparsegpt", "groups": "layer"}
    report = secateur.search(model, accuracy, space, calibration=[images[:512]], trials=60)
    report.to_html(folder / "page.html")
    draw_section(folder / "page.html", "search_front", "gallery-search.png")


def build_net() -> nn.Module:
    """Build a small network for digits."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 300) -> None:
    """Train a network to recognize digits."""
    images, labels = read_digits()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:1200]), labels[:1200]).backward()
        optimizer.step()


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Read the 8×8 images of scikit-learn, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def draw_section(page: Path, name: str, picture: str) -> None:
    """Draw one section of a page, without its heading and tables."""
    text = page.read_text("utf-8")
    head, section = text.split("<header>")[0], re.search(rf'<section id="{name}">.*?</section>', text, re.DOTALL)
    assert section is not None, f"{page} has no section {name}"
    content = re.sub(r"<h2>.*?</h2>|<table.*?</table>", "", section[0], flags=re.DOTALL)
    page.write_text(f"{head}<main>{content}</main></body></html>", "utf-8")
    shot = page.with_name("shot.png")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--force-device-scale-factor={SCALE}"]
    size = f"--window-size={WIDTH},{MAX_HEIGHT}"
    command = ["chromium", *options, size, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own page
    page.write_text(text, "utf-8")
    trim(Image.open(shot).convert("RGB")).save(Path(__file__).with_name(picture), optimize=True)


def trim(image: Image.Image) -> Image.Image:
    """Cut off the empty border, and reduce the colors, which makes the file a quarter as large."""
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(image, empty).getbbox()
    margin = MARGIN * SCALE
    box = max(0, left - margin), max(0, top - margin), min(image.width, right + margin), bottom + margin
    return image.crop(box).quantize(COLORS)


def main() -> None:
    """Draw all pictures."""
    sentences = list(load_english_sentences())
    with TemporaryDirectory() as name:
        folder = Path(name)
        draw_training(folder)
        draw_search(folder)
        draw_sensitivity(Encoder(), sentences, folder)
        draw_patterns(Encoder(), folder)


if __name__ == "__main__":
    main()
