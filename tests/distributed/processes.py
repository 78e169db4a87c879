"""Runs a function in several processes that form a process group, with a time limit.

The processes are forked from one that has imported what they need, so that each starts in a few hundredths of a second.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from coverage_of_processes import list_variables, measure_coverage

LIMIT = 120.0
"""Seconds after which the processes are ended and the test fails."""

PRELOADED = [
    "array_api_compat.numpy",
    "array_api_compat.torch",
    "coverage",
    "lightning.pytorch",
    "pytest",
    "secateur.oneshot.pytorch",
    "secateur.training.pytorch",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.trainer",
]


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, limit: float = LIMIT) -> list[Any]:
    """Call a function of a test file in `ranks` processes, and return their results in the order of the ranks.

    Each process has the default process group, with gloo on this machine. The function is found by the name of its file
    and its own name, so it must be at the top level of the file. Arguments and results are pickled.

    Raises:
        AssertionError: A process raised, with its traceback, or ended without a result, or took longer than `limit`
            seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    variables = list_variables()
    file = Path(function.__code__.co_filename)
    with tempfile.TemporaryDirectory() as folder:
        pipes, workers = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            call = (file, function.__name__, pickle.dumps(args))  # without shared memory
            place = (rank, ranks, Path(folder))
            worker = context.Process(target=work, args=(theirs, call, place, variables), daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        try:
            results = _receive(pipes, time.monotonic() + limit)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
    problems = [f"rank {rank}: {problem}" for rank, (problem, _) in sorted(results.items()) if problem is not None]
    silent = [rank for rank in range(ranks) if rank not in results]
    if problems or silent:
        problems += [f"rank {rank}: no result after {limit:g} s" for rank in silent]
        raise AssertionError("\n".join(problems))
    return [results[rank][1] for rank in range(ranks)]


def _receive(pipes: list[Connection], end: float) -> dict[int, tuple[str | None, Any]]:
    """Return rank → its problem and its result, until all have answered, or `end`."""
    results: dict[int, tuple[str | None, Any]] = {}
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting and (ready := wait(list(waiting), max(0.0, end - time.monotonic()))):
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                results[rank] = pickle.loads(pipe.recv_bytes())  # noqa: S301
            except EOFError:
                results[rank] = ("the process ended without a result", None)
    return results


def work(
    pipe: Connection, call: tuple[Path, str, bytes], place: tuple[int, int, Path], variables: dict[str, str]
) -> None:
    """Call the function in this process, and send its result."""
    with measure_coverage(variables):
        answer = _answer(call, *place)
    pipe.send_bytes(pickle.dumps(answer))


def _answer(call: tuple[Path, str, bytes], rank: int, ranks: int, folder: Path) -> tuple[str | None, Any]:
    """Return the problem of the function and its result."""
    import torch
    import torch.distributed as dist

    file, name, args = call
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}  # read, but not used
    try:
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks)
        result = getattr(_load(file), name)(*pickle.loads(args))  # noqa: S301
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 -- the test shows it
        return traceback.format_exc(), None
    return None, result


def _load(file: Path) -> ModuleType:
    """Import a test file under a name of its own."""
    name = f"ranks_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
