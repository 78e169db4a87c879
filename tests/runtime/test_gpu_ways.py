"""What is tried on a GPU, as far as that can be built without one."""

import torch
from torch import nn

import secateur
from secateur.runtime.pytorch.cuda import cuda_ways, stored_bytes
from secateur.runtime.pytorch.ways import Way, zeroed


def test_square_blocks_become_a_block_sparse_weight() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).eval()
    secateur.prune(layer, {"pattern": "16x16", "target_sparsity": 0.75})
    (way,) = cuda_ways(layer, zeroed(layer))
    assert isinstance(way, Way)
    assert way.name == "16x16 blocks of the GPU"
    exchanged = way.build()
    inputs = torch.randn(32, 64)
    with torch.no_grad():
        assert torch.allclose(exchanged(inputs), layer(inputs), atol=1e-5)
    weight = exchanged.weight
    assert isinstance(weight, torch.Tensor)
    assert stored_bytes(weight.detach()) == 4 * 16 * 16 * 4 + (5 + 4) * 8  # four blocks, five starts, four columns


def test_what_no_product_serves_has_a_reason() -> None:
    layer = nn.Linear(64, 64)
    secateur.prune(layer, {"pattern": "4x1", "target_sparsity": 0.5})
    assert list(cuda_ways(layer, zeroed(layer))) == ["the GPU has no product for '4x1' in torch.float32"]
    convolution = nn.Conv2d(16, 16, 1)
    secateur.prune(convolution, {"pattern": "16x16", "target_sparsity": 0.0})
    (reason,) = cuda_ways(convolution, zeroed(convolution))
    assert reason == "the GPU's sparse products serve Linear layers, not Conv2d"
