"""Models of transformers: folders as ``save_pretrained`` writes them, and GGUF files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._huggingface.companions import CompanionFiles
from secateur._huggingface.pytorch import (
    build_empty_model,
    explain_failures,
    find_model_class,
    get_source,
    import_transformers_quietly,
    limit_modules,
    load_config,
)
from secateur._manifest_file import is_artifact
from secateur._model_limits import LIMITS_WITHOUT_WEIGHTS
from secateur._wording import format_count, format_list, format_value
from secateur.artifact import Artifact
from secateur.errors import ArtifactError, ModelLoadError
from secateur.models.pytorch.checks import check_files, stored_limits

__all__ = ["Companions", "architecture", "tokenizer_of", "trained"]

NO_TOKENIZER = (
    "Save the model's tokenizer there with tokenizer.save_pretrained, or give inputs as a .npz or .safetensors file."
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json")
"""One of them at least is in a folder with a tokenizer, or a vocabulary is."""


def architecture(path: Path) -> nn.Module:
    """The model that a folder's ``config.json``, or a GGUF file, describes: on the meta device, without weights.

    Raises:
        ModelLoadError: transformers does not know the architecture, it fails to build it, or the model has more layers
            than any has.
    """
    import_transformers_quietly()
    with explain_failures(path):
        check_files(path)
        config = load_config(path)
        with torch.device("meta"):
            return build_empty_model(_choose_model_class(config, path), config, LIMITS_WITHOUT_WEIGHTS, path)


def trained(path: Path) -> nn.Module:
    """The model in a folder or a GGUF file, with its weights, in evaluation mode.

    A warning names weights that the model does not use.

    Raises:
        ModelLoadError: transformers cannot read it, some of the model's weights are not there, or it describes a larger
            model than it has weights for.
    """
    import_transformers_quietly()
    with explain_failures(path), redirect_stderr(io.StringIO()):  # some bars ask no setting
        check_files(path)
        folder, options = get_source(path)
        model_class = _choose_model_class(load_config(path), path)
        with limit_modules(stored_limits(path), path):
            model, told = model_class.from_pretrained(folder, **options, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ModelLoadError(
            f"{str(path)!r} has no weights for {format_list(map(format_value, missing))} of {type(model).__name__}. "
            f"Choose the architecture in its config.json that the weights belong to."
        )
    if unused := sorted(told["unexpected_keys"]):
        warnings.warn(
            f"{format_count(len(unused), 'tensor')} in {str(path)!r} are not used by {type(model).__name__} as "
            "config.json describes it, and will be missing from what is written: "
            f"{format_list(map(format_value, unused))}.",
            stacklevel=2,
        )
    _forget_quantization(model)
    trained_model: nn.Module = model.eval()
    return trained_model


def tokenizer_of(path: Path) -> Any:
    """The tokenizer that comes with a folder or a GGUF file.

    Raises:
        ModelLoadError: There is none, or transformers cannot read it. For some models, transformers would make one up
            that knows no word.
        ArtifactError: The folder is an artifact, and a file is not the one that its manifest lists.
    """
    transformers = import_transformers_quietly()
    with _proved(path) as place, explain_failures(path, "read a tokenizer", NO_TOKENIZER):
        check_files(place)
        folder, options = get_source(place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        if path.is_dir():
            _check_tokenizer_files(tokenizer, place)
        return tokenizer


def _check_tokenizer_files(tokenizer: Any, folder: Path) -> None:
    names = {*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}
    if not any((folder / name).is_file() for name in names):
        raise ArtifactError("the folder has none of its files")


@contextmanager
def _proved(path: Path) -> Iterator[Path]:
    """The same, or of an artifact a folder with copies of the files that its manifest lists, and no others."""
    if not is_artifact(path):
        yield path
        return
    artifact = Artifact(path)
    with artifact.extract(*artifact.manifest.files) as folder:
        yield folder


class Companions:
    """What makes the weights of a model usable: the tokenizer, and how text is generated or images are prepared.

    Args:
        path: The model's folder, of which the files themselves are taken as they are now, or its GGUF file.

    Raises:
        ArtifactError: A file must not be copied, or cannot be read; see `CompanionFiles`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = None if path.is_file() else CompanionFiles(path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it into a folder that holds the model itself."""
        if self._files is None:
            tokenizer_of(self.path).save_pretrained(folder)
        else:
            self._files.copy(Path(folder))


def _choose_model_class(config: Any, path: Path) -> Any:
    """The class that reads a model: the architecture itself, or one of transformers that chooses it."""
    import transformers

    general = transformers.AutoModelForCausalLM if path.is_file() else transformers.AutoModel
    return find_model_class(config) or general


def _forget_quantization(model: Any) -> None:
    """Have a model that was read from a GGUF file be what it is: one of plain weights."""
    if getattr(getattr(model, "hf_quantizer", None), "quantization_config", None) is None:
        return
    if "gguf" in str(getattr(model.config.quantization_config, "quant_method", "")).lower():
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.config.architectures = [type(model).__name__]
