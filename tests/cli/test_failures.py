"""Tests of failing commands: one message and an exit code, and a traceback only with --debug."""

import errno
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from typer.testing import Result

import secateur.models
from cli.kit import run
from interleaving import before_calls, raising
from secateur.cli.failures import explain_failure
from secateur.errors import ArtifactError

ESCAPE = "\x1b[2J"
NEEDS_DEV_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


class PanicError(BaseException):
    """An error that is not an `Exception`, such as panics of libraries written in Rust."""


class Number(BaseModel):
    value: int


def fail_with(error: BaseException, *flags: str) -> Result:
    """Run a command that raises `error`, and return the result."""
    with before_calls(secateur.models.load_model, raising(error)):
        return run(*flags, "plan", "cli_nets:build")


def make_validation_error() -> Exception:
    try:
        Number(value="x")  # type: ignore[arg-type]
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ArtifactError(f"{ESCAPE} is damaged"), 1, r"\x1b[2J is damaged"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 1, "out: Permission denied."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device."),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), 1, "a and b: Cross-device link."),
        (FileNotFoundError(errno.ENOENT, "No such file", b"a\xff"), 1, r"a\xff: No such file."),
        (OSError(f"a library's own {ESCAPE}"), 1, r"a library's own \x1b[2J"),
        (MemoryError(), 1, "Not enough memory on this machine or device."),
        (torch.OutOfMemoryError("CUDA"), 1, "Not enough memory on this machine or device."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Not enough memory on this machine or device."),
        (RecursionError(), 1, "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 1, "Text cannot be read or written: "),
        (ValueError("embedded null byte"), 1, "A path contains a NUL character. Remove it."),
        (SystemExit(0), 1, "The model's code exited the program with exit code 0."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (PanicError(f"index {ESCAPE}"), 70, r"Unexpected PanicError: index \x1b[2J"),
        (make_validation_error(), 70, "Unexpected ValidationError: 1 validation error for Number"),
        (ZeroDivisionError(), 70, "Unexpected ZeroDivisionError"),
        (KeyError("x" * 100_000), 70, "Unexpected KeyError: 'xxx"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_failures_are_messages(error: BaseException, code: int, message: str) -> None:
    result = fail_with(error)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert ESCAPE not in result.stderr
    assert len(result.stderr) < 5_000
    assert ("secateur --debug" in result.stderr) == (code == 70)


@pytest.mark.parametrize("error", [ArtifactError(f"{ESCAPE} is damaged"), ZeroDivisionError(ESCAPE)])
def test_debug_shows_the_traceback(error: Exception) -> None:
    result = fail_with(error, "--debug")
    assert "Traceback (most recent call last)" in result.stderr
    assert "in load_model" in result.stderr
    assert ESCAPE not in result.stderr
    assert result.exit_code == explain_failure(error)[0]


def test_a_closed_pipe_is_not_an_error() -> None:
    result = fail_with(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (result.exit_code, result.output) == (1, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no\0path"],
        [ESCAPE],
        ["\udcff"],
        ["[bold]"],
        ["cli_nets:build", "--config", "no\0path"],
        ["cli_nets:build", "--config", ESCAPE],
        ["cli_nets:build", ESCAPE],
        ["cli_nets:build", "--" + ESCAPE],
        ["cli_nets:build", "--target-sparsity", ESCAPE],
        ["cli_nets:build", "--pattern", ESCAPE],
        ["cli_nets:build", "--pattern", "\udcff" * 10_000],
    ],
    ids=ascii,
)
def test_hostile_arguments_are_rejected(arguments: list[str]) -> None:
    result = run("plan", *arguments)
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output


def test_hostile_commands_are_rejected() -> None:
    for arguments in ([ESCAPE], ["--" + ESCAPE], ["\0"], ["\udcff"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "\x1b" not in result.output


def test_warnings_and_logs_are_lines_without_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(_reference: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"old\n {ESCAPE}", stacklevel=1)
        logging.getLogger("sample_library").warning("of type %s", ESCAPE)
        raise ArtifactError("damaged")

    monkeypatch.setattr(secateur.models, "load_model", load_model)
    before = logging.getLogRecordFactory(), warnings.showwarning
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sample_library").addHandler(handler)
    result = run("plan", "cli_nets:build")
    logging.getLogger("sample_library").removeHandler(handler)
    assert result.stderr == "Warning: old \\x1b[2J\ndamaged\n"
    assert logged == [r"of type \x1b[2J"]
    assert (logging.getLogRecordFactory(), warnings.showwarning) == before


def run_in_shell(rest: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process whose streams a shell redirects."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m secateur {rest}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
        env=os.environ | environment,
    )


@NEEDS_DEV_FULL
@pytest.mark.parametrize(
    ("rest", "code", "message"),
    [
        ("--help > /dev/full", 1, "No space left on device.\n"),
        ("verify net.safetensors > /dev/full", 1, "No space left on device.\n"),
        ("verify net.safetensors >&-", 0, ""),
        ("verify nowhere.safetensors 2>&-", 2, ""),
        ("verify cli_nets.py 2>/dev/full", 1, ""),
    ],
)
def test_closed_and_full_streams(folder: Path, rest: str, code: int, message: str) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.ones(4, 4)}, folder / "net.safetensors")
    ran = run_in_shell(rest)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", message)


@NEEDS_DEV_FULL
@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"TERM": "dumb"}, {"COLUMNS": "1"}],
    ids=str,
)
def test_terminals(folder: Path, environment: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.ones(4, 4)}, folder / "net.safetensors")
    ran = run_in_shell("inspect net.safetensors", **environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Traceback" not in ran.stdout
    assert ran.stdout
