"""Code generation with LLVM: the emitter, the compiler, and the base classes of kernels.

- `emitter`, `target`: emit LLVM IR, and compile it for a processor.
- `vectors`, `transpose`: load, convert, reduce and transpose vectors.
- `kernel`: the base class of all kernels, and their calling convention.
- `panel`, `row_panel`, `image_panel`: pack the activations of large batches, and read the pixels of images.
- `chunk_kernel`, `small_batch`: base classes of kernels for panels and for small batches.
"""

from __future__ import annotations

from secateur.runtime.kernels.codegen.emitter import Emitter
from secateur.runtime.kernels.codegen.kernel import Kernel
from secateur.runtime.kernels.codegen.target import TargetMachine, get_host, has_amx

__all__ = ["Emitter", "Kernel", "TargetMachine", "get_host", "has_amx"]
