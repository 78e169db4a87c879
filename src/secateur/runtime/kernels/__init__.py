"""Products with pruned weights on the CPU, by code that is made for the processor at hand.

``y = x @ weight.T + bias`` for activations x of shape (batch, I) and a pruned weight of shape (O, I). `PackedMatrix`
is the whole interface; it knows addresses and NumPy arrays, and no framework.

**What is slow about sparsity.** A processor multiplies two vectors of 16 floats per cycle and loads two. A dense
product loads a vector of activations once and multiplies it with many weights; a sparse one that goes weight by
weight loads one vector for each product and is bound by loads. And with few rows of the batch, arithmetic does not
matter: the weight is read once, and what counts is its bytes.

**The data's way.**

1. *Weights* are packed once, into one layout that all batches read (`layouts`, `scattered`, `grouped`, `paired`):

   - blocks of N outputs × M inputs: row of blocks by row of blocks, a column's N numbers side by side; a block costs
     an index of two bytes;
   - single weights: sixteen outputs side by side (a *strip*), each with its next weight; a weight costs one byte, its
     column within a piece of 128 inputs. Within a chunk of 256 outputs those are put together that have about as many
     weights in this piece, so that 3 to 5 % of what is stored are zeros that fill up;
   - N of every M: strips too, with two bits (four for M of 8 and 16) for a weight's place in its group;
   - N of every M, at least 0.4 of all weights, for many rows: pairs of outputs. Each output of 128 gets the partner
     with which it shares most inputs of a piece of 64: for 2:4 two thirds instead of a half.

   - for AMX, which multiplies tiles of bfloat16, sixteen outputs at a time (`tiled`, `tiles`): all inputs that any of
     them keeps. Activations must be put together first, so it gains where blocks are as high as a tile or where most is
     zero;
   - for AMX where nearly all inputs are kept by some output of sixteen (`masked`, `decoding`): a bit for each weight,
     and behind one another those that are not zero. They become tiles with their zeros, once for up to 256 rows.

   Numbers are float32, bfloat16 or int8 with a scale per output (`numbers`). In tiles a float32 is two bfloat16, which
   are its first sixteen bits: three products of these take a fifth of the time of one product by vectors, and leave a
   relative error of 4e-6. What the two lack is kept aside, so that the weight can be had back bit for bit.

2. *Few rows* (`direct`, `gathering`, `selecting`, `expanding`): activations are read where they are. Lanes are the
   outputs of a block or a strip, so nothing is added up across lanes, and weights stream through once, asked for 8 KiB
   ahead. A strip of single weights gathers its sixteen activations; one of N:M loads a group once and permutes it in
   the register by the index; of masked weights, two inputs of sixteen outputs are expanded at once.

3. *Many rows* (`blocks`, `chunks`, `strips`, `selecting`, `pairs`): activations are turned into panels of up to 128
   rows, feature after feature (`rows.RowPanel`), in memory that each thread keeps. For blocks, a tile of 4 outputs × 5
   vectors or 8 × 3 stays in registers: a block loads its activations once and each weight once as a broadcast. For
   strips, 128 features of a panel at a time stay in the innermost cache and four outputs are computed side by side,
   which hides what a sum waits for. For pairs it is 64 features, of which an input that both outputs keep is loaded
   once: 0.8 loads for each product instead of 1.1. Weights that are no floats become floats there once per panel.
   Results are kept until a line of the cache is full, turned back, and written a line at a time, to where has been
   asked for beforehand.

4. *Threads* (`sharing`): the panels' units of outputs are numbered, and cut where the stored weights before them are
   an equal share. Each number is computed by one thread in one order, so no bit depends on how many there are. The
   threads are those of an OpenMP runtime that is at work beside (`openmp`), or helpers of our own (`threads`).

**The code.** `emitter` writes LLVM's language with vectors of the processor's width (on others than AVX-512, AVX2 and
NEON, vectors of four, which LLVM fits to what there is); `target` compiles it in 15 ms (few rows) to 80 ms (panels),
once in a process for each kernel, width of panel and type. Calls go through ctypes, without Python's lock. All that
does not change between two calls lies ready in a `product`, of few parts that are read one after the other: weights
have emptied the caches between two calls of it, and Python would else take longer than a small product.

**Channels** (``1xchannel``, ``channelx1``) have no kernel: without them the weight is a smaller dense one.
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
