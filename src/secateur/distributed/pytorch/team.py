"""Ranks that work on one run together, so that a failure of one of them ends the run on all.

Long work happens between the calls of a `Team`, and may fail on any rank. Therefore every call first checks whether
all ranks have reached it. A rank that fails takes part in the next check, and reports why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from secateur.distributed.pytorch.ranks import Ranks
from secateur.errors import RankError

__all__ = ["Team"]

Value = TypeVar("Value")

MAX_REASON = 1000
"""Maximum length of the message about a failure, in characters."""


class _Answer(NamedTuple):
    """The answer of a rank in a check.

    Attributes:
        value: The value that it shares with the others.
        problem: Why it has failed, if it has.
    """

    value: Any
    problem: str | None = None


class Team:
    """The ranks of a run. All of them must make the same calls in the same order.

    Args:
        ranks: The ranks; by default one process, which sends nothing.

    Attributes:
        is_cut_off: Whether the others cannot be reached, so that they do not know of a failure of this rank.

    Examples:
        >>> team = Team()
        >>> with team.work_together():
        ...     team.gather("a")
        ['a']
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self._is_broken = False
        self.is_cut_off = False

    @property
    def rank(self) -> int:
        """Number of this process, in [0, size)."""
        return self._ranks.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._ranks.size

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def owns(self, number: int) -> bool:
        """Whether this process has the batch of a number; the batches are dealt out like cards.

        Examples:
            >>> [number for number in range(4) if Team().owns(number)]
            [0, 1, 2, 3]
        """
        return number % self.size == self.rank

    @contextmanager
    def work_together(self) -> Iterator[None]:
        """Raise on every rank if the block raises on one. The block may make calls of this team.

        At the end, the ranks wait for each other.

        Raises:
            RankError: The block raised on another rank. Where it raised, its own exception is raised.
        """
        try:
            yield
            self.gather(None)
        except BaseException as error:
            self._report(error)
            raise

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in the order of the ranks. They are pickled.

        Raises:
            RankError: Another rank has failed, or is gone.
        """
        if self.size == 1:
            return [value]
        answers = self._communicate(partial(self._ranks.gather, _Answer(value)))
        for rank, answer in enumerate(answers):
            if answer.problem is not None:
                self._is_broken = True
                raise RankError(f"The run ended on rank {rank}, and so on every other: {answer.problem}")
        return [answer.value for answer in answers]

    def share(self, value: Value) -> Value:
        """Return the value of rank 0 on every rank. It is pickled.

        Raises:
            RankError: Another rank has failed, or is gone.
        """
        return self.gather(value if self.is_leader else None)[0]  # type: ignore[return-value]

    def agree(self, values: Mapping[str, Any]) -> None:
        """Compare values on all ranks; see `Ranks.agree`.

        Raises:
            RankError: Values differ, or another rank has failed, or is gone.
        """
        self.gather(None)
        self._communicate(partial(self._ranks.agree, values))

    def add(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the sum over all ranks of each tensor, one after another; see `Ranks.add`. Take all of them.

        Raises:
            RankError: Another rank has failed, or is gone.
        """
        self.gather(None)
        for tensor in tensors:
            yield tensor if self.size == 1 else self._communicate(partial(self._ranks.add, tensor))

    def copy(self, tensors: Sequence[torch.Tensor], source: int = 0) -> None:
        """Overwrite tensors with those of rank `source`. Call `gather` before, so that failures are known.

        Raises:
            RankError: Another rank is gone.
        """
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            bits = sent.view(-1).view(torch.uint8)
            received = self._communicate(partial(self._ranks.broadcast_array, bits, source))
            if self.rank != source:
                tensor.detach().copy_(received.view(sent.dtype).view(sent.shape))

    def _communicate(self, call: Callable[[], Value]) -> Value:
        """Make a call of the ranks, and explain if another one is gone."""
        if self._is_broken:
            raise RankError("The run has ended on another rank, and cannot go on. Start it again on every rank.")
        try:
            return call()
        except RankError:
            raise
        except RuntimeError as error:
            self._is_broken = self.is_cut_off = True
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RankError(
                f"Rank {self.rank} of {self.size} cannot reach the others, because one of them is gone, or does not "
                f"make the same call of Secateur, or takes longer than the time limit of the process group ({reason})."
            ) from error

    def _report(self, error: BaseException) -> None:
        """Let the other ranks know, when they compare next, that this one has failed."""
        if self.size == 1 or self._is_broken:
            return
        self._is_broken = True
        problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        try:
            self._ranks.gather(_Answer(None, problem[:MAX_REASON]))
        except Exception:  # noqa: BLE001 - the error of this rank is raised anyway
            self.is_cut_off = True
