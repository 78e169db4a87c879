"""bfloat16 products with AMX, compared with plain NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.fenced import copy_fenced, needs_mprotect
from runtime.kernels.products import multiply
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import ConvolutionWindow, PackedMatrix, dispatch, has_amx
from secateur.runtime.kernels.amx import Bfloat16ColumnTileKernel
from secateur.runtime.kernels.codegen import TargetMachine, target
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import emit_assembly
from secateur.runtime.kernels.formats import BitmaskFormat, ColumnTileFormat
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS
from secateur.runtime.kernels.formats.dtypes import decode, encode

amx = pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
GUARD = 64
MARK = np.uint16(0x1234)


def pack_column_tiles(weight: np.ndarray) -> PackedMatrix:
    """Pack the inputs that any of sixteen outputs keeps."""
    return PackedMatrix("1x1", ColumnTileFormat.from_dense(weight).to_dtype("bfloat16", np.empty(0, np.float32)))


def pack_bitmask(weight: np.ndarray) -> PackedMatrix:
    """Pack the nonzero weights and a bitmask."""
    return PackedMatrix("1x1", BitmaskFormat.from_dense(weight, "bfloat16"))


both_formats = pytest.mark.parametrize("pack", [pack_column_tiles, pack_bitmask])
Packing = Callable[[np.ndarray], PackedMatrix]


def create_pruned(shape: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    return decode(encode(weight * (rng.random(shape) < density), "bfloat16"))


def compute_product(matrix: PackedMatrix, x: np.ndarray, bias: np.ndarray, threads: int = 1) -> np.ndarray:
    """Compute the product into memory between guards, which must not change."""
    memory = np.full(len(x) * matrix.shape[0] + 2 * GUARD, MARK)
    y = memory[GUARD:-GUARD]
    multiply(matrix, x, y, bias, activations="bfloat16", threads=threads)
    assert np.all(memory[:GUARD] == MARK)
    assert np.all(memory[-GUARD:] == MARK)
    return y.reshape(len(x), matrix.shape[0])


def create_numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return encode(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), "bfloat16")


@amx
@both_formats
@given(
    outputs=st.integers(1, 170),
    inputs=st.integers(1, 300),
    batch=st.integers(0, 140),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    threads=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_product_matches_dense(
    pack: Packing, outputs: int, inputs: int, batch: int, density: float, threads: int
) -> None:
    weight, x = create_pruned((outputs, inputs), density), create_numbers(batch, inputs)
    bias = np.random.default_rng(3).standard_normal(outputs).astype(np.float32)
    actual = decode(compute_product(pack(weight), x, bias, threads))
    expected = decode(x).astype(np.float64) @ weight.T.astype(np.float64) + bias
    # float32 sums, rounded to eight bits.
    assert np.all(np.abs(actual - expected) <= 2**-8 * np.abs(expected) + 1e-5 * (1 + np.abs(expected).max(initial=0)))


@amx
@both_formats
@needs_mprotect
@pytest.mark.parametrize("batch", [1, 33, 70])
def test_kernels_do_not_read_past_the_batch(pack: Packing, batch: int) -> None:
    x = copy_fenced(create_numbers(batch, 36))
    compute_product(pack(create_pruned((32, 36), 0.5)), x, np.zeros(32, np.float32))


@pytest.mark.usefixtures("all_threads")
@amx
@both_formats
@pytest.mark.parametrize("batch", [1, 40, 200])
def test_threads_do_not_change_results(pack: Packing, batch: int) -> None:
    matrix, x, bias = (
        pack(create_pruned((300, 96), 0.2)),
        create_numbers(batch, 96),
        np.zeros(300, np.float32),
    )
    single_threaded = compute_product(matrix, x, bias)
    for threads in (2, 3, 7):
        assert np.array_equal(compute_product(matrix, x, bias, threads), single_threaded)


@amx
@both_formats
def test_copies_compute_the_same(pack: Packing) -> None:
    matrix, x, bias = pack(create_pruned((40, 50), 0.2)), create_numbers(9, 50), np.zeros(40, np.float32)
    expected = compute_product(matrix, x, bias)
    assert np.array_equal(compute_product(copy.deepcopy(matrix), x, bias), expected)
    assert np.array_equal(compute_product(pickle.loads(pickle.dumps(matrix)), x, bias), expected)  # noqa: S301 - our own data


@both_formats
def test_other_activations_raise(pack: Packing) -> None:
    matrix = pack(create_pruned((16, 32), 0.2))
    with pytest.raises(ConfigError, match="as bfloat16 needs activations of bfloat16, found float32"):
        matrix.compile_product(1)
    with pytest.raises(ConfigError, match="packed for AMX has no convolution kernel"):
        matrix.compile_convolution(1, ConvolutionWindow(32, (1, 200), (1, 1), (1, 1), (1, 1)))


@both_formats
@given(outputs=st.integers(1, 150), inputs=st.integers(1, 300), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_to_dense_inverts_packing(pack: Packing, outputs: int, inputs: int, density: float) -> None:
    weight = create_pruned((outputs, inputs), density)
    assert np.array_equal(pack(weight).to_dense(), weight)


@given(outputs=st.integers(1, 70), inputs=st.integers(1, 140), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_column_tiles_have_the_inputs_that_any_output_keeps(outputs: int, inputs: int, density: float) -> None:
    weight = create_pruned((outputs, inputs), density)
    tiled = ColumnTileFormat.from_dense(weight)
    for number, columns in enumerate(np.split(tiled.columns, tiled.starts[1:-1])):
        kept = np.flatnonzero(weight[16 * number : 16 * number + 16].any(axis=0))
        assert len(columns) == -(-len(kept) // TILE_INPUTS)
        assert np.array_equal(columns.ravel()[: len(kept)], kept)


@pytest.mark.usefixtures("without_amx")
@pytest.mark.parametrize("batch", [1, 9, 21])
def test_processors_without_amx_use_vectors(batch: int) -> None:
    weight, x, bias = create_pruned((150, 301), 0.3), create_numbers(batch, 301), np.zeros(150, np.float32)
    actual = decode(compute_product(pack_bitmask(weight), x, bias, threads=2))
    expected = decode(x).astype(np.float64) @ weight.T.astype(np.float64)
    assert np.all(np.abs(actual - expected) <= 2**-8 * np.abs(expected) + 1e-5 * np.abs(expected).max())


@amx
def test_sums_are_complete_before_they_are_rounded() -> None:
    weight, x = create_pruned((40, 5000), 0.3), create_numbers(150, 5000)
    actual = decode(compute_product(pack_bitmask(weight), x, np.zeros(40, np.float32)))
    expected = decode(x).astype(np.float64) @ weight.T.astype(np.float64)
    assert np.all(np.abs(actual - expected) <= 2**-8 * np.abs(expected) + 1e-5 * np.abs(expected).max())


@amx
@pytest.mark.parametrize(("inputs", "rows", "height"), [(768, 1024, 256), (4096, 1024, 128), (40000, 100, 32)])
def test_panels_fit_in_the_cache(inputs: int, rows: int, height: int) -> None:
    weights = BitmaskFormat.from_dense(np.zeros((1, inputs), np.float32), "bfloat16")
    (step,) = dispatch.select_kernels(weights, "bfloat", rows)
    assert step.kernel.width == height


def test_kernel_multiplies_tiles() -> None:
    features = "+avx512f,+avx512vl,+avx512bw,+avx512bf16,+amx-tile,+amx-bf16"
    text = emit_assembly(
        Bfloat16ColumnTileKernel("i16", RowPanel("bfloat", 16, 4, "bfloat")).emit(),
        TargetMachine("x86_64-unknown-linux-gnu", "sapphirerapids", features),
    )
    assert text.count("tdpbf16ps") == 4
    assert "ldtilecfg" in text
    assert "tilerelease" in text


def test_processors_without_amx_raise(use_processor: Callable[[TargetMachine], None]) -> None:
    use_processor(TargetMachine("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma"))
    assert not target.has_amx()
    moved = PackedMatrix(
        "1x1", ColumnTileFormat.from_dense(np.ones((16, 32), np.float32)).to_dtype("bfloat16", np.empty(0, np.float32))
    )
    with pytest.raises(LayerError, match="packed for a processor with AMX, which this one lacks"):
        moved.compile_product(1, activations="bfloat16")
    with pytest.raises(LayerError, match="this processor has no AMX"):
        PackedMatrix.from_dense_for_amx(np.ones((16, 32), np.float32), "1x1")
