"""The processes that work on one model: who they are, whether they agree, and what they add up.

Every method of `Ranks` except the attributes is collective: all ranks must call it, in the same order. Without a
process group there is one rank, and nothing is sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from secateur._wording import format_list
from secateur.errors import RankError

__all__ = ["Ranks", "compute_digest"]

Value = TypeVar("Value")
Tensor = TypeVar("Tensor", np.ndarray[Any, Any], torch.Tensor)

GPU = "cuda"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that work together, as one of them sees them.

    Attributes:
        rank: Number of this process, in [0, size).
        size: Number of processes.
        group: The process group; ``None``: there is one process.

    Examples:
        >>> alone = Ranks()
        >>> alone.rank, alone.size, alone.gather("a")
        (0, 1, ['a'])
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def join(cls, group: Any = None) -> Ranks:
        """Return the ranks of a process group.

        Args:
            group: A ``torch.distributed.ProcessGroup``; ``None``: the default group, or one process if there is none.

        Raises:
            RankError: This process is not in the group.

        Examples:
            >>> Ranks.join().size
            1
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        known = dist.group.WORLD if group is None else group
        rank = dist.get_rank(known)
        if rank < 0:
            raise RankError(f"rank {dist.get_rank()} is not in the process group. Use the group in its own ranks only.")
        return cls(rank, dist.get_world_size(known), known)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in the order of the ranks, on each of them. They are pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_tensors(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all ranks, of equal shape and dtype, in the order of the ranks.

        Examples:
            >>> Ranks().gather_tensors(torch.tensor([True]))
            [tensor([True])]
        """
        if self.size == 1:
            return [tensor]
        bits = self._send(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor)
        parts = [torch.empty_like(bits) for _ in range(self.size)]
        dist.all_gather(parts, bits, group=self.group)
        return [part.to(tensor.device).view(tensor.dtype) for part in parts]

    def exchange(self, arrays: Tensor) -> Tensor:
        """Send ``arrays[rank]`` to each rank, and return what each of them sent to this one, in the order of the ranks.

        The arrays have the same shape and dtype on all ranks.

        Examples:
            >>> Ranks().exchange(np.array([[1, 2]]))
            array([[1, 2]])
        """
        if self.size == 1:
            return arrays
        sent = self._send(arrays)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        exchanged: Tensor = _return_as(received, arrays)
        return exchanged

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """Return the value of rank `source` on every rank. It is pickled.

        Args:
            value: The value; read on rank `source` only.
            source: Number of a rank in this group.
        """
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=source)
        received: Value = values[0]
        return received

    def broadcast_array(self, array: Tensor, source: int = 0) -> Tensor:
        """Return the array of rank `source` on every rank; on the others, `array` has its shape and dtype."""
        if self.size == 1:
            return array
        sent = self._send(array)
        dist.broadcast(sent, group=self.group, group_src=source)
        received: Tensor = _return_as(sent, array)
        return received

    def add(self, array: Tensor) -> Tensor:
        """Return the sum of the arrays of all ranks, in new memory. They have the same shape and dtype.

        Sums of integers are exact. Those of floating-point numbers have the same bits on every rank, but depend on the
        number of ranks.

        Examples:
            >>> Ranks().add(np.array([1, 2]))
            array([1, 2])
        """
        sent = self._send(array)
        if self.size > 1:
            dist.all_reduce(sent, group=self.group)
        total: Tensor = _return_as(sent, array)
        return total

    def agree(self, values: Mapping[str, Any]) -> None:
        """Compare values on all ranks by their digests.

        Args:
            values: What is compared → its value, which `compute_digest` accepts.

        Raises:
            RankError: Values differ. All ranks raise it, with the names of the values and which ranks differ.

        Examples:
            >>> Ranks().agree({"configuration": {"pattern": "4x1"}})
        """
        gathered = self.gather({name: compute_digest(value) for name, value in values.items()})
        names = dict.fromkeys(name for digests in gathered for name in digests)
        if differing := [name for name in names if len({digests.get(name) for digests in gathered}) > 1]:
            others = _find_minority([json.dumps(digests, sort_keys=True) for digests in gathered])
            raise RankError(
                f"Ranks must have the same {format_list(differing)}, but {_format_ranks(others)} "
                f"{'has' if len(others) == 1 else 'have'} another than {_format_ranks(_invert(others, self.size))}. "
                f"Build the model and the configuration in the same way on every rank."
            )

    @contextmanager
    def fail_together(self, action: str) -> Iterator[None]:
        """Raise on every rank if the block raises on one.

        The block must not communicate, because a rank that has raised no longer takes part.

        Args:
            action: What the block does, for the message of the ranks that did not raise, such as ``"calibration"``.

        Raises:
            RankError: The block raised on another rank. Where it raised, its own exception is raised.

        Examples:
            >>> with Ranks().fail_together("calibration"):
            ...     raise ValueError("no batches")
            Traceback (most recent call last):
            ValueError: no batches
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- raised again, once the other ranks know
            own = error
        problems = self.gather(None if own is None else f"{type(own).__name__}: {own}")
        if own is not None:
            raise own
        failed = {rank: problem for rank, problem in enumerate(problems) if problem is not None}
        for rank, problem in failed.items():
            raise RankError(f"{action} failed on {_format_ranks(list(failed))}. Rank {rank}: {problem}")

    def _send(self, array: Any) -> torch.Tensor:
        """Copy an array to a tensor that the process group can send."""
        tensor = torch.tensor(array) if isinstance(array, np.ndarray) else array.detach().clone()
        if self.size > 1 and tensor.device.type == "cpu" and not _sends_from_cpu(self.group):
            return tensor.to(GPU)
        return tensor.contiguous()


def compute_digest(value: Any) -> str:
    """Return a digest of plain values, strings, bytes, arrays and tensors that is the same in every process.

    Args:
        value: ``None``, a boolean, a number, a string, bytes, an array, a tensor, or mappings and sequences of these.

    Raises:
        TypeError: There is a value of another type.

    Examples:
        >>> compute_digest({"a": 1, "b": [2]}) == compute_digest({"b": [2], "a": 1})
        True
        >>> compute_digest(1) == compute_digest("1")
        False
    """
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value, key=str):
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"array {value.dtype} {tuple(value.shape)};".encode() + bits.tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype} {value.shape};".encode() + value.tobytes())
    elif isinstance(value, Sequence):
        digest.update(f"sequence {len(value)};".encode())
        for item in value:
            _update(digest, item)
    else:
        raise TypeError(f"digests are computed of plain values, arrays and tensors, found {type(value).__name__}")


def _return_as(tensor: torch.Tensor, like: Any) -> Any:
    return tensor.cpu().numpy() if isinstance(like, np.ndarray) else tensor.to(like.device)


def _sends_from_cpu(group: Any) -> bool:
    """Whether a process group has a backend for tensors on the CPU."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return backends.get("cpu", "nccl") != "nccl"


def _find_minority(digests: Sequence[str]) -> list[int]:
    """Return the ranks whose digest is not the most frequent one; of equally frequent ones, that of the lowest rank."""
    usual = max(digests, key=digests.count)
    return [rank for rank, digest in enumerate(digests) if digest != usual]


def _invert(ranks: Sequence[int], size: int) -> list[int]:
    return [rank for rank in range(size) if rank not in ranks]


def _format_ranks(ranks: Sequence[int]) -> str:
    """Format numbers of ranks, as in ``rank 1`` or ``ranks 0, 2``."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {format_list(map(str, ranks))}"
