"""LLVM code generation: the emitter, the compiler, and what all kernels share."""

from __future__ import annotations

__all__: list[str] = []
