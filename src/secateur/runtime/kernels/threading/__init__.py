"""Run products on several threads, of an OpenMP runtime that is already loaded or of a thread pool."""

from __future__ import annotations

from secateur.runtime.kernels.threading.executor import KernelExecutor, get_executor, use_openmp_threads

__all__ = ["KernelExecutor", "get_executor", "use_openmp_threads"]
