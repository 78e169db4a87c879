"""Random mutations: each is refused with an error of this package, or changes nothing that is read.

``make fuzz ONLY=mutated_artifact`` (or ``mutated_checkpoint``) tries others of these kinds for as long as you like.
"""

import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from artifact.forgery import Content, artifact, content, header_of, model_of, state_of
from artifact.mutations import BASES, Mutated, check_content, mutated, of_other_tools, seeded
from secateur.artifact import convert, inspect, load, verify
from secateur.errors import SecateurError

MUTATIONS = 2_500
OF_OTHER_TOOLS = 500
OF_EACH_BASE = (MUTATIONS - OF_OTHER_TOOLS) // len(BASES)

SECONDS = 1
"""Of processor time for one mutation."""

TIMES_THE_FILES = 1024
"""How many times the bytes of the files are held at the most: what a packed tensor may grow by."""

CONSTANT_BYTES = 2_000_000

LONGEST_ERROR = 10_000

EVERY = 10
"""Of so many mutations, one is loaded into a model and has its memory measured, which is slow."""


class Folder:
    """A folder of which only what changes is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {file.name: file.read_bytes() for file in path.iterdir()}
        self.written: set[str] = set()

    def write(self, files: dict[str, bytes]) -> None:
        changed = {name for name, whole in files.items() if whole != self.files[name]}
        for name in self.written | changed:
            (self.path / name).write_bytes(files[name])
        self.written = changed


class HangError(BaseException):
    """Nothing catches it by accident."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A mutation that is waited for forever fails."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"{number} at {frame}")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def attempt(use: Callable[[], Any]) -> Any:
    """What comes of it; ``None``: it was refused, as it should be, and in time."""
    signal.alarm(30 * SECONDS)
    start = time.process_time()
    try:
        found, text = use(), "found"
    except SecateurError as error:
        found, text = None, str(error)
    assert 0 < len(text) < LONGEST_ERROR
    assert time.process_time() - start < SECONDS
    return found


def in_memory(use: Callable[[], Any], most: int) -> Any:
    tracemalloc.start()
    try:
        found = attempt(use)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= most, f"{peak:,} bytes at the most, {most:,} may be"
    return found


def check_model(folder: Path, before: Content, mutation: Mutated) -> None:
    model = model_of(before)
    state = state_of(model)
    if attempt(lambda: load(folder, model)) is None:
        assert state_of(model) == state
    elif not mutation.is_sealed:
        assert state_of(model) == {name: raw for name, (_, _, raw) in before.items()}


def check(folder: Folder, before: Content, mutation: Mutated, *, thorough: bool) -> None:
    folder.write(mutation.files)
    most = TIMES_THE_FILES * sum(map(len, mutation.files.values())) + CONSTANT_BYTES
    attempt(lambda: inspect(folder.path))
    if thorough:
        check_content(in_memory(lambda: content(folder.path), most), before, mutation)
        check_model(folder.path, before, mutation)
    else:
        check_content(attempt(lambda: content(folder.path)), before, mutation)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_no_mutation_of_an_artifact_is_taken_for_it(base: str, tmp_path: Path) -> None:
    folder = Folder(artifact(tmp_path / "saved", **BASES[base]))
    before = content(folder.path)
    for number in range(OF_EACH_BASE):
        mutation = mutated(folder.files, seeded(f"{base} {number}"))
        try:
            check(folder, before, mutation, thorough=number % EVERY == 0)
        except BaseException as error:
            error.add_note(f"mutation {number} of {base!r}: {mutation.how}")
            raise
    folder.write(folder.files)
    assert content(folder.path) == before


@pytest.mark.slow
def test_no_mutation_of_a_file_of_another_tool_does_harm(tmp_path: Path) -> None:
    """Its tensors have no digests, so those that can be read are what is in the file: as many bytes as it says."""
    path = tmp_path / "weights.safetensors"
    held = {"a": np.ones((4, 4), "f4"), "b": np.zeros((2, 8), "f2"), "c": np.arange(3), "d": np.zeros((0, 2), "f4")}
    save_file(held, path, {"format": "np"})
    whole = path.read_bytes()
    for number in range(OF_OTHER_TOOLS):
        chance = seeded(f"other {number}")
        how = of_other_tools(path, whole, chance)
        most = TIMES_THE_FILES * path.stat().st_size + CONSTANT_BYTES
        try:
            attempt(lambda: inspect(path))
            attempt(partial(verify, path, pattern=chance.choice([None, "2:4", "4x1"])))
            if number % EVERY == 0:
                in_memory(lambda: verify(path), most)
                check_converted(path, tmp_path / "target")
        except BaseException as error:
            error.add_note(f"mutation {number}: {how}")
            raise


def check_converted(path: Path, target: Path) -> None:
    if attempt(lambda: convert(path, target)) is None:
        return
    header, data = header_of(path)
    header.pop("__metadata__", None)
    found = content(target)
    assert found.keys() == header.keys()
    for name, (dtype, shape, raw) in found.items():
        start, stop = header[name]["data_offsets"]
        assert (dtype, list(shape), raw) == (header[name]["dtype"], header[name]["shape"], data[start:stop])


def test_mutations_are_enough() -> None:
    assert len(BASES) * OF_EACH_BASE + OF_OTHER_TOOLS == MUTATIONS
