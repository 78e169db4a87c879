"""Products of bfloat16 in tiles, beside plain NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.fenced import fenced, fences
from runtime.kernels.products import multiply
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import ConvolutionWindow, PackedMatrix, dispatch, has_amx
from secateur.runtime.kernels.amx.column_tiles import BrainTileKernel
from secateur.runtime.kernels.codegen import target
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import Target, assembly
from secateur.runtime.kernels.formats.bitmask import Masked
from secateur.runtime.kernels.formats.column_tiles import TILE_INPUTS, Tiled
from secateur.runtime.kernels.formats.dtypes import decoded, encoded

amx = pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
GUARD = 64
MARK = np.uint16(0x1234)


def gathered(weight: np.ndarray) -> PackedMatrix:
    """For sixteen outputs, the inputs that any of them keeps."""
    return PackedMatrix("1x1", Tiled.of(weight).as_dtype("bfloat16", np.empty(0, np.float32)))


def masked(weight: np.ndarray) -> PackedMatrix:
    """Numbers that are not zero, and bits that say which."""
    return PackedMatrix("1x1", Masked.of(weight, "bfloat16"))


both = pytest.mark.parametrize("packed_as", [gathered, masked])
Packing = Callable[[np.ndarray], PackedMatrix]


def pruned(shape: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    return decoded(encoded(weight * (rng.random(shape) < density), "bfloat16"))


def product(matrix: PackedMatrix, x: np.ndarray, bias: np.ndarray, threads: int = 1) -> np.ndarray:
    """The product, between guards that must stay as they are."""
    memory = np.full(len(x) * matrix.shape[0] + 2 * GUARD, MARK)
    y = memory[GUARD:-GUARD]
    multiply(matrix, x, y, bias, activations="bfloat16", threads=threads)
    assert np.all(memory[:GUARD] == MARK)
    assert np.all(memory[-GUARD:] == MARK)
    return y.reshape(len(x), matrix.shape[0])


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return encoded(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), "bfloat16")


@amx
@both
@given(
    outputs=st.integers(1, 170),
    inputs=st.integers(1, 300),
    batch=st.integers(0, 140),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    threads=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_product_is_that_of_the_dense_weight(
    packed_as: Packing, outputs: int, inputs: int, batch: int, density: float, threads: int
) -> None:
    weight, x = pruned((outputs, inputs), density), numbers(batch, inputs)
    bias = np.random.default_rng(3).standard_normal(outputs).astype(np.float32)
    found = decoded(product(packed_as(weight), x, bias, threads))
    wanted = decoded(x).astype(np.float64) @ weight.T.astype(np.float64) + bias
    # Sums of float32, rounded to eight bits.
    assert np.all(np.abs(found - wanted) <= 2**-8 * np.abs(wanted) + 1e-5 * (1 + np.abs(wanted).max(initial=0)))


@amx
@both
@fences
@pytest.mark.parametrize("batch", [1, 33, 70])
def test_nothing_is_read_behind_the_last_row(packed_as: Packing, batch: int) -> None:
    x = fenced(numbers(batch, 36))
    product(packed_as(pruned((32, 36), 0.5)), x, np.zeros(32, np.float32))


@pytest.mark.usefixtures("shared_out")
@amx
@both
@pytest.mark.parametrize("batch", [1, 40, 200])
def test_threads_change_no_bit(packed_as: Packing, batch: int) -> None:
    matrix, x, bias = (
        packed_as(pruned((300, 96), 0.2)),
        numbers(batch, 96),
        np.zeros(300, np.float32),
    )
    alone = product(matrix, x, bias)
    for threads in (2, 3, 7):
        assert np.array_equal(product(matrix, x, bias, threads), alone)


@amx
@both
def test_copies_are_equal(packed_as: Packing) -> None:
    matrix, x, bias = packed_as(pruned((40, 50), 0.2)), numbers(9, 50), np.zeros(40, np.float32)
    wanted = product(matrix, x, bias)
    assert np.array_equal(product(copy.deepcopy(matrix), x, bias), wanted)
    assert np.array_equal(product(pickle.loads(pickle.dumps(matrix)), x, bias), wanted)  # noqa: S301 - our own


@both
def test_only_rows_of_bfloat16_are_taken(packed_as: Packing) -> None:
    matrix = packed_as(pruned((16, 32), 0.2))
    with pytest.raises(ConfigError, match="of bfloat16 needs activations of it, found float32"):
        matrix.compile_product(1)
    with pytest.raises(ConfigError, match="is multiplied with rows, found ImagePanel"):
        matrix.compile_convolution(1, ConvolutionWindow(32, (1, 200), (1, 1), (1, 1), (1, 1)))


@both
@given(outputs=st.integers(1, 150), inputs=st.integers(1, 300), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_dense_is_the_inverse(packed_as: Packing, outputs: int, inputs: int, density: float) -> None:
    weight = pruned((outputs, inputs), density)
    assert np.array_equal(packed_as(weight).to_dense(), weight)


@given(outputs=st.integers(1, 70), inputs=st.integers(1, 140), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_tiles_have_the_inputs_that_any_output_keeps(outputs: int, inputs: int, density: float) -> None:
    weight = pruned((outputs, inputs), density)
    tiled = Tiled.of(weight)
    for number, columns in enumerate(np.split(tiled.columns, tiled.starts[1:-1])):
        kept = np.flatnonzero(weight[16 * number : 16 * number + 16].any(axis=0))
        assert len(columns) == -(-len(kept) // TILE_INPUTS)
        assert np.array_equal(columns.ravel()[: len(kept)], kept)


@pytest.mark.parametrize("batch", [1, 9, 21])
def test_vectors_do_what_tiles_do_not(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "has_amx", lambda: False)
    dispatch.masked_steps.cache_clear()
    weight, x, bias = pruned((150, 301), 0.3), numbers(batch, 301), np.zeros(150, np.float32)
    try:
        found = decoded(product(masked(weight), x, bias, threads=2))
    finally:
        dispatch.masked_steps.cache_clear()
    wanted = decoded(x).astype(np.float64) @ weight.T.astype(np.float64)
    assert np.all(np.abs(found - wanted) <= 2**-8 * np.abs(wanted) + 1e-5 * np.abs(wanted).max())


@amx
def test_sums_are_whole_before_they_are_rounded() -> None:
    weight, x = pruned((40, 5000), 0.3), numbers(150, 5000)
    found = decoded(product(masked(weight), x, np.zeros(40, np.float32)))
    wanted = decoded(x).astype(np.float64) @ weight.T.astype(np.float64)
    assert np.all(np.abs(found - wanted) <= 2**-8 * np.abs(wanted) + 1e-5 * np.abs(wanted).max())


@amx
@pytest.mark.parametrize(("inputs", "rows", "height"), [(768, 1024, 256), (4096, 1024, 128), (40000, 100, 32)])
def test_panels_of_whole_rows_fit_into_the_cache(inputs: int, rows: int, height: int) -> None:
    (step,) = dispatch.masked_steps((128, 256), inputs, "bfloat", rows)
    assert step.kernel.width == height


def test_code_multiplies_tiles() -> None:
    features = "+avx512f,+avx512vl,+avx512bw,+avx512bf16,+amx-tile,+amx-bf16"
    text = assembly(
        BrainTileKernel("i16", RowPanel("bfloat", 16, 4, "bfloat")).emit(),
        Target("x86_64-unknown-linux-gnu", "sapphirerapids", features),
    )
    assert text.count("tdpbf16ps") == 4
    assert "ldtilecfg" in text
    assert "tilerelease" in text


def test_other_processors_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "host", lambda: Target("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma"))
    assert not target.has_amx.__wrapped__()
    monkeypatch.setattr(target, "has_amx", lambda: False)
    moved = PackedMatrix("1x1", Tiled.of(np.ones((16, 32), np.float32)).as_dtype("bfloat16", np.empty(0, np.float32)))
    with pytest.raises(LayerError, match="packed for a processor with AMX, and this is none"):
        moved.compile_product(1, activations="bfloat16")
    with pytest.raises(LayerError, match=r"multiplies no tiles of bfloat16 \(AMX\)"):
        PackedMatrix.from_dense_for_amx(np.ones((16, 32), np.float32), "1x1")
