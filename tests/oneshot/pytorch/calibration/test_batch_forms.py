"""Calibration takes the batches that data loaders, tokenizers and other libraries make."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.batches import read_batches
from tiny_models import bits, deep_mlp

CONFIG = {"pattern": "2:4"}
INPUTS = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 4


class Features(nn.Module):
    """Takes one mapping and adds to it, as sentence-transformers' modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = deep_mlp()

    def forward(self, features: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        assert "embedding" not in features
        features["embedding"] = self.body(features["values"])
        return features


class Anything(nn.Module):
    """Takes any number of arguments, and reads the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = deep_mlp()

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.body(values[0])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = deep_mlp()

    def forward(self, values: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.body(values if scale is None else values * scale)


def prune(make: Any, calibration: Any) -> dict[str, bytes]:
    torch.manual_seed(0)
    model = make()
    secateur.prune(model, CONFIG, calibration=calibration, solver="sparsegpt")
    return bits(model)


@pytest.mark.parametrize(
    ("make", "forms", "plain"),
    [
        (deep_mlp, lambda: DataLoader(TensorDataset(INPUTS, CLASSES), batch_size=4), lambda x: x),
        (deep_mlp, lambda: [(part, torch.ones(4)) for part in INPUTS.split(4)], lambda x: x),
        (deep_mlp, lambda: [(part, ["a", "b", "c", "d"]) for part in INPUTS.split(4)], lambda x: x),
        (deep_mlp, lambda: [({"input": part}, torch.ones(4)) for part in INPUTS.split(4)], lambda x: x),
        (deep_mlp, lambda: [{"input": part, "label": torch.ones(4)} for part in INPUTS.split(4)], lambda x: x),
        (deep_mlp, lambda: ((part,) for part in INPUTS.split(4)), lambda x: x),
        (Anything, lambda: DataLoader(TensorDataset(INPUTS, CLASSES), batch_size=4), lambda x: x),
        (Named, lambda: DataLoader(TensorDataset(INPUTS, CLASSES), batch_size=4), lambda x: x),
        (Named, lambda: [UserDict(values=part) for part in INPUTS.split(4)], lambda x: x),
        (
            Named,
            lambda: [(part, torch.ones(4, 1)) for part in INPUTS.split(4)],
            lambda x: (x, torch.tensor(1.0)),
        ),
        (Features, lambda: [{"values": part} for part in INPUTS.split(4)], lambda x: ({"values": x},)),
        (Features, lambda: [UserDict(values=part) for part in INPUTS.split(4)], lambda x: ({"values": x},)),
    ],
)
def test_forms(make: Any, forms: Any, plain: Any) -> None:
    assert prune(make, forms()) == prune(make, [plain(part) for part in INPUTS.split(4)])


def test_labels_of_a_model_that_needs_them_are_passed() -> None:
    class Scored(nn.Module):
        def forward(self, values: torch.Tensor, labels: torch.Tensor) -> Any: ...

    (batch,) = read_batches(Scored(), [(INPUTS, CLASSES)])
    assert [tuple(item.shape) for item in batch.args] == [(12, 16), (12,)]
    (batch,) = read_batches(Scored(), [{"values": INPUTS, "labels": CLASSES}])
    assert batch.kwargs.keys() == {"values", "labels"}


def test_padding_and_rows_of_a_mapping_argument_count() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    (batch,) = read_batches(Features(), [{"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": mask}])
    assert batch.keep is not None
    assert torch.equal(batch.keep, mask.bool())
    assert [tensor.shape for tensor in batch.first_row().tensors] == [(1, 3), (1, 3)]
    with pytest.raises(CalibrationError, match="found only padding"):
        read_batches(Features(), [{"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": 0 * mask}])


def test_a_batch_encoding() -> None:
    transformers = pytest.importorskip("transformers")
    from tiny_transformers import family

    tokens = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    results = []
    for batch in (transformers.BatchEncoding({"input_ids": tokens}), {"input_ids": tokens}):
        model = family("llama")
        secateur.prune(model, CONFIG, calibration=[batch], solver="wanda")
        results.append(bits(model))
    assert results[0] == results[1]
    with pytest.raises(CalibrationError, match="return_tensors='pt'"):
        read_batches(family("bert"), [transformers.BatchEncoding({"input_ids": [[1, 2], [3]]})])


@pytest.mark.parametrize(
    ("make", "batch", "line"),
    [
        (deep_mlp, {"image": INPUTS, "label": CLASSES}, "[batch['image'] for batch in batches]"),
        (Features, {"text": INPUTS}, "[batch['text'] for batch in batches]"),
        (Named, {"values": INPUTS, "other": INPUTS}, "[{key: batch[key] for key in ('values',)} for batch in batches]"),
        (Named, (INPUTS, torch.ones(3, 7)), "[batch[0] for batch in batches]"),
    ],
)
def test_an_error_suggests_the_line_that_fixes_it(make: Any, batch: Any, line: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        secateur.prune(make(), CONFIG, calibration=[batch], solver="wanda")
    assert f"pass calibration={line}." in str(caught.value)
    if make is not Features:
        secateur.prune(make(), CONFIG, calibration=eval(line, {"batches": [batch]}), solver="wanda")  # noqa: S307


@pytest.mark.parametrize("batch", [INPUTS, {"input": INPUTS}])
def test_a_single_batch_belongs_into_a_list(batch: Any) -> None:
    with pytest.raises(CalibrationError, match=r"If it is one batch, pass calibration=\[batch\]"):
        secateur.prune(deep_mlp(), CONFIG, calibration=batch, solver="wanda")


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_an_inverted_mask_is_noticed(name: str) -> None:
    from tiny_transformers import family

    model = family(name)
    tokens = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 0, 0, 0]])
    (batch,) = read_batches(model, [{"input_ids": tokens, "attention_mask": tokens > 0}])
    assert batch.keep is not None
    with pytest.raises(CalibrationError, match=r"nothing but the padding token 0\. Invert the mask: it must be 1"):
        read_batches(model, [{"input_ids": tokens, "attention_mask": tokens == 0}])
    with pytest.raises(CalibrationError, match=r"keeps nothing but the padding token 0\. Remove the batch"):
        read_batches(model, [{"input_ids": 0 * tokens, "attention_mask": torch.ones_like(tokens)}])


def test_a_layer_without_outputs_has_no_error() -> None:
    model = deep_mlp()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(1)
    report = secateur.prune(model, {"pattern": "1x1", "target_sparsity": 0.5}, calibration=[INPUTS], solver="wanda")
    assert "2" not in report.errors
    assert all(error > 0 for error in report.errors.values())
    assert str(report).count("unknown") == 1
