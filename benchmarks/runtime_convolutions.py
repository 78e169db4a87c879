"""Pruned convolutions of a ResNet on the CPU, as times dense takes of each.

Each row is one layer and batch: seconds of ``nn.Conv2d`` over seconds of its kernel, so more is better. Padding and all
else that is done in a call is part of both. Set OMP_WAIT_POLICY=PASSIVE on a shared machine.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import secateur
from _timing import medians
from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.pytorch.layers import SparseConv2d
from secateur.runtime.pytorch.pruned_weight import PrunedWeight

LAYERS = "64x64x3@56,128x128x3@28,256x256x3@14,512x512x3@7,64x256x1@56,256x64x1@56,1024x256x1@14,256x512x1s2@56"
PATTERNS = "4x1@0.8,4x1@0.9,16x1@0.8,1x1@0.9,2:4@0.5"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", default=PATTERNS, help="pattern@sparsity, with commas between")
    parser.add_argument("--layers", default=LAYERS, help="INPUTSxOUTPUTSxKERNEL[sSTRIDE]@PIXELS of a side")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def convolution(text: str) -> nn.Conv2d:
    inputs, outputs, kernel = text.split("x")
    size, _, stride = kernel.partition("s")
    return nn.Conv2d(int(inputs), int(outputs), int(size), int(stride or 1), int(size) // 2)


def replace_layer(layer: nn.Conv2d, pattern: str, pixels: int) -> SparseConv2d:
    weight = PrunedWeight.from_layer(layer).matrix.numpy()
    return SparseConv2d(layer, PackedMatrix.from_dense(weight, pattern, rows=pixels))


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"{given.threads} threads; times as fast as nn.Conv2d, in the order of memory of both; relative error")
    for entry in given.patterns.split(","):
        pattern, sparsity = entry.split("@")
        for text in given.layers.split(","):
            sizes, side = text.split("@")
            layer = convolution(sizes)
            secateur.prune(layer, {"pattern": pattern, "target_sparsity": float(sparsity)})
            for batch in map(int, given.batches.split(",")):
                images = torch.randn(batch, layer.in_channels, int(side), int(side))
                ours = replace_layer(layer, pattern, batch * int(side) ** 2)
                last = images.contiguous(memory_format=torch.channels_last)
                with torch.no_grad():
                    wanted = layer(images)
                    error = float((ours(images) - wanted).norm() / wanted.norm())
                    seconds = medians(
                        {
                            "dense": lambda layer=layer, images=images: layer(images),
                            "ours": lambda ours=ours, images=images: ours(images),
                            "dense last": lambda layer=layer, last=last: layer(last),
                            "ours last": lambda ours=ours, last=last: ours(last),
                        },
                        given.rounds,
                    )
                print(
                    f"{entry:8} {text:16} batch {batch} dense {1e6 * seconds['dense']:7.0f} us | contiguous "
                    f"{seconds['dense'] / seconds['ours']:.2f} | channels last "
                    f"{seconds['dense last'] / seconds['ours last']:.2f} | error {error:.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
