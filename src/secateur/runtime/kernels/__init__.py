"""Sparse kernels for the CPU, compiled for the processor they run on.

They compute ``y = x @ weight.T + bias`` for activations x of shape (batch, I) and a pruned weight of shape (O, I).
`PackedMatrix` is the main entry point. It works with addresses and NumPy arrays, and does not depend on a framework.

**Bottlenecks.** A processor multiplies two vectors of 16 floats per cycle and loads two. A dense kernel loads a vector
of activations once and multiplies it by many weights. A sparse kernel that handles one weight at a time needs a load
for each product, so it is bound by loads. With a small batch, arithmetic does not matter: the weight is read once, and
time depends on its size in bytes.

**Formats** (`formats`). A weight is packed once, in one format that is used for all batch sizes:

- `formats.block`: blocks of N outputs × M inputs, row by row. A block costs a two-byte index.
- `formats.unstructured`: single weights, interleaved for sixteen outputs (a *strip*). The index of a weight costs one
  byte, for its column in a piece of 128 inputs. In a chunk of 256 outputs, those with similar numbers of weights share
  a strip, so only 3 to 5 % of the stored values are padding.
- `formats.nm`: N:M, also in strips, with two bits (four for M of 8 and 16) for the position of a weight in its group.
- `formats.output_pairs`: N:M that keeps at least 0.4 of the weights, for large batches. In a chunk of 128 outputs and a
  piece of 64 inputs, each output is paired with the output with which it shares the most inputs: two thirds for 2:4,
  compared with one half for random pairs.
- `formats.column_tiles`: for AMX, which multiplies tiles of bfloat16. Sixteen outputs store all inputs that any of them
  keeps. Activations must be gathered first, so this format pays off if blocks are as tall as a tile, or if nearly all
  weights are zero.
- `formats.bitmask`: for AMX if most inputs are kept by at least one of sixteen outputs. It stores the nonzero weights
  and one bit per weight. They are decoded into tiles that include the zeros, once for up to 256 rows.

Weights are float32, bfloat16, or int8 with a scale per output (`formats.dtypes`). For AMX, a float32 is split into two
bfloat16, which hold its first sixteen bits. Three products of these take a fifth of the time of one product with
vectors, with a relative error of 4e-6. The remainder is stored too, so the weight can be restored exactly.

**Small batches** (``small_batch.py`` of `block`, `unstructured`, `nm`; `amx.bitmask_small_batch`). Activations are read
in place. Vector lanes are the outputs of a block or a strip, so no horizontal sums are needed. Weights are streamed
once and prefetched 8 KiB ahead. A strip of single weights gathers its sixteen activations, N:M loads a group once and
permutes it in a register, and a bitmask expands two inputs of sixteen outputs at once.

**Large batches** (``panel.py`` of `block`, `unstructured`, `nm`; `nm.output_pairs`). Activations are transposed into
panels of up to 128 rows, feature by feature (`codegen.row_panel`), in memory that each thread reuses. Register blocking
for blocks is 4 outputs × 5 vectors or 8 × 3: a block loads its activations once, and broadcasts each weight once. For
strips, 128 features of a panel at a time stay in the L1 cache, and four outputs are computed side by side, which hides
the latency of FMAs. For pairs it is 64 features, and an input that both outputs keep is loaded once: 0.8 loads per
product instead of 1.1. Weights that are not float32 are converted once per panel. Results are buffered until a cache
line is full, transposed back, and written one line at a time to memory that has been prefetched.

**Convolutions** (`convolution`, `codegen.image_panel`) read pixels in place, without im2col.

**Threads** (`threading`). The units of work of all panels are numbered and split into shares with about the same number
of weights. Each result is computed by one thread in a fixed order, so results are bitwise identical for any number of
threads. The threads belong to an OpenMP runtime that the process has already loaded, or to a thread pool.

**Compilation** (`codegen`). `codegen.emitter` writes LLVM IR with vectors of the processor's width (on processors
without AVX-512, AVX2 or NEON, vectors of four, which LLVM legalizes). `codegen.target` compiles it in 15 ms (small
batches) to 80 ms (panels), once per process for each kernel, panel width and type. Calls go through ctypes and release
the GIL. Everything that stays the same between calls is prepared in advance, in a few objects: weights evict the caches
between calls, so Python would otherwise take longer than a small product.

**Dispatch** (`dispatch`) selects the format of a weight and the kernels for a batch. Channel patterns (``1xchannel``,
``channelx1``) need no kernel: without the pruned channels, the weight is a smaller dense weight.
"""

from __future__ import annotations

from secateur.runtime.kernels.codegen.target import has_amx
from secateur.runtime.kernels.convolution import OVERREAD_FLOATS, ConvolutionWindow, get_window
from secateur.runtime.kernels.dispatch import MAX_ROWS_WITHOUT_AMX
from secateur.runtime.kernels.formats.dtypes import WEIGHT_DTYPES
from secateur.runtime.kernels.packed_matrix import ACTIVATION_DTYPES, PackedMatrix, get_unsupported_reason
from secateur.runtime.kernels.threading.executor import use_openmp_threads

__all__ = [
    "ACTIVATION_DTYPES",
    "MAX_ROWS_WITHOUT_AMX",
    "OVERREAD_FLOATS",
    "WEIGHT_DTYPES",
    "ConvolutionWindow",
    "PackedMatrix",
    "get_unsupported_reason",
    "get_window",
    "has_amx",
    "use_openmp_threads",
]
