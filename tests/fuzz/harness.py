"""Define attacks, and run their cases."""

import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple

from secateur.errors import SecateurError

__all__ = ["ATTACKS", "Attack", "attack", "create_random", "load_attacks", "run_case"]

MAX_MESSAGE_CHARACTERS = 10_000
"""Messages must be readable, whatever a hostile file contains."""

Run = Callable[[random.Random, Path], None]


class Attack(NamedTuple):
    """One kind of attack.

    Attributes:
        name: Name of the function, as in ``--only``.
        run: Runs one case with a random generator and an empty folder; raises `AssertionError` if a result is wrong.
        cases: Cases in CI, numbered from 0.
        seconds: Time limit of a case.
        may_refuse: Whether a case may end with a `SecateurError`.
    """

    name: str
    run: Run
    cases: int
    seconds: float
    may_refuse: bool


ATTACKS: dict[str, Attack] = {}


class CaseTimeout(BaseException):
    """A case reached its time limit. It is not an `Exception`, so that the code under attack does not catch it."""


def attack(*, cases: int, seconds: float = 20, may_refuse: bool = True) -> Callable[[Run], Run]:
    """Register a function as an attack; see `Attack`."""

    def register(run: Run) -> Run:
        name = run.__name__
        assert name not in ATTACKS, name
        ATTACKS[name] = Attack(name, run, cases, seconds, may_refuse)
        return run

    return register


def load_attacks() -> dict[str, Attack]:
    """Import every file of this package named ``attack_*.py``; returns all attacks by name."""
    for module in iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("attack_"):
            import_module(f"fuzz.{module.name}")
    return ATTACKS


def create_random(name: str, number: int) -> random.Random:
    """Return the random generator of a case, which is the same on every machine."""
    return random.Random(f"{name}/{number}")  # noqa: S311 - not for security


def run_case(attacker: Attack, number: int) -> str:
    """Run one case.

    Returns:
        ``"right"``, or ``"refused"`` if it ended with a `SecateurError`.

    Raises:
        BaseException: The case fails: a wrong result, another error, a message that is too long or not printable, or
            the time limit.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, time_limit(attacker.seconds):
        try:
            attacker.run(create_random(attacker.name, number), Path(folder))
        except SecateurError as error:
            if not attacker.may_refuse:
                raise
            check_message(error)
            return "refused"
    return "right"


def check_message(error: BaseException) -> None:
    """Assert that a message can be printed in a terminal."""
    message = str(error)
    assert message, type(error)
    assert len(message) <= MAX_MESSAGE_CHARACTERS, f"{len(message):,} characters: {message[:200]!r}"
    strange = {character for character in message if not (character.isprintable() or character == "\n")}
    assert not strange, f"{sorted(strange)!r} in {message[:200]!r}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `CaseTimeout` in the main thread after some seconds, where the platform has timers."""

    def end(*_: object) -> None:
        raise CaseTimeout(f"more than {seconds} s")

    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
