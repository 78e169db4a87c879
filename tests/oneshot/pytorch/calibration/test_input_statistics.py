"""Test the statistics of layer inputs: which layers share them, and that they match the inputs."""

import pytest
import torch
from torch import nn

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics


def compute_gram(rows: torch.Tensor) -> torch.Tensor:
    return (rows.T.double() @ rows.double()).float()[None]


def test_layers_that_read_the_same_tensor_share_statistics() -> None:
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 2) for name in ("q", "k", "other")}
    batches = [torch.randn(5, 4) for _ in range(3)]
    statistics = InputStatistics(layers, with_gram=True)
    with statistics.record_inputs():
        for batch in batches:
            statistics.start_batch(None)
            layers["q"](batch)
            layers["k"](batch)
            layers["other"](batch + 1)
    assert statistics.group_layers() == [("q", "k"), ("other",)]
    norms = torch.cat(batches).square().sum(dim=0, keepdim=True).sqrt()
    torch.testing.assert_close(statistics.norms("k"), norms)
    torch.testing.assert_close(statistics.pop_gram("k"), compute_gram(torch.cat(batches)))
    torch.testing.assert_close(statistics.pop_gram("other"), compute_gram(torch.cat(batches) + 1))
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_norms_match_the_gram_matrix() -> None:
    layer, batch = nn.Linear(4, 2), torch.randn(5, 4)
    norms = []
    for with_gram in (True, False):
        statistics = InputStatistics({"fc": layer}, with_gram=with_gram)
        with statistics.record_inputs():
            statistics.start_batch(None)
            layer(batch)
            layer(2 * batch)
        assert statistics.group_layers() == [("fc",)]
        norms.append(statistics.norms("fc"))
    torch.testing.assert_close(norms[0], norms[1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_inputs_of_the_output_projection_of_attention(batch_first: bool) -> None:
    """Attention uses the weight without calling the module. With an identity weight, the outputs equal the inputs."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    keep = torch.tensor([[True, True, False, True, True], [True, False, True, True, True]])
    inputs = torch.randn((2, 5, 8) if batch_first else (5, 2, 8))
    statistics = InputStatistics({"out": attention.out_proj}, with_gram=True)
    with torch.no_grad():
        plain = attention(inputs, inputs, inputs)[0]
        with statistics.record_inputs():
            statistics.start_batch(keep)
            recorded = attention(inputs, inputs, inputs)[0]
        attention.out_proj.weight.copy_(torch.eye(8))
        attention.out_proj.bias.zero_()
        heads = attention(inputs, inputs, inputs)[0]
    torch.testing.assert_close(recorded, plain)
    assert statistics.group_layers() == [("out",)]
    expected = heads[keep if batch_first else keep.T]
    torch.testing.assert_close(statistics.pop_gram("out"), compute_gram(expected))


def test_a_tensor_changed_in_place_is_a_different_input() -> None:
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    statistics = InputStatistics({"first": first, "second": second}, with_gram=True)
    batch = torch.randn(5, 4)
    before = batch.clone()
    with statistics.record_inputs(), torch.no_grad():
        statistics.start_batch(None)
        first(batch)
        second(batch.relu_())
    assert statistics.group_layers() == [("first",), ("second",)]
    torch.testing.assert_close(statistics.pop_gram("first"), compute_gram(before))
    torch.testing.assert_close(statistics.pop_gram("second"), compute_gram(before.relu()))


@pytest.mark.parametrize("alone", ["first", "second"])
def test_sharing_inputs_in_some_batches_only_is_refused(alone: str) -> None:
    layers = {"first": nn.Linear(4, 2), "second": nn.Linear(4, 2)}
    statistics = InputStatistics(layers, with_gram=True)

    def collect() -> list[tuple[str, ...]]:
        with statistics.record_inputs():
            for names in (("first", "second"), (alone,)):
                batch = torch.randn(5, 4)
                statistics.start_batch(None)
                for name in names:
                    layers[name](batch)
        return statistics.group_layers()

    with pytest.raises(CalibrationError, match="'second' shares its input with 'first' in some batches and not in"):
        collect()


@pytest.mark.parametrize("arguments", [("query", "key", "value"), ("value", "key", "query")])
def test_attention_can_be_called_with_keywords(arguments: tuple[str, ...]) -> None:
    module, inputs = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    statistics = InputStatistics({"attention": module}, with_gram=True)
    with statistics.record_inputs(), torch.no_grad():
        statistics.start_batch(None)
        module(**dict.fromkeys(arguments, inputs), need_weights=False)
    assert statistics.group_layers() == [("attention",)]
    rows = inputs.reshape(6, 8)
    torch.testing.assert_close(statistics.pop_gram("attention"), (rows.T @ rows)[None])


@pytest.mark.parametrize("features", [1, 191, 200, 500, 1700])
def test_gram_matrices_of_any_size_are_whole_and_symmetric(features: int) -> None:
    torch.manual_seed(0)
    layer, batches = nn.Linear(features, 1), [torch.randn(3, features) for _ in range(2)]
    statistics = InputStatistics({"fc": layer}, with_gram=True)
    with statistics.record_inputs(), torch.no_grad():
        for batch in batches:
            statistics.start_batch(None)
            layer(batch)
    gram = statistics.pop_gram("fc")
    assert gram is not None
    assert torch.equal(gram, gram.mT)
    torch.testing.assert_close(gram, compute_gram(torch.cat(batches)))


def test_gram_matrices_of_several_groups() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(400, 2, 1, groups=2), torch.randn(1, 400, 2, 2)
    statistics = InputStatistics({"conv": layer}, with_gram=True)
    with statistics.record_inputs(), torch.no_grad():
        statistics.start_batch(None)
        layer(images)
    expected = [compute_gram(half.flatten(2)[0].T)[0] for half in images.split(200, dim=1)]
    torch.testing.assert_close(statistics.pop_gram("conv"), torch.stack(expected))
