"""How much memory is held besides the model, as documented; measured by NumPy's allocations and under a hard limit."""

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifact.forgery import in_blocks, in_groups, numbers, one_by_one, source
from secateur._memory import OutOfMemoryError, explain_out_of_memory
from secateur.artifact import Artifact, convert, inspect, verify
from secateur.artifact.dtypes import Bits
from secateur.artifact.manifest import Claim
from secateur.artifact.packing import CHUNK
from secateur.artifact.writer import write
from secateur.errors import ArtifactError, InsufficientMemoryError

SHAPE = (1024, 4096)
WEIGHTS = SHAPE[0] * SHAPE[1]

CONSTANT = 24 * CHUNK
"""Bytes that do not grow with a tensor."""

PER_WEIGHT = 4
"""Bytes for each weight of a tensor while it is packed or verified, besides the tensor dense and packed."""


def channels(dtype: str, axis: int) -> Bits:
    bits = numbers(SHAPE, dtype)
    bits[(slice(None),) * axis + (slice(None, None, 2),)] = 0
    return bits


KINDS: dict[str, Callable[[str], Bits]] = {
    "dense": lambda dtype: numbers(SHAPE, dtype),
    "bitmask": lambda dtype: one_by_one(SHAPE, dtype, 0.5),
    "index list": lambda dtype: one_by_one(SHAPE, dtype, 0.998),
    "4x1 blocks": lambda dtype: in_blocks(SHAPE, (4, 1), dtype, 0.5),
    "16x16 blocks": lambda dtype: in_blocks(SHAPE, (16, 16), dtype, 0.9),
    "1xchannel": lambda dtype: channels(dtype, 0),
    "channelx1": lambda dtype: channels(dtype, 1),
    "2:4": lambda dtype: in_groups(SHAPE, 2, 4, dtype),
    "1:4": lambda dtype: in_groups(SHAPE, 1, 4, dtype),
}

CLAIMS = {
    "2:4": Claim(pattern="2:4", units=WEIGHTS, pruned_units=WEIGHTS // 2),
    "4x1 blocks": Claim(pattern="4x1", units=WEIGHTS // 4, pruned_units=WEIGHTS // 8),
}


def peak(use: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        use()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "BF16") for kind in KINDS), ("2:4", "F32"), ("channelx1", "F32")])
def test_one_tensor_is_held_dense_and_packed(kind: str, dtype: str, tmp_path: Path) -> None:
    bits = KINDS[kind](dtype)
    given = source({"a.weight": (dtype, bits)})
    given = replace(given, tensors={"a.weight": replace(given.tensors["a.weight"], read=lambda: bits)})
    claims = {"a": CLAIMS[kind]} if kind in CLAIMS else {}
    saved = tmp_path / "saved"
    whole = peak(lambda: write(replace(given, claims=claims), saved))
    entry = Artifact(saved).manifest.tensors["a.weight"]
    assert entry.packing_name == kind
    packed = 0 if entry.packer is None else entry.stored_bytes
    assert whole <= packed + PER_WEIGHT * WEIGHTS + CONSTANT
    held = entry.dense_bytes + packed
    assert peak(lambda: Artifact(saved)["a.weight"]) <= held + CONSTANT
    uses: list[Callable[[Path], Any]] = [verify, inspect, lambda path: convert(path, tmp_path / "target")]
    for use in uses:
        assert peak(lambda use=use: use(saved)) <= held + PER_WEIGHT * WEIGHTS + CONSTANT  # type: ignore[misc]


LIMITED = """
import resource, sys
import numpy as np, torch
import secateur
from secateur.artifact import convert, inspect
path, *pairs = sys.argv[1:]
model = torch.nn.Linear(4096, 2048, bias=False, dtype=torch.bfloat16)
for _ in range(2):  # what is imported and started only now
    small = torch.nn.Linear(8, 8, bias=False)
    secateur.save(small, path + "-small"); secateur.load(path + "-small", small); secateur.verify(path + "-small")
    convert(path + "-small", path + "-smaller"); inspect(path + "-small"); inspect(small)
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
uses = {
    "load": lambda: secateur.load(path, model),
    "verify": lambda: secateur.verify(path),
    "inspect": lambda: inspect(model),
    "convert": lambda: convert(path, path + "-target"),
    "save": lambda: secateur.save(model, path + "-target"),
}
for verb, spare in (pair.split("=") for pair in pairs):
    resource.setrlimit(resource.RLIMIT_AS, (used + int(spare), resource.RLIM_INFINITY))
    try:
        uses[verb]()
    except secateur.SecateurError as error:
        print(verb, type(error).__name__, error)
    else:
        print(verb, "done")
"""

LARGE = (2048, 4096)


def limited(path: Path, **spare: int) -> list[str]:
    """What comes of each verb where so many bytes are left for it."""
    command = [sys.executable, "-c", LIMITED, str(path), *(f"{verb}={count}" for verb, count in spare.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bfloat16 weight of 16 MB, packed 2:4 into 9 MB."""
    folder = tmp_path_factory.mktemp("large") / "saved"
    write(replace(source({"weight": ("BF16", in_groups(LARGE, 2, 4, "BF16"))}), aliases={}), folder)
    return folder


DENSE, PACKED = 2 * LARGE[0] * LARGE[1], 9 * LARGE[0] * LARGE[1] // 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
def test_the_documented_memory_is_enough(large: Path) -> None:
    load, verify = DENSE + PACKED + CONSTANT, DENSE + PACKED + PER_WEIGHT * LARGE[0] * LARGE[1] + CONSTANT
    assert limited(large, load=load, verify=verify) == ["load done", "verify done"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
def test_too_little_memory_is_an_error_that_names_the_tensor(large: Path) -> None:
    verbs = ["load", "verify", "inspect", "convert", "save"]
    found = limited(large, **dict.fromkeys(verbs, DENSE // 4))
    assert len(found) == len(verbs)
    for verb, line in zip(verbs, found, strict=True):
        assert re.fullmatch(
            rf"{verb} OutOfMemoryError .*'weight.*there is not enough memory for its [\d,]+ bytes.*", line
        )
    assert not Path(f"{large}-target").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")])
def test_an_error_of_memory_is_explained(error: Exception) -> None:
    message = "x: there is not enough memory for its 1,000 bytes"
    with pytest.raises(OutOfMemoryError, match=message) as caught, explain_out_of_memory("x", 1000):
        raise error
    assert isinstance(caught.value, ArtifactError)
    assert isinstance(caught.value, InsufficientMemoryError)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"^other$"), explain_out_of_memory("x", 1000):
        raise RuntimeError("other")
