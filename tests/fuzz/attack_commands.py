"""Attack the command line with valid, damaged and hostile files."""

import atexit
import json
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner, Result

import secateur
from fuzz.harness import attack
from secateur.cli import app

MAX_OUTPUT = 100_000
"""Maximum number of characters that a command prints for the small models of this file."""

NAMES = [
    *("\x1b[2J", "\x1b]0;owned\x07", "\x9b2J", "a\rb", "a\nb", "\u202egnp", "\u200b", "\ud800", "\0", "\x7f"),
    *(
        "[bold]x[/bold]",
        "[/]",
        "[link=https://example.org]x[/link]",
        "$\\frac{1}{$",
        "x" * 20_000,
        "日本語",
        "",
        "../x",
    ),
]

NETS = """
import sys, warnings, logging
from torch import nn

def build():
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

def fail():
    raise RuntimeError("\\x1b[2J" * 5_000)

def leave():
    sys.exit(0)

def interrupt():
    raise KeyboardInterrupt

def warn():
    warnings.warn("\\x1b[2J\\n\\u202e", stacklevel=1)
    logging.getLogger("net").warning("\\x1b[2J")
    return build()
"""

OPTIONS: dict[str, list[list[str]]] = {
    "plan": [["--pattern", "4x1"], ["--target-sparsity", "0.5"], ["--config", "pruning.yaml"], ["--config", "nets.py"]],
    "verify": [["--pattern", "2:4"], ["--pattern", "1x1"], ["--pattern", "\x1b"], ["--pattern", "x" * 9_000]],
    "inspect": [["--picture", "m.png"], ["--picture", "no/m.png"], ["--weights", "net.safetensors"]],
    "convert": [["--dense"]],
    "report": [["--out", "r.html"], ["--out", "no/r.html"], ["--out", "\0"], ["--out", "."]],
    "prune": [
        ["--out", "out"],
        ["--out", "\0"],
        ["--out", "."],
        ["--pattern", "4x1"],
        ["--weights", "net.safetensors"],
    ],
}

STRANGE_ARGUMENTS = ["--json", "--debug", "--\x1b", "\x1b[2J", "\0", "\udcff", "", "-", "--pattern", "x" * 9_000, "[/]"]


@cache
def good_files() -> Path:
    """Create a folder with one small model of each kind."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-good-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    secateur.save(net, folder / "artifact", report=secateur.prune(net, {"pattern": "2:4"}))
    write_safetensors(folder / "net.safetensors", {name: tensor.numpy() for name, tensor in net.state_dict().items()})
    (folder / "nets.py").write_text(NETS, "utf-8")
    (folder / "pruning.yaml").write_text(secateur.PruningConfig(pattern="2:4").to_yaml(), "utf-8")
    (folder / "bert").mkdir()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 8, "max_position_embeddings": 8}
    (folder / "bert" / "config.json").write_text(json.dumps(config | sizes), "utf-8")
    write_keras(folder / "net.keras")
    return folder


def write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    """Write 32-bit arrays under any names, in the safetensors format."""
    header, at = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


def write_keras(path: Path) -> None:
    """Write a Keras model if Keras is installed."""
    try:
        import keras
    except ImportError:
        return
    keras.Sequential([keras.Input((16,)), keras.layers.Dense(16, name="fc"), keras.layers.Dense(4)]).save(path)


@attack(cases=40, seconds=90, may_refuse=False)  # the first case imports torch and Keras
def call_commands(chance: random.Random, folder: Path) -> None:
    """Call commands: they end with a message and a documented exit code, without a traceback."""
    work = folder / "work"
    shutil.copytree(good_files(), work)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    for path in chance.sample(files, chance.choice((0, 1, 1, 2))):
        spoil_file(chance, path)
    arguments = choose_arguments(chance)
    with chdir(work), warnings.catch_warnings():
        warnings.simplefilter("always")
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": chance.choice(("1", "40", "120"))})
    check_result(result, arguments)


def choose_arguments(chance: random.Random) -> list[str]:
    """Return the arguments of a command, most of which are valid."""
    command = chance.choice(sorted(OPTIONS))
    functions = [f"nets:{name}" for name in ("build", "fail", "leave", "interrupt", "warn", "missing")]
    files = [
        "artifact",
        "net.safetensors",
        "bert",
        "net.keras",
        "pruning.yaml",
        "artifact/secateur.json",
        ".",
        "/dev/null",
    ]
    arguments = [command, chance.choice([*files, *files, *functions])]
    arguments += ["out"] if command == "convert" else []
    for option in chance.sample(OPTIONS[command], chance.randrange(len(OPTIONS[command]) + 1)):
        arguments += option
    arguments += ["--json"] if chance.random() < 0.3 else []
    if chance.random() < 0.2:
        arguments.insert(chance.randrange(len(arguments) + 1), chance.choice(STRANGE_ARGUMENTS))
    return arguments


def spoil_file(chance: random.Random, path: Path) -> None:
    """Put hostile names into a file, or damage its bytes."""
    change: Callable[[bytes], bytes] = chance.choice((rename, rename, rename, flip, truncate, empty))(chance)
    if path.suffix == ".keras" and chance.random() < 0.8:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = chance.choice(sorted(parts))
        parts[name] = change(parts[name])
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(change(path.read_bytes()))


def rename(chance: random.Random) -> Callable[[bytes], bytes]:
    """Replace one text in a JSON document, or in the header of a safetensors file."""

    def change(content: bytes) -> bytes:
        is_tensors = len(content) > 8 and content[8:9] == b"{"
        start, end = (8, 8 + int.from_bytes(content[:8], "little")) if is_tensors else (0, len(content))
        try:
            data = json.loads(content[start:end])
        except ValueError:
            return content
        text = json.dumps(replace_text(chance, data)).encode()
        return (struct.pack("<Q", len(text)) if is_tensors else b"") + text + content[end:]

    return change


def replace_text(chance: random.Random, data: Any) -> Any:
    """Replace one key or text of a JSON document with a hostile name."""
    texts = list(texts_in(data))
    old, new = chance.choice(texts) if texts else "", chance.choice(NAMES)

    def replace(value: Any) -> Any:
        match value:
            case dict():
                return {new if key == old else key: replace(part) for key, part in value.items()}
            case list():
                return [replace(part) for part in value]
        return new if value == old else value

    return replace(data)


def texts_in(data: Any) -> Iterator[str]:
    """Yield all keys and texts of a JSON document."""
    if isinstance(data, str):
        yield data
    for part in data if isinstance(data, list) else [*data, *data.values()] if isinstance(data, dict) else []:
        yield from texts_in(part)


def flip(chance: random.Random) -> Callable[[bytes], bytes]:
    """Change one byte that is not a digit; other attacks use large numbers."""

    def change(content: bytes) -> bytes:
        places = [at for at, byte in enumerate(content[:4_000]) if not chr(byte).isdigit()]
        if not places:
            return content
        at = chance.choice(places)
        return content[:at] + bytes([chance.choice(b"\x00\x1b\x7f\xff{}\"'")]) + content[at + 1 :]

    return change


def truncate(chance: random.Random) -> Callable[[bytes], bytes]:
    """Cut off the end."""
    return lambda content: content[: chance.randrange(len(content) + 1)]


def empty(_chance: random.Random) -> Callable[[bytes], bytes]:
    """Remove everything."""
    return lambda _content: b""


def check_result(result: Result, arguments: list[str]) -> None:
    """Assert that a command ended as documented, and printed no control characters."""
    summary = f"{arguments!r} exits with {result.exit_code}:\n{ascii(result.output)[:6_000]}"
    is_interrupt = "nets:interrupt" in arguments
    assert result.exit_code in ({0, 1, 2, 130} if is_interrupt else {0, 1, 2}), summary
    assert result.exit_code == 0 or result.stderr, summary
    assert "--debug" in arguments or "Traceback" not in result.output, summary
    assert len(result.output) <= MAX_OUTPUT, f"{len(result.output):,} characters: {summary}"
    strange = {character for character in result.output if not (character.isprintable() or character == "\n")}
    assert not strange, f"{sorted(strange)!r}: {summary}"
    if result.exit_code == 0 and "--json" in arguments and "--help" not in arguments:
        json.loads(result.stdout)
