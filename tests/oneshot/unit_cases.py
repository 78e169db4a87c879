"""Small models with units in several layers, a solver for them, and a plain transcription of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from secateur.graph import Graph, trace
from secateur.solvers.base import UnitSolver
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath, UnitConsumer, UnitProblem
from tiny_transformers import family, inputs_of

DAMPING = 1e-3


@dataclass(frozen=True)
class RidgeSolver(UnitSolver):
    """Removes the units with the least energy, and fits the others by ridge regression; alike in float64."""

    unit_needs: ClassVar[Any] = "gram"

    def rank_units(self, problem: UnitProblem) -> RemovalPath:
        losses_U = torch.zeros(problem.units, dtype=torch.float64)
        for consumer in problem.consumers:
            importance_R = 1.0 if consumer.importance is None else consumer.importance.double()
            energy_F = (importance_R * consumer.weight.double().square().T).sum(dim=1) * consumer.norms.double() ** 2
            is_unit = consumer.unit_of >= 0
            losses_U.index_add_(0, consumer.unit_of[is_unit], energy_F[is_unit])
        parts = losses_U.reshape(problem.rule.parts, -1)
        offsets = torch.arange(len(parts))[:, None] * parts.shape[1]
        order_U = (parts.argsort(dim=1, stable=True) + offsets).T.reshape(-1)
        return RemovalPath(order=order_U, losses=torch.cat([torch.zeros(1), losses_U[order_U].cumsum(dim=0)]).float())

    def update_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor) -> ConsumerUpdate:
        kept_F = consumer.mask_features(keep_U)
        return ConsumerUpdate(weight=fit(consumer.weight, consumer.known_gram, kept_F))


def fit(weight_RF: torch.Tensor, gram_FF: torch.Tensor, kept_F: torch.Tensor) -> torch.Tensor:
    """The weights on the kept features with the least damped error."""
    fitted = torch.zeros_like(weight_RF)
    if kept_F.any():
        gram = gram_FF.double()
        kept = gram[kept_F][:, kept_F]
        damped = kept + DAMPING * kept.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
        fitted[:, kept_F] = torch.linalg.solve(damped, gram[kept_F] @ weight_RF.double().T).T.float()
    return fitted


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4))


class Convolutions(nn.Module):
    """A residual sum, a depthwise convolution, a concatenation, and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 4, 1)
        self.mixed = nn.Conv2d(12, 6, (1, 3), stride=2)
        self.classifier = nn.Linear(6 * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.norm(self.stem(images)))
        body = stem + self.conv2(torch.relu(self.depthwise(torch.relu(self.conv1(stem)))))
        both = torch.cat([body, torch.relu(self.side(body))], dim=1)
        return self.classifier(functional.adaptive_avg_pool2d(torch.relu(self.mixed(both)), 2).flatten(1))


class Encoder(nn.Module):
    """Two layers of torch's own encoder, whose attention never calls its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=bool(number)) for number in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens) if layer.self_attn.batch_first else layer(tokens.transpose(0, 1)).transpose(0, 1)
        return self.head(tokens)


def _vectors(features: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, features, generator=generator) for _ in range(3)]


def _images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(3)]


@dataclass(frozen=True, eq=False)
class UnitCase:
    build: Callable[[], nn.Module]
    batches: Callable[[], Sequence[Any]]
    config: Mapping[str, Any]

    @cached_property
    def graph(self) -> Graph | None:
        """The dependencies, traced once; ``None``: groups are found without inputs."""
        return None if self.config["pattern"] == "heads" else trace(self.create(), self.batches()[0])

    def create(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("var") else torch.randn_like(tensor))
        return model


CHANNELS: dict[str, Any] = {"pattern": "channels", "target_sparsity": 0.5}
HEADS: dict[str, Any] = {"pattern": "heads"}
BOTH = CHANNELS | {"layers": {".*attn.*|.*attention.*": HEADS}}

CASES: dict[str, UnitCase] = {
    "perceptron": UnitCase(Perceptron, lambda: _vectors(6, 20), CHANNELS),
    "convolutions": UnitCase(Convolutions, _images, CHANNELS),
    "encoder": UnitCase(Encoder, lambda: _vectors(16, 3, 7), HEADS | {"target_sparsity": 0.5}),
    **{
        name: UnitCase(lambda name=name: family(name), lambda name=name: inputs_of(name, padded=True), BOTH)
        for name in ("llama", "bert", "gpt2", "qwen3")
    },
}


def run_batch(model: nn.Module, batch: Any) -> torch.Tensor:
    """The first output of a model."""
    outputs = model(**batch) if isinstance(batch, dict) else model(batch)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits
