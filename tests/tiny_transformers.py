"""Tiny models with random weights, of families that differ in how their blocks are built and called."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 64

DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER))


def mistral() -> nn.Module:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**DECODER, sliding_window=4))


def gemma2() -> nn.Module:
    """Sliding windows in every second block."""
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**DECODER, sliding_window=4))


def gemma3() -> nn.Module:
    """Blocks of two kinds that are called with two kinds of masks and positions."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**DECODER, sliding_window=4, layer_types=kinds))


def opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    return transformers.OPTForCausalLM(config)


def gpt2() -> nn.Module:
    """Stores its weights transposed, and q, k and v in one."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def mixtral() -> nn.Module:
    """A mixture of experts, with one matrix per expert in each of its weights."""
    sizes = DECODER | {"num_hidden_layers": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=4))


def gpt_oss() -> nn.Module:
    """A mixture of experts that stores its matrices transposed."""
    sizes = DECODER | {"num_hidden_layers": 2}
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes, num_local_experts=4))


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return transformers.BertForSequenceClassification(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=4,
    )
    return transformers.ViTForImageClassification(config)


FAMILIES: Mapping[str, Callable[[], nn.Module]] = {
    made.__name__: made for made in (llama, qwen3, mistral, gemma2, gemma3, opt, gpt2, bert, vit)
}

TEXT = [name for name in FAMILIES if name != "vit"]

STACKS = {
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
    "bert": "bert.encoder.layer",
}
"""Family → its list of blocks, where it is not ``model.layers``."""


def family(name: str, seed: int = 0) -> nn.Module:
    """In evaluation mode."""
    torch.manual_seed(seed)
    return FAMILIES[name]().eval()


def inputs_of(name: str, count: int = 2, *, padded: bool = False) -> list[dict[str, torch.Tensor]]:
    """Calibration batches; padded on the right, or from none to half of each text."""
    generator = torch.Generator().manual_seed(7)
    if name == "vit":
        return [{"pixel_values": torch.randn(2, 4, 8, 8, generator=generator)} for _ in range(count)]
    found = []
    for number in range(count):
        tokens = torch.randint(1, VOCABULARY, (3, 8 + 2 * number), generator=generator)
        mask = torch.ones_like(tokens)
        if padded:
            for row in range(3):
                mask[row, tokens.shape[1] - 2 * row :] = 0
        found.append({"input_ids": tokens * mask, "attention_mask": mask})
    return found
