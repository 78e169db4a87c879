"""Run other pruning tools on the same model and calibration data, each in a virtual environment of its own.

Environments are created once, in a folder that the user names, with pinned versions; after that, nothing is downloaded.
The model, the tokens and the pruned weights are exchanged through files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PEERS",
    "Peer",
    "PeerError",
    "PeerResult",
    "append_result",
    "create_environment",
    "run_peer",
    "write_exchange",
]

TORCH = "torch==2.13.0+cpu"
"""The build for CPUs. Others, which pip takes by default on Linux, download gigabytes."""

RUNNER = Path(__file__).with_name("_peer_run.py")
LINES_SHOWN = 5
"""Last lines of a failed program's output that an error shows."""


class PeerError(Exception):
    """A tool cannot be installed, or fails."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another pruning tool.

    Attributes:
        requirements: What pip installs.
        methods: Method in `oneshot` → patterns that the tool supports for it.
    """

    requirements: tuple[str, ...]
    methods: Mapping[str, tuple[str, ...]]

    def supports(self, method: str, pattern: str) -> bool:
        """Whether the tool can prune this pattern with this method."""
        return pattern in self.methods.get(method, ())


PEERS = {
    "llm-compressor": Peer(
        requirements=("llmcompressor==0.14.0.1", "transformers==5.17.0", TORCH),
        methods=dict.fromkeys(("sparsegpt", "wanda"), ("1x1", "4:8", "2:4")),
    ),
    "modelopt": Peer(
        requirements=("nvidia-modelopt==0.47.0", "transformers==5.14.1", "accelerate==1.15.0", "requests", TORCH),
        methods={"sparsegpt": ("2:4",)},
    ),
}


@dataclass(frozen=True, kw_only=True)
class PeerResult:
    """What a tool measured in its own process, while it pruned.

    Attributes:
        cpu_seconds: CPU time.
        seconds: Wall time.
        versions: Package → version.
    """

    cpu_seconds: float
    seconds: float
    versions: Mapping[str, str]


def create_environment(folder: Path, name: str, requirements: Sequence[str]) -> Path:
    """Create the virtual environment of a tool, unless it has these requirements already; returns its interpreter.

    Raises:
        PeerError: pip cannot install the requirements.
    """
    environment = folder / name
    python, record = environment / "bin" / "python", environment / "requirements.json"
    if record.is_file() and json.loads(record.read_text("utf-8")) == list(requirements):
        return python
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)], f"{name}: no environment")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    try:
        _run([*pip, *requirements], f"{name} cannot be installed, it needs {' '.join(requirements)}")
    except PeerError as error:
        if TORCH in requirements:
            error.add_note(
                f"If {TORCH} is not found, let pip look where PyTorch publishes its builds for CPUs: set "
                f"PIP_EXTRA_INDEX_URL as on pytorch.org."
            )
        raise
    record.write_text(json.dumps(list(requirements)), encoding="utf-8")
    return python


def write_exchange(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor
) -> None:
    """Write the dense model, its tokenizer and the calibration tokens for the tools."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({"input_ids": tokens.contiguous()}, folder / "tokens.safetensors")


def run_peer(
    python: Path, exchange: Path, arguments: tuple[str, str, str], threads: int, runner: Path = RUNNER
) -> tuple[PeerResult, dict[str, torch.Tensor]]:
    """Prune with a tool, and return what it measured, and the new weights by parameter name.

    Args:
        python: The interpreter of its environment.
        exchange: The folder of `write_exchange`.
        arguments: Tool, method and pattern.
        threads: Number of threads.
        runner: The program to run.

    Raises:
        PeerError: The tool fails.
    """
    for name in ("result.json", "pruned.safetensors"):
        (exchange / name).unlink(missing_ok=True)
    tool, method, pattern = arguments
    command = [str(python), str(runner), str(exchange), tool, method, pattern, "--threads", str(threads)]
    _run(command, f"{tool} fails with {method} at {pattern}", OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    result = PeerResult(**json.loads((exchange / "result.json").read_text("utf-8")))
    return result, load_file(exchange / "pruned.safetensors")


def append_result(path: Path, row: Mapping[str, Any], result: PeerResult | None = None) -> None:
    """Append a row of the table, and what a tool measured, to a JSON file."""
    rows = json.loads(path.read_text("utf-8")) if path.is_file() else []
    rows.append(dict(row) | ({} if result is None else {"versions": asdict(result)["versions"]}))
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def _run(command: Sequence[str], failure: str, **variables: str) -> None:
    """Run a program.

    Raises:
        PeerError: It fails; the last lines of its output are in the error.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(  # noqa: S603
        command, env=clean | variables, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise PeerError("\n  ".join([f"{failure}:", *done.stdout.splitlines()[-LINES_SHOWN:]]))
