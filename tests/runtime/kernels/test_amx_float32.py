"""Products of float32 whose weights and activations are parted into halves of bfloat16, beside plain NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.kernels.fenced import fenced, fences
from runtime.kernels.products import multiply
from secateur.errors import ConfigError, LayerError
from secateur.runtime.kernels import ConvolutionWindow, PackedMatrix, dispatch, has_amx
from secateur.runtime.kernels.amx.bitmask_small_batch import ExpandingKernel
from secateur.runtime.kernels.amx.bitmask_tiles import DecodingKernel
from secateur.runtime.kernels.amx.column_tiles import HalfTileKernel
from secateur.runtime.kernels.codegen import target
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import Target, assembly
from secateur.runtime.kernels.dispatch import MAX_ROWS_WITHOUT_AMX
from secateur.runtime.kernels.formats.base import Layout
from secateur.runtime.kernels.formats.bitmask import Masked
from secateur.runtime.kernels.formats.column_tiles import Tiled
from secateur.runtime.kernels.formats.dtypes import decoded, in_halves, whole

amx = pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
GUARD = 64
MARK = np.float32(1234.5)
SAPPHIRE = Target(
    "x86_64-unknown-linux-gnu",
    "sapphirerapids",
    "+avx512f,+avx512vl,+avx512bw,+avx512vbmi2,+avx512bf16,+amx-tile,+amx-bf16",
)


def gathered(weight: np.ndarray) -> Layout:
    """For sixteen outputs, the inputs that any of them keeps."""
    return Tiled.of(weight, 16).in_halves()


LAYOUTS = [
    pytest.param(Masked.of, id="decoded"),
    pytest.param(gathered, id="gathered"),
]


def pruned(shape: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape, np.float32) * (rng.random(shape) < density)


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def product(layout: Layout, x: np.ndarray, bias: np.ndarray, threads: int = 1) -> np.ndarray:
    """The product, between guards that must stay as they are."""
    outputs = layout.shape[0]
    memory = np.full(len(x) * outputs + 2 * GUARD, MARK)
    y = memory[GUARD:-GUARD]
    matrix = PackedMatrix("1x1", layout)
    multiply(matrix, x, y, bias, threads=threads)
    assert np.all(memory[:GUARD] == MARK)
    assert np.all(memory[-GUARD:] == MARK)
    return y.reshape(len(x), outputs)


def check(layout: Layout, weight: np.ndarray, x: np.ndarray, threads: int = 1) -> None:
    bias = numbers(len(weight), seed=3)
    found = product(layout, x, bias, threads)
    wanted = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    # Of each factor up to 2**-17 is rounded away, and the product of the small halves, up to 2**-16, is left out.
    assert np.all(np.abs(found - wanted) <= 2**-15 * (np.abs(x) @ np.abs(weight).T) + 1e-6 * (1 + np.abs(wanted)))


@amx
@pytest.mark.parametrize("of", LAYOUTS)
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
def test_product_is_that_of_the_dense_weight(
    of: Callable[[np.ndarray], Layout], outputs: int, inputs: int, batch: int, density: float, threads: int
) -> None:
    weight = pruned((outputs, inputs), density)
    check(of(weight), weight, numbers(batch, inputs), threads)


@amx
@pytest.mark.parametrize("of", LAYOUTS)
@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(40, 1024, 70), (130, 1100, 300), (20, 2500, 513)])
def test_sums_wait_between_pieces_and_panels(
    of: Callable[[np.ndarray], Layout], outputs: int, inputs: int, batch: int
) -> None:
    weight = pruned((outputs, inputs), 0.3)
    check(of(weight), weight, numbers(batch, inputs))


@amx
@pytest.mark.parametrize("of", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 64])
def test_error_is_some_millionths(of: Callable[[np.ndarray], Layout], batch: int) -> None:
    weight, x = pruned((256, 1536), 0.5), np.abs(numbers(batch, 1536))
    found = product(of(weight), x, np.zeros(256, np.float32))
    wanted = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.linalg.norm(found - wanted) < 6e-6 * np.linalg.norm(wanted)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 21])
def test_vectors_do_what_tiles_do_not(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "has_amx", lambda: False)
    dispatch.masked_steps.cache_clear()
    try:
        for outputs, inputs in ((1, 1), (16, 256), (50, 33), (150, 700)):
            weight = pruned((outputs, inputs), 0.3)
            layout = Masked.of(weight)
            assert {type(step.kernel) for step in dispatch.select_kernels(layout, "float", batch)} == {ExpandingKernel}
            check(layout, weight, numbers(batch, inputs), threads=2)
    finally:
        dispatch.masked_steps.cache_clear()


@amx
def test_few_rows_go_by_vectors() -> None:
    layout = Masked.of(pruned((16, 16), 0.5))
    assert [type(step.kernel) for step in dispatch.select_kernels(layout, "float", MAX_ROWS_WITHOUT_AMX)] == [
        ExpandingKernel
    ]
    (step,) = dispatch.select_kernels(layout, "float", MAX_ROWS_WITHOUT_AMX + 1)
    assert isinstance(step.kernel, DecodingKernel)
    assert step.kernel.rows == 32
    assert [step.kernel.rows for step in dispatch.select_kernels(layout, "float", 300)] == [160]


@amx
@fences
@pytest.mark.parametrize("of", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 33, 70])
def test_nothing_is_read_behind_the_last_row(of: Callable[[np.ndarray], Layout], batch: int) -> None:
    x = fenced(numbers(batch, 37))
    product(of(pruned((32, 37), 0.5)), x, fenced(np.zeros(32, np.float32)))


@pytest.mark.usefixtures("shared_out")
@amx
@pytest.mark.parametrize("of", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 40, 300])
def test_threads_change_no_bit(of: Callable[[np.ndarray], Layout], batch: int) -> None:
    layout, x, bias = of(pruned((400, 1100), 0.2)), numbers(batch, 1100), numbers(400)
    alone = product(layout, x, bias)
    for threads in (2, 3, 7):
        assert np.array_equal(product(layout, x, bias, threads), alone)


@amx
@pytest.mark.parametrize("of", LAYOUTS)
def test_what_is_not_finite_does_not_become_finite(of: Callable[[np.ndarray], Layout]) -> None:
    weight, x = pruned((20, 40), 1.0), numbers(40, 40)
    x[3, 5], x[7, 0] = np.inf, np.nan
    x.view(np.uint32)[9, 1] = 0x7FFFFFFF  # A NaN that rounding by addition would turn into minus zero.
    found = product(of(weight), x, np.zeros(20, np.float32))
    strange = np.zeros(40, np.bool_)
    strange[[3, 7, 9]] = True
    assert not np.isfinite(found[strange]).any()
    assert np.isfinite(found[~strange]).all()


@amx
@pytest.mark.parametrize("of", LAYOUTS)
def test_copies_are_equal(of: Callable[[np.ndarray], Layout]) -> None:
    matrix, x, bias = PackedMatrix("1x1", of(pruned((40, 50), 0.2))), numbers(9, 50), np.zeros(40, np.float32)
    wanted = product(matrix.weights, x, bias)
    assert np.array_equal(product(copy.deepcopy(matrix).weights, x, bias), wanted)
    moved = pickle.loads(pickle.dumps(matrix))  # noqa: S301 - our own
    assert np.array_equal(product(moved.weights, x, bias), wanted)
    assert np.array_equal(moved.to_dense(), matrix.to_dense())


@pytest.mark.parametrize("of", LAYOUTS)
@given(outputs=st.integers(1, 150), inputs=st.integers(1, 300), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_dense_is_the_inverse(of: Callable[[np.ndarray], Layout], outputs: int, inputs: int, density: float) -> None:
    weight = pruned((outputs, inputs), density)
    assert np.array_equal(of(weight).to_dense(), weight)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
@example([np.float32(0.1), 1.0, -1.0, 1.99999988079071044921875, 1.00390625, 1.001953125])
@example([np.float32(1.2345678e-35)])
@example([np.float32(3.0867377e-36)])
@settings(max_examples=500)
def test_halves_and_rest_are_the_number(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    try:
        halves, rest = in_halves(floats)
    except LayerError:
        sizes = np.abs(floats[floats != 0])
        assert sizes.min() < 2.0**-100 or sizes.max() > 2.0**126
        return
    assert np.array_equal(whole(halves, rest), floats)
    near = decoded(halves[:, 0]).astype(np.float64) + decoded(halves[:, 1])
    below = 2.0**-134  # half of the smallest bfloat16
    assert np.all(np.abs(near - floats) <= 2.0**-17 * np.abs(floats) + below)


@pytest.mark.parametrize("strange", [np.inf, -np.inf, np.nan, 3.4e38, 1e-40])
@pytest.mark.parametrize("of", LAYOUTS)
def test_numbers_without_halves_are_refused(of: Callable[[np.ndarray], Layout], strange: float) -> None:
    weight = pruned((16, 16), 0.5)
    weight[2, 3] = strange
    with pytest.raises(LayerError, match="in halves of bfloat16 must be finite and of a usual size"):
        of(weight)


@pytest.mark.parametrize("of", LAYOUTS)
def test_only_rows_of_float32_are_taken(of: Callable[[np.ndarray], Layout]) -> None:
    matrix = PackedMatrix("1x1", of(pruned((16, 32), 0.2)))
    with pytest.raises(ConfigError, match="of float32 needs activations of it, found bfloat16"):
        matrix.compile_product(1, activations="bfloat16")
    with pytest.raises(ConfigError, match="is multiplied with rows, found ImagePanel"):
        matrix.compile_convolution(1, ConvolutionWindow(32, (1, 200), (1, 1), (1, 1), (1, 1)))


@amx
@pytest.mark.parametrize(
    ("pattern", "sparsity", "kind", "share"),
    [("16x1", 0.8, Tiled, 0.35), ("8x1", 0.9, Tiled, 0.35), ("16x1", 0.5, Masked, 0.7), ("1x1", 0.8, Masked, 0.35)],
)
def test_layout_suits_the_zeros(pattern: str, sparsity: float, kind: type[Layout], share: float) -> None:
    height = int(pattern.split("x")[0])
    kept = (np.random.default_rng(0).random((256 // height, 256)) >= sparsity).repeat(height, 0)
    matrix = PackedMatrix.from_dense_for_amx(numbers(256, 256) * kept, pattern, "float32")
    assert isinstance(matrix.weights, kind)
    assert 5 * np.count_nonzero(kept) < matrix.nbytes <= share * 4 * kept.size


def test_code_decodes_and_multiplies() -> None:
    text = assembly(DecodingKernel("float", 256, 1024, 128, 256).emit(), SAPPHIRE)
    assert text.count("tdpbf16ps") == 12
    assert text.count("vpexpandw") == 4
    assert "tilerelease" in text
    text = assembly(DecodingKernel("bfloat", 256, 1024, 128, 256).emit(), SAPPHIRE)
    assert text.count("tdpbf16ps") == 4
    assert text.count("vpexpandw") == 2
    text = assembly(HalfTileKernel("i16", RowPanel("float", 16, 4, "halves")).emit(), SAPPHIRE)
    assert text.count("tdpbf16ps") == 8


@pytest.mark.parametrize("element", ["float", "bfloat"])
def test_other_processors_expand_too(element: str) -> None:
    haswell = Target("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma")
    arm = Target("aarch64-unknown-linux-gnu", "cortex-a76", "+neon")
    for processor, instruction in ((haswell, "vfmadd"), (arm, "fmla")):
        text = assembly(ExpandingKernel(element, 2, 128, 256).emit(), processor)
        assert instruction in text
        assert "trunc" not in text
