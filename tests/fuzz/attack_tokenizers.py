"""Attack with damaged tokenizers."""

import json
import random
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

from fuzz.attack_archives import change_bytes
from fuzz.attack_models import BERT, limited_memory, mutate_json
from fuzz.harness import attack
from secateur.models.pytorch import load_tokenizer, make_text_batches

TEXT = "to prune is to cut what bears no fruit, so that the rest may grow: 1 + 2 = 3. " * 20


@cache
def tokenizer_folder() -> Path:
    """Create a folder with a byte-pair tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import BertConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("q", "k")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-tokenizers-"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)  # noqa: S106
    BertConfig(**BERT).save_pretrained(folder)
    return folder


@attack(cases=150, seconds=60)
def damage_tokenizer(chooser: random.Random, folder: Path) -> None:
    """Load a damaged tokenizer: it fails, or returns the requested number of tokens."""
    target = Path(shutil.copytree(tokenizer_folder(), folder / "model"))
    file = target / chooser.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json", "config.json"])
    content = file.read_bytes()
    if chooser.random() < 0.7:
        content = json.dumps(mutate_json(chooser, json.loads(content))).encode()
    else:
        content = change_bytes(chooser, content)
    file.write_bytes(content)
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = make_text_batches(load_tokenizer(target), TEXT, 4, 8)
    assert {tuple(batch["input_ids"].shape) for batch in batches} == {(1, 8)}
