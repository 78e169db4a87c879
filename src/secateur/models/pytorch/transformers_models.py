"""Load transformers models from folders that ``save_pretrained`` wrote, and from GGUF files."""

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
from secateur.models.model_files import check_model_files, compute_limits

__all__ = ["CompanionSaver", "load_architecture", "load_pretrained", "load_tokenizer"]

NO_TOKENIZER = (
    "Save the model's tokenizer there with tokenizer.save_pretrained, or pass inputs as a .npz or .safetensors file."
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json")
"""A folder with a tokenizer has at least one of these files, or a vocabulary file."""


def load_architecture(path: Path) -> nn.Module:
    """Build the model in a transformers folder or a GGUF file on the meta device, without weights.

    Raises:
        ModelLoadError: transformers does not know the architecture or cannot build it, or the model is too large.
    """
    import_transformers_quietly()
    with explain_failures(path):
        check_model_files(path)
        config = load_config(path)
        with torch.device("meta"):
            return build_empty_model(_choose_model_class(config, path), config, LIMITS_WITHOUT_WEIGHTS, path)


def load_pretrained(path: Path) -> nn.Module:
    """Load the model in a transformers folder or a GGUF file with its weights, in evaluation mode.

    A warning lists weights that the model does not use.

    Raises:
        ModelLoadError: transformers cannot read the model, weights are missing, or the configuration describes a model
            that is larger than its weights.
    """
    import_transformers_quietly()
    with explain_failures(path), redirect_stderr(io.StringIO()):  # some progress bars ignore the setting
        check_model_files(path)
        folder, options = get_source(path)
        model_class = _choose_model_class(load_config(path), path)
        with limit_modules(compute_limits(path), path):
            model, info = model_class.from_pretrained(folder, **options, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelLoadError(
            f"{str(path)!r} has no weights for {format_list(map(format_value, missing))} of {type(model).__name__}. "
            f"Set architectures in its config.json to the model class of the weights."
        )
    if unused := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"{str(path)!r} has {format_count(len(unused), 'tensor')} that {type(model).__name__} does not use and "
            f"that are not pruned: {format_list(map(format_value, unused))}.",
            stacklevel=2,
        )
    _remove_quantization_config(model)
    trained_model: nn.Module = model.eval()
    return trained_model


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of a folder or a GGUF file.

    Raises:
        ModelLoadError: There is no tokenizer (for some models, transformers would create one with an empty vocabulary),
            or transformers cannot read it.
        ArtifactError: The folder is an artifact, and a file does not match its manifest.
    """
    transformers = import_transformers_quietly()
    with _verify_folder(path) as source, explain_failures(path, "read a tokenizer", NO_TOKENIZER):
        check_model_files(source)
        folder, options = get_source(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        if path.is_dir():
            _check_tokenizer_files(tokenizer, source)
        return tokenizer


def _check_tokenizer_files(tokenizer: Any, folder: Path) -> None:
    names = {*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}
    if not any((folder / name).is_file() for name in names):
        raise ArtifactError("the folder has no tokenizer files")


@contextmanager
def _verify_folder(path: Path) -> Iterator[Path]:
    """Yield the path, or for an artifact a folder with verified copies of its companion files."""
    if not is_artifact(path):
        yield path
        return
    artifact = Artifact(path)
    with artifact.extract(*artifact.manifest.files) as folder:
        yield folder


class CompanionSaver:
    """Saves the companion files of a model, such as its tokenizer and its generation settings.

    Args:
        path: The model's folder, whose files are opened now, or its GGUF file.

    Raises:
        ArtifactError: A file must not be copied or cannot be read; see `CompanionFiles`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = None if path.is_file() else CompanionFiles(path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files into the folder of a saved model."""
        if self._files is None:
            load_tokenizer(self.path).save_pretrained(folder)
        else:
            self._files.copy(Path(folder))


def _choose_model_class(config: Any, path: Path) -> Any:
    """Choose the class that loads a model: the model class itself, or an auto class that selects it."""
    import transformers

    auto_class = transformers.AutoModelForCausalLM if path.is_file() else transformers.AutoModel
    return find_model_class(config) or auto_class


def _remove_quantization_config(model: Any) -> None:
    """Remove the quantization settings of a model from a GGUF file, whose weights were dequantized on loading."""
    if getattr(getattr(model, "hf_quantizer", None), "quantization_config", None) is None:
        return
    if "gguf" in str(getattr(model.config.quantization_config, "quant_method", "")).lower():
        del model.config.quantization_config
        model.hf_quantizer = None
        vars(model).pop("is_quantized", None)  # a model that is built from the configuration does not have it
        model.config.architectures = [type(model).__name__]
