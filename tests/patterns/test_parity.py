"""Equal scores give equal masks, bit for bit, whatever holds them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from patterns.cases import DTYPES, SPECS, VIEWS, array_pattern, random_scores, share_of, view
from secateur.patterns import get_pattern
from secateur.patterns.reduction import REDUCTIONS

jnp = pytest.importorskip("jax.numpy")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

LIBRARIES: dict[str, Callable[[Any], Any]] = {"torch": torch.from_numpy, "jax": jnp.asarray}

every_library = pytest.mark.parametrize("library", LIBRARIES)
every_pattern = pytest.mark.parametrize("spec", SPECS)


def converted(scores: dict[str, Any], library: str) -> dict[str, Any]:
    return {name: LIBRARIES[library](array) for name, array in scores.items()}


COMPILED_BY_JAX = ("4x1", "1x4", "channelx4", "2:4")
"""JAX compiles each operation for each shape, which takes two seconds a pattern; its own process tests more of them."""


@pytest.mark.parametrize(
    ("library", "spec"), [*[("torch", spec) for spec in SPECS], *[("jax", spec) for spec in COMPILED_BY_JAX]]
)
def test_masks(library: str, spec: str) -> None:
    views = {"fc": view(32, 1, 16), "conv": view(16, 4, 8)}  # as many weights, so that JAX compiles less
    pattern, share = array_pattern(spec, views), float(share_of(spec))
    scores, later = random_scores(views), random_scores(views, seed=1)
    first = pattern.masks(scores, 0.2 * share)
    second = pattern.masks(later, 0.37 * share, first)
    masks = pattern.masks(converted(scores, library), 0.2 * share)
    again = pattern.masks(converted(later, library), 0.37 * share, masks)
    for name in views:
        assert type(again[name]) is type(LIBRARIES[library](later[name]))
        np.testing.assert_array_equal(np.asarray(masks[name]), first[name])
        np.testing.assert_array_equal(np.asarray(again[name]), second[name])
    assert pattern.violations(again) == pattern.violations(second)


@every_library
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("spec", ["4x1", "16x1", "1xchannel", "channelx1", "channelx4"])
def test_bits_of_unit_scores(library: str, reduction: str, spec: str) -> None:
    views = {"conv": view(16, 7, 12)}  # sums of odd lengths
    pattern = array_pattern(spec, views, criterion_reduce_type=reduction)
    scores = {"conv": np.random.default_rng(0).standard_normal((16, 7, 12)).astype(np.float32)}
    expected = np.concatenate(list(pattern.stream("conv", scores).chunks()))
    found = np.concatenate([np.asarray(part) for part in pattern.stream("conv", converted(scores, library)).chunks()])
    assert expected.dtype == found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("reduction", ["mean", "sum", "l2"])
def test_half_precision_is_added_in_float32_everywhere(reduction: str) -> None:
    pattern = array_pattern("16x1", {"fc": view(16, 1, 64)}, criterion_reduce_type=reduction)
    half = torch.rand(16, 1, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = np.concatenate(list(pattern.stream("fc", {"fc": half.float().numpy()}).chunks()))
    for scores in (half, jnp.asarray(half.float().numpy()).astype(jnp.bfloat16)):
        found = np.concatenate([np.asarray(part) for part in pattern.stream("fc", {"fc": scores}).chunks()])
        np.testing.assert_array_equal(found, expected)


@every_pattern
def test_no_array_is_made_on_the_default_device(spec: str) -> None:
    """What lands there could not meet the scores: it stands for the CPU beside scores on a GPU."""
    pattern = array_pattern(spec)
    expected = pattern.masks(random_scores(), 0.2 * float(share_of(spec)))
    scores = converted(random_scores(), "torch")
    with torch.device("meta"):
        for sparsity in (0.0, 0.2 * float(share_of(spec)), float(share_of(spec))):
            masks = pattern.masks(scores, sparsity)
            again = pattern.masks(scores, 0.2 * float(share_of(spec)), masks)
            assert pattern.violations(again) is not None
    assert all(mask.device.type == "cpu" for mask in again.values())
    assert not any(mask[~expected[name]].any() for name, mask in again.items())


TWINS: dict[str, tuple[Callable[[], Any], Callable[[], Any], tuple[int, ...]]] = {
    "dense": (lambda: torch.nn.Linear(8, 16), lambda: keras.layers.Dense(16), (8,)),
    "convolution": (lambda: torch.nn.Conv2d(8, 16, (3, 2)), lambda: keras.layers.Conv2D(16, (3, 2)), (5, 5, 8)),
    "grouped": (
        lambda: torch.nn.Conv2d(16, 32, 3, groups=2),
        lambda: keras.layers.Conv2D(32, 3, groups=2),
        (5, 5, 16),
    ),
    "transposed": (
        lambda: torch.nn.ConvTranspose2d(8, 16, (3, 2)),
        lambda: keras.layers.Conv2DTranspose(16, (3, 2)),
        (5, 5, 8),
    ),
    "depthwise": (
        lambda: torch.nn.Conv2d(8, 32, 3, groups=8),
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=4),
        (5, 5, 8),
    ),
}
"""One layer in torch, in Keras, and the shape of an input of the latter."""


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("spec", ["1x1", "4x1", "1x4", "2x2", "1xchannel", "channelx1", "4xchannel", "2:4"])
def test_torch_and_keras_number_the_same_units(name: str, spec: str) -> None:
    make_torch, make_keras, shape = TWINS[name]
    layer = make_keras()
    layer.build((None, *shape))
    ours = get_pattern({"pattern": spec, "target_sparsity": 0.3}, {"layer": make_torch()})
    theirs = get_pattern({"pattern": spec, "target_sparsity": 0.3}, {"layer": layer}, "keras")
    assert set(ours.invalid_layers) == set(theirs.invalid_layers)
    if ours.invalid_layers:
        return
    first, second = ours.views["layer"], theirs.views["layer"]
    canonical = np.random.default_rng(0).random(first.canonical_shape, dtype=np.float32)
    mask = ours.masks({"layer": torch.tensor(first.to_stored(canonical))})["layer"]
    twin = theirs.masks({"layer": second.to_stored(canonical)})["layer"]
    np.testing.assert_array_equal(first.to_canonical(mask.numpy()), second.to_canonical(twin))
    assert 0 < twin.sum() < twin.size


@pytest.mark.gpu
@every_pattern
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cuda_gives_the_masks_of_the_cpu(spec: str, dtype: str, reduction: str) -> None:
    pattern, share = array_pattern(spec, criterion_reduce_type=reduction), float(share_of(spec))
    scores = {name: torch.tensor(array).to(getattr(torch, dtype)) for name, array in random_scores().items()}
    on_gpu = {name: tensor.cuda() for name, tensor in scores.items()}
    masks = gpu_masks = None
    for part in (0.0, 0.3, 0.6, 1.0):
        masks, gpu_masks = pattern.masks(scores, part * share, masks), pattern.masks(on_gpu, part * share, gpu_masks)
        for name in VIEWS:
            assert gpu_masks[name].is_cuda
            assert torch.equal(gpu_masks[name].cpu(), masks[name])
