"""Prune a model with another tool. `_peers` runs this file in the environment of the tool, without Secateur.

The folder in the first argument contains the model in Hugging Face's format and ``tokens.safetensors``, with token ids
of shape (sequences, length). ``pruned.safetensors``, with the new weights by parameter name, and ``result.json`` are
written to it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGES = {"llm-compressor": "llmcompressor", "modelopt": "nvidia-modelopt"}
"""Tool → its package."""


def prune_with_llm_compressor(model: Any, tokens: torch.Tensor, method: str, pattern: str, folder: Path) -> None:
    """Prune with ``llmcompressor.oneshot``. It reads N:M like us where half of the weights are kept; 0:0 is 1x1."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from torch.utils.data import DataLoader

    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    structure = pattern if ":" in pattern else "0:0"
    recipe = modifier(sparsity=0.5, mask_structure=structure, ignore=["re:.*lm_head"])
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    oneshot(model=model, tokenizer=AutoTokenizer.from_pretrained(folder), dataset=DataLoader(rows), recipe=[recipe])


def prune_with_modelopt(model: Any, tokens: torch.Tensor, method: str, pattern: str, folder: Path) -> None:  # noqa: ARG001
    """Prune with ``modelopt.torch.sparsity.sparsify``, which supports 2:4 only."""
    import modelopt.torch.sparsity as mts

    def run(model: Any) -> None:
        for row in tokens:
            model(row[None], use_cache=False)

    mts.sparsify(model, method, config={"forward_loop": run})
    mts.export(model)


TOOLS: dict[str, Callable[[Any, torch.Tensor, str, str, Path], None]] = {
    "llm-compressor": prune_with_llm_compressor,
    "modelopt": prune_with_modelopt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("method")
    parser.add_argument("pattern")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokens = load_file(options.folder / "tokens.safetensors")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    start, cpu_start = time.perf_counter(), time.process_time()
    with torch.no_grad():
        TOOLS[options.tool](model, tokens, options.method, options.pattern, options.folder)
    result = {
        "cpu_seconds": time.process_time() - cpu_start,
        "seconds": time.perf_counter() - start,
        "versions": {name: version(name) for name in (PACKAGES[options.tool], "torch", "transformers")},
    }
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, options.folder / "pruned.safetensors")
    (options.folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
