"""Tiny torch models; `tiny_transformers` has those of transformers, and `tiny_keras_models` one of Keras."""

import torch
from torch import nn


def mlp(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Layers "0" and "2" are pruned, "4" is the classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


def deep_mlp(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Layers "0", "2" and "4" are pruned, "6" is the classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ).to(dtype)


def bits(model: nn.Module) -> dict[str, bytes]:
    """The state of a model, to the last bit."""
    return {
        name: value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, value in model.state_dict().items()
    }
