"""Products of packed matrices, compared with plain NumPy."""

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

from runtime.kernels.fenced import copy_fenced, needs_mprotect
from runtime.kernels.products import multiply
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import WEIGHT_DTYPES, ConvolutionWindow, PackedMatrix, get_unsupported_reason
from secateur.runtime.kernels.formats.dtypes import decode, encode
from secateur.runtime.kernels.packed_matrix import split_work

GUARD = 64
MANY = 64
"""Batch rows for which N:M weights may be packed in another format than for few."""
MARKS = {np.float32: np.float32(12345.0), np.uint16: np.uint16(0x1234)}
ROUNDING = {"float32": 0, "bfloat16": 4e-3, "int8": 1e-2}
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}

BATCHES = (0, 1, 2, 3, 5, 8, 16, 17, 65, 130)
"""Batch rows around the limits of small batches, and with one to three panels."""
FORMATS = [("4x1", (12, 37)), ("16x1", (32, 20)), ("1x1", (130, 300)), ("2:4", (17, 20))]
"""A pattern for each way of multiplying. Kernels for a batch size are compiled, which takes a tenth of a second."""
OTHER_PATTERNS = [
    *[("8x1", (16, 33)), ("2x3", (6, 9)), ("5x4", (10, 8)), ("1x8", (3, 24))],
    *[("16x16", (32, 48)), ("80x2", (160, 6)), ("67x1", (67, 9)), ("12x5", (24, 10)), ("1x3", (4, 9))],
    *[("1x1", (9, 7)), ("1x1", (1, 1))],
    *[("2:4", (130, 264)), ("1:2", (5, 6)), ("4:8", (33, 24)), ("2:16", (16, 32)), ("1:4", (3, 4))],
    *[("3:5", (4, 10)), ("16:32", (18, 64))],
]


def create_pruned(shape: tuple[int, int], pattern: str, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if ":" in pattern:
        count, group = (int(size) for size in pattern.split(":"))
        order = rng.random((shape[0], shape[1] // group, group)).argsort(axis=2).argsort(axis=2)
        keep = (order < count) & (rng.random(order.shape) < 2 * density)
        return (rng.standard_normal(shape) * keep.reshape(shape)).astype(np.float32)
    rows, cols = (int(size) for size in pattern.split("x"))
    keep = rng.random((shape[0] // rows, shape[1] // cols)) < density
    return (rng.standard_normal(shape) * np.kron(keep, np.ones((rows, cols)))).astype(np.float32)


def compute_product(
    matrix: PackedMatrix,
    x: np.ndarray,
    bias: np.ndarray | None = None,
    threads: int = 1,
    activations: str = "float32",
) -> np.ndarray:
    """Compute the product into memory between guards, which must not change."""
    size, kind = len(x) * matrix.shape[0], x.dtype.type
    memory = np.full(size + 2 * GUARD, MARKS[kind], kind)
    y = memory[GUARD : GUARD + size]
    multiply(matrix, x, y, bias, activations=activations, threads=threads)
    assert np.all(memory[:GUARD] == MARKS[kind])
    assert np.all(memory[GUARD + size :] == MARKS[kind])
    return y.reshape(len(x), matrix.shape[0])


def compute_dense_product(weight: np.ndarray, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weight.T.astype(np.float64) + bias


def compute_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def create_numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_products(pattern: str, weight: np.ndarray, batch: int, dtype: str, threads: int = 1) -> None:
    """Check products with both types of activations, in every format of the pattern."""
    bias, x = create_numbers(weight.shape[0]), create_numbers(batch, weight.shape[1], seed=2)
    short = encode(x, "bfloat16")
    for rows in (1, MANY) if ":" in pattern else (1,):
        matrix = PackedMatrix.from_dense(weight, pattern, dtype, rows)
        stored = matrix.to_dense()
        assert compute_error(stored, weight) <= ROUNDING[dtype]
        actual = compute_product(matrix, x, bias, threads)
        assert compute_error(actual, compute_dense_product(stored, x, bias)) < TOLERANCE["float32"]
        actual_short = decode(compute_product(matrix, short, bias, threads, "bfloat16"))
        assert compute_error(actual_short, compute_dense_product(stored, decode(short), bias)) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize(
    ("dtype", "batch"),
    [("float32", batch) for batch in BATCHES] + [(dtype, batch) for dtype in ("bfloat16", "int8") for batch in (1, 17)],
)
@pytest.mark.parametrize(("pattern", "shape"), FORMATS)
def test_product_matches_dense(pattern: str, shape: tuple[int, int], dtype: str, batch: int) -> None:
    check_products(pattern, create_pruned(shape, pattern, 0.3), batch, dtype)


@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize(("pattern", "shape"), OTHER_PATTERNS)
def test_products_of_other_patterns_match_dense(pattern: str, shape: tuple[int, int], batch: int) -> None:
    check_products(pattern, create_pruned(shape, pattern, 0.3), batch, "float32")


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize(("pattern", "shape"), FORMATS + OTHER_PATTERNS)
def test_weights_can_be_zero_or_dense(pattern: str, shape: tuple[int, int], batch: int, density: float) -> None:
    check_products(pattern, create_pruned(shape, pattern, density), batch, "float32")
    check_products(pattern, create_numbers(*shape) * np.float32(density), batch, "float32")


@given(
    block=st.sampled_from([(4, 1), (16, 1), (3, 2), (1, 1), (1, 4)]),
    rows=st.integers(1, 40),
    cols=st.integers(1, 150),
    batch=st.sampled_from(BATCHES),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_product_of_any_shape(
    block: tuple[int, int], rows: int, cols: int, batch: int, density: float, seed: int
) -> None:
    pattern = f"{block[0]}x{block[1]}"
    weight = create_pruned((rows * block[0], cols * block[1]), pattern, density, seed)
    check_products(pattern, weight, batch, "float32", threads=2)


@given(rows=st.integers(1, 150), groups=st.integers(1, 80), batch=st.sampled_from(BATCHES), seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_nm_product_of_any_shape(rows: int, groups: int, batch: int, seed: int) -> None:
    check_products("2:4", create_pruned((rows, 4 * groups), "2:4", 0.5, seed), batch, "float32", threads=2)


def test_more_inputs_than_16_bits_can_index() -> None:
    check_products("1x1", create_pruned((3, 70_000), "1x1", 0.01), 17, "float32")
    check_products("4x1", create_pruned((4, 70_000), "4x1", 0.01), 17, "float32")


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("batch", [1, 5, 150])
@pytest.mark.parametrize("pattern", ["4x1", "16x1", "1x1", "2:4"])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("rows", [1, MANY])
def test_threads_do_not_change_results(pattern: str, batch: int, dtype: str, rows: int) -> None:
    matrix = PackedMatrix.from_dense(create_pruned((640, 96), pattern, 0.3), pattern, dtype, rows)
    x = create_numbers(batch, 96)
    alone = compute_product(matrix, x)
    for threads in (2, 3, 4, 7):
        assert np.array_equal(compute_product(matrix, x, threads=threads), alone)


@pytest.mark.usefixtures("all_threads")
def test_threads_can_share_a_matrix() -> None:
    matrix = PackedMatrix.from_dense(create_pruned((256, 256), "4x1", 0.3), "4x1")
    inputs = [create_numbers(batch, 256, seed=batch) for batch in range(1, 41)]
    expected = [compute_product(matrix, x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda x: compute_product(matrix, x, threads=3), inputs * 5))
    assert all(np.array_equal(some, other) for some, other in zip(actual, expected * 5, strict=True))


def test_rows_of_a_panel_are_independent() -> None:
    matrix, x = PackedMatrix.from_dense(create_pruned((64, 64), "4x1", 0.3), "4x1"), create_numbers(64, 64)
    alone, others = compute_product(matrix, x), x.copy()
    others[1:] = np.inf
    assert np.array_equal(compute_product(matrix, others)[0], alone[0])


@needs_mprotect
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 17, 33, 81])
@pytest.mark.parametrize(("pattern", "rows"), [("4x1", 1), ("16x1", 1), ("1x1", 1), ("2:4", 1), ("2:4", MANY)])
def test_kernels_do_not_read_past_the_batch(pattern: str, rows: int, batch: int) -> None:
    matrix = PackedMatrix.from_dense(create_pruned((32, 36), pattern, 0.5), pattern, rows=rows)
    x = copy_fenced(create_numbers(batch, 36))
    expected = compute_dense_product(matrix.to_dense(), x, np.zeros(32))
    assert compute_error(compute_product(matrix, x), expected) < TOLERANCE["float32"]


def test_zero_bias_equals_no_bias() -> None:
    matrix, x = PackedMatrix.from_dense(create_pruned((12, 9), "4x1", 0.5), "4x1"), create_numbers(3, 9)
    assert np.array_equal(compute_product(matrix, x), compute_product(matrix, x, np.zeros(12, np.float32)))


@pytest.mark.parametrize("pattern", ["4x3", "1x1", "2:4", "5:8", "3:5"])
@pytest.mark.parametrize("rows", [1, MANY])
def test_to_dense_inverts_packing(pattern: str, rows: int) -> None:
    weight = create_pruned((12, 120), pattern, 0.4)
    assert np.array_equal(PackedMatrix.from_dense(weight, pattern, rows=rows).to_dense(), weight)


def test_weights_can_violate_nm() -> None:
    check_products("2:4", create_numbers(20, 40), 9, "float32")


def copy_by_pickle(matrix: PackedMatrix) -> PackedMatrix:
    return pickle.loads(pickle.dumps(matrix))  # noqa: S301 - our own data


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, copy_by_pickle])
@pytest.mark.parametrize(("pattern", "rows"), [("4x1", 1), ("1x1", 1), ("2:4", 1), ("2:4", MANY)])
def test_copies_compute_the_same(duplicate: Callable[[PackedMatrix], PackedMatrix], pattern: str, rows: int) -> None:
    matrix = PackedMatrix.from_dense(create_pruned((64, 64), pattern, 0.4), pattern, "int8", rows)
    x = create_numbers(20, 64)
    expected = compute_product(matrix, x)
    assert np.array_equal(compute_product(duplicate(matrix), x), expected)


@pytest.mark.parametrize(
    ("pattern", "dtype", "rows", "max_ratio"),
    [
        *[("4x1", "float32", 1, 0.57), ("2:4", "bfloat16", 1, 0.29), ("2:4", "float32", 1, 0.54)],
        ("2:4", "float32", MANY, 0.65),
    ],
)
def test_packing_saves_memory(pattern: str, dtype: str, rows: int, max_ratio: float) -> None:
    weight = create_pruned((512, 512), pattern, 0.5)
    assert PackedMatrix.from_dense(weight, pattern, dtype, rows).nbytes <= max_ratio * weight.nbytes


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
def test_unsupported_weights_name_the_reason(pattern: str, shape: tuple[int, int], dtype: str, reason: str) -> None:
    assert get_unsupported_reason(pattern, shape, dtype) == reason
    with pytest.raises(LayerError) as caught:
        PackedMatrix.from_dense(np.zeros(shape, np.float32), pattern, dtype)
    assert str(caught.value) == f"no kernel for a weight of {shape}: {reason}. Keep the layer dense."


def test_weights_must_be_a_float32_matrix() -> None:
    with pytest.raises(LayerError, match=r"a weight must be a float32 array of shape \(O, I\), found float64 \(4, 4\)"):
        PackedMatrix.from_dense(np.zeros((4, 4)), "4x1")


@pytest.mark.parametrize("change", [{"rows": -1}, {"threads": 0}, {"activations": "float16"}])
def test_arguments_out_of_range_raise(change: dict[str, object]) -> None:
    matrix = PackedMatrix.from_dense(np.zeros((4, 4), np.float32), "4x1")
    with pytest.raises(ConfigError, match="rows at least 0 and threads at least 1"):
        matrix.compile_product(**{"rows": 1} | change)


def test_deprecated_names_warn() -> None:
    matrix = PackedMatrix.from_dense(create_numbers(4, 4), "4x1")
    for old, new in (("product", "compile_product"), ("convolution", "compile_convolution"), ("dense", "to_dense")):
        with pytest.deprecated_call(match=rf"PackedMatrix\.{old} is deprecated. Use PackedMatrix\.{new}\."):
            assert getattr(matrix, old) == getattr(matrix, new)
    with pytest.deprecated_call(match=r"Use PackedMatrix\.weights\."):
        assert matrix.layout is matrix.weights
    with pytest.deprecated_call(match="from_dense_for_amx"), contextlib.suppress(LayerError):
        assert PackedMatrix.in_tiles(create_numbers(4, 4), "4x1").shape == (4, 4)
    with pytest.raises(AttributeError, match="no attribute 'shapes'"):
        matrix.shapes  # noqa: B018 - it raises


@pytest.mark.parametrize("threads", [1, 2])
def test_products_outlive_their_matrix(threads: int) -> None:
    matrix = PackedMatrix.from_dense(create_numbers(64, 64), "4x1")
    window = ConvolutionWindow(64, (1, 200), (1, 1), (1, 1), (1, 1))
    products = [matrix.compile_product(8, threads=threads), matrix.compile_convolution(1, window, threads=threads)]
    values = weakref.ref(matrix.weights.values)
    del matrix
    gc.collect()
    for _ in range(2):
        assert values() is not None
        products.pop()
        gc.collect()
    assert values() is None


@given(costs=st.lists(st.integers(0, 50), min_size=1, max_size=30), panels=st.integers(1, 4), count=st.integers(1, 9))
def test_shares_cover_the_work_once(costs: list[int], panels: int, count: int) -> None:
    runs = split_work(np.concatenate([[0], np.cumsum(costs)]), panels, count)
    assert [unit for begin, end in runs for unit in range(begin, end)] == list(range(panels * len(costs)))
    assert len(runs) <= count
