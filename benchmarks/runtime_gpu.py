"""Sparse products on a GPU with the libraries that come with torch, compared with dense ones.

Each row is one weight and batch: microseconds of dense, and the speed-ups over it, first of calls from Python, then of
calls in a CUDA graph, which excludes the time to launch them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
import transformers
from torch.nn import functional

import secateur
import secateur.runtime
from _pruned import pruned
from secateur.errors import LayerError
from secateur.runtime.pytorch.layers.library import (
    LIBRARIES,
    BlockSparseFormat,
    LibraryFormat,
    LibraryMatrix,
    SemiStructuredFormat,
)
from secateur.runtime.pytorch.timing import measure_medians

SHAPES = ((768, 768), (3072, 768), (2048, 2048), (4096, 4096), (14336, 4096))
BATCHES = (1, 64, 256, 1024, 4096)
SIDES = (16, 32, 64, 128)
BUDGET = 0.02

GPU = torch.device("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--blocks", type=float, nargs="*", default=[0.8, 0.9], help="sparsities of square blocks")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("A GPU is needed, and torch finds none.")
    dtype = getattr(torch, arguments.dtype)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.dtype}")
    with torch.no_grad():
        if dtype is not torch.float32:
            print_table("2:4", 0.5, [SemiStructuredFormat(name) for name in LIBRARIES], dtype)
        for sparsity in arguments.blocks:
            print_table("128x128", sparsity, [BlockSparseFormat(side) for side in SIDES], dtype)
        for pattern in ("2:4", "128x128"):
            print_decoder(pattern, 4096, dtype)


def print_table(pattern: str, sparsity: float, formats: list[LibraryFormat], dtype: torch.dtype) -> None:
    """Time every shape and batch; blocks of 128 are blocks of 16 too."""
    names = "  ".join(item.name for item in formats)
    print(f"\n{pattern} at {sparsity:.0%}: calls, dense us, then {names}; graph, the same")
    for shape in SHAPES:
        weight = torch.from_numpy(pruned(shape, pattern, sparsity, np.random.default_rng(0))).to(GPU, dtype)
        matrices = {
            library_format.name: matrix
            for library_format in formats
            if (matrix := convert(weight, library_format)) is not None
        }
        for rows in BATCHES:
            x = torch.randn(rows, shape[1], device=GPU, dtype=dtype)
            calls: dict[str, Callable[[], object]] = {"dense": lambda x=x, weight=weight: functional.linear(x, weight)}
            calls |= {name: lambda x=x, matrix=matrix: matrix.multiply(x, None) for name, matrix in matrices.items()}
            working = {name: call for name, call in calls.items() if can_run(call)}
            cells = []
            for cuda_graph in (False, True):
                seconds = measure_medians(list(working.values()), GPU, BUDGET, cuda_graph=cuda_graph)
                cells.append(format_row(dict(zip(working, seconds, strict=True)), list(calls)))
            print(f"{shape[0]:5}x{shape[1]:<5} {rows:5} |{cells[0]} |{cells[1]}", flush=True)


def convert(weight: torch.Tensor, library_format: LibraryFormat) -> LibraryMatrix | None:
    try:
        return LibraryMatrix(weight, library_format)
    except LayerError as error:
        print(error)
        return None


def can_run(call: Callable[[], object]) -> bool:
    try:
        call()
    except LayerError:
        return False
    return True


def format_row(seconds: dict[str, float], names: list[str]) -> str:
    ratios = [f"{seconds['dense'] / seconds[name]:6.2f}" if name in seconds else "     -" for name in names[1:]]
    return f"{1e6 * seconds['dense']:9.1f}" + "".join(ratios)


def print_decoder(pattern: str, rows: int, dtype: torch.dtype) -> None:
    """Time two decoder layers of the size of Llama 8B, with random weights."""
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_key_value_heads=8, vocab_size=1024
    )
    torch.manual_seed(0)
    with GPU:
        model = transformers.LlamaModel(config).to(dtype).eval()
    secateur.prune(model, {"pattern": pattern} | ({} if ":" in pattern else {"target_sparsity": 0.8}))
    tokens = torch.randint(0, 1024, (1, rows), device=GPU)
    inputs = {"input_ids": tokens, "use_cache": False}
    models = {"dense": model}
    for name, cuda_graphs in (("calls", False), ("graphs", True)):
        models[name], report = secateur.runtime.compile(copy.deepcopy(model), inputs, cuda_graphs=cuda_graphs)
        share = sum(one.bytes for one in report.layers) / sum(one.dense_bytes for one in report.layers)
        print(f"decoder, {pattern}, {rows} rows, timed in {name}: {report.replaced} layers, {share:.3f} of the bytes")
    compiled = {name: torch.compile(one, mode="reduce-overhead") for name, one in models.items()}
    for kind, some in (("as it is", models), ("torch.compile, reduce-overhead", compiled)):
        seconds = measure_medians([lambda one=one: one(**inputs) for one in some.values()], GPU, 0.3)
        shown = ", ".join(f"{name} {1e3 * time:.2f} ms" for name, time in zip(some, seconds, strict=True))
        print(f"  {kind}: {shown}", flush=True)


if __name__ == "__main__":
    main()
