"""Store the weights of a model, and load those of a block when it runs: in the model, on a device, or in files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from secateur._wording import format_list
from secateur.errors import ConfigError, LayerError, UnsupportedModelError
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.run import refuse_nan
from secateur.oneshot.execution import Execution
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.storage.materialize import Materializer, get_saved_state
from secateur.oneshot.pytorch.storage.weight_files import FilteredTensors, WeightFiles
from secateur.oneshot.pytorch.tensor_files import compute_checksum
from secateur.planning.planner import Plan

__all__ = ["DeviceStorage", "FileStorage", "ModelStorage", "WeightStorage", "choose_storage"]


class WeightStorage(ABC):
    """Stores a model's weights, and loads those of the block that runs.

    Attributes:
        default_device: The device of everything outside the blocks.
    """

    default_device: torch.device

    @abstractmethod
    def check(self, plan: Plan, recipe: Recipe) -> None:
        """Check, before the run starts, that the plan and the recipe work with this storage.

        Raises:
            ScoreError: A weight to prune is known to be ``nan``.
            ConfigError: A refiner needs more of the model than is loaded at a time.
        """

    @abstractmethod
    def refuse_outside(self, layers: Sequence[str], refusal: Exception | None = None) -> None:
        """Raise `UnsupportedModelError` if layers outside of the blocks cannot be pruned.

        Args:
            layers: Names of layers outside of a stack of blocks.
            refusal: The error that the model raised in the search for its blocks.
        """

    @abstractmethod
    def load_outside(self, blocks: Mapping[str, nn.Module]) -> None:
        """Load everything outside of a stack of blocks onto the default device.

        Args:
            blocks: Name → block, in the order in which they run.
        """

    @abstractmethod
    def device(self, block: nn.Module) -> torch.device:
        """Return the device on which a block runs."""

    @abstractmethod
    def load(self, block: nn.Module) -> AbstractContextManager[object]:
        """Load the weights of a block onto its device within this context."""

    @abstractmethod
    def hash_other_weights(self, pruned: Collection[str]) -> str:
        """Return the SHA-256 of all dense parameters except some.

        Args:
            pruned: Names of the parameters to exclude.
        """

    @abstractmethod
    def close(self) -> None:
        """Restore the original state of everything outside of the blocks."""


class ModelStorage(WeightStorage):
    """Weights that stay in the model.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.default_device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        self._model = model

    def check(self, plan: Plan, recipe: Recipe) -> None:  # noqa: ARG002 - every refiner works
        """See `WeightStorage.check`."""
        refuse_nan({name: ParameterWeight(name, pattern) for pattern in plan.patterns for name in pattern.views})

    def refuse_outside(self, layers: Sequence[str], refusal: Exception | None = None) -> None:
        """See `WeightStorage.refuse_outside`; every layer can be pruned."""

    def load_outside(self, blocks: Mapping[str, nn.Module]) -> None:
        """See `WeightStorage.load_outside`; it is loaded already."""

    def device(self, block: nn.Module) -> torch.device:
        """See `WeightStorage.device`; blocks may be on different devices."""
        return next((tensor.device for tensor in block.parameters()), self.default_device)

    def load(self, block: nn.Module) -> AbstractContextManager[object]:  # noqa: ARG002 - nothing to do
        """See `WeightStorage.load`."""
        return nullcontext()

    def hash_other_weights(self, pruned: Collection[str]) -> str:
        """See `WeightStorage.hash_other_weights`."""
        return compute_checksum({name: tensor for name, tensor in self._model.named_parameters() if name not in pruned})

    def close(self) -> None:
        """See `WeightStorage.close`; nothing was moved."""


class DeviceStorage(ModelStorage):
    """Weights in the model, except those of the running block, which are on a device.

    Args:
        model: The model.
        device: The device on which blocks run.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model)
        self._device = device

    def device(self, block: nn.Module) -> torch.device:  # noqa: ARG002 - the same for all
        """See `WeightStorage.device`."""
        return self._device

    @contextmanager
    def load(self, block: nn.Module) -> Iterator[None]:
        """See `WeightStorage.load`; parameters and buffers keep their identity."""
        devices = [(tensor, tensor.device) for tensor in (*block.parameters(), *block.buffers())]
        try:
            for tensor, _ in devices:
                _move(tensor, self._device)
            yield
        finally:
            for tensor, device in devices:
                _move(tensor, device)


class FileStorage(WeightStorage):
    """Weights in files. The model is on the meta device, except for the running block and everything outside of blocks.

    Args:
        model: The model.
        files: The dense weights.
        device: The device on which blocks run; ``None``: the CPU.

    Attributes:
        files: The dense weights.
        blocks: Name → block, set by `load_outside`.

    Raises:
        ModelLoadError: The files do not fit the model.
    """

    def __init__(self, model: nn.Module, files: WeightFiles, device: torch.device | None = None) -> None:
        self.default_device = torch.device("cpu")
        self.files = files
        self.blocks: dict[str, nn.Module] = {}
        self._model = model
        self._device = device or self.default_device
        self._materializer = Materializer(model, files)
        self._outside = ExitStack()

    def check(self, plan: Plan, recipe: Recipe) -> None:  # noqa: ARG002 - weights are checked block by block
        """See `WeightStorage.check`."""
        if recipe.model_refiners:
            raise ConfigError(
                f"{type(recipe.model_refiners[0]).__name__} needs the whole model, and Execution.weights loads it "
                f"block by block. Leave it out, or load the whole model: leave out weights (--low-memory)."
            )

    def refuse_outside(self, layers: Sequence[str], refusal: Exception | None = None) -> None:
        """See `WeightStorage.refuse_outside`."""
        if layers:
            cause = "" if refusal is None else f" (With blocks that only record their calls: {refusal})"
            raise UnsupportedModelError(
                f"Execution.weights loads a model block by block, and {format_list(map(repr, layers))} are not in a "
                f"stack of blocks that run one after another. Exclude these layers (excluded_op_names), or load the "
                f"whole model: leave out weights (--low-memory).{cause}"
            ) from refusal

    def load_outside(self, blocks: Mapping[str, nn.Module]) -> None:
        """See `WeightStorage.load_outside`."""
        if self.blocks.keys() == blocks.keys():
            return
        self.close()
        _refuse_shared(self._model, blocks)
        inside = {part for block in blocks.values() for part in block.modules()}
        outside = [part for part in self._model.modules() if part not in inside]
        self._outside.enter_context(self._materializer.materialize_buffers())
        self._outside.enter_context(self._materializer.materialize(outside, self.default_device))
        self.blocks = dict(blocks)

    def device(self, block: nn.Module) -> torch.device:  # noqa: ARG002 - the same for all
        """See `WeightStorage.device`."""
        return self._device

    def load(self, block: nn.Module) -> AbstractContextManager[object]:
        """See `WeightStorage.load`."""
        return self._materializer.materialize(block.modules(), self._device)

    def hash_other_weights(self, pruned: Collection[str]) -> str:
        """See `WeightStorage.hash_other_weights`."""
        return compute_checksum(FilteredTensors(self.files, pruned))

    def collect_tensors(self, block: str | None) -> dict[str, torch.Tensor]:
        """Return name → current tensor of a block, or of everything outside of blocks, for the pruned checkpoint.

        This includes tensors that only the files have, and those that only the model has.
        """
        state = {
            name: tensor for name, tensor in get_saved_state(self._model).items() if self._find_block(name) == block
        }
        names = [name for name in self.files if self._find_block(name) == block]
        tensors = {name: state[name] if name in state else self.files[name] for name in names}
        known = {id(tensor) for tensor in tensors.values()}
        return tensors | {name: tensor for name, tensor in state.items() if id(tensor) not in known}

    def close(self) -> None:
        """See `WeightStorage.close`."""
        self._outside.close()
        self.blocks = {}

    def _find_block(self, name: str) -> str | None:
        """Return the block that a tensor of this name belongs to, or ``None``."""
        return next((block for block in self.blocks if name.startswith(f"{block}.")), None)


def choose_storage(model: nn.Module, execution: Execution) -> WeightStorage:
    """Choose how the weights of a model are stored during a run.

    Raises:
        LayerError: The model is on the meta device, and `Execution.weights` is not set.
        ConfigError: `Execution.weights` is set, but the model is not entirely on the meta device, or the device does
            not exist.
        ModelLoadError: The files do not fit the model.
    """
    device = None if execution.device is None else find_device(execution.device)
    is_meta = {name: tensor.is_meta for name, tensor in model.named_parameters()}
    if execution.weights is None:
        if name := next((name for name, is_empty in is_meta.items() if is_empty), None):
            raise LayerError(
                f"parameter {name!r} is on the meta device and has no values yet. Load the model first, or pass "
                f"the files with its values and a folder for the pruned model: "
                f"execution=Execution(weights=..., folder=...)."
            )
        if device is None or device == ModelStorage(model).default_device:
            return ModelStorage(model)
        return DeviceStorage(model, device)
    if name := next((name for name, is_empty in is_meta.items() if not is_empty), None):
        raise ConfigError(
            f"weights needs a model that is entirely on the meta device, and parameter {name!r} has values. "
            f"Leave weights out, or build the model under accelerate.init_empty_weights()."
        )
    return FileStorage(model, WeightFiles(execution.weights), device)


def find_device(device: Any) -> torch.device:
    """Return a device with its index.

    Raises:
        ConfigError: The device does not exist here, or does not store values.
    """
    try:
        resolved = torch.empty(0, device=device).device
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"device must be one that torch can use here, such as 'cpu' or 'cuda', found {device!r} ({reason})."
        ) from error
    if resolved.type == "meta":
        raise ConfigError("device must store values, such as 'cpu' or 'cuda', found 'meta'.")
    return resolved


def _move(tensor: torch.Tensor, device: torch.device) -> None:
    """Move a parameter or buffer and its gradient to a device, keeping its identity."""
    tensor.data = tensor.data.to(device)
    if tensor.grad is not None:
        tensor.grad.data = tensor.grad.data.to(device)


def _refuse_shared(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Raise `UnsupportedModelError` if a parameter of a block is also in another block or outside of the blocks."""
    places: dict[int, set[str | None]] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = next((block for block in blocks if name.startswith(f"{block}.")), None)
        places.setdefault(id(tensor), set()).add(owner)
        names.setdefault(id(tensor), []).append(name)
    if shared := [names[key] for key, owners in places.items() if len(owners) > 1]:
        raise UnsupportedModelError(
            f"Execution.weights loads a model block by block, and {format_list(map(repr, shared[0]))} are the same "
            f"parameter in several blocks. Load the whole model: leave out weights (--low-memory)."
        )
