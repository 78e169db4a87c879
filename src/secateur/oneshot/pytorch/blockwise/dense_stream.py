"""Run the dense blocks of a model alongside the pruned ones, because refiners compare the two."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal

from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.stages import BlockStage

__all__ = ["DenseStream"]


class DenseStream(AbstractContextManager["DenseStream"]):
    """The hidden states of the dense model before and after one block of its stack.

    Args:
        offload: Where to store them; see `Activations`.

    Attributes:
        inputs: The inputs of the current block.
        outputs: Its outputs.
        shifted_outputs: Outputs of the dense block for the inputs in the pruned model, if they were computed.
    """

    def __init__(self, offload: Literal["memory", "disk"]) -> None:
        self.inputs, self.outputs, self.shifted_outputs = (Activations(offload) for _ in range(3))

    def start(self, block: BlockStage) -> None:
        """Copy the inputs of the first block, before anything is pruned."""
        for batch in block.batches:
            self.outputs[batch.number] = block.inputs[batch.number]

    def advance(self, block: BlockStage) -> None:
        """Run the next block, which must be dense."""
        self.inputs, self.outputs = self.outputs, self.inputs
        for batch in block.batches:
            self.outputs[batch.number] = block.run(batch.number, self.inputs[batch.number])

    def run_shifted(self, block: BlockStage) -> None:
        """Run the same dense block on the inputs in the pruned model."""
        for batch in block.batches:
            self.shifted_outputs[batch.number] = block.forward(batch.number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free memory and disk space."""
        for states in (self.inputs, self.outputs, self.shifted_outputs):
            states.close()
