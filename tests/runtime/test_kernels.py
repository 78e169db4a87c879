"""Products by the kernels beside plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import DTYPES, PackedMatrix, unsupported

GUARD = 64
MARK = np.float32(12345.0)


def pruned(shape: tuple[int, int], pattern: str, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if ":" in pattern:
        count, group = (int(size) for size in pattern.split(":"))
        order = rng.random((shape[0], shape[1] // group, group)).argsort(axis=2).argsort(axis=2)
        some = (order < count) & (rng.random(order.shape) < 2 * density)
        return (rng.standard_normal(shape) * some.reshape(shape)).astype(np.float32)
    rows, cols = (int(size) for size in pattern.split("x"))
    keep = rng.random((shape[0] // rows, shape[1] // cols)) < density
    return (rng.standard_normal(shape) * np.kron(keep, np.ones((rows, cols)))).astype(np.float32)


def product(matrix: PackedMatrix, x: np.ndarray, bias: np.ndarray | None = None, threads: int = 1) -> np.ndarray:
    """The product, between guards that must stay as they are."""
    size = len(x) * matrix.shape[0]
    memory = np.full(size + 2 * GUARD, MARK, np.float32)
    y = memory[GUARD : GUARD + size]
    address = None if bias is None else bias.ctypes.data
    matrix.matmul(x.ctypes.data, len(x), y.ctypes.data, bias=address, threads=threads)
    assert np.all(memory[:GUARD] == MARK)
    assert np.all(memory[GUARD + size :] == MARK)
    return y.reshape(len(x), matrix.shape[0])


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 16, 17, 48, 64, 65, 130])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("4x1", (12, 37)),
        ("8x1", (16, 33)),
        ("16x1", (32, 20)),
        ("2x3", (6, 9)),
        ("5x4", (10, 8)),
        ("16x16", (32, 48)),
        ("80x2", (160, 6)),
        ("67x1", (67, 9)),
        ("1x1", (9, 7)),
        ("1x1", (130, 300)),
        ("1x8", (3, 24)),
        ("1x1", (1, 1)),
    ],
)
def test_product_is_that_of_the_dense_weight(pattern: str, shape: tuple[int, int], density: float, batch: int) -> None:
    rng = np.random.default_rng(1)
    weight, bias = pruned(shape, pattern, density), rng.standard_normal(shape[0]).astype(np.float32)
    x = rng.standard_normal((batch, shape[1])).astype(np.float32)
    for dtype in DTYPES:
        matrix = PackedMatrix.from_dense(weight, pattern, dtype)
        stored = matrix.dense()
        assert error(stored, weight) < {"float32": 1e-9, "bfloat16": 4e-3, "int8": 1e-2}[dtype]
        assert error(product(matrix, x, bias), x.astype(np.float64) @ stored.T.astype(np.float64) + bias) < 1e-5


@pytest.mark.parametrize("batch", [1, 5, 150])
@pytest.mark.parametrize("pattern", ["4x1", "1x1", "2:4"])
@pytest.mark.parametrize("threads", [2, 3, 4, 7])
def test_threads_change_nothing(threads: int, pattern: str, batch: int) -> None:
    matrix = PackedMatrix.from_dense(pruned((320, 96), pattern, 0.3), pattern)
    x = np.random.default_rng(2).standard_normal((batch, 96)).astype(np.float32)
    assert np.array_equal(product(matrix, x, threads=threads), product(matrix, x))


def test_dense_is_the_inverse() -> None:
    for pattern in ("4x3", "1x1", "2:4", "5:8", "3:5"):
        weight = pruned((12, 120), pattern, 0.4)
        assert np.array_equal(PackedMatrix.from_dense(weight, pattern).dense(), weight)


def test_what_cannot_be_packed_says_why() -> None:
    with pytest.raises(LayerError, match=r"6 output channels are not a multiple of N=4 in '4x1'. Keep the layer dense"):
        PackedMatrix.from_dense(np.zeros((6, 8), np.float32), "4x1")
    assert unsupported("4x1", (8, 8), "float64") == "weights are stored as float32 or bfloat16 or int8, not as float64"


def test_arguments_out_of_range() -> None:
    matrix = PackedMatrix.from_dense(np.zeros((4, 4), np.float32), "4x1")
    with pytest.raises(ConfigError, match="rows at least 0"):
        matrix.matmul(0, -1, 0)
