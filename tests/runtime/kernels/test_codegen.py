"""Generated code, also for processors other than this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from installed_packages import hide_packages
from runtime.kernels.products import convolve, multiply
from secateur.errors import MissingPackageError
from secateur.runtime.kernels import ConvolutionWindow, PackedMatrix, dispatch
from secateur.runtime.kernels.block import BlockPanelKernel, BlockSmallBatchKernel
from secateur.runtime.kernels.codegen import Emitter, Kernel, TargetMachine, get_host
from secateur.runtime.kernels.codegen.image_panel import ImagePanel
from secateur.runtime.kernels.codegen.row_panel import RowPanel
from secateur.runtime.kernels.codegen.target import compile_function, emit_assembly
from secateur.runtime.kernels.codegen.vectors import load_floats, store_floats
from secateur.runtime.kernels.formats.dtypes import decode, encode
from secateur.runtime.kernels.nm import (
    NMPanelKernel,
    NMSmallBatchKernel,
    OutputPairPanelKernel,
    OutputPairSmallBatchKernel,
)
from secateur.runtime.kernels.unstructured import UnstructuredPanelKernel, UnstructuredSmallBatchKernel

LINUX = "x86_64-unknown-linux-gnu"
TARGETS = {
    "avx512": (TargetMachine(LINUX, "sapphirerapids", "+avx512f,+avx512vl"), "vfmadd", "%zmm"),
    "avx2": (TargetMachine(LINUX, "haswell", "+avx2,+fma"), "vfmadd", "%ymm"),
    "cortex": (TargetMachine("aarch64-unknown-linux-gnu", "cortex-a76"), "fmla", ".4s"),
    "apple": (TargetMachine("arm64-apple-macosx", "apple-m1"), "fmla", ".4s"),
}


def create_kernels(target: TargetMachine, weight_type: str) -> list[Kernel]:
    """Create a kernel of each kind, with panels of two vectors of the target's width."""
    panel, is_wide = RowPanel("float", target.lanes, 2), target.lanes == 16
    return [
        BlockPanelKernel(4, 1, "i16", panel, 4, weight_type),
        BlockPanelKernel(4, 1, "i16", ImagePanel(target.lanes, 2), 4, weight_type),
        UnstructuredPanelKernel(128, 128, ImagePanel(target.lanes, 2), weight_type),
        BlockSmallBatchKernel(16, 1, "i16", "float", 1, target.lanes, weight_type),
        UnstructuredPanelKernel(128, 128, panel, weight_type),
        UnstructuredSmallBatchKernel(128, 128, "float", 1, weight_type),
        NMSmallBatchKernel(2, 4, "float", 1, is_wide and target.is_x86, weight_type),
        NMPanelKernel(2, 4, 128, 128, panel, weight_type),
        OutputPairPanelKernel(128, 64, panel, weight_type),
        OutputPairSmallBatchKernel(128, 64, "float", 1, weight_type),
    ]


@pytest.mark.parametrize(
    ("name", "height", "inputs", "vectors"),
    [("avx2", 4, 64, 2), ("avx512", 4, 64, 5), ("avx512", 4, 4096, 4), ("cortex", 8, 64, 3)],
)
def test_sums_of_blocks_fit_in_the_registers(
    use_processor: Callable[[TargetMachine], None], name: str, height: int, inputs: int, vectors: int
) -> None:
    use_processor(TARGETS[name][0])
    weights = dispatch.pack_weight(np.ones((16, inputs), np.float32), f"{height}x1", 512)
    steps = dispatch.select_kernels(weights, "float", 512)
    assert sum(step.rows for step in steps) == 512
    assert max(step.kernel.panel.vectors for step in steps) == vectors


@pytest.mark.parametrize(
    ("name", "weight_type"),
    [
        *[(name, "float") for name in TARGETS],
        ("avx512", "i8"),
        ("avx2", "bfloat"),
        ("cortex", "i8"),
        ("apple", "bfloat"),
    ],
)
def test_kernels_use_fma_on_full_vectors(name: str, weight_type: str) -> None:
    target, instruction, register = TARGETS[name]
    for kernel in create_kernels(target, weight_type):
        lines = [line for line in emit_assembly(kernel.emit(), target).splitlines() if instruction in line]
        assert [line for line in lines if register in line], type(kernel).__name__


@pytest.mark.parametrize("name", TARGETS)
def test_target_knows_lanes_and_registers(name: str) -> None:
    target = TARGETS[name][0]
    assert (target.lanes, target.registers) == {"avx512": (16, 32), "avx2": (8, 16)}.get(name, (4, 32))


def test_processors_without_avx_are_supported() -> None:
    target = TargetMachine(LINUX, "x86-64")
    assert target.lanes == 4
    assert "mulps" in emit_assembly(BlockPanelKernel(4, 1, "i16", RowPanel("float", 4, 2), 4).emit(), target)


@pytest.mark.parametrize("name", list(TARGETS))
def test_bfloat16_activations_need_no_compiler_runtime(name: str) -> None:
    target = TARGETS[name][0]
    panel, has_permute = RowPanel("bfloat", target.lanes, 2), target.lanes == 16
    for kernel in (
        BlockPanelKernel(4, 1, "i16", panel, 4, "bfloat"),
        BlockSmallBatchKernel(4, 1, "i16", "bfloat", 1, target.lanes, "bfloat"),
        BlockSmallBatchKernel(1, 8, "i16", "bfloat", 1, target.lanes, "bfloat"),
        UnstructuredSmallBatchKernel(128, 128, "bfloat", 1, "bfloat"),
        NMSmallBatchKernel(2, 4, "bfloat", 1, has_permute, "bfloat"),
        OutputPairSmallBatchKernel(128, 64, "bfloat", 1, "bfloat"),
    ):
        assert "truncsfbf2" not in emit_assembly(kernel.emit(), target)


@pytest.mark.skipif(not get_host().is_x86, reason="runs code for older processors of the same kind")
@pytest.mark.parametrize("features", ["+avx2,+fma", ""])
@pytest.mark.parametrize(
    ("pattern", "rows"), [*[(pattern, 1) for pattern in ("4x1", "8x1", "1x8", "1x1", "2:4", "4:8")], ("2:4", 64)]
)
def test_older_processors_agree(
    pattern: str, rows: int, features: str, use_processor: Callable[[TargetMachine], None]
) -> None:
    if features and not get_host().has_feature("avx2"):
        pytest.skip("no AVX2 here")
    older = TargetMachine(get_host().triple, "haswell" if features else "x86-64", features)
    use_processor(older)
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
        if batch == 6:
            continue  # each kernel takes a tenth of a second
        half, result = encode(x, "bfloat16"), np.empty((batch, 40), np.uint16)
        multiply(matrix, half, result, activations="bfloat16")
        np.testing.assert_allclose(decode(result), decode(half) @ matrix.to_dense().T, rtol=1e-2, atol=1e-3)
    pixels = np.random.default_rng(1).standard_normal((56, 150)).astype(np.float32)
    y = np.empty((40, 150), np.float32)
    convolve(matrix, (1, ConvolutionWindow(56, (1, 150), (1, 1), (1, 1), (1, 1))), (pixels, y))
    np.testing.assert_allclose(y, matrix.to_dense() @ pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", ["+avx2,+fma", "+avx512f,+avx512bw,+avx512vl", ""])
@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_rounding_needs_no_compiler_runtime(
    lanes: int, features: str, use_processor: Callable[[TargetMachine], None]
) -> None:
    """Without a rounding instruction, LLVM would call a function that may not exist in the process."""
    if not all(get_host().has_feature(feature[1:]) for feature in filter(None, features.split(","))):
        pytest.skip("this processor lacks the features")
    function = Emitter("run", {"goal": "ptr", "source": "ptr"})
    store_floats(function, "bfloat", lanes, load_floats(function, "float", lanes, "%source"), "%goal")
    older = TargetMachine(get_host().triple, "generic" if not get_host().is_x86 else "x86-64", features)
    assert "call" not in emit_assembly(function, older)
    use_processor(older)
    run = compile_function(function, "run", 2)
    floats = np.random.default_rng(0).standard_normal((64, lanes)).astype(np.float32)
    special = [np.nan, np.inf, -np.inf, -0.0, 3.4e38, 1e-40, 1 + 2**-8, 1 + 3 * 2**-8]
    floats[:8] = np.array(special, np.float32)[:, None]
    floats[8].view(np.uint32)[:] = 0xFFFFFFFF
    rounded = np.empty(floats.shape, np.uint16)
    for source, target in zip(floats, rounded, strict=True):
        run(target.ctypes.data, source.ctypes.data)
    assert np.array_equal(decode(rounded), decode(encode(floats, "bfloat16")), equal_nan=True)


def test_invalid_code_raises() -> None:
    function = BlockPanelKernel(4, 1, "i16", RowPanel("float", 4, 1), 4).emit()
    function.assign("add i64 %missing, 1")
    with pytest.raises(RuntimeError, match="missing"):
        compile_function(function, "run", 5)


def test_host_has_lanes() -> None:
    assert get_host().lanes in (4, 8, 16)


def test_importing_loads_neither_llvm_nor_torch() -> None:
    code = "import secateur.runtime.kernels, sys; print('llvmlite' in sys.modules, 'torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert process.stdout.split() == ["False", "False"]


def test_missing_llvmlite_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime.kernels.codegen import target

    hide_packages(monkeypatch, "llvmlite")
    with pytest.raises(MissingPackageError, match=r"pip install .*\[runtime\]"):
        target._load_llvm.__wrapped__()
