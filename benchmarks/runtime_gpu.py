"""Time sparse products on a GPU with the libraries that torch includes, compared with dense products.

Each row is one weight and batch size. It shows the dense time in microseconds and the speed-ups over it, first for
calls from Python, then for calls in a CUDA graph, which excludes the time to launch them.
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
from _pruned_weight import make_pruned_weight
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
    parser.add_argument(
        "--blocks", type=float, nargs="*", default=[0.8, 0.9], help="sparsities of weights with square blocks of zeros"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a GPU, and torch.cuda.is_available() is False.")
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
    """Time all shapes and batch sizes. Weights with blocks of 128 are also stored in smaller blocks."""
    names = "  ".join(item.name for item in formats)
    print(f"\n{pattern} at {sparsity:.0%}: calls: dense us, then {names} | in a graph: the same columns")
    for shape in SHAPES:
        weight = torch.from_numpy(make_pruned_weight(shape, pattern, sparsity, np.random.default_rng(0))).to(GPU, dtype)
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
        share = sum(layer.bytes for layer in report.layers) / sum(layer.dense_bytes for layer in report.layers)
        print(f"decoder, {pattern}, {rows} rows, timed in {name}: {report.replaced} layers, {share:.3f} of the bytes")
    compiled = {name: torch.compile(network, mode="reduce-overhead") for name, network in models.items()}
    for mode, networks in (("eager", models), ("torch.compile, reduce-overhead", compiled)):
        calls = [lambda network=network: network(**inputs) for network in networks.values()]
        times = zip(networks, measure_medians(calls, GPU, 0.3), strict=True)
        cells = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times)
        print(f"  {mode}: {cells}", flush=True)


if __name__ == "__main__":
    main()
