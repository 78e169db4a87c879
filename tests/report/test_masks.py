"""Tests of pictures of masks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import report
from secateur.errors import ConfigError
from secateur.report import Mask, compute_density, draw_masks


@given(rows=st.integers(1, 40), cols=st.integers(1, 40), most=st.integers(1, 16), seed=st.integers(0, 9))
def test_density_is_the_share_kept_in_each_pixel(rows: int, cols: int, most: int, seed: int) -> None:
    keep = np.random.default_rng(seed).random((rows, cols)) < 0.5
    found = compute_density(keep, most)
    assert found.shape == (min(rows, most), min(cols, most))
    height, width = found.shape
    for row in range(height):
        for col in range(width):
            part = keep[
                row * rows // height : (row + 1) * rows // height, col * cols // width : (col + 1) * cols // width
            ]
            assert found[row, col] == pytest.approx(part.mean())


def test_a_title_describes_the_mask() -> None:
    mask = Mask(name="fc", pattern="2:4", keep=np.eye(4, dtype=bool))
    assert mask.title == "fc\n4×4  2:4  75.0% pruned"
    assert "no pattern" in Mask(name="fc", pattern=None, keep=np.eye(4, dtype=bool)).title


def test_kept_is_dark_and_pruned_is_light(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    keep = np.zeros((4, 4), dtype=bool)
    keep[:, :2] = True
    assert draw_masks([Mask(name="fc", pattern="channelx1", keep=keep)], tmp_path / "masks.png") == 1
    pixels = imread(tmp_path / "masks.png")[..., 0]
    height, width = pixels.shape
    rows = pixels[height // 2]
    dark = np.flatnonzero(rows < 0.1)
    assert dark.size > width // 8
    middle = (dark.min() + dark.max()) // 2  # the frame is dark too, on the right of the light half
    assert rows[middle + width // 20] > 0.9
    assert rows[middle - width // 20] < 0.1


def test_large_and_small_masks_and_long_names_in_one_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    masks = [Mask(name="layer." * 20 + str(size), pattern=None, keep=np.eye(size, dtype=bool)) for size in (8, 300)]
    assert draw_masks(masks, tmp_path / "masks.svg") == 2
    assert "…" in (tmp_path / "masks.svg").read_text("utf-8")


def test_no_masks_draw_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw_masks([], tmp_path / "masks.png") == 0
    assert not (tmp_path / "masks.png").exists()


def test_too_many_masks_are_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    masks = [Mask(name="fc", pattern=None, keep=np.eye(2, dtype=bool))] * 1001
    with pytest.raises(ConfigError, match=r"at most 1,000 layers, found 1,001\."):
        draw_masks(masks, tmp_path / "masks.png")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_names_of_layers_are_drawn_verbatim(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    keep = np.eye(4, dtype=bool)
    for name in (r"$\frac{1}{$", "fc$_{0}$", "日本語", "\x1b[2J\0\udcff", "a\nb" * 1_000):
        assert draw_masks([Mask(name=name, pattern=name, keep=keep)], tmp_path / f"masks.{suffix}") == 1
    assert Mask(name="\x1b\n", pattern="\n", keep=keep).title == r"\x1b\n" + "\n" + r"4×4  \n  75.0% pruned"


def test_the_old_name_of_compute_density_warns() -> None:
    with pytest.deprecated_call(match="compute_density"):
        assert report.density is compute_density
