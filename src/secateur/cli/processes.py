"""Run a command in several processes that ``torchrun`` has started: rank 0 writes and prints, the others help."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import typer

from secateur.cli.failures import explain_failure
from secateur.errors import ConfigError

__all__ = ["Processes", "join_processes", "refuse_processes"]

DISTRIBUTED_COMMAND = "prune"
"""The command that several processes can run together."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the processes of the command.

    Attributes:
        is_leader: Whether this process writes files and prints.
        device: The device that this process uses.
    """

    is_leader: bool = True
    device: str | None = None


@contextmanager
def join_processes(device: str | None) -> Iterator[Processes]:
    """Work together with the other processes of ``torchrun``, if it has started any.

    An error in one of them ends all of them, and rank 0 prints it, if it is still running.

    Args:
        device: The device, as the user names it.
    """
    if _count_processes() <= 1:
        yield Processes(device=device)
        return
    from secateur.distributed.pytorch.launch import join_processes as join
    from secateur.distributed.pytorch.launch import leave_processes, place_on_rank, wait_for_end
    from secateur.distributed.pytorch.team import Team

    previous = signal.signal(signal.SIGTERM, _interrupt)
    ranks = join(device)
    team = Team(ranks)
    try:
        with _silence() if ranks.rank else ExitStack(), team.work_together():
            yield Processes(is_leader=team.is_leader, device=place_on_rank(device))
    except BaseException as error:
        signal.signal(signal.SIGTERM, previous)
        if team.is_leader or team.is_cut_off:
            raise
        code, _ = explain_failure(error)
        wait_for_end(ranks)  # rank 0 has to print first, because torchrun then ends all processes
        raise typer.Exit(code) from error
    signal.signal(signal.SIGTERM, previous)
    leave_processes()


def refuse_processes(command: str | None) -> None:
    """Raise `ConfigError` if ``torchrun`` runs a command that does not support several processes."""
    count = _count_processes()
    if count > 1 and command != DISTRIBUTED_COMMAND:
        raise ConfigError(
            f"secateur {command} must run in one process, found {count} of torchrun. Start it without torchrun; only "
            f"secateur {DISTRIBUTED_COMMAND} divides its work among processes."
        )


def _count_processes() -> int:
    """Return how many processes ``torchrun`` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what Python code prints."""
    with open(os.devnull, "w", encoding="utf-8") as null, redirect_stdout(null), redirect_stderr(null):
        yield


def _interrupt(*_: Any) -> None:
    """Handle a termination by torchrun like Ctrl-C, which leaves no files behind."""
    signal.raise_signal(signal.SIGINT)
