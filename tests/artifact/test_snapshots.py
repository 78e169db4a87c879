"""Readers beside a saver: each sees one artifact as a whole, with the files that its manifest vouches for."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from artifact.forgery import COMPANION, artifact, forged, sealed
from artifact.versions import save_version, version_of
from interleaving import after_calls, before_calls
from secateur._huggingface.folders import INDEX_FILE
from secateur._manifest_file import MANIFEST
from secateur.artifact import Artifact, convert, examine, inspect, load, save, verify
from secateur.artifact.safetensors_file import TensorFile
from secateur.artifact.writer import write
from secateur.errors import ArtifactError

Save = Callable[[], object]


def save_after_opening(save_another: Save) -> AbstractContextManager[None]:
    """Have another artifact take the place of each that is opened, as soon as it is."""
    return after_calls(Artifact.__init__, lambda _: save_another())


def test_a_converted_artifact_is_of_one_version(tmp_path: Path) -> None:
    save_version(tmp_path / "saved", 0)
    with save_after_opening(lambda: save_version(tmp_path / "saved", 1)):
        convert(tmp_path / "saved", tmp_path / "target")
    assert version_of(tmp_path / "target") == 0
    assert version_of(tmp_path / "saved") == 1


@pytest.mark.parametrize("use", [verify, examine, inspect])
def test_what_is_read_was_not_changed(use: Callable[[Path], Any], tmp_path: Path) -> None:
    """Nor is a file that is not there any more asked for."""
    folder = tmp_path / "saved"
    save_version(folder, 0)
    whole = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with save_after_opening(lambda: shutil.rmtree(folder)):
        assert use(folder).disk_bytes == whole
    assert use.__name__ == "inspect" or not folder.exists()


def tiny_bert(epsilon: float) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(int(epsilon * 1e6))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    return transformers.BertModel(transformers.BertConfig(vocab_size=16, layer_norm_eps=epsilon, **sizes))


def test_the_configuration_is_that_of_the_weights(tmp_path: Path) -> None:
    first, second = tiny_bert(1e-5), tiny_bert(2e-5)
    save(first, tmp_path / "saved")
    with save_after_opening(lambda: save(second, tmp_path / "saved")):
        loaded = load(tmp_path / "saved")
    assert loaded.config.layer_norm_eps == 1e-5
    assert torch.equal(loaded.pooler.dense.weight, first.pooler.dense.weight)


@pytest.mark.parametrize(("framework", "name"), [("pytorch", "config.json"), ("keras", "keras.json")])
def test_a_description_that_the_manifest_does_not_list_is_not_read(framework: str, name: str, tmp_path: Path) -> None:
    """Not even opened: it may be a pipe."""
    pytest.importorskip("transformers" if framework == "pytorch" else "keras")
    folder = artifact(tmp_path / "saved", ("norm.bias",))
    (folder / COMPANION).unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / name)

    def unlisted(data: dict[str, Any]) -> None:
        data["files"] = {}
        kind = "transformers" if framework == "pytorch" else "keras"
        data["model"] = {"framework": framework, "kind": kind, "name": "Model"}

    forged(folder, unlisted)
    with pytest.raises(ArtifactError, match=rf"{MANIFEST}: does not list the file '{name}'"):
        load(folder)


def test_a_tokenizer_is_built_from_files_that_the_manifest_lists(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from secateur.models.pytorch import load_tokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    tokenizer = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    save(tiny_bert(1e-5), tmp_path / "saved", tokenizer=tokenizer)
    before = load_tokenizer(tmp_path / "saved").get_vocab()
    assert "a" in before
    (tmp_path / "saved" / "added_tokens.json").write_text('{"evil": 7}')
    assert load_tokenizer(tmp_path / "saved").get_vocab() == before
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer.json: has changed since it was written"):
        load_tokenizer(tmp_path / "saved")


def test_a_file_that_is_listed_is_read_as_the_manifest_says(tmp_path: Path) -> None:
    opened = Artifact(artifact(tmp_path / "saved"))
    assert opened.read_file(COMPANION) == b"{}\n"
    with opened.extract(COMPANION) as folder:
        assert (folder / COMPANION).read_text() == "{}\n"
    assert not folder.exists()
    (tmp_path / "saved" / COMPANION).write_text("[]\n")
    for use in (opened.read_file, lambda name: opened.extract(name).__enter__()):
        with pytest.raises(ArtifactError, match=f"{COMPANION}: has changed since it was written"):
            use(COMPANION)
    with pytest.raises(ArtifactError, match="does not list the file 'other'"):
        opened.read_file("other")


def test_a_listed_file_that_is_huge_is_not_read(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "saved")
    with (folder / COMPANION).open("r+b") as file:
        file.truncate(1 << 42)  # takes no room on the disk
    with pytest.raises(ArtifactError, match="has changed since it was written"):
        verify(folder)
    data = json.loads((folder / MANIFEST).read_text())
    data["files"][COMPANION]["size"] = 1 << 42
    (folder / MANIFEST).write_text(sealed(data))
    with (folder / COMPANION).open("r+b") as file:
        file.truncate(1 << 42)
    with pytest.raises(ArtifactError, match=r"must have at most 100,000,000 bytes, found 4,398,046,511,104"):
        Artifact(folder).read_file(COMPANION)
    with pytest.raises(ArtifactError, match=r"must have at most 1,000,000,000 bytes, found 4,398,046,511,104"):
        verify(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that another tool wrote."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": np.ones((2, 2), "f4")}, folder / "a.safetensors")
    save_file({"b": np.ones((2, 2), "f4")}, folder / "b.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_in_place(path: Path) -> None:
    """As many bytes, a moment later."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(0, 0))


def rename_another(path: Path) -> None:
    shutil.copy(path, other := path.with_name("other"))
    os.replace(other, path)


def after_the_last_shard(change: Save) -> AbstractContextManager[None]:
    return after_calls(TensorFile.__init__, lambda call: call["path"].name == "b.safetensors" and change())


@pytest.mark.parametrize("use", [verify, inspect, lambda path: convert(path, path.parent / "target")])
@pytest.mark.parametrize("change", [write_in_place, rename_another, os.remove])
def test_a_checkpoint_that_changes_while_it_is_opened_is_an_error(
    change: Callable[[Path], None], use: Callable[[Path], Any], checkpoint: Path
) -> None:
    """It has no digests, so a mixture could not be told from the real thing."""
    with (
        after_the_last_shard(lambda: change(checkpoint / "a.safetensors")),
        pytest.raises(ArtifactError, match=r"a.safetensors: (was changed or replaced by another|cannot be read)"),
    ):
        use(checkpoint)
    assert sorted(os.listdir(checkpoint.parent)) == ["checkpoint"]


@pytest.mark.parametrize("name", ["a.safetensors", "tokenizer.json"])
def test_a_checkpoint_that_is_written_to_while_it_is_converted_is_an_error(name: str, checkpoint: Path) -> None:
    with (
        before_calls(write, lambda _: write_in_place(checkpoint / name)),
        pytest.raises(ArtifactError, match=rf"{name}: was changed or replaced by another process"),
    ):
        convert(checkpoint, checkpoint.parent / "target")
    assert sorted(os.listdir(checkpoint.parent)) == ["checkpoint"]


def test_a_checkpoint_that_is_removed_while_it_is_converted_is_read_to_the_end(checkpoint: Path) -> None:
    with before_calls(write, lambda _: shutil.rmtree(checkpoint)):
        convert(checkpoint, checkpoint.parent / "target")
    assert sorted(Artifact(checkpoint.parent / "target")) == ["a", "b"]
    assert (checkpoint.parent / "target" / "tokenizer.json").read_text() == "{}"
