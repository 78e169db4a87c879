"""Fork while threads compile or multiply. Child processes work, and do not wait for threads of the parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import secateur.runtime.kernels

pytest.importorskip("llvmlite")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TOOLS = """
import faulthandler, os, sys, threading, time
import numpy as np
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.kernels.threading import KernelExecutor, get_executor

def matrix(height):
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return PackedMatrix.from_dense(weight, f"{height}x1")

def product(packed, rows, threads=1):
    bias, x, y = np.zeros(64, np.float32), np.ones((rows, 64), np.float32), np.empty((rows, 64), np.float32)
    packed.compile_product(rows, threads=threads)(bias.ctypes.data, x.ctypes.data, y.ctypes.data)
    np.testing.assert_allclose(y, x @ packed.to_dense().T, rtol=1e-4, atol=1e-4)

def fork(work):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(10, exit=True)
        try:
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitpid(child, 0)[1]

def fork_beside(thread, work, pause=0.02):
    codes = []
    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    while worker.is_alive() and not any(codes):
        time.sleep(pause)
        codes.append(fork(work))
    print(len(codes) > 1 and not any(codes))
"""

COMPILING = """
packed = {height: matrix(height) for height in (1, 2, 4, 8, 16, 32, 64)}
fork_beside(
    lambda: [product(packed[height], rows) for height in (2, 4, 8, 16) for rows in range(1, 4)],
    lambda: product(packed[32], 3),
)
"""

LLVMLITE_ELSEWHERE = """
from llvmlite import binding
packed = matrix(4)
product(packed, 1)
text = "".join(f"define i32 @f{i}(i32 %x) {{ %y = mul i32 %x, {i} ret i32 %y }}" for i in range(1000))
fork_beside(lambda: [binding.parse_assembly(text) for _ in range(5)], lambda: product(packed, 3))
"""

FIRST_USE = """
packed = matrix(4)
assert "llvmlite" not in sys.modules
fork_beside(lambda: [product(packed, rows) for rows in range(1, 6)], lambda: product(packed, 3), pause=0.005)
"""

THREADS_AT_WORK = """
import secateur.runtime.pytorch
KernelExecutor.count_useful_threads, measure = lambda _, __, threads: threads, KernelExecutor.count_useful_threads
packed = matrix(4)
product(packed, 32, threads=2)

def multiply_and_measure():
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        product(packed, 32, threads=2)
        get_executor()._wake_seconds.clear()
        measure(get_executor(), 1, 2)

fork_beside(multiply_and_measure, lambda: product(packed, 32, threads=2), pause=0.005)
"""

IMPORTED_BY_THE_CHILD = """
import torch
torch.set_num_threads(2)
torch.ones(1000, 1000) @ torch.ones(1000, 1000) + torch.ones(1000, 1000)  # the parent's threads are at work
packed = matrix(4)

def first_import():
    import secateur.runtime.pytorch
    KernelExecutor.count_useful_threads = lambda _, __, threads: threads
    assert get_executor().team is None or not sys.platform.startswith("linux")
    product(packed, 32, threads=2)

print(fork(first_import) == 0)
"""

POOL = """
import multiprocessing
packed = matrix(4)
product(packed, 1)

def work(rows):
    product(packed, rows)
    return rows

def pool():
    with multiprocessing.get_context("fork").Pool(2) as workers:
        return workers.map(work, range(1, 9))

worker = threading.Thread(target=lambda: [product(matrix(height), 3) for height in (1, 2, 8, 16, 32)])
worker.start()
faulthandler.dump_traceback_later(20, exit=True)
print(all(pool() == list(range(1, 9)) for _ in range(2)))
worker.join()
"""

SCRIPTS = {name.lower(): text for name, text in globals().copy().items() if name.isupper() and name != "TOOLS"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_forked_process_works(name: str) -> None:
    script = TOOLS + SCRIPTS[name]
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout.split() == ["True"], process.stderr


def test_kernels_have_no_locks_that_outlive_a_fork() -> None:
    """Until Python 3.12, all instances of a class share the lock of a `functools.cached_property`."""
    kernels = Path(secateur.runtime.kernels.__file__).parent
    assert [file.name for file in kernels.rglob("*.py") if "@cached_property" in file.read_text("utf-8")] == []
