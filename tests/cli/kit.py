"""Models for tests of the command line, and functions that run it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner, Result

from secateur.cli import app

CODE = """
import os
from pathlib import Path

import torch
from torch import nn

class Fatal(nn.Module):
    def forward(self, x):
        how = Path("how_to_end")
        if how.exists() and list(Path("out.part").glob("*.done.*")):
            if how.read_text() == "interrupt":
                raise KeyboardInterrupt
            os.kill(os.getpid(), 9)
        return torch.relu(x)

def build():
    print("building")
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

def fatal():
    torch.manual_seed(0)
    stack = [nn.Linear(8, 16), Fatal(), nn.Linear(16, 16), Fatal(), nn.Linear(16, 16), Fatal(), nn.Linear(16, 3)]
    return nn.Sequential(*stack)

def broken():
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(8, 16))
"""

VOCABULARY = 64
TEXT = "to prune is to cut what bears no fruit so that the rest may grow " * 40


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, list(arguments), **options)


def run_json(*arguments: str) -> Any:
    """Run a command and parse the JSON that it prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def write_llama(folder: Path) -> nn.Module:
    """Write a tiny language model with random weights and a word tokenizer to a folder."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tiny_transformers import DECODER

    config = transformers.LlamaConfig(**DECODER | {"vocab_size": VOCABULARY, "num_hidden_layers": 2})
    torch.manual_seed(0)
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    unknown = "[UNK]"
    words = [unknown, *dict.fromkeys(TEXT.split())]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown).save_pretrained(folder)
    return model
