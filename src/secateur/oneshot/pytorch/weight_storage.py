"""Where the weights of a model are while they are not pruned, and how a block's get to where it runs."""

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
from secateur.oneshot.pytorch.materialize import Materializer, get_saved_state
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.tensor_files import checksum
from secateur.oneshot.pytorch.weight_files import FilteredTensors, WeightFiles
from secateur.planning.planner import Plan

__all__ = ["DeviceStorage", "FileStorage", "ModelStorage", "WeightStorage", "choose_storage"]


class WeightStorage(ABC):
    """Where a model's weights are while they are not pruned.

    Attributes:
        home: Where the model runs outside its blocks.
    """

    home: torch.device

    @abstractmethod
    def check(self, plan: Plan, recipe: Recipe) -> None:
        """Refuse, before anything is done, what cannot be done with weights that are here.

        Raises:
            ScoreError: A weight that is to be pruned is known to have ``nan``.
            ConfigError: A refiner needs more of the model than there is at a time.
        """

    @abstractmethod
    def refuse_outside(self, layers: Sequence[str], refusal: Exception | None = None) -> None:
        """Raise `UnsupportedModelError` if layers outside of a stack of blocks are given and cannot be pruned.

        Args:
            layers: Their names.
            refusal: What the model raised when its blocks were looked for.
        """

    @abstractmethod
    def load_outside(self, blocks: Mapping[str, nn.Module]) -> None:
        """Have all that lies outside of a stack of blocks at home.

        Args:
            blocks: Name → block, in the order in which they run.
        """

    @abstractmethod
    def device(self, block: nn.Module) -> torch.device:
        """Where a block runs."""

    @abstractmethod
    def open(self, block: nn.Module) -> AbstractContextManager[object]:
        """While this is open, a block's weights are where it runs."""

    @abstractmethod
    def hash_other_weights(self, pruned: Collection[str]) -> str:
        """SHA-256 of all parameters but some, as they are when dense.

        Args:
            pruned: Names of the parameters that do not count.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave what lies outside of blocks as it was found."""


class ModelStorage(WeightStorage):
    """In the model, where they stay.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.home = next((held.device for held in model.parameters()), torch.device("cpu"))
        self._model = model

    def check(self, plan: Plan, recipe: Recipe) -> None:  # noqa: ARG002 - all refiners serve
        """See `WeightStorage.check`."""
        refuse_nan({name: ParameterWeight(name, pattern) for pattern in plan.patterns for name in pattern.views})

    def refuse_outside(self, layers: Sequence[str], refusal: Exception | None = None) -> None:
        """See `WeightStorage.refuse_outside`; all can."""

    def load_outside(self, blocks: Mapping[str, nn.Module]) -> None:
        """See `WeightStorage.load_outside`; it is there."""

    def device(self, block: nn.Module) -> torch.device:
        """See `WeightStorage.device`; parts of a model may be on different devices."""
        return next((held.device for held in block.parameters()), self.home)

    def open(self, block: nn.Module) -> AbstractContextManager[object]:  # noqa: ARG002 - nothing to do
        """See `WeightStorage.open`."""
        return nullcontext()

    def hash_other_weights(self, pruned: Collection[str]) -> str:
        """See `WeightStorage.hash_other_weights`."""
        return checksum({name: held for name, held in self._model.named_parameters() if name not in pruned})

    def close(self) -> None:
        """See `WeightStorage.close`; it is where it was."""


class DeviceStorage(ModelStorage):
    """In the model, but for the block at work, which is on a device.

    Args:
        model: The model.
        device: The device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model)
        self._device = device

    def device(self, block: nn.Module) -> torch.device:  # noqa: ARG002 - the same for all
        """See `WeightStorage.device`."""
        return self._device

    @contextmanager
    def open(self, block: nn.Module) -> Iterator[None]:
        """See `WeightStorage.open`; parameters and buffers stay the objects that they are."""
        homes = [(held, held.device) for held in (*block.parameters(), *block.buffers())]
        try:
            for held, _ in homes:
                _move(held, self._device)
            yield
        finally:
            for held, home in homes:
                _move(held, home)


class FileStorage(WeightStorage):
    """In files; the model is on the meta device, but for what lies outside of blocks and the block at work.

    Args:
        model: The model.
        files: The dense weights.
        device: Where blocks run; ``None``: on the CPU, as all else.

    Attributes:
        files: The dense weights.
        blocks: Name → block, known once `load_outside` was called.

    Raises:
        ModelLoadError: The files do not fit the model.
    """

    def __init__(self, model: nn.Module, files: WeightFiles, device: torch.device | None = None) -> None:
        self.home = torch.device("cpu")
        self.files = files
        self.blocks: dict[str, nn.Module] = {}
        self._model = model
        self._device = device or self.home
        self._filling = Materializer(model, files)
        self._around = ExitStack()

    def check(self, plan: Plan, recipe: Recipe) -> None:  # noqa: ARG002 - weights are looked at block by block
        """See `WeightStorage.check`."""
        if recipe.model_refiners:
            raise ConfigError(
                f"{type(recipe.model_refiners[0]).__name__} needs the whole model at once, and weights loads it block "
                f"by block. Leave it out, or load the whole model: leave out weights (--low-memory)."
            )

    def refuse_outside(self, layers: Sequence[str], refusal: Exception | None = None) -> None:
        """See `WeightStorage.refuse_outside`."""
        if layers:
            told = "" if refusal is None else f" (With blocks that do nothing: {refusal})"
            raise UnsupportedModelError(
                f"weights loads a model block by block, and {format_list(map(repr, layers))} lie in no stack of blocks "
                "that run one after another. Exclude these layers (excluded_op_names), or load the whole model: leave "
                f"out weights (--low-memory).{told}"
            ) from refusal

    def load_outside(self, blocks: Mapping[str, nn.Module]) -> None:
        """See `WeightStorage.load_outside`."""
        if self.blocks.keys() == blocks.keys():
            return
        self.close()
        _refuse_shared(self._model, blocks)
        inside = {part for block in blocks.values() for part in block.modules()}
        outside = [part for part in self._model.modules() if part not in inside]
        self._around.enter_context(self._filling.materialize_buffers())
        self._around.enter_context(self._filling.filled(outside, self.home))
        self.blocks = dict(blocks)

    def device(self, block: nn.Module) -> torch.device:  # noqa: ARG002 - the same for all
        """See `WeightStorage.device`."""
        return self._device

    def open(self, block: nn.Module) -> AbstractContextManager[object]:
        """See `WeightStorage.open`."""
        return self._filling.filled(block.modules(), self._device)

    def hash_other_weights(self, pruned: Collection[str]) -> str:
        """See `WeightStorage.hash_other_weights`."""
        return checksum(FilteredTensors(self.files, pruned))

    def held(self, block: str | None) -> dict[str, torch.Tensor]:
        """Name → tensor of all that a block, or no block, adds to the pruned model, as it is now.

        That is what the files hold of it, values that the model does not know included, and what only the model holds.
        """
        own = {name: held for name, held in get_saved_state(self._model).items() if self._owner(name) == block}
        names = [name for name in self.files if self._owner(name) == block]
        found = {name: own[name] if name in own else self.files[name] for name in names}
        known = {id(held) for held in found.values()}
        return found | {name: held for name, held in own.items() if id(held) not in known}

    def close(self) -> None:
        """See `WeightStorage.close`."""
        self._around.close()
        self.blocks = {}

    def _owner(self, name: str) -> str | None:
        """The block that a tensor of this name belongs to."""
        return next((block for block in self.blocks if name.startswith(f"{block}.")), None)


def choose_storage(model: nn.Module, execution: Execution) -> WeightStorage:
    """Where the weights of a model are to be.

    Raises:
        LayerError: The model is on the meta device, and nothing says where its values are.
        ConfigError: It is not and something does, only a part of it is, or the device does not exist.
        ModelLoadError: The files do not fit the model.
    """
    device = None if execution.device is None else existing(execution.device)
    empty = {name: held.is_meta for name, held in model.named_parameters()}
    if execution.weights is None:
        if name := next((name for name, is_empty in empty.items() if is_empty), None):
            raise LayerError(
                f"parameter {name!r} is on the meta device and has no values yet. Load the model first, or say where "
                f"its values are and where the pruned model goes: execution=Execution(weights=..., folder=...)."
            )
        if device is None or device == ModelStorage(model).home:
            return ModelStorage(model)
        return DeviceStorage(model, device)
    if name := next((name for name, is_empty in empty.items() if not is_empty), None):
        raise ConfigError(
            f"weights serves a model that is on the meta device as a whole, and parameter {name!r} has its values. "
            f"Leave weights out, or build the model under accelerate.init_empty_weights()."
        )
    return FileStorage(model, WeightFiles(execution.weights), device)


def existing(device: Any) -> torch.device:
    """The device, with its number.

    Raises:
        ConfigError: There is none of that name here, or it holds no values.
    """
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"device must be one that torch can use here, such as 'cpu' or 'cuda', found {device!r} ({reason})."
        ) from error
    if found.type == "meta":
        raise ConfigError("device must be one that holds values, such as 'cpu' or 'cuda', found 'meta'.")
    return found


def _move(held: torch.Tensor, device: torch.device) -> None:
    """Have a parameter or buffer elsewhere, with its gradient; it stays the same object."""
    held.data = held.data.to(device)
    if held.grad is not None:
        held.grad.data = held.grad.data.to(device)


def _refuse_shared(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Raise `UnsupportedModelError` if a parameter of one block is also one of another, or stands outside of them."""
    places: dict[int, set[str | None]] = {}
    names: dict[int, list[str]] = {}
    for name, held in model.named_parameters(remove_duplicate=False):
        owner = next((block for block in blocks if name.startswith(f"{block}.")), None)
        places.setdefault(id(held), set()).add(owner)
        names.setdefault(id(held), []).append(name)
    if shared := [names[key] for key, owners in places.items() if len(owners) > 1]:
        raise UnsupportedModelError(
            f"weights loads a model block by block, and {format_list(map(repr, shared[0]))} are one parameter of "
            f"several blocks. Load the whole model: leave out weights (--low-memory)."
        )
