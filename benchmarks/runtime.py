"""Time sparse products on the CPU, compared with torch's dense and sparse products.

Each row is one weight and batch size. The numbers are speed-ups over dense float32. Times include packing the
activations, but not packing the weights.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from _pruned_weight import make_pruned_weight
from _timing import measure_wall_seconds
from secateur.runtime.kernels import WEIGHT_DTYPES, PackedMatrix, get_unsupported_reason, has_amx
from secateur.runtime.pytorch.openmp import use_openmp_of_torch

PATTERNS = "4x1@0.5,4x1@0.8,4x1@0.9,8x1@0.5,8x1@0.8,8x1@0.9,16x1@0.5,16x1@0.8,16x1@0.9,1x1@0.8,1x1@0.9,2:4@0.5"
SHAPES = "768x768,3072x768,768x3072,2048x2048,4096x4096"
BATCHES = "1,8,64,256,1024"
TILES_SUFFIX = "-tiles"
TORCH_ROUNDS = 3
"""Fewer rounds for torch's sparse products, which can be a hundred times slower than dense."""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", default=PATTERNS, help="comma-separated list of PATTERN@SPARSITY")
    parser.add_argument("--shapes", default=SHAPES, help="comma-separated list of OUTPUTSxINPUTS")
    parser.add_argument("--batches", default=BATCHES)
    parser.add_argument(
        "--dtypes",
        default="float32,float32-tiles,bfloat16-tiles",
        help=f"types of the sparse weights: {', '.join(WEIGHT_DTYPES)}, or for AMX tiles float32{TILES_SUFFIX}, "
        f"bfloat16{TILES_SUFFIX}",
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--torch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also time torch's bfloat16 and sparse products",
    )
    return parser.parse_args()


def list_torch_products(
    weight: np.ndarray, pattern: str, x: torch.Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield torch's products for a pruned weight, except those that fail."""
    dense = torch.from_numpy(weight)
    half, small = dense.bfloat16(), x.bfloat16()
    yield "bf16 dense", lambda: torch.nn.functional.linear(small, half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
        converters: dict[str, Callable[[], torch.Tensor]] = {"CSR": dense.to_sparse_csr}
        if "x" in pattern and pattern != "1x1":
            rows, cols = (int(number) for number in pattern.split("x"))
            converters["BSR"] = lambda: dense.to_sparse_bsr((rows, cols))
        for name, convert in converters.items():
            try:
                sparse = convert()
                torch.nn.functional.linear(x, sparse)
            except (RuntimeError, NotImplementedError):
                continue
            yield name, lambda sparse=sparse: torch.nn.functional.linear(x, sparse)


def compile_product(
    matrix: PackedMatrix, x: torch.Tensor, bias: torch.Tensor, threads: int
) -> Callable[[], torch.Tensor]:
    y = torch.empty(len(x), matrix.shape[0], dtype=x.dtype)
    multiply = matrix.compile_product(len(x), activations=str(x.dtype).removeprefix("torch."), threads=threads)

    def product() -> torch.Tensor:
        multiply(bias.data_ptr(), x.data_ptr(), y.data_ptr())
        return y

    return product


def list_products(
    weight: np.ndarray, pattern: str, x: torch.Tensor, bias: torch.Tensor, threads: int, dtypes: list[str]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Compile the sparse products for each type of weights."""
    products = {}
    for dtype in dtypes:
        weight_dtype = dtype.removesuffix(TILES_SUFFIX)
        if weight_dtype == dtype and not get_unsupported_reason(pattern, weight.shape, dtype):
            products[dtype] = compile_product(PackedMatrix.from_dense(weight, pattern, dtype, len(x)), x, bias, threads)
        if weight_dtype != dtype and has_amx():
            rows = x.bfloat16() if weight_dtype == "bfloat16" else x
            products[dtype] = compile_product(
                PackedMatrix.from_dense_for_amx(weight, pattern, weight_dtype), rows, bias, threads
            )
    return products


def measure(
    weight: np.ndarray, pattern: str, batch: int, threads: int, options: argparse.Namespace
) -> tuple[float, dict[str, str]]:
    """Measure the time of the dense product, and format the speed-ups and errors of all other products."""
    x = torch.randn(batch, weight.shape[1])
    dense, bias = torch.from_numpy(weight), torch.randn(weight.shape[0])
    expected = torch.nn.functional.linear(x.double(), dense.double(), bias.double())
    base = {"dense": lambda: torch.nn.functional.linear(x, dense, bias)}
    products = list_products(weight, pattern, x, bias, threads, options.dtypes.split(","))
    errors = {name: float((product() - expected).norm() / expected.norm()) for name, product in products.items()}
    seconds = measure_wall_seconds(base | products, options.rounds)
    best = min((name for name in products if name.startswith("float32")), key=seconds.__getitem__, default=None)
    cells = {"best of float32": f"{seconds['dense'] / seconds[best]:.2f}"} if best else {}
    cells |= {name: f"{seconds['dense'] / seconds[name]:.2f} ({error:.1e})" for name, error in errors.items()}
    if options.torch:
        torch_seconds = measure_wall_seconds(base | dict(list_torch_products(weight, pattern, x)), TORCH_ROUNDS)
        cells |= {
            name: f"{torch_seconds['dense'] / time:.2f}" for name, time in torch_seconds.items() if name != "dense"
        }
    return seconds["dense"], cells


def main() -> None:
    options = parse_options()
    use_openmp_of_torch()
    torch.manual_seed(0)
    print("speed-up over dense float32 with the same number of threads (relative error)")
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        rng = np.random.default_rng(0)
        for entry in options.patterns.split(","):
            pattern, sparsity = entry.split("@")
            for sizes in options.shapes.split(","):
                outputs, inputs = (int(size) for size in sizes.split("x"))
                weight = make_pruned_weight((outputs, inputs), pattern, float(sparsity), rng)
                for batch in map(int, options.batches.split(",")):
                    dense, cells = measure(weight, pattern, batch, threads, options)
                    row = f"{threads} thread{'s' * (threads > 1)}, {entry:9} {sizes:9} batch {batch:4}"
                    columns = " | ".join(f"{name} {cell}" for name, cell in cells.items())
                    print(f"{row} dense {1e6 * dense:8.0f} us | {columns}", flush=True)


if __name__ == "__main__":
    main()
