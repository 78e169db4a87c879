"""What stands where a file should: pipes, devices, folders, links, and files that are not the manifest's."""

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from artifact.forgery import COMPANION, SHARD, artifact, content, forged, shard_of
from secateur._huggingface.folders import INDEX_FILE
from secateur._manifest_file import MANIFEST
from secateur.artifact import Artifact, convert, inspect, load, save, verify
from secateur.errors import ArtifactError, ModelLoadError, SecateurError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and devices that are files")

SECONDS = 5


class HangError(BaseException):
    """Nothing catches it by accident."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Whatever waits longer than `SECONDS` fails rather than never ends."""

    def stop(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact(tmp_path / "saved", ("groups.weight", "norm.bias"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def never_ready(path: Path) -> None:
    path.symlink_to("/dev/tty")


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nothing")


def socket(path: Path) -> None:
    import socket as sockets

    before = Path.cwd()
    os.chdir(path.parent)  # A socket's path may have 100 characters.
    with sockets.socket(sockets.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


KINDS = [pipe, endless, never_ready, directory, loop, dangling, socket]
NO_FILE = r"must be a file, found|cannot be read"


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_no_file_is_refused(kind: Callable[[Path], None], folder: Path) -> None:
    (folder / SHARD).unlink()
    kind(folder / SHARD)
    forged(folder, lambda data: data["shards"].update({SHARD: 0}))
    for use in (Artifact, verify, inspect, load, lambda found: convert(found, folder.parent / "target")):
        with pytest.raises(ArtifactError, match=rf"{SHARD}: ({NO_FILE})"):
            use(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_another_file_that_is_no_file_is_refused(kind: Callable[[Path], None], folder: Path) -> None:
    (folder / COMPANION).unlink()
    kind(folder / COMPANION)
    assert len(Artifact(folder)) == 3
    for use in (verify, lambda found: convert(found, folder.parent / "target")):
        with pytest.raises(ArtifactError, match=rf"{COMPANION}: ({NO_FILE})"):
            use(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_that_is_no_file_is_none(kind: Callable[[Path], None], folder: Path) -> None:
    (folder / MANIFEST).unlink()
    kind(folder / MANIFEST)
    with pytest.raises(ArtifactError, match=r"is not an artifact, because it has no file 'secateur.json'"):
        Artifact(folder)
    with pytest.raises(ArtifactError, match="must be new, empty or an artifact"):
        artifact(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", INDEX_FILE, "config.json"])
def test_what_is_no_file_is_refused_in_a_folder_of_other_tools(
    kind: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    kind(folder / name)
    for use in (verify, inspect, lambda found: convert(found, tmp_path / "target")):
        with pytest.raises(ArtifactError, match=str(folder)):
            use(folder)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_by_itself(kind: Callable[[Path], None], tmp_path: Path) -> None:
    kind(tmp_path / "a.safetensors")
    for use in (verify, inspect, load, Artifact):
        with pytest.raises(ArtifactError, match=r"a.safetensors"):
            use(tmp_path / "a.safetensors")


def test_a_link_to_a_file_is_a_file(folder: Path, tmp_path: Path) -> None:
    """As in the cache of a model hub."""
    before = content(folder)
    (folder / SHARD).rename(tmp_path / "blob")
    (folder / SHARD).symlink_to("../blob")
    assert content(folder) == before
    (tmp_path / "blob").write_bytes((tmp_path / "blob").read_bytes()[:-1] + b"\xff")
    with pytest.raises(ArtifactError, match="is damaged"):
        content(folder)


def test_a_file_that_is_cut_after_it_was_opened_is_an_error(folder: Path) -> None:
    opened = Artifact(folder)
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 8)
    with pytest.raises(ArtifactError, match=r"was truncated after it was opened|is damaged"):
        dict(opened)


def test_a_file_that_grew_to_be_huge_is_not_read(folder: Path) -> None:
    """Sparse files of any size cost nothing to make."""
    for name in (SHARD, MANIFEST):
        with (folder / name).open("r+b") as file:
            before = os.fstat(file.fileno()).st_size
            file.truncate(1 << 42)
            with pytest.raises(ArtifactError, match=name):
                Artifact(folder)
            file.truncate(before)
    assert verify(folder)


def index(folder: Path, content: Any) -> Path:
    (folder / INDEX_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    save_file({"a": np.ones((2, 2), "f4")}, folder / "a.safetensors")
    return folder


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "b/a.safetensors", "a\0", "a\n", "\ud800", "./a.safetensors", "a/"]
)
def test_no_index_of_another_tool_leaves_its_folder(name: str, tmp_path: Path) -> None:
    index(tmp_path, {"weight_map": {"a": name}})
    with pytest.raises(ArtifactError, match=rf"{INDEX_FILE}: .* is not the name of a file in the folder"):
        verify(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "b.safetensors", "x" * 10_000])
def test_an_index_of_another_tool_that_names_no_file_is_refused(name: str, tmp_path: Path) -> None:
    index(tmp_path, {"weight_map": {"a": name}})
    with pytest.raises(ArtifactError, match=r"is not the name of a file|cannot be read|must be a file"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "found", ["", "{", [], {}, {"weight_map": 1}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}, "[" * 10**5]
)
def test_an_index_of_another_tool_that_is_none_is_refused(found: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=INDEX_FILE):
        verify(index(tmp_path, found))


def test_a_tensor_in_two_files_of_another_tool_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"a": np.ones((2, 2), "f4")}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtifactError, match="'a' are in more than one file"):
        verify(tmp_path)


@pytest.mark.parametrize("name", ["a#values", "__proto__", "a/../b", "a" * 5000, "[bold]", "{0}", "%s", "é", "#index"])
def test_strange_names_are_carried_through(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(shard_of({name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, bytes(4)))
    assert name in verify(path).problems or inspect(path).tensors[0].name == name
    convert(path, tmp_path / "target")
    assert list(Artifact(tmp_path / "target")) == [name]
    assert str(verify(tmp_path / "target"))


@pytest.mark.parametrize("name", ["a\n", "\x1b[2J", "\ud800", "__metadata__"])
def test_a_name_that_could_not_be_read_is_not_written(name: str, tmp_path: Path) -> None:
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.ones(2)))
    with pytest.raises(SecateurError, match="this name is not allowed in a file"):
        save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "auto_map": {"AutoConfig": "evil.Evil"}}, ""),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}, "custom code"),
        ({"model_type": "bert", "architectures": ["Trainer"]}, "'Trainer' is not a transformers model"),
        ({"model_type": "bert", "architectures": ["logging"]}, "'logging' is not a transformers model"),
        ({"model_type": "bert", "architectures": ["os"]}, "'os' is not a transformers model"),
        ({"model_type": "bert", "architectures": [7]}, "7 is not a transformers model"),
        ({"model_type": "bert", "architectures": [["BertModel"]]}, "is not a transformers model"),
        ({"model_type": "bert", "architectures": ["__doc__"]}, "'__doc__' is not a transformers model"),
        ([], ""),
        (None, ""),
    ],
)
def test_a_description_runs_no_code(config: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = artifact(tmp_path / "saved", ("norm.bias",))
    (folder / "evil.py").write_text("raise SystemExit(7)\n")
    (folder / COMPANION).write_text(text := json.dumps(config))

    def described(data: dict[str, Any]) -> None:
        data["files"][COMPANION] = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        data["model"] = {"framework": "pytorch", "kind": "transformers", "name": "Evil"}

    forged(folder, described)
    with pytest.raises((ArtifactError, ModelLoadError), match=re.escape(message or str(folder))):
        load(folder)
