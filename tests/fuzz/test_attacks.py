"""Run the first cases of each attack; ``make fuzz`` runs more."""

import sys
import time

import pytest

from fuzz.harness import Attack, CaseTimeout, check_message, load_attacks, run_case
from secateur.errors import ArtifactError

pytestmark = pytest.mark.slow

ATTACKS = load_attacks()


@pytest.mark.parametrize("attacker", ATTACKS.values(), ids=list(ATTACKS))
def test_attack(attacker: Attack) -> None:
    outcomes = []
    for number in range(attacker.cases):
        try:
            outcomes.append(run_case(attacker, number))
        except BaseException as error:
            error.add_note(f"To run only this case: python -m fuzz --only {attacker.name} --case {number}")
            raise
    assert len(outcomes) == attacker.cases


def create_attack(run: object, *, may_refuse: bool = True, seconds: float = 10) -> Attack:
    return Attack("sample", run, 1, seconds, may_refuse)  # type: ignore[arg-type]


def refuse(*_: object) -> None:
    raise ArtifactError("damaged")


def test_a_refusal_is_allowed_only_with_may_refuse() -> None:
    assert run_case(create_attack(refuse), 0) == "refused"
    with pytest.raises(ArtifactError):
        run_case(create_attack(refuse, may_refuse=False), 0)


@pytest.mark.parametrize("message", ["\x1b[2J", "x" * 20_000, ""])
def test_a_message_that_cannot_be_printed_fails(message: str) -> None:
    with pytest.raises(AssertionError):
        check_message(ValueError(message))


@pytest.mark.skipif(sys.platform == "win32", reason="needs timers")
def test_a_case_that_does_not_end_fails() -> None:
    with pytest.raises(CaseTimeout):
        run_case(create_attack(lambda *_: time.sleep(10), seconds=0.1), 0)


def test_other_errors_fail() -> None:
    with pytest.raises(ZeroDivisionError):
        run_case(create_attack(lambda *_: 1 / 0), 0)
