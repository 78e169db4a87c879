"""float32 products with AMX, which split each number into two bfloat16, compared with plain NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.kernels.fenced import copy_fenced, needs_mprotect
from runtime.kernels.products import multiply
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import MAX_ROWS_WITHOUT_AMX, ConvolutionWindow, PackedMatrix, dispatch, has_amx
from secateur.runtime.kernels.amx import BitmaskSmallBatchKernel, BitmaskTileKernel, Float32ColumnTileKernel
from secateur.runtime.kernels.codegen import TargetMachine
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import emit_assembly
from secateur.runtime.kernels.formats import BitmaskFormat, ColumnTileFormat, WeightFormat
from secateur.runtime.kernels.formats.dtypes import decode, encode, merge_float32, split_float32

amx = pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
GUARD = 64
MARK = np.float32(1234.5)
SAPPHIRE = TargetMachine(
    "x86_64-unknown-linux-gnu",
    "sapphirerapids",
    "+avx512f,+avx512vl,+avx512bw,+avx512vbmi2,+avx512bf16,+amx-tile,+amx-bf16",
)


def pack_column_tiles(weight: np.ndarray) -> WeightFormat:
    """Pack the inputs that any of sixteen outputs keeps."""
    return ColumnTileFormat.from_dense(weight, 16).split_values()


FORMATS = [
    pytest.param(BitmaskFormat.from_dense, id="bitmask"),
    pytest.param(pack_column_tiles, id="column tiles"),
]


def create_pruned(shape: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape, np.float32) * (rng.random(shape) < density)


def create_numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def compute_product(weights: WeightFormat, x: np.ndarray, bias: np.ndarray, threads: int = 1) -> np.ndarray:
    """Compute the product into memory between guards, which must not change."""
    outputs = weights.shape[0]
    memory = np.full(len(x) * outputs + 2 * GUARD, MARK)
    y = memory[GUARD:-GUARD]
    matrix = PackedMatrix("1x1", weights)
    multiply(matrix, x, y, bias, threads=threads)
    assert np.all(memory[:GUARD] == MARK)
    assert np.all(memory[-GUARD:] == MARK)
    return y.reshape(len(x), outputs)


def check(weights: WeightFormat, weight: np.ndarray, x: np.ndarray, threads: int = 1) -> None:
    bias = create_numbers(len(weight), seed=3)
    actual = compute_product(weights, x, bias, threads)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    # Each factor is rounded by up to 2**-17, and the product of the low parts, up to 2**-16, is dropped.
    assert np.all(np.abs(actual - expected) <= 2**-15 * (np.abs(x) @ np.abs(weight).T) + 1e-6 * (1 + np.abs(expected)))


@amx
@pytest.mark.parametrize("pack", FORMATS)
@given(
    outputs=st.integers(1, 290),
    inputs=st.integers(1, 600),
    batch=st.integers(0, 140),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    threads=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
@example(outputs=129, inputs=257, batch=33, density=0.5, threads=1)
@example(outputs=7, inputs=15, batch=9, density=1.0, threads=1)
def test_product_matches_dense(
    pack: Callable[[np.ndarray], WeightFormat], outputs: int, inputs: int, batch: int, density: float, threads: int
) -> None:
    weight = create_pruned((outputs, inputs), density)
    check(pack(weight), weight, create_numbers(batch, inputs), threads)


@amx
@pytest.mark.parametrize("pack", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(40, 1024, 70), (130, 1100, 300), (20, 2500, 513)])
def test_sums_continue_over_pieces_and_panels(
    pack: Callable[[np.ndarray], WeightFormat], outputs: int, inputs: int, batch: int
) -> None:
    weight = create_pruned((outputs, inputs), 0.3)
    check(pack(weight), weight, create_numbers(batch, inputs))


@amx
@pytest.mark.parametrize("pack", FORMATS)
@pytest.mark.parametrize("batch", [1, 64])
def test_relative_error_is_a_few_millionths(pack: Callable[[np.ndarray], WeightFormat], batch: int) -> None:
    weight, x = create_pruned((256, 1536), 0.5), np.abs(create_numbers(batch, 1536))
    actual = compute_product(pack(weight), x, np.zeros(256, np.float32))
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.linalg.norm(actual - expected) < 6e-6 * np.linalg.norm(expected)
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.usefixtures("without_amx")
@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 21])
def test_processors_without_amx_use_vectors(batch: int) -> None:
    for outputs, inputs in ((1, 1), (16, 256), (50, 33), (150, 700)):
        weight = create_pruned((outputs, inputs), 0.3)
        weights = BitmaskFormat.from_dense(weight)
        kernels = {type(step.kernel) for step in dispatch.select_kernels(weights, "float", batch)}
        assert kernels == {BitmaskSmallBatchKernel}
        check(weights, weight, create_numbers(batch, inputs), threads=2)


@amx
def test_small_batches_use_vectors() -> None:
    weights = BitmaskFormat.from_dense(create_pruned((16, 16), 0.5))
    assert [type(step.kernel) for step in dispatch.select_kernels(weights, "float", MAX_ROWS_WITHOUT_AMX)] == [
        BitmaskSmallBatchKernel
    ]
    (step,) = dispatch.select_kernels(weights, "float", MAX_ROWS_WITHOUT_AMX + 1)
    assert isinstance(step.kernel, BitmaskTileKernel)
    assert step.kernel.rows == 32
    assert [step.kernel.rows for step in dispatch.select_kernels(weights, "float", 300)] == [160]


@amx
@needs_mprotect
@pytest.mark.parametrize("pack", FORMATS)
@pytest.mark.parametrize("batch", [1, 33, 70])
def test_kernels_do_not_read_past_the_batch(pack: Callable[[np.ndarray], WeightFormat], batch: int) -> None:
    x = copy_fenced(create_numbers(batch, 37))
    compute_product(pack(create_pruned((32, 37), 0.5)), x, copy_fenced(np.zeros(32, np.float32)))


@pytest.mark.usefixtures("all_threads")
@amx
@pytest.mark.parametrize("pack", FORMATS)
@pytest.mark.parametrize("batch", [1, 40, 300])
def test_threads_do_not_change_results(pack: Callable[[np.ndarray], WeightFormat], batch: int) -> None:
    weights, x, bias = pack(create_pruned((400, 1100), 0.2)), create_numbers(batch, 1100), create_numbers(400)
    single_threaded = compute_product(weights, x, bias)
    for threads in (2, 3, 7):
        assert np.array_equal(compute_product(weights, x, bias, threads), single_threaded)


@amx
@pytest.mark.parametrize("pack", FORMATS)
def test_infinities_and_nan_stay_in_their_rows(pack: Callable[[np.ndarray], WeightFormat]) -> None:
    weight, x = create_pruned((20, 40), 1.0), create_numbers(40, 40)
    x[3, 5], x[7, 0] = np.inf, np.nan
    x.view(np.uint32)[9, 1] = 0x7FFFFFFF  # A NaN that rounding by integer addition would turn into minus zero.
    actual = compute_product(pack(weight), x, np.zeros(20, np.float32))
    special = np.zeros(40, np.bool_)
    special[[3, 7, 9]] = True
    assert not np.isfinite(actual[special]).any()
    assert np.isfinite(actual[~special]).all()


@amx
@pytest.mark.parametrize("pack", FORMATS)
def test_copies_compute_the_same(pack: Callable[[np.ndarray], WeightFormat]) -> None:
    matrix = PackedMatrix("1x1", pack(create_pruned((40, 50), 0.2)))
    x, bias = create_numbers(9, 50), np.zeros(40, np.float32)
    expected = compute_product(matrix.weights, x, bias)
    assert np.array_equal(compute_product(copy.deepcopy(matrix).weights, x, bias), expected)
    moved = pickle.loads(pickle.dumps(matrix))  # noqa: S301 - our own data
    assert np.array_equal(compute_product(moved.weights, x, bias), expected)
    assert np.array_equal(moved.to_dense(), matrix.to_dense())


@pytest.mark.parametrize("pack", FORMATS)
@given(outputs=st.integers(1, 150), inputs=st.integers(1, 300), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_to_dense_inverts_packing(
    pack: Callable[[np.ndarray], WeightFormat], outputs: int, inputs: int, density: float
) -> None:
    weight = create_pruned((outputs, inputs), density)
    assert np.array_equal(pack(weight).to_dense(), weight)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
@example([np.float32(0.1), 1.0, -1.0, 1.99999988079071044921875, 1.00390625, 1.001953125])
@example([np.float32(1.2345678e-35)])
@example([np.float32(3.0867377e-36)])
@settings(max_examples=500)
def test_parts_and_remainder_restore_the_number(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    try:
        halves, rest = split_float32(floats)
    except LayerError:
        sizes = np.abs(floats[floats != 0])
        assert sizes.min() < 2.0**-100 or sizes.max() > 2.0**126
        return
    assert np.array_equal(merge_float32(halves, rest), floats)
    approximation = decode(halves[:, 0]).astype(np.float64) + decode(halves[:, 1])
    min_error = 2.0**-134  # Half of the smallest bfloat16.
    assert np.all(np.abs(approximation - floats) <= 2.0**-17 * np.abs(floats) + min_error)


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 3.4e38, 1e-40])
@pytest.mark.parametrize("pack", FORMATS)
def test_numbers_that_cannot_be_split_raise(pack: Callable[[np.ndarray], WeightFormat], special: float) -> None:
    weight = create_pruned((16, 16), 0.5)
    weight[2, 3] = special
    with pytest.raises(LayerError, match="as two bfloat16 must be finite and neither tiny nor huge"):
        pack(weight)


@pytest.mark.parametrize("pack", FORMATS)
def test_other_activations_raise(pack: Callable[[np.ndarray], WeightFormat]) -> None:
    matrix = PackedMatrix("1x1", pack(create_pruned((16, 32), 0.2)))
    with pytest.raises(ConfigError, match="as float32 needs activations of float32, found bfloat16"):
        matrix.compile_product(1, activations="bfloat16")
    with pytest.raises(ConfigError, match="packed for AMX has no convolution kernel"):
        matrix.compile_convolution(1, ConvolutionWindow(32, (1, 200), (1, 1), (1, 1), (1, 1)))


@amx
@pytest.mark.parametrize(
    ("pattern", "sparsity", "kind", "share"),
    [
        ("16x1", 0.8, ColumnTileFormat, 0.35),
        ("8x1", 0.9, ColumnTileFormat, 0.35),
        ("16x1", 0.5, BitmaskFormat, 0.7),
        ("1x1", 0.8, BitmaskFormat, 0.35),
    ],
)
def test_format_depends_on_the_zeros(pattern: str, sparsity: float, kind: type[WeightFormat], share: float) -> None:
    height = int(pattern.split("x")[0])
    kept = (np.random.default_rng(0).random((256 // height, 256)) >= sparsity).repeat(height, 0)
    matrix = PackedMatrix.from_dense_for_amx(create_numbers(256, 256) * kept, pattern, "float32")
    assert isinstance(matrix.weights, kind)
    assert 5 * np.count_nonzero(kept) < matrix.nbytes <= share * 4 * kept.size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 40, 300, 1000])
@pytest.mark.parametrize("height", [1, 16])
def test_processors_with_amx_multiply_tiles(height: int, rows: int, dtype: str) -> None:
    """The selection for such a processor, on any."""
    weight = np.repeat(create_pruned((128 // height, 700), 0.3), height, axis=0)
    weights = dispatch.pack_weight_for_amx(weight, dtype)
    assert isinstance(weights, BitmaskFormat if height == 1 else ColumnTileFormat)
    assert np.array_equal(weights.to_dense(), weight if dtype == "float32" else decode(encode(weight, dtype)))
    steps = dispatch.select_amx_kernels(weights, weights.activation_type, rows, has_amx=True)
    assert sum(step.rows for step in steps) == rows
    for kernel, count in steps:
        assert isinstance(kernel, BitmaskSmallBatchKernel) is (height == 1 and rows == 1)
        assert kernel.get_scratch_bytes(700) >= 0
        costs = kernel.get_cumulative_costs(weights.starts, 700)
        assert costs[0] == 0
        assert np.all(np.diff(costs) >= 0)
        assert costs[-1] > 0
        assert kernel.width > 0
        assert count <= kernel.width or isinstance(weights, ColumnTileFormat) or kernel.width % 32 == 0


def test_kernels_expand_and_multiply_tiles() -> None:
    text = emit_assembly(BitmaskTileKernel("float", 256, 1024, 128, 256).emit(), SAPPHIRE)
    assert text.count("tdpbf16ps") == 12
    assert text.count("vpexpandw") == 4
    assert "tilerelease" in text
    text = emit_assembly(BitmaskTileKernel("bfloat", 256, 1024, 128, 256).emit(), SAPPHIRE)
    assert text.count("tdpbf16ps") == 4
    assert text.count("vpexpandw") == 2
    text = emit_assembly(Float32ColumnTileKernel("i16", RowPanel("float", 16, 4, "halves")).emit(), SAPPHIRE)
    assert text.count("tdpbf16ps") == 8


@pytest.mark.parametrize("element", ["float", "bfloat"])
def test_other_processors_can_expand_bitmasks(element: str) -> None:
    haswell = TargetMachine("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma")
    arm = TargetMachine("aarch64-unknown-linux-gnu", "cortex-a76", "+neon")
    for processor, instruction in ((haswell, "vfmadd"), (arm, "fmla")):
        text = emit_assembly(BitmaskSmallBatchKernel(element, 2, 128, 256).emit(), processor)
        assert instruction in text
        assert "trunc" not in text
