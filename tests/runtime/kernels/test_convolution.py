"""Sparse convolutions, compared with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.kernels.fenced import copy_fenced, needs_mprotect
from runtime.kernels.products import convolve
from secateur.errors import ConfigError
from secateur.runtime.kernels import OVERREAD_FLOATS, ConvolutionWindow, PackedMatrix
from secateur.runtime.kernels.convolution import fit_panels

GUARD = 64
MARK = np.float32(12345.0)
MANY = 64


def create_weights(outputs: int, window: ConvolutionWindow, pattern: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    features = window.channels * window.kernel[0] * window.kernel[1]
    weight = rng.standard_normal((outputs, features)).astype(np.float32)
    if ":" in pattern:
        keep, group = (int(size) for size in pattern.split(":"))
        order = rng.random((outputs, features // group, group)).argsort(axis=2).argsort(axis=2)
        return weight * (order < keep).reshape(weight.shape)
    rows, cols = (int(size) for size in pattern.split("x"))
    keep = rng.random((outputs // rows, features // cols)) < 0.4
    return weight * keep.repeat(rows, 0).repeat(cols, 1)


def create_planes(images: np.ndarray, window: ConvolutionWindow) -> np.ndarray:
    """Pad images, separate their pixels by phase, and append floats that must not be used."""
    (down, across), (height, width) = window.stride, window.phase_size
    padded = np.zeros((*images.shape[:2], height * down, width * across), np.float32)
    padded[:, :, : images.shape[2], : images.shape[3]] = images
    separated = padded.reshape(*images.shape[:2], height, down, width, across).transpose(0, 1, 3, 5, 2, 4)
    return np.append(separated, np.full(OVERREAD_FLOATS, np.nan, np.float32))


def compute_convolution(
    matrix: PackedMatrix, images: np.ndarray, window: ConvolutionWindow, bias: np.ndarray, threads: int
) -> np.ndarray:
    """Compute the convolution into memory between guards, which must not change."""
    shape = len(images), matrix.shape[0], window.height, window.width
    memory = np.full(int(np.prod(shape)) + 2 * GUARD, MARK)
    x, y = create_planes(images, window), memory[GUARD:-GUARD]
    convolve(matrix, (len(images), window), (x, y), bias, threads)
    assert np.all(memory[:GUARD] == MARK)
    assert np.all(memory[-GUARD:] == MARK)
    return y.reshape(shape)


def compute_expected(weight: np.ndarray, images: np.ndarray, window: ConvolutionWindow, bias: np.ndarray) -> np.ndarray:
    kernel = weight.reshape(len(weight), *window.kernel, window.channels).transpose(0, 3, 1, 2)
    numbers = [torch.from_numpy(np.ascontiguousarray(array)).double() for array in (images, kernel, bias)]
    return torch.nn.functional.conv2d(*numbers, stride=window.stride, dilation=window.dilation).numpy()


def check(
    window: ConvolutionWindow, outputs: int, batch: int, pattern: str, dtype: str = "float32", threads: int = 1
) -> None:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((batch, window.channels, *window.size)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    matrix = PackedMatrix.from_dense(create_weights(outputs, window, pattern), pattern, dtype, MANY)
    expected = compute_expected(matrix.to_dense(), images, window, bias)
    actual = compute_convolution(matrix, images, window, bias, threads)
    assert np.linalg.norm(actual - expected) <= 1e-5 * max(np.linalg.norm(expected), 1e-30)


PATTERNS = [("4x1", 12, 6), ("8x1", 16, 5), ("16x1", 32, 3), ("3x2", 9, 4), ("1x4", 5, 4), ("1x1", 19, 7)]
GROUP_LENGTHS = [("2:4", 18, 8), ("4:8", 7, 8), ("1:4", 20, 4), ("3:5", 6, 5)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("pattern", "outputs", "channels"), [*PATTERNS, *GROUP_LENGTHS])
def test_convolution_matches_dense(pattern: str, outputs: int, channels: int, dtype: str) -> None:
    check(ConvolutionWindow(channels, (16, 16), (3, 3), (1, 1), (1, 1)), outputs, 2, pattern, dtype)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 100))
steps = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kind=st.sampled_from([*PATTERNS, *GROUP_LENGTHS]),
    size=sizes,
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=steps,
    dilation=steps,
    batch=st.integers(0, 3),
    threads=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_convolution_of_any_shape(
    kind: tuple[str, int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    batch: int,
    threads: int,
) -> None:
    pattern, outputs, channels = kind
    window = ConvolutionWindow(channels, size, kernel, stride, dilation)
    assume(min(window.height, window.width) > 0)
    check(window, outputs, batch, pattern, threads=threads)


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("pattern", ["4x1", "8x1", "1x1", "2:4"])
def test_threads_do_not_change_results(pattern: str) -> None:
    window = ConvolutionWindow(8, (30, 90), (3, 3), (1, 1), (1, 1))
    images = np.random.default_rng(0).standard_normal((2, 8, 30, 90)).astype(np.float32)
    matrix = PackedMatrix.from_dense(create_weights(272, window, pattern), pattern, rows=MANY)
    bias = np.zeros(272, np.float32)
    alone = compute_convolution(matrix, images, window, bias, 1)
    for threads in (2, 3, 7):
        assert np.array_equal(compute_convolution(matrix, images, window, bias, threads), alone)


@given(
    size=sizes,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=steps,
    lanes=st.sampled_from([4, 8, 16]),
    most=st.integers(1, 8),
)
def test_panels_cover_the_image(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], lanes: int, most: int
) -> None:
    window = ConvolutionWindow(1, size, kernel, stride, (1, 1))
    assume(min(window.height, window.width) > 0)
    grid = fit_panels(window, lanes, most)
    assert 1 <= grid.vectors <= most
    assert (grid.lines - 1) * window.phase_size[1] + grid.span <= grid.vectors * lanes
    assert grid.span == window.width if grid.segments == 1 else grid.span * grid.segments >= window.width > grid.span
    assert grid.panels == -(-window.height // grid.lines) * grid.segments
    assert grid.lines == 1 or grid.segments == 1


def test_offsets_point_to_the_pixels_of_a_phase() -> None:
    window = ConvolutionWindow(channels=3, size=(8, 10), kernel=(3, 2), stride=(2, 3), dilation=(1, 2))
    images = np.random.default_rng(0).standard_normal((1, 3, 8, 10)).astype(np.float32)
    flat = create_planes(images, window)
    pixels = [flat[offset] for offset in window.offsets]
    assert pixels == [
        images[0, channel, row, 2 * column] for row in range(3) for column in range(2) for channel in range(3)
    ]


@pytest.mark.parametrize(
    ("images", "threads", "channels"), [(-1, 1, 4), (1, 0, 4), (1, 1, 5)], ids=["images", "threads", "channels"]
)
def test_arguments_out_of_range_raise(images: int, threads: int, channels: int) -> None:
    matrix = PackedMatrix.from_dense(np.ones((4, 36), np.float32), "4x1")
    with pytest.raises(ConfigError, match=r"the window have 36 features, found"):
        matrix.compile_convolution(images, ConvolutionWindow(channels, (8, 8), (3, 3), (1, 1), (1, 1)), threads=threads)


@needs_mprotect
@pytest.mark.parametrize("pattern", ["4x1", "8x1", "1x1", "2:4"])
@pytest.mark.parametrize("pixels", [OVERREAD_FLOATS, OVERREAD_FLOATS + 1, 1024])
def test_kernels_do_not_read_past_long_lines(pixels: int, pattern: str) -> None:
    weight = np.ones((8, 8), np.float32)
    weight[:, 2::4] = weight[:, 3::4] = 0
    images, y = copy_fenced(np.ones((8, pixels), np.float32)), np.zeros((8, pixels), np.float32)
    window = ConvolutionWindow(8, (1, pixels), (1, 1), (1, 1), (1, 1))
    convolve(PackedMatrix.from_dense(weight, pattern, rows=MANY), (1, window), (images, y))
    assert np.all(y == 4)


@needs_mprotect
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_kernels_read_only_the_documented_floats_past_images(stride: tuple[int, int]) -> None:
    window = ConvolutionWindow(4, (9, 11), (3, 3), stride, (1, 1))
    matrix = PackedMatrix.from_dense(create_weights(8, window, "4x1"), "4x1")
    images = np.random.default_rng(0).standard_normal((2, 4, 9, 11)).astype(np.float32)
    x, y = copy_fenced(create_planes(images, window)), np.empty((2, 8, window.height, window.width), np.float32)
    convolve(matrix, (2, window), (x, y))
    expected = compute_expected(matrix.to_dense(), images, window, np.zeros(8, np.float32))
    assert np.allclose(y, expected, atol=1e-5)
