"""What comes from outside and is wrong is an error of this package, with its cause, whatever is done with it."""

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from artifact.forgery import artifact, shard_of
from artifact.versions import save_version, version_of
from interleaving import before_calls
from secateur import prune
from secateur._huggingface.folders import INDEX_FILE
from secateur.artifact import Artifact, convert, inspect, load, save, verify
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.safetensors_file import write_tensor_file
from secateur.errors import ArtifactError, SecateurError

LAYER = "x" * 40 + "\n"


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def below_a_file(folder: Path) -> Path:
    (folder / "file.txt").write_text("")
    return folder / "file.txt" / "model"


PATHS: dict[str, Callable[[Path], Any]] = {
    "null": lambda folder: f"{folder}/a\0b",
    "null first": lambda _: "\0",
    "half a character": lambda folder: f"{folder}/\ud800",
    "long name": lambda folder: folder / ("x" * 300),
    "long path": lambda folder: folder / ("x/" * 5000),
    "loop": loop,
    "below a loop": lambda folder: loop(folder) / "model",
    "below a file": below_a_file,
}

READ: dict[str, Callable[[Any], Any]] = {
    "Artifact": Artifact,
    "load": load,
    "load into": lambda path: load(path, nn.Linear(2, 2)),
    "verify": verify,
    "inspect": inspect,
    "convert": lambda path: convert(path, "unwritten"),
}


@pytest.mark.parametrize("use", READ)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_nothing_is_an_error_for_those_who_read(path: str, use: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        READ[use](PATHS[path](tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    assert not os.path.lexists("unwritten")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_nothing_is_an_error_for_those_who_write(path: str, tmp_path: Path) -> None:
    saved = artifact(tmp_path / "saved", ("norm.bias",))
    target = PATHS[path](tmp_path)
    before = sorted(os.listdir(tmp_path))
    uses: list[Callable[[], Any]] = [lambda: save(nn.Linear(2, 2), target), lambda: convert(saved, target)]
    for use in uses:
        with pytest.raises(ArtifactError):
            use()
    assert sorted(os.listdir(tmp_path)) == before


NUMBERS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EPERM]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("use", READ)
def test_a_file_that_the_system_does_not_open_is_an_error(
    number: int, use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artifact(tmp_path / "saved", ("norm.bias",))
    opened = os.open

    def refused(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).startswith(str(folder) + "/"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ArtifactError, match=os.strerror(number)) as caught:
        READ[use](folder)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("use", READ)
def test_a_parent_that_may_not_be_read_is_an_error(use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact(tmp_path / "saved", ("norm.bias",))
    stat = os.stat

    def refused(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(folder)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(ArtifactError, match="saved"):
        READ[use](folder)


class Full:
    """A tokenizer that meets a full disk, in a language whose errors are plain `Exception`."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("half")
        raise Exception("No space left on device (os error 28)")  # noqa: TRY002 - as others do


def test_a_tokenizer_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 0)
    with pytest.raises(
        ArtifactError, match=r"cannot write the configuration or tokenizer .* \(No space left"
    ) as caught:
        save(nn.Linear(2, 2), tmp_path / "saved", tokenizer=Full())
    assert caught.value.__cause__ is not None
    assert version_of(tmp_path / "saved") == 0
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_while_a_shard_is_written_leaves_what_was_there(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 0)
    message = r"cannot be written \(\[Errno 28\] No space left on device.*It is unchanged"
    full = before_calls(write_tensor_file, lambda call: call["path"].symlink_to("/dev/full"))
    with full, pytest.raises(ArtifactError, match=message):
        save_version(tmp_path / "saved", 1)
    assert version_of(tmp_path / "saved") == 0
    assert os.listdir(tmp_path) == ["saved"]


def strange_module() -> nn.Module:
    module = nn.Module()
    module.add_module(LAYER, nn.Linear(2, 2))
    return module


class Long(nn.Linear):
    """Its name is too long for a manifest."""


Long.__qualname__ = "x" * 400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (strange_module, "tensor .* cannot be written into a manifest|this name is not allowed in a file"),
        (lambda: Long(2, 2), "the model cannot be written into a manifest: name: String should have at most 300"),
    ],
)
def test_a_model_that_no_manifest_describes_is_an_error(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    uses: list[Callable[[nn.Module], Any]] = [inspect, lambda model: save(model, tmp_path / "saved")]
    for use in uses:
        with pytest.raises(SecateurError, match=message):
            use(make())
    assert not os.listdir(tmp_path)


def test_a_report_that_no_manifest_holds_is_an_error(tmp_path: Path) -> None:
    model = nn.Linear(8, 8)
    report = prune(model, {"pattern": "2:4"})
    layers = tuple(replace(layer, pattern="x" * 200) for layer in report.layers)
    with pytest.raises(ArtifactError, match="the report cannot be written into a manifest: pattern"):
        save(model, tmp_path / "saved", report=replace(report, layers=layers))
    assert not os.listdir(tmp_path)


def test_a_file_of_very_many_tensors_takes_time_in_proportion(tmp_path: Path) -> None:
    """By counting: what is read of each tensor and each entry of an index is read once."""

    def calls(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        names = [f"{place:05d}" for place in range(count)]
        header = {
            name: {"dtype": "U8", "shape": [1], "data_offsets": [place, place + 1]} for place, name in enumerate(names)
        }
        (folder / "a.safetensors").write_bytes(shard_of(header, bytes(count)))
        (folder / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
        total = 0

        def seen(*_: Any) -> None:
            nonlocal total
            total += 1

        sys.setprofile(seen)
        try:
            open_checkpoint(folder)
        finally:
            sys.setprofile(None)
        return total

    few, many = calls(500), calls(2000)
    assert many < 5 * few
