"""Test that the input features of a layer, multiplied by its weight, equal its outputs."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.input_features import Convolution, iterate_features, refuse_unsupported
from secateur.patterns import get_pattern

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ("zeros", "reflect", "replicate", "circular")


def read_rows(module: nn.Module, *inputs: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Return the input features, (N, G, F)."""
    return torch.cat(list(iterate_features("layer", module, inputs, keep)))


def compute_outputs(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Compute the outputs, (N, O), from the input features and the canonical weight."""
    pattern = get_pattern({"pattern": "1x1"}, {"layer": module})
    view, weight = pattern.views["layer"], pattern.framework.read_weight(module)
    canonical_GRF = view.to_canonical(weight).reshape(view.groups, view.canonical_shape[0] // view.groups, -1).float()
    return torch.einsum("ngf,grf->ngr", read_rows(module, *inputs), canonical_GRF).flatten(1)


def check(module: nn.Module, inputs: torch.Tensor) -> None:
    """Compare with the outputs of the layer. Linear layers have channels last, convolutions after the batch."""
    with torch.no_grad():
        expected = module(inputs)
        if isinstance(module, Convolution):
            batched = expected if expected.ndim == len(module.kernel_size) + 2 else expected[None]
            expected = batched.movedim(1, -1)
        outputs = compute_outputs(module, inputs)
        if module.bias is not None:
            outputs = outputs + module.bias
    torch.testing.assert_close(outputs, expected.reshape(outputs.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6), (0, 6)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Linear(6, 4, bias=False), lambda: Conv1D(4, 6)])
def test_linear(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check(make(), torch.randn(shape))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """Draw a convolution and inputs for it."""
    spatial = draw(st.integers(1, 3))
    several = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial).map(tuple)
    kernel, dilation, mode = draw(several), draw(several), draw(st.sampled_from(MODES))
    groups, per_group, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.one_of(st.just("valid"), st.just("same"), several.map(lambda sizes: tuple(s - 1 for s in sizes))))
    stride = (1,) * spatial if padding == "same" else draw(several)
    lengths = [draw(st.integers(4, 9)) for _ in range(spatial)]
    assume(all((size - 1) * spacing < length for size, spacing, length in zip(kernel, dilation, lengths, strict=True)))
    torch.manual_seed(draw(st.integers(0, 99)))
    module = CONVOLUTIONS[spatial](
        groups * per_group,
        groups * outputs,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return module, torch.randn(*batch, groups * per_group, *lengths)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=60)
@given(convolutions())
def test_convolutions(example: tuple[nn.Module, torch.Tensor]) -> None:
    check(*example)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_even_kernels_with_same_padding(spatial: int) -> None:
    torch.manual_seed(0)
    check(CONVOLUTIONS[spatial](2, 4, 2, padding="same"), torch.randn(2, 2, *(5,) * spatial))
    check(CONVOLUTIONS[spatial](2, 4, 4, padding="same", dilation=3), torch.randn(2, 2, *(9,) * spatial))


def test_depthwise() -> None:
    torch.manual_seed(0)
    check(nn.Conv2d(6, 6, 3, groups=6, padding=1), torch.randn(2, 6, 5, 5))
    check(nn.Conv1d(6, 12, 3, groups=6, stride=2), torch.randn(6, 9))


def test_images_are_unfolded_in_chunks() -> None:
    torch.manual_seed(0)
    module, images = nn.Conv2d(3, 4, 3, padding=1), torch.randn(5, 3, 6, 6)
    whole = read_rows(module, images)
    for max_unfolded, sizes in ((2 * 9 * 3 * 36, [72, 72, 36]), (1, [36] * 5)):
        chunks = list(iterate_features("layer", module, (images,), None, max_unfolded=max_unfolded))
        assert [len(chunk) for chunk in chunks] == sizes
        torch.testing.assert_close(torch.cat(chunks), whole, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_are_float32(dtype: torch.dtype) -> None:
    inputs = torch.randn(2, 3, 6).to(dtype)
    assert read_rows(nn.Linear(6, 4).to(dtype), inputs).dtype == torch.float32
    assert read_rows(nn.Conv1d(3, 4, 3).to(dtype), inputs).dtype == torch.float32


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_reads_its_query(batch_first: bool) -> None:
    torch.manual_seed(0)
    module, inputs = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=False), torch.randn(2, 3, 8)
    assert module.in_proj_weight.shape == (24, 8)
    torch.testing.assert_close(read_rows(module, inputs, inputs, inputs)[:, 0], inputs.reshape(6, 8))
    with pytest.raises(CalibrationError, match="layer 'layer': its query, key and value differ"):
        read_rows(module, inputs, inputs, inputs.clone())


# Padding

KEEP = torch.tensor([[True, True, False], [False, True, False]])


@pytest.mark.parametrize("module", [nn.Linear(4, 2), Conv1D(2, 4)], ids=["Linear", "Conv1D"])
def test_padding_does_not_count(module: nn.Module) -> None:
    tokens = torch.randn(2, 3, 4)
    expected = tokens[KEEP][:, None]
    torch.testing.assert_close(read_rows(module, tokens, keep=KEEP), expected)
    torch.testing.assert_close(read_rows(module, tokens.reshape(6, 4), keep=KEEP), expected)


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_attention(batch_first: bool) -> None:
    tokens = torch.randn(2, 3, 4)
    inputs = tokens if batch_first else tokens.transpose(0, 1)
    features = read_rows(nn.MultiheadAttention(4, 1, batch_first=batch_first), inputs, inputs, inputs, keep=KEEP)
    order = lambda rows: rows[rows[:, 0].argsort()]  # noqa: E731 - the order of tokens does not matter
    torch.testing.assert_close(order(features[:, 0]), order(tokens[KEEP]))


def test_padding_is_ignored_for_other_shapes() -> None:
    """The inputs are pooled states, or tokens of another sequence."""
    pooled = torch.randn(2, 4)
    assert len(read_rows(nn.Linear(4, 2), pooled, keep=KEEP)) == 2
    assert len(read_rows(nn.Linear(4, 2), torch.randn(2, 5, 4), keep=KEEP)) == 10


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(CalibrationError, match=f"layer 'up': .* does not support {kind.__name__}. Exclude it"):
        refuse_unsupported("up", kind(4, 4, 2))
