"""Time sparse convolutions of a ResNet on the CPU, compared with ``nn.Conv2d``.

Each row is one layer and batch size. The numbers are speed-ups over ``nn.Conv2d`` for whole calls, including padding.
Set OMP_WAIT_POLICY=PASSIVE on a shared machine.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import secateur
from _timing import measure_wall_seconds
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.pytorch.layers import SparseConv2d
from secateur.runtime.pytorch.recognized_weight import RecognizedWeight

LAYERS = "64x64x3@56,128x128x3@28,256x256x3@14,512x512x3@7,64x256x1@56,256x64x1@56,1024x256x1@14,256x512x1s2@56"
PATTERNS = "4x1@0.8,4x1@0.9,16x1@0.8,1x1@0.9,2:4@0.5"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", default=PATTERNS, help="comma-separated list of PATTERN@SPARSITY")
    parser.add_argument(
        "--layers",
        default=LAYERS,
        help="comma-separated list of INPUTSxOUTPUTSxKERNEL[sSTRIDE]@HEIGHT, for square images",
    )
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def parse_layer(text: str) -> nn.Conv2d:
    inputs, outputs, kernel = text.split("x")
    size, _, stride = kernel.partition("s")
    return nn.Conv2d(int(inputs), int(outputs), int(size), int(stride or 1), int(size) // 2)


def replace_layer(layer: nn.Conv2d, pattern: str, pixels: int) -> SparseConv2d:
    weight = RecognizedWeight.from_layer(layer).matrix.numpy()
    return SparseConv2d(layer, PackedMatrix.from_dense(weight, pattern, rows=pixels))


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{options.threads} threads; speed-up over nn.Conv2d in the same memory format; relative error")
    for entry in options.patterns.split(","):
        pattern, sparsity = entry.split("@")
        for text in options.layers.split(","):
            sizes, side = text.split("@")
            layer = parse_layer(sizes)
            secateur.prune(layer, {"pattern": pattern, "target_sparsity": float(sparsity)})
            for batch in map(int, options.batches.split(",")):
                images = torch.randn(batch, layer.in_channels, int(side), int(side))
                sparse = replace_layer(layer, pattern, batch * int(side) ** 2)
                channels_last = images.contiguous(memory_format=torch.channels_last)
                with torch.no_grad():
                    expected = layer(images)
                    error = float((sparse(images) - expected).norm() / expected.norm())
                    seconds = measure_wall_seconds(
                        {
                            "dense": lambda layer=layer, images=images: layer(images),
                            "sparse": lambda sparse=sparse, images=images: sparse(images),
                            "dense last": lambda layer=layer, images=channels_last: layer(images),
                            "sparse last": lambda sparse=sparse, images=channels_last: sparse(images),
                        },
                        options.rounds,
                    )
                print(
                    f"{entry:8} {text:16} batch {batch} dense {1e6 * seconds['dense']:7.0f} us | contiguous "
                    f"{seconds['dense'] / seconds['sparse']:.2f} | channels last "
                    f"{seconds['dense last'] / seconds['sparse last']:.2f} | error {error:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
