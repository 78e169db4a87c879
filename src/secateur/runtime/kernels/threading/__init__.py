"""Threads that share the work of a product: an OpenMP team that the process has already, or a thread pool."""

from __future__ import annotations

from secateur.runtime.kernels.threading.executor import KernelExecutor, get_executor, use_openmp_threads

__all__ = ["KernelExecutor", "get_executor", "use_openmp_threads"]
