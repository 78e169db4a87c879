"""Which files beside weights are copied, and that nothing else of the reader's is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from artifact.forgery import artifact
from secateur._huggingface.companions import CompanionFiles
from secateur._huggingface.folders import INDEX_FILE
from secateur.artifact import Artifact, convert, verify
from secateur.errors import ArtifactError

DIARY = "a diary"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that somebody else made, in the reader's home."""
    (tmp_path / "secret.txt").write_text(DIARY)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.json").write_text(DIARY)
    found = tmp_path / "model"
    found.mkdir()
    save_file({"a": np.ones((2, 2), "f4")}, found / "model.safetensors")
    return found


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def converted(folder: Path) -> Path:
    convert(folder, folder.parent / "target")
    return folder.parent / "target"


LINKS: list[Callable[[Path], str | Path]] = [
    lambda _: "../secret.txt",
    lambda folder: folder.parent / "secret.txt",
    lambda _: "../secrets/key.json",
    lambda _: "/etc/hostname",
    lambda _: ".chain",
    lambda _: "inner/key.json",
    lambda _: "../model/../secret.txt",
]


@pytest.mark.parametrize("link", LINKS)
def test_a_link_out_of_the_folder_is_not_followed(link: Callable[[Path], str | Path], folder: Path) -> None:
    (folder / ".chain").symlink_to("../secret.txt")
    (folder / "inner").symlink_to("../secrets")
    (folder / "tokenizer.json").symlink_to(link(folder))
    with pytest.raises(ArtifactError, match=r"tokenizer.json: is a link to .*, outside the folder, and is not cop"):
        converted(folder)
    with pytest.raises(ArtifactError, match=r"outside the folder"):
        CompanionFiles(folder)
    assert names(folder.parent) == ["model", "secret.txt", "secrets"]
    assert verify(folder)


def test_a_folder_that_is_a_link_itself_is_one_that_the_reader_chose(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder.parent / "link").symlink_to("model")
    assert (converted(folder.parent / "link") / "tokenizer.json").read_text() == "{}"


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "one.bin").write_text("{}")
    (folder / "tokenizer.json").symlink_to("parts/one.bin")
    target = converted(folder)
    assert not (target / "tokenizer.json").is_symlink()
    assert (target / "tokenizer.json").read_text() == "{}"


def cache(folder: Path, name: str = "models--org--name") -> Path:
    """A model as the cache of Hugging Face's hub holds it."""
    model = folder.parent / name
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for blob, file in (("aa", "model.safetensors"), ("bb", "tokenizer.json")):
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    (model / "blobs" / "aa").write_bytes((folder / "model.safetensors").read_bytes())
    (model / "blobs" / "bb").write_text("{}")
    return snapshot


def test_a_model_in_the_cache_of_the_hub_is_converted(folder: Path) -> None:
    target = folder.parent / "target"
    convert(cache(folder), target)
    assert (target / "tokenizer.json").read_text() == "{}"
    assert verify(target)


def test_a_model_in_the_cache_of_the_hub_gets_no_files_of_another(folder: Path) -> None:
    snapshot, other = cache(folder), cache(folder, "models--org--other")
    (snapshot / "vocab.txt").symlink_to(other / "tokenizer.json")
    with pytest.raises(ArtifactError, match=r"vocab.txt: is a link to .*, outside the folder"):
        convert(snapshot, folder.parent / "target")


def test_a_folder_that_looks_like_the_cache_leads_nowhere_else(folder: Path) -> None:
    snapshot = cache(folder)
    (snapshot.parents[1] / "blobs" / "bb").unlink()
    (snapshot.parents[1] / "blobs" / "bb").symlink_to(folder.parent / "secret.txt")
    with pytest.raises(ArtifactError, match=r"tokenizer.json: is a link to .*secret.txt', outside the folder"):
        convert(snapshot, folder.parent / "target")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that are files")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt"])
def test_a_pipe_is_an_error(name: str, folder: Path) -> None:
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=rf"{name}: must be a file, found a pipe"):
        converted(folder)


def test_a_file_without_end_is_an_error(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 42)  # takes no room on the disk
    with pytest.raises(ArtifactError, match=r"must have at most 1,000,000,000 .* Move it"):
        converted(folder)


def test_a_link_to_nothing_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").symlink_to("nothing")
    with pytest.raises(ArtifactError, match=r"nothing: cannot be read"):
        converted(folder)


COPIED = [
    *(
        "config.json",
        "vocab.txt",
        "spiece.model",
        "chat_template.jinja",
        "x.tiktoken",
        "notes.md",
        "model.py",
        "README",
    ),
    *("LICENSE", "my vocab (2).txt", "résumé.json", "names.index.json", "voices/one.npz", "1_Pooling/config.json"),
    *("2_Dense/config.json", "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin", "more.json/deep/er.txt"),
]
"""What belongs to a model beside its weights."""

LEFT_OUT = ["pytorch_model.bin", "tf_model.h5", "pytorch_model.bin.index.json", "onnx/", "checkpoint-500/"]
"""Weights in other formats, and folders that have some: they were not pruned."""

UNLISTED = [".hidden.json", ".cache/x.json", "run.state", "00001.done.state", "x.json.part"]


def fill(folder: Path) -> None:
    files = ["onnx/model.onnx", "onnx/config.json", "checkpoint-500/model.safetensors", "checkpoint-500/config.json"]
    for name in [*COPIED, *LEFT_OUT[:3], *UNLISTED, *files]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    modules = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "3_Dense", "../secrets", 4)]
    (folder / "modules.json").write_text(json.dumps([*modules, "odd"]))


def test_everything_but_other_weights_is_copied(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(folder)
    found = CompanionFiles(folder)
    assert sorted(found.files) == sorted([*COPIED, "modules.json"])
    assert found.left_out == sorted(LEFT_OUT)
    target = converted(folder)
    for name in COPIED:
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    written = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    assert written == {*COPIED, "modules.json", "packed-00001-of-00001.safetensors", "secateur.json"}
    assert len(caplog.messages) == 1
    assert "not pruned: 'checkpoint-500/', 'onnx/', 'pytorch_model.bin'" in caplog.messages[0]


def test_an_artifact_hands_on_everything(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(folder)
    convert(converted(folder), folder.parent / "again", dense=True)
    convert(folder.parent / "again", folder.parent / "third")
    for name in COPIED:
        assert (folder.parent / "third" / name).read_bytes() == (folder / name).read_bytes()
    assert len(caplog.messages) == 1  # of the first: the artifacts have no other weights


def test_the_folder_of_many_models_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur._huggingface.companion_list.MAX_FILES", 3)
    fill(folder)
    with pytest.raises(ArtifactError, match=r"must have at most 3 files"):
        converted(folder)


@pytest.mark.parametrize("text", ["{}", "[", '["a", '])
def test_modules_must_be_a_list(text: str, folder: Path) -> None:
    (folder / "modules.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"modules.json: (must be a JSON list|is not valid JSON)"):
        converted(folder)


def test_a_file_that_is_there_is_kept(folder: Path) -> None:
    (folder / "config.json").write_text("theirs")
    target = folder.parent / "target"
    target.mkdir()
    (target / "config.json").write_text("mine")
    CompanionFiles(folder).copy(target)
    assert (target / "config.json").read_text() == "mine"


def test_of_an_artifact_only_what_the_manifest_lists_is_copied(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "saved")
    (folder / "vocab.txt").symlink_to("/etc/hostname")
    found = CompanionFiles(folder)
    assert list(found.files) == ["config.json"]
    (tmp_path / "target").mkdir()
    found.copy(tmp_path / "target")
    assert names(tmp_path / "target") == ["config.json"]
    (folder / "config.json").write_text("[]\n")
    (tmp_path / "target" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config.json: has changed since it was written"):
        found.copy(tmp_path / "target")


def test_a_name_that_a_manifest_cannot_list_is_an_error_before_anything_is_written(folder: Path) -> None:
    (folder / "my:vocab.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"file 'my:vocab.txt': the names of files in an artifact must be prin"):
        converted(folder)
    assert not (folder.parent / "target").exists()


def index(folder: Path, places: Any, **files: dict[str, Any]) -> Path:
    for name, tensors in files.items():
        save_file({tensor: np.ones((2, 2), "f4") for tensor in tensors}, folder / f"{name}.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({}, "'weight_map' must name the files of all tensors, found an empty one"),
        ({"a": "x.safetensors"}, "tensor 'b' must be in no file, found it in 'x.safetensors'"),
        (
            {"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors"},
            "tensor 'b' must be in 'y.safetensors', found it in 'x.safete",
        ),
        ({"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors", "d": "x.safetensors"}, "'d' must be in 'x"),
        ({"a": "x.safetensors", "b": "z.safetensors"}, "z.safetensors: cannot be read"),
    ],
)
def test_an_index_says_what_the_files_hold(places: dict[str, str], message: str, tmp_path: Path) -> None:
    index(tmp_path, places, x={"a": 0, "b": 0}, y={"c": 0})  # type: ignore[arg-type]
    for use in (verify, converted):
        with pytest.raises(ArtifactError, match=message):
            use(tmp_path)


def test_an_index_that_is_right_is_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    index(source, {"a": "x.safetensors", "c": "y.safetensors"}, x={"a": 0}, y={"c": 0})  # type: ignore[arg-type]
    assert sorted(Artifact(converted(source))) == ["a", "c"]


@pytest.mark.parametrize("names", [["x", "y"], ["model", "y"]])
def test_a_single_file_takes_precedence_over_the_shards_of_another_model(names: list[str], tmp_path: Path) -> None:
    """Transformers reads it, too."""
    places = {"a": f"{names[0]}.safetensors", "c": f"{names[1]}.safetensors"}
    index(tmp_path, places, **dict(zip(names, ({"a": 0}, {"c": 0}), strict=True)))  # type: ignore[arg-type]
    save_file({"a": np.zeros((2, 2), "f4")}, tmp_path / "model.safetensors")
    assert [row.name for row in verify(tmp_path).tensors] == (["a"] if names[0] == "x" else ["a", "c"])
    assert CompanionFiles(tmp_path).left_out == (["x.safetensors", "y.safetensors"] if names[0] == "x" else [])


def test_a_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ArtifactError, match="contains no tensors"):
            verify(path)
