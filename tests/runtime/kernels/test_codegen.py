"""The code that is made, for processors that need not be at hand."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from runtime.kernels.products import convolve, multiply
from secateur.errors import MissingPackageError
from secateur.runtime.kernels import ConvolutionWindow, PackedMatrix, dispatch
from secateur.runtime.kernels.block.panel import BlockKernel
from secateur.runtime.kernels.block.small_batch import DirectKernel
from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.image_panel import ImagePanel
from secateur.runtime.kernels.codegen.kernel import Kernel
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import Target, assembly, compiled, host
from secateur.runtime.kernels.codegen.vectors import read_floats, write_floats
from secateur.runtime.kernels.formats.dtypes import decoded, encoded
from secateur.runtime.kernels.nm.output_pairs import PairGatherKernel, PairKernel
from secateur.runtime.kernels.nm.panel import SelectPanelKernel
from secateur.runtime.kernels.nm.small_batch import SelectKernel
from secateur.runtime.kernels.unstructured.panel import ScatteredKernel
from secateur.runtime.kernels.unstructured.small_batch import GatherKernel

LINUX = "x86_64-unknown-linux-gnu"
TARGETS = {
    "avx512": (Target(LINUX, "sapphirerapids", "+avx512f,+avx512vl"), "vfmadd", "%zmm"),
    "avx2": (Target(LINUX, "haswell", "+avx2,+fma"), "vfmadd", "%ymm"),
    "cortex": (Target("aarch64-unknown-linux-gnu", "cortex-a76"), "fmla", ".4s"),
    "apple": (Target("arm64-apple-macosx", "apple-m1"), "fmla", ".4s"),
}


def kernels(target: Target, stored: str) -> list[Kernel]:
    """One of each kind, on two vectors of the target's width."""
    panel, is_wide = RowPanel("float", target.lanes, 2), target.lanes == 16
    return [
        BlockKernel(4, 1, "i16", panel, 4, stored),
        BlockKernel(4, 1, "i16", ImagePanel(target.lanes, 2), 4, stored),
        ScatteredKernel(128, 128, ImagePanel(target.lanes, 2), stored),
        DirectKernel(16, 1, "i16", "float", 1, target.lanes, stored),
        ScatteredKernel(128, 128, panel, stored),
        GatherKernel(128, 128, "float", 1, stored),
        SelectKernel(2, 4, "float", 1, is_wide and target.is_x86, stored),
        SelectPanelKernel(2, 4, 128, 128, panel, stored),
        PairKernel(128, 64, panel, stored),
        PairGatherKernel(128, 64, "float", 1, stored),
    ]


@pytest.mark.parametrize("stored", ["float", "bfloat", "i8"])
@pytest.mark.parametrize("name", TARGETS)
def test_code_multiplies_and_adds_whole_vectors_at_once(name: str, stored: str) -> None:
    target, instruction, register = TARGETS[name]
    for kernel in kernels(target, stored):
        lines = [line for line in assembly(kernel.emit(), target).splitlines() if instruction in line]
        assert [line for line in lines if register in line], type(kernel).__name__


@pytest.mark.parametrize("name", TARGETS)
def test_lanes_and_registers(name: str) -> None:
    target = TARGETS[name][0]
    assert (target.lanes, target.registers) == {"avx512": (16, 32), "avx2": (8, 16)}.get(name, (4, 32))


def test_a_processor_without_wide_vectors_still_has_code() -> None:
    target = Target(LINUX, "x86-64")
    assert target.lanes == 4
    assert "mulps" in assembly(BlockKernel(4, 1, "i16", RowPanel("float", 4, 2), 4).emit(), target)


@pytest.mark.parametrize("name", list(TARGETS))
def test_activations_of_bfloat16_need_no_function_of_the_compiler(name: str) -> None:
    target = TARGETS[name][0]
    panel, permutes = RowPanel("bfloat", target.lanes, 2), target.lanes == 16
    for kernel in (
        BlockKernel(4, 1, "i16", panel, 4, "bfloat"),
        DirectKernel(4, 1, "i16", "bfloat", 1, target.lanes, "bfloat"),
        DirectKernel(1, 8, "i16", "bfloat", 1, target.lanes, "bfloat"),
        GatherKernel(128, 128, "bfloat", 1, "bfloat"),
        SelectKernel(2, 4, "bfloat", 1, permutes, "bfloat"),
        PairGatherKernel(128, 64, "bfloat", 1, "bfloat"),
    ):
        assert "truncsfbf2" not in assembly(kernel.emit(), target)


@pytest.mark.skipif(not host().is_x86, reason="runs code for older processors of the same kind")
@pytest.mark.parametrize("features", ["+avx2,+fma", ""])
@pytest.mark.parametrize(
    ("pattern", "rows"), [*[(pattern, 1) for pattern in ("4x1", "8x1", "1x8", "1x1", "2:4", "4:8")], ("2:4", 64)]
)
def test_older_processors_get_the_same(pattern: str, rows: int, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if features and not host().has("avx2"):
        pytest.skip("no AVX2 here")
    older = Target(host().triple, "haswell" if features else "x86-64", features)
    monkeypatch.setattr("secateur.runtime.kernels.codegen.target.host", lambda: older)
    monkeypatch.setattr("secateur.runtime.kernels.dispatch._made", {})
    caches = dispatch.block_steps, dispatch.scattered_steps, dispatch.grouped_steps, dispatch.paired_steps
    for cached in caches:
        cached.cache_clear()
    try:
        weight = np.random.default_rng(0).standard_normal((40, 56)).astype(np.float32)
        weight[8:16] = weight[:, 5] = 0
        if ":" in pattern:
            weight.reshape(-1, 2)[:, 1] = 0
        matrix = PackedMatrix.from_dense(weight, pattern, "bfloat16", rows)
        for batch in (1, 6, 40):
            x = np.random.default_rng(1).standard_normal((batch, 56)).astype(np.float32)
            y = np.empty((batch, 40), np.float32)
            multiply(matrix, x, y)
            np.testing.assert_allclose(y, x @ matrix.to_dense().T, rtol=1e-4, atol=1e-4)
            half, result = encoded(x, "bfloat16"), np.empty((batch, 40), np.uint16)
            multiply(matrix, half, result, activations="bfloat16")
            np.testing.assert_allclose(decoded(result), decoded(half) @ matrix.to_dense().T, rtol=1e-2, atol=1e-3)
        pixels = np.random.default_rng(1).standard_normal((56, 150)).astype(np.float32)
        y = np.empty((40, 150), np.float32)
        convolve(matrix, (1, ConvolutionWindow(56, (1, 150), (1, 1), (1, 1), (1, 1))), (pixels, y))
        np.testing.assert_allclose(y, matrix.to_dense() @ pixels, rtol=1e-4, atol=1e-4)
    finally:
        for cached in caches:
            cached.cache_clear()


@pytest.mark.parametrize("features", ["+avx2,+fma", "+avx512f,+avx512bw,+avx512vl", ""])
@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_rounding_needs_nothing_else(lanes: int, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an instruction for it LLVM would call a function that no process need have."""
    if not all(host().has(feature[1:]) for feature in filter(None, features.split(","))):
        pytest.skip("not of this processor's kind")
    function = Emitter("run", {"goal": "ptr", "source": "ptr"})
    write_floats(function, "bfloat", lanes, read_floats(function, "float", lanes, "%source"), "%goal")
    older = Target(host().triple, "generic" if not host().is_x86 else "x86-64", features)
    assert "call" not in assembly(function, older)
    monkeypatch.setattr("secateur.runtime.kernels.codegen.target.host", lambda: older)
    run = compiled(function, "run", 2)
    floats = np.random.default_rng(0).standard_normal((64, lanes)).astype(np.float32)
    strange = [np.nan, np.inf, -np.inf, -0.0, 3.4e38, 1e-40, 1 + 2**-8, 1 + 3 * 2**-8]
    floats[:8] = np.array(strange, np.float32)[:, None]
    floats[8].view(np.uint32)[:] = 0xFFFFFFFF
    found = np.empty(floats.shape, np.uint16)
    for source, goal in zip(floats, found, strict=True):
        run(goal.ctypes.data, source.ctypes.data)
    assert np.array_equal(decoded(found), decoded(encoded(floats, "bfloat16")), equal_nan=True)


def test_broken_code_is_refused() -> None:
    function = BlockKernel(4, 1, "i16", RowPanel("float", 4, 1), 4).emit()
    function.let("add i64 %missing, 1")
    with pytest.raises(RuntimeError, match="missing"):
        compiled(function, "run", 5)


def test_host_is_of_this_kind() -> None:
    assert host().lanes in (4, 8, 16)


def test_importing_makes_no_code() -> None:
    code = "import secateur.runtime.kernels, sys; print('llvmlite' in sys.modules, 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert ran.stdout.split() == ["False", "False"]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime.kernels.codegen import target

    monkeypatch.setattr("secateur._packages.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r'pip install "secateur\[runtime\]"'):
        target._binding.__wrapped__()
