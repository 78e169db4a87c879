"""Small torch models, one for each way in which the axes of parameters can depend on each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

Groups = dict[str, int]


@dataclass(frozen=True)
class Exhibit:
    """A model, its inputs, and what must be found in it.

    Attributes:
        build: Creates the model.
        inputs: One batch.
        channels: Name of each group of channels that can be removed exactly → its units.
        heads: The same for heads.
        inexact: The same for groups whose removal is inexact.
        barriers: Modules whose code calls an operation without a rule.
    """

    build: Callable[[], nn.Module]
    inputs: Any
    channels: Groups = field(default_factory=dict)
    heads: Groups = field(default_factory=dict)
    inexact: Groups = field(default_factory=dict)
    barriers: tuple[str, ...] = ()

    def create(self) -> nn.Module:
        """Return the model with random values everywhere, in evaluation mode."""
        torch.manual_seed(0)
        model = self.build().eval()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.is_floating_point() and tensor.ndim < 2:
                    tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("var") else torch.randn_like(tensor))
        return model


ZOO: dict[str, Exhibit] = {}


def exhibit(inputs: Any, **expected: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Create a decorator that adds a model class to the zoo."""

    def add(kind: type[nn.Module]) -> type[nn.Module]:
        ZOO[kind.__name__] = Exhibit(kind, inputs, **expected)
        return kind

    return add


IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8)
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SEQUENCE = torch.linspace(-1, 1, 2 * 5 * 12).cos().reshape(2, 5, 12)
VECTOR = torch.linspace(-1, 1, 3 * 6).sin().reshape(3, 6)


@exhibit(VECTOR, channels={"0": 8, "2": 10})
class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 4))


@exhibit(IMAGE, channels={"stem": 8, "block.0": 6})
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(x + self.block(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@exhibit(IMAGE, channels={"stem": 8, "first": 4, "second": 6})
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 6, 1)
        self.head = nn.Conv2d(18, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(x).relu()], dim=1)
        x = torch.cat([x, self.second(F.relu(self.norm(x)))], dim=1)
        return self.head(x)


@exhibit(IMAGE, channels={"conv": 4})
class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.conv(x).chunk(2, dim=1)
        return self.left(left.tanh()) - self.right(right.sigmoid())


@exhibit(IMAGE, channels={"conv": 5, "conv (2)": 3})
class SplitUnequally(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [5, 3]
        self.conv = nn.Conv2d(3, 8, 1)
        self.left, self.right = nn.Conv2d(5, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.conv(x).split(self.sizes, dim=1)
        return self.left(left.tanh()) - self.right(right.sigmoid())


@exhibit(IMAGE, channels={"0": 8})
class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 1),
        )


@exhibit(IMAGE, channels={"0": 8})
class DepthwiseMultiplier(nn.Sequential):
    """Two outputs for each input: a unit has two rows of the second convolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Hardswish(), nn.Conv2d(16, 4, 1)
        )


@exhibit(IMAGE, channels={"0": 4})
class Grouped(nn.Sequential):
    """Whole groups of three inputs and two outputs are units."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1))


@exhibit(IMAGE, channels={"stem": 8, "expand": 16, "squeeze": 4})
class InvertedBottleneck(nn.Module):
    """With squeeze and excitation: a gate for each channel from the average of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.expand, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.silu(self.depthwise(F.silu(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(x + self.project(y))


@exhibit(IMAGE, channels={"down": 8, "bottom": 12, "up": 6, "merge": 10})
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.merge, self.head = nn.Conv2d(14, 10, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x).relu()
        x = self.up(self.bottom(skip).relu()).relu()
        return self.head(self.merge(torch.cat([skip, x], 1)).relu())


@exhibit(IMAGE, channels={"0": 6})
class GroupedTransposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6), nn.Conv2d(6, 2, 1))


@exhibit(IMAGE, channels={"0": 4})
class GroupNormalized(nn.Sequential):
    """The groups of a norm are units, because each has its own statistics."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))


@exhibit(IMAGE, channels={"0": 8})
class InstanceNormalized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 1),
            nn.InstanceNorm2d(8, affine=True),
            nn.PReLU(8),
            nn.ReflectionPad2d(1),
            nn.Conv2d(8, 2, 3),
        )


@exhibit(IMAGE, inexact={"0": 12})
class LayerNormalized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 1), nn.GroupNorm(1, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))


@exhibit(IMAGE, channels={"conv": 4})
class Flattened(nn.Module):
    """A channel is 16 columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


@exhibit(IMAGE, channels={"conv": 4})
class FlattenedChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().permute(0, 2, 3, 1).reshape(x.shape[0], -1))


@exhibit(IMAGE, channels={"trunk": 8})
class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 1)
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.trunk(x).relu()
        return {"boxes": self.boxes(x), "classes": self.classes(x).softmax(1)}


@exhibit((VECTOR, torch.flip(VECTOR, [0])), channels={"left": 8})
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.left(x) * self.right(y)))


@exhibit(IMAGE, channels={"0": 2, "2": 4, "3": 8})
class PixelShuffled(nn.Sequential):
    """Four channels become one, so that runs of four are units."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)
        )


@exhibit(IMAGE, channels={"conv": 8})
class Padded(nn.Module):
    """Constant channels are joined, and positions are padded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.pad(self.conv(x), (1, 1))
        places = torch.linspace(0, 1, y.shape[3]).expand(y.shape[0], 2, y.shape[2], y.shape[3])
        return self.head(torch.cat([places, y], 1))


@exhibit(IMAGE, channels={"conv": 8})
class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        return self.head(F.interpolate(x, scale_factor=2, mode="bilinear"))


@exhibit(IMAGE, channels={"2": 6})
class Rolled(nn.Module):
    """The channels are shifted by a number, so that they must stay; those of the next layer need not."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 8, 1))
        self.add_module("2", nn.Conv2d(8, 6, 1))
        self.add_module("3", nn.Conv2d(6, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.roll(self.get_submodule("0")(x), 1, dims=1)
        x = torch.roll(self.get_submodule("2")(x), 1, dims=3)
        return self.get_submodule("3")(x)


@torch.library.custom_op("zoo::mirror", mutates_args=())
def mirror(x: torch.Tensor) -> torch.Tensor:
    """Reverse the order of the channels."""
    return x.flip(1)


@mirror.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@exhibit(IMAGE, channels={"0": 8}, barriers=("",))
class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 8, 1))
        self.add_module("1", nn.Conv2d(8, 6, 1))
        self.add_module("2", nn.Conv2d(6, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.ops.zoo.mirror(self.get_submodule("1")(self.get_submodule("0")(x)))
        return self.get_submodule("2")(x)


@exhibit(IMAGE, channels={"1": 8})
class Shuffled(nn.Module):
    """Channels of different groups of a convolution are exchanged, so that they all depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 8, 1))
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.mixed = nn.Conv2d(8, 8, 1, groups=2)
        self.add_module("1", nn.Conv2d(8, 8, 1))
        self.add_module("2", nn.Conv2d(8, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.get_submodule("0")(x))
        x = self.mixed(F.channel_shuffle(x, 2))
        return self.get_submodule("2")(self.get_submodule("1")(x).relu())


@exhibit(IMAGE, channels={"left": 8, "weights": 5})
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.weights = nn.Parameter(torch.randn(8, 5))
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.einsum("bchw,cd->bhwd", self.left(x).relu(), self.weights))


@exhibit(SEQUENCE, channels={"tokens.0": 7, "channels.0": 9}, inexact={"embed": 8})
class Mixer(nn.Module):
    """One perceptron along the tokens, one along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.channels = nn.Sequential(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


class Attention(nn.Module):
    """Attention with separate, fused or shared projections, written out or with the fused operator."""

    def __init__(self, heads: int = 4, shared: int = 4, *, fused: bool = False, eager: bool = False) -> None:
        super().__init__()
        self.heads, self.shared, self.size, self.eager = heads, shared, 3, eager
        self.inner = heads * self.size
        widths = [self.inner, shared * self.size, shared * self.size]
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(12, 3 * self.inner)
        else:
            self.q, self.k, self.v = (nn.Linear(12, width) for width in widths)
        self.o = nn.Linear(self.inner, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        else:
            q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
            k, v = (
                layer(x)
                .view(batch, length, self.shared, self.size)
                .transpose(1, 2)
                .repeat_interleave(self.heads // self.shared, dim=1)
                for layer in (self.k, self.v)
            )
        if self.eager:
            mixed = (q @ k.transpose(-2, -1) / self.size**0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, self.inner))


ZOO["MultiHead"] = Exhibit(Attention, SEQUENCE, heads={"": 4})
ZOO["MultiHeadEager"] = Exhibit(lambda: Attention(eager=True), SEQUENCE, heads={"": 4})
ZOO["GroupedQuery"] = Exhibit(lambda: Attention(shared=2), SEQUENCE, heads={"": 2})
ZOO["GroupedQueryEager"] = Exhibit(lambda: Attention(shared=2, eager=True), SEQUENCE, heads={"": 2})
ZOO["FusedAttention"] = Exhibit(lambda: Attention(fused=True), SEQUENCE, heads={"qkv": 4})


@exhibit(SEQUENCE, channels={"v": 3})
class MultiQuery(Attention):
    """One key/value head serves all queries, so that no head can go without all others: only channels of its values."""

    def __init__(self) -> None:
        super().__init__(shared=1)


@exhibit(SEQUENCE)
class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@exhibit(SEQUENCE, channels={"gate": 8})
class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@exhibit(SEQUENCE, channels={"both": 8})
class GatedFused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(12, 16), nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.both(x)
        half = x.shape[-1] // 2
        return self.down(x[..., :half].sigmoid() * x[..., half:])


@exhibit(SEQUENCE, channels={"both": 8})
class GatedLinearUnit(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.gate, self.down = nn.Linear(12, 16), nn.GLU(), nn.Linear(8, 12)


@exhibit(SEQUENCE, channels={"experts.0.0": 6, "experts.1.0": 6, "experts.2.0": 6})
class Mixture(nn.Module):
    """Experts whose outputs are weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 12)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


@exhibit(SEQUENCE, channels={"up": 6})
class StackedExperts(nn.Module):
    """The weights of all experts are one tensor; each token uses one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 6)), nn.Parameter(torch.randn(3, 6, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        chosen = self.router(flat).argmax(-1)
        hidden = torch.bmm(flat[:, None], self.up[chosen]).relu()
        return torch.bmm(hidden, self.down[chosen]).view_as(x)


@exhibit(TOKENS, channels={"project": 8}, inexact={"back": 12})
class TiedEmbeddings(nn.Module):
    """The table produces the stream and consumes it at the end; the output layer is the table itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project, self.back = nn.Embedding(10, 12), nn.Linear(12, 8), nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        return self.head(self.norm(y + self.back(self.project(y).relu())))


@exhibit(TOKENS, channels={"stream": 12, "up": 8})
class EmbeddedStream(nn.Module):
    """A residual stream without norms, which starts at a table: it can be removed exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.up, self.down = nn.Embedding(10, 12), nn.Linear(12, 8), nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stream(x)
        return self.head((y + self.down(F.gelu(self.up(y)))).mean(1))


@exhibit((TOKENS, TOKENS.flip(1)), heads={"cross": 4}, channels={"mlp.0": 9}, inexact={"encoder": 12, "decoder": 12})
class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(10, 12), nn.Embedding(10, 12)
        self.norm, self.last = nn.LayerNorm(12), nn.LayerNorm(12)
        self.cross = Cross()
        self.mlp = nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 12))
        self.head = nn.Linear(12, 10)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory = self.norm(self.encoder(source))
        y = self.decoder(target)
        y = y + self.cross(y, memory)
        return self.head(self.last(y + self.mlp(y)))


class Cross(nn.Module):
    """Attention to another sequence, whose view infers the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(value).unflatten(-1, (-1, 3)).transpose(1, 2)
            for layer, value in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@exhibit(IMAGE, channels={"expand": 24}, inexact={"stem": 6})
class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.expand, self.project = nn.Linear(6, 24), nn.Linear(24, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.project(F.gelu(self.expand(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


@exhibit(IMAGE, heads={"cross": 4}, inexact={"patches": 12})
class VisionTransformer(nn.Module):
    """With a class token and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.norm, self.cross, self.head = nn.LayerNorm(12), Cross(), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y = self.norm(x)
        return self.head((x + self.cross(y, y))[:, 0])


@exhibit(SEQUENCE, channels={"query": 12, "front": 9, "conv": 8, "mix": 12, "cross.o": 12}, heads={"cross": 4})
class Speech(nn.Module):
    """Convolutions along time, and attention from one vector to all times."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(12, 9, 3, padding=1)
        self.conv = nn.Conv1d(9, 8, 3, stride=2, padding=1)
        self.mix = nn.Linear(8, 12)
        self.query = nn.Parameter(torch.randn(1, 1, 12))
        self.cross, self.head = Cross(), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.conv(F.gelu(self.front(x.transpose(1, 2))))).transpose(1, 2)
        x = self.mix(x).tanh()
        return self.head(self.cross(self.query.expand(x.shape[0], 1, 12), x).squeeze(1))


@exhibit(SEQUENCE, channels={"front": 8}, barriers=("lstm",))
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.mid = nn.Linear(12, 8), nn.Linear(8, 6)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.mid(self.front(x).relu()))[0])


@exhibit(SEQUENCE, heads={"": 4})
class Rotary(nn.Module):
    """Rotary embedding: halves of each head are exchanged and combined with constants of the head's size."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 12))
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), self.frequencies)
        angles = torch.cat([angles, angles], -1)
        q, k = (y * angles.cos() + self._rotate(y) * angles.sin() for y in (q, k))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    @staticmethod
    def _rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], -1)


@exhibit(SEQUENCE, heads={"": 4})
class PartlyRotary(Rotary):
    """Only the first half of each head is rotated, and joined with the other half, which is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), self.frequencies)
        q, k = (torch.cat([y[..., :2] * angles.cos(), y[..., 2:]], -1) for y in (q, k))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@exhibit(VECTOR, channels={"up": 8})
class Branching(nn.Module):
    """Control flow depends on data, so that it cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        return self.down(y.relu() if bool((x > -5).all()) else -y)


@exhibit(VECTOR, channels={"first": 6})
class Shared(nn.Module):
    """One layer is called twice, so that its inputs and its outputs are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.shared(self.shared(self.first(x)).relu()).relu())


@exhibit(SEQUENCE, channels={"up": 8})
class Mutating(nn.Module):
    """Operations in place, also on parts of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        y[:, 0] = 0.5
        y.mul_(2).relu_()
        return self.down(y)
