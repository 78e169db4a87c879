"""Calibration data by reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.errors import CalibrationError, ConfigError
from secateur.models import TrainedModel
from secateur.models.calibration import _read_text, sample_calibration
from secateur.models.pytorch import make_text_batches, read_array_batches

IMAGES = np.arange(20 * 3, dtype=np.float32).reshape(20, 3)
PLAIN = TrainedModel(nn.Linear(3, 3))


def letters(text: str) -> dict[str, list[int]]:
    return {"input_ids": [ord(letter) for letter in text]}


def test_pieces_of_a_text_are_spread_evenly() -> None:
    batches = make_text_batches(letters, "abcdefghijk", sequences=2, length=2)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[ord("a"), ord("b")]], [[ord("e"), ord("f")]]]


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"at least 8 tokens, the length of a sequence, found 3\. Use a longer"):
        make_text_batches(letters, "abc", sequences=2, length=8)


def test_one_array_is_the_first_argument(tmp_path: Path) -> None:
    save_file({"images": torch.from_numpy(IMAGES)}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", images=IMAGES)
    for name in ("x.safetensors", "x.npz"):
        batches = read_array_batches(tmp_path / name)
        assert [len(batch) for batch in batches] == [1, 1, 1]
        assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.from_numpy(IMAGES))


def test_arrays_without_names_are_arguments_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", IMAGES, -IMAGES)
    first = read_array_batches(tmp_path / "x.npz")[0]
    assert torch.equal(first[0], -first[1])


def test_arrays_with_names_are_arguments_of_these_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=IMAGES, attention_mask=IMAGES)
    assert [sorted(batch) for batch in read_array_batches(tmp_path / "x.npz")] == [["attention_mask", "input_ids"]] * 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must have arrays with one row per example, at most 1,000,000, found none"),
        ({"one": np.ones(3), "two": np.ones(4)}, r"found 'one' \[3\], 'two' \[4\]"),
        ({"one": np.ones(())}, r"found 'one' \[\]"),
        ({"one": np.ones((0, 3))}, r"found 'one' \[0, 3\]"),
        ({"one": np.array(["text"])}, "cannot be read"),
        ({"one": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_serve_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CalibrationError, match=message):
        read_array_batches(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x.txt"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe no such file", b""])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=r"'.*x\.\w+'"):
        sample_calibration(PLAIN, tmp_path / name, None, None)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(CalibrationError, match=r"a file of inputs, .npz or .safetensors, .* found none"):
        sample_calibration(PLAIN, None, None, None)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfrose")
    assert _read_text(tmp_path / "x.txt") == "rose"


def test_sequences_of_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sequences and length are for text"):
        sample_calibration(PLAIN, tmp_path / "x.npz", 4, None)
