"""Run the attacks for a given time: ``python -m fuzz --minutes 60``.

Batches of cases run in separate processes, so that a crash is counted and reported like any other failure.
"""

import argparse
import faulthandler
import itertools
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator

from fuzz.harness import load_attacks, run_case

SECONDS_PER_BATCH = 60
"""Time after which a batch starts no new case."""

SECONDS_OF_GRACE = 10
"""Time from the time limit of a case until its process is stopped."""

MAX_TRACEBACK_LINES = 40


def main() -> int:
    """Run attacks in turn until the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--start", type=int, default=0, help="number of the first case of each attack")
    parser.add_argument("--only", action="append", help="name of an attack; can be repeated")
    parser.add_argument("--case", type=int, help="run this one case in this process, with a traceback")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "numpy")  # as in the tests: always installed, and fast to import
    attacks = load_attacks()
    names = given.only or list(attacks)
    if unknown := sorted(set(names) - set(attacks)):
        parser.error(f"unknown attacks {unknown}, known are {sorted(attacks)}")
    if given.case is not None:
        print(run_case(attacks[names[0]], given.case))
        return 0
    if given.batch is not None:
        run_batch(names[0], given.batch)
        return 0
    return run_all(names, given.minutes, given.start)


def run_all(names: list[str], minutes: float, first: int) -> int:
    """Run a batch of each attack in turn; print failures when they occur, and a table at the end."""
    next_case, counts, failures = dict.fromkeys(names, first), Counter[tuple[str, str]](), list[str]()
    end = time.monotonic() + 60 * minutes
    for name in itertools.cycle(names):
        if time.monotonic() > end:
            break
        for number, outcome, details in run_in_process(name, next_case[name]):
            next_case[name] = number + 1
            counts[name, outcome] += 1
            if outcome == "failed":
                failures.append(f"{name} --case {number}")
                print(f"FAILED: python -m fuzz --only {name} --case {number}\n{details}", flush=True)
    print(f"{'attack':32}{'right':>10}{'refused':>10}{'failed':>10}")
    for name in names:
        print(f"{name:32}" + "".join(f"{counts[name, outcome]:>10,}" for outcome in ("right", "refused", "failed")))
    failed = len(failures)
    print(f"{counts.total() - failed:,} passed, {failed:,} failed")
    return 1 if failures else 0


def run_in_process(name: str, first: int) -> Iterator[tuple[int, str, str]]:
    """Run one batch in another process, and yield number, outcome and details of each case."""
    command = [sys.executable, "-m", "fuzz", "--only", name, "--batch", str(first)]
    case, details = None, list[str]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            mark, _, rest = line.strip().partition(" ")
            if mark == "#begin":
                case, details = int(rest), []
            elif mark == "#end" and case is not None:
                yield case, rest, "".join(details)
                case = None
            else:
                details = [*details, line][-MAX_TRACEBACK_LINES:]
    if case is not None or process.returncode:
        yield first if case is None else case, "failed", f"{''.join(details)}exit status {process.returncode}"


def run_batch(name: str, first: int) -> None:
    """Run cases from `first` on until the batch's time is over."""
    attacker, end = load_attacks()[name], time.monotonic() + SECONDS_PER_BATCH
    for number in itertools.count(first):
        print(f"#begin {number}", flush=True)
        # Time limits do not interrupt compiled code, so this stops the process with a traceback.
        faulthandler.dump_traceback_later(attacker.seconds + SECONDS_OF_GRACE, exit=True, file=sys.__stderr__)
        try:
            outcome = run_case(attacker, number)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - any error is a failure
            traceback.print_exc()
            outcome = "failed"
        faulthandler.cancel_dump_traceback_later()
        print(f"\n#end {outcome}", flush=True)
        if time.monotonic() > end:
            return


if __name__ == "__main__":
    sys.exit(main())
