"""Attack with modified artifacts and checkpoints: the original content is read, or an error is raised."""

import atexit
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from artifact.forgery import Content, artifact, content, header_of, model_of, shard_of, state_of
from artifact.mutations import BASES, BYTES, changed_json, check_content, lengthened, mutated, split
from fuzz.harness import attack
from secateur._huggingface.folders import INDEX_FILE
from secateur.artifact import Artifact, convert, inspect, load, verify
from secateur.errors import SecateurError

CALIBRATED = "2:4"


@cache
def base(name: str) -> tuple[Path, Content]:
    """Create an artifact once, and return its folder and content."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    saved = artifact(folder / name, **BASES[name])
    return saved, content(saved)


@attack(cases=120, seconds=20)
def mutated_artifact(chance: random.Random, folder: Path) -> None:
    """Change bytes, JSON values, headers and sealed manifests: each verb raises an error or returns a right result."""
    saved, before = base(chance.choice(list(BASES)))
    mutation = mutated({file.name: file.read_bytes() for file in saved.iterdir()}, chance)
    source, target = folder / "saved", folder / "target"
    source.mkdir()
    for name, whole in mutation.files.items():
        (source / name).write_bytes(whole)
    refused: list[SecateurError] = []
    uses: list[Callable[[], Any]] = [
        lambda: inspect(source),
        lambda: verify(source, pattern=chance.choice([None, CALIBRATED])),
        lambda: check_content(content(source), before, mutation),
        lambda: check_loaded(source, before, is_sealed=mutation.is_sealed),
        lambda: check_converted(source, target, dense=chance.random() < 0.5),
    ]
    for use in uses:
        try:
            use()
        except SecateurError as error:
            refused.append(error)
    assert sorted(os.listdir(folder)) in (["saved"], ["saved", "target"])
    if refused:
        raise refused[0]


def check_loaded(source: Path, before: Content, *, is_sealed: bool) -> None:
    model = model_of(before)
    state = state_of(model)
    try:
        load(source, model)
    except SecateurError:
        assert state_of(model) == state
        raise
    assert is_sealed or state_of(model) == {name: raw for name, (_, _, raw) in before.items()}


def check_converted(source: Path, target: Path, *, dense: bool) -> None:
    convert(source, target, dense=dense)
    with suppress(SecateurError):  # conversion does not unpack, so it can accept a forged index
        assert content(target) == content(source)


DIARY = "a secret"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link_to_outside(path: Path) -> None:
    path.symlink_to("../diary.txt")


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


KINDS = [make_pipe, make_folder, make_link_to_outside, make_link_to_device, make_link_loop, make_huge_file]


@attack(cases=60, seconds=20)
def files_of_other_kinds(chance: random.Random, folder: Path) -> None:
    """Replace a file of an artifact or a checkpoint with a pipe, device, link or huge file."""
    (folder / "diary.txt").write_text(DIARY)
    source, target = folder / "source", folder / "target"
    if chance.random() < 0.5:
        shutil.copytree(base(chance.choice(list(BASES)))[0], source)
    else:
        checkpoint(source)
    path = source / chance.choice([*sorted(os.listdir(source)), "vocab.txt", "keras.json", "other.safetensors"])
    path.unlink(missing_ok=True)
    chance.choice(KINDS)(path)
    refused: list[SecateurError] = []
    uses: list[Callable[[], Any]] = [
        lambda: Artifact(source),
        lambda: verify(source),
        lambda: inspect(source),
        lambda: convert(source, target),
    ]
    for use in uses:
        try:
            use()
        except SecateurError as error:
            refused.append(error)
    assert not any(DIARY.encode() in file.read_bytes() for file in target.rglob("*") if file.is_file())
    if refused:
        raise refused[-1]


def checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Write a model in two files with an index and a tokenizer, like other tools; returns its tensors."""
    folder.mkdir()
    tensors = {"a": np.eye(4, dtype="f4"), "b": np.zeros((2, 8), "f2"), "c": np.arange(3), "d": np.zeros((0, 2), "f4")}
    save_file({name: tensors[name] for name in "ab"}, folder / "one.safetensors", {"format": "pt"})
    save_file({name: tensors[name] for name in "cd"}, folder / "two.safetensors", {"format": "pt"})
    places = {name: "one.safetensors" if name in "ab" else "two.safetensors" for name in tensors}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 120}, "weight_map": places}))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return tensors


@attack(cases=120, seconds=20)
def mutated_checkpoint(chance: random.Random, folder: Path) -> None:
    """Convert modified files of other tools, which have no digests: the result matches their headers and index."""
    source, target = folder / "source", folder / "target"
    checkpoint(source)
    path = source / chance.choice(sorted(os.listdir(source)))
    whole = path.read_bytes()
    if path.suffix == ".safetensors" and chance.random() < 0.5:
        header, data = split(whole)
        path.write_bytes(shard_of(changed_json(header, chance), data))
    elif path.suffix == ".json" and chance.random() < 0.7:
        path.write_text(json.dumps(changed_json(json.loads(whole), chance)))
    else:
        change = chance.choice([*BYTES, lengthened])
        path.write_bytes(change(whole, chance))
    inspect(source)
    verify(source)
    convert(source, target)
    expected: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    places: dict[str, str] = {}
    weight_map = json.loads((source / INDEX_FILE).read_bytes())["weight_map"]
    for shard in {source / name for name in weight_map.values()}:
        header, data = header_of(shard)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            expected[name] = entry["dtype"], tuple(entry["shape"]), data[start:stop]
            places[name] = shard.name
    assert weight_map == places
    assert content(target) == expected
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
