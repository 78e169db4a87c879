"""Products by the kernels beside plain NumPy."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.fenced import fenced, fences
from runtime.kernels.products import multiply
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import WEIGHT_DTYPES, ConvolutionWindow, PackedMatrix, get_unsupported_reason
from secateur.runtime.kernels.formats.dtypes import decoded, encoded
from secateur.runtime.kernels.packed_matrix import shares

GUARD = 64
MANY = 64
"""Rows for which weights may lie otherwise than for a few."""
MARKS = {np.float32: np.float32(12345.0), np.uint16: np.uint16(0x1234)}
ROUNDING = {"float32": 0, "bfloat16": 4e-3, "int8": 1e-2}
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}

PATTERNS = [
    *[("4x1", (12, 37)), ("8x1", (16, 33)), ("16x1", (32, 20)), ("2x3", (6, 9)), ("5x4", (10, 8)), ("1x8", (3, 24))],
    *[("16x16", (32, 48)), ("80x2", (160, 6)), ("67x1", (67, 9)), ("12x5", (24, 10)), ("1x3", (4, 9))],
    *[("1x1", (9, 7)), ("1x1", (130, 300)), ("1x1", (1, 1))],
    *[("2:4", (17, 20)), ("2:4", (130, 264)), ("1:2", (5, 6)), ("4:8", (33, 24)), ("2:16", (16, 32)), ("1:4", (3, 4))],
    *[("3:5", (4, 10)), ("16:32", (18, 64))],
]


def pruned(shape: tuple[int, int], pattern: str, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if ":" in pattern:
        count, group = (int(size) for size in pattern.split(":"))
        order = rng.random((shape[0], shape[1] // group, group)).argsort(axis=2).argsort(axis=2)
        keep = (order < count) & (rng.random(order.shape) < 2 * density)
        return (rng.standard_normal(shape) * keep.reshape(shape)).astype(np.float32)
    rows, cols = (int(size) for size in pattern.split("x"))
    keep = rng.random((shape[0] // rows, shape[1] // cols)) < density
    return (rng.standard_normal(shape) * np.kron(keep, np.ones((rows, cols)))).astype(np.float32)


def product(
    matrix: PackedMatrix,
    x: np.ndarray,
    bias: np.ndarray | None = None,
    threads: int = 1,
    activations: str = "float32",
) -> np.ndarray:
    """The product, between guards that must stay as they are."""
    size, kind = len(x) * matrix.shape[0], x.dtype.type
    memory = np.full(size + 2 * GUARD, MARKS[kind], kind)
    y = memory[GUARD : GUARD + size]
    multiply(matrix, x, y, bias, activations=activations, threads=threads)
    assert np.all(memory[:GUARD] == MARKS[kind])
    assert np.all(memory[GUARD + size :] == MARKS[kind])
    return y.reshape(len(x), matrix.shape[0])


def dense_product(weight: np.ndarray, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weight.T.astype(np.float64) + bias


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(pattern: str, weight: np.ndarray, batch: int, dtype: str, threads: int = 1) -> None:
    """Both types of activations give the product with the weight as it is stored, whatever batch that was meant for."""
    bias, x = numbers(weight.shape[0]), numbers(batch, weight.shape[1], seed=2)
    short = encoded(x, "bfloat16")
    for rows in (1, MANY) if ":" in pattern else (1,):
        matrix = PackedMatrix.from_dense(weight, pattern, dtype, rows)
        stored = matrix.to_dense()
        assert error(stored, weight) <= ROUNDING[dtype]
        assert error(product(matrix, x, bias, threads), dense_product(stored, x, bias)) < TOLERANCE["float32"]
        found = decoded(product(matrix, short, bias, threads, "bfloat16"))
        assert error(found, dense_product(stored, decoded(short), bias)) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize(
    ("dtype", "batch"),
    [("float32", batch) for batch in (0, 1, 2, 3, 5, 8, 16, 17, 65, 130)]
    + [(dtype, batch) for dtype in ("bfloat16", "int8") for batch in (1, 17)],
)
@pytest.mark.parametrize(("pattern", "shape"), PATTERNS)
def test_product_is_that_of_the_dense_weight(pattern: str, shape: tuple[int, int], dtype: str, batch: int) -> None:
    check(pattern, pruned(shape, pattern, 0.3), batch, dtype)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize(("pattern", "shape"), PATTERNS)
def test_all_zero_and_all_dense(pattern: str, shape: tuple[int, int], batch: int, density: float) -> None:
    check(pattern, pruned(shape, pattern, density), batch, "float32")
    check(pattern, numbers(*shape) * np.float32(density), batch, "float32")


@given(
    block=st.sampled_from([(4, 1), (8, 1), (16, 1), (3, 2), (1, 1), (1, 4)]),
    rows=st.integers(1, 40),
    cols=st.integers(1, 150),
    batch=st.integers(0, 70),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_product_of_any_shape(
    block: tuple[int, int], rows: int, cols: int, batch: int, density: float, seed: int
) -> None:
    pattern = f"{block[0]}x{block[1]}"
    check(pattern, pruned((rows * block[0], cols * block[1]), pattern, density, seed), batch, "float32", threads=2)


@given(rows=st.integers(1, 150), groups=st.integers(1, 80), batch=st.integers(0, 70), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_product_of_any_shape_of_groups(rows: int, groups: int, batch: int, seed: int) -> None:
    check("2:4", pruned((rows, 4 * groups), "2:4", 0.5, seed), batch, "float32", threads=2)


def test_a_row_of_ten_thousand_features_and_more_than_a_short_counts() -> None:
    check("1x1", pruned((3, 70_000), "1x1", 0.01), 17, "float32")
    check("4x1", pruned((4, 70_000), "4x1", 0.01), 17, "float32")


@pytest.mark.usefixtures("shared_out")
@pytest.mark.parametrize("batch", [1, 5, 150])
@pytest.mark.parametrize("pattern", ["4x1", "16x1", "1x1", "2:4"])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("rows", [1, MANY])
def test_threads_change_no_bit(pattern: str, batch: int, dtype: str, rows: int) -> None:
    matrix = PackedMatrix.from_dense(pruned((640, 96), pattern, 0.3), pattern, dtype, rows)
    x = numbers(batch, 96)
    alone = product(matrix, x)
    for threads in (2, 3, 4, 7):
        assert np.array_equal(product(matrix, x, threads=threads), alone)


@pytest.mark.usefixtures("shared_out")
def test_many_threads_share_a_matrix() -> None:
    matrix = PackedMatrix.from_dense(pruned((256, 256), "4x1", 0.3), "4x1")
    inputs = [numbers(batch, 256, seed=batch) for batch in range(1, 41)]
    wanted = [product(matrix, x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: product(matrix, x, threads=3), inputs * 5))
    assert all(np.array_equal(some, other) for some, other in zip(found, wanted * 5, strict=True))


def test_a_row_does_not_depend_on_the_rows_beside_it_in_a_panel() -> None:
    matrix, x = PackedMatrix.from_dense(pruned((64, 64), "4x1", 0.3), "4x1"), numbers(64, 64)
    alone, others = product(matrix, x), x.copy()
    others[1:] = np.inf
    assert np.array_equal(product(matrix, others)[0], alone[0])


@fences
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 17, 33, 81])
@pytest.mark.parametrize(("pattern", "rows"), [("4x1", 1), ("16x1", 1), ("1x1", 1), ("2:4", 1), ("2:4", MANY)])
def test_nothing_is_read_behind_the_last_row(pattern: str, rows: int, batch: int) -> None:
    matrix = PackedMatrix.from_dense(pruned((32, 36), pattern, 0.5), pattern, rows=rows)
    x = fenced(numbers(batch, 36))
    assert error(product(matrix, x), dense_product(matrix.to_dense(), x, np.zeros(32))) < TOLERANCE["float32"]


def test_without_bias_it_is_zero() -> None:
    matrix, x = PackedMatrix.from_dense(pruned((12, 9), "4x1", 0.5), "4x1"), numbers(3, 9)
    assert np.array_equal(product(matrix, x), product(matrix, x, np.zeros(12, np.float32)))


@pytest.mark.parametrize("pattern", ["4x3", "1x1", "2:4", "5:8", "3:5"])
@pytest.mark.parametrize("rows", [1, MANY])
def test_dense_is_the_inverse(pattern: str, rows: int) -> None:
    weight = pruned((12, 120), pattern, 0.4)
    assert np.array_equal(PackedMatrix.from_dense(weight, pattern, rows=rows).to_dense(), weight)


def test_groups_with_more_than_n_are_right_too() -> None:
    check("2:4", numbers(20, 40), 9, "float32")


def pickled(matrix: PackedMatrix) -> PackedMatrix:
    return pickle.loads(pickle.dumps(matrix))  # noqa: S301 - our own


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickled])
@pytest.mark.parametrize(("pattern", "rows"), [("4x1", 1), ("1x1", 1), ("2:4", 1), ("2:4", MANY)])
def test_copies_are_equal(duplicate: Callable[[PackedMatrix], PackedMatrix], pattern: str, rows: int) -> None:
    matrix, x = PackedMatrix.from_dense(pruned((64, 64), pattern, 0.4), pattern, "int8", rows), numbers(20, 64)
    wanted = product(matrix, x)
    assert np.array_equal(product(duplicate(matrix), x), wanted)


@pytest.mark.parametrize(
    ("pattern", "dtype", "rows", "most"),
    [
        *[("4x1", "float32", 1, 0.57), ("2:4", "bfloat16", 1, 0.29), ("2:4", "float32", 1, 0.54)],
        ("2:4", "float32", MANY, 0.65),
    ],
)
def test_memory_falls(pattern: str, dtype: str, rows: int, most: float) -> None:
    weight = pruned((512, 512), pattern, 0.5)
    assert PackedMatrix.from_dense(weight, pattern, dtype, rows).nbytes <= most * weight.nbytes


@pytest.mark.parametrize(
    ("pattern", "shape", "dtype", "reason"),
    [
        ("4x1", (6, 8), "float32", "6 output channels are not a multiple of N=4 in '4x1'"),
        ("1x4", (6, 9), "float32", "9 input channels are not a multiple of M=4 in '1x4'"),
        ("2:4", (6, 9), "float32", "9 input channels are not a multiple of M=4 in '2:4'"),
        ("1xchannel", (6, 8), "float32", "there is no kernel for '1xchannel'"),
        ("4x1", (8, 8), "float64", "weights are stored as float32 or bfloat16 or int8, not as float64"),
        ("1x1", (0, 8), "float32", "the weight is empty (shape (0, 8))"),
    ],
)
def test_unsupported_says_why(pattern: str, shape: tuple[int, int], dtype: str, reason: str) -> None:
    assert get_unsupported_reason(pattern, shape, dtype) == reason
    with pytest.raises(LayerError) as caught:
        PackedMatrix.from_dense(np.zeros(shape, np.float32), pattern, dtype)
    assert str(caught.value) == f"no kernel for a weight of {shape}: {reason}. Keep the layer dense."


def test_weights_must_be_a_matrix_of_floats() -> None:
    with pytest.raises(LayerError, match=r"a weight must be a float32 array of shape \(O, I\), found float64 \(4, 4\)"):
        PackedMatrix.from_dense(np.zeros((4, 4)), "4x1")


@pytest.mark.parametrize("change", [{"rows": -1}, {"threads": 0}, {"activations": "float16"}])
def test_arguments_out_of_range(change: dict[str, object]) -> None:
    matrix = PackedMatrix.from_dense(np.zeros((4, 4), np.float32), "4x1")
    with pytest.raises(ConfigError, match="rows at least 0 and threads at least 1"):
        matrix.compile_product(**{"rows": 1} | change)


def test_old_names_warn() -> None:
    matrix = PackedMatrix.from_dense(numbers(4, 4), "4x1")
    for old, new in (("product", "compile_product"), ("convolution", "compile_convolution"), ("dense", "to_dense")):
        with pytest.deprecated_call(match=rf"PackedMatrix\.{old} is deprecated. Use PackedMatrix\.{new}\."):
            assert getattr(matrix, old) == getattr(matrix, new)
    with pytest.deprecated_call(match=r"Use PackedMatrix\.weights\."):
        assert matrix.layout is matrix.weights
    with pytest.deprecated_call(match="from_dense_for_amx"), contextlib.suppress(LayerError):
        assert PackedMatrix.in_tiles(numbers(4, 4), "4x1").shape == (4, 4)
    with pytest.raises(AttributeError, match="no attribute 'shapes'"):
        matrix.shapes  # noqa: B018 - it raises


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_outlives_its_matrix(threads: int) -> None:
    matrix = PackedMatrix.from_dense(numbers(64, 64), "4x1")
    window = ConvolutionWindow(64, (1, 200), (1, 1), (1, 1), (1, 1))
    made = [matrix.compile_product(8, threads=threads), matrix.compile_convolution(1, window, threads=threads)]
    values = weakref.ref(matrix.weights.values)
    del matrix
    gc.collect()
    for _ in range(2):
        assert values() is not None
        made.pop()
        gc.collect()
    assert values() is None


@given(costs=st.lists(st.integers(0, 50), min_size=1, max_size=30), panels=st.integers(1, 4), count=st.integers(1, 9))
def test_shares_are_all_of_the_work_once(costs: list[int], panels: int, count: int) -> None:
    runs = shares(np.concatenate([[0], np.cumsum(costs)]), panels, count)
    assert [unit for begin, end in runs for unit in range(begin, end)] == list(range(panels * len(costs)))
    assert len(runs) <= count
