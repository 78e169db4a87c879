"""Save and load models of sentence-transformers: a transformers model, and modules such as pooling after it."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur._huggingface.folders import WEIGHTS_FILE, is_weight_file
from secateur._huggingface.pytorch import is_pretrained
from secateur.artifact.pytorch.tensors import to_torch
from secateur.artifact.reader import Artifact, RawTensor
from secateur.artifact.safetensors_file import TensorFile
from secateur.artifact.source import Source, SourceTensor
from secateur.frameworks.pytorch import find_weight_layers

__all__ = ["SentenceEncoder", "find_encoder"]


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """A model of sentence-transformers whose first module is a transformers model.

    Its transformers model is saved as an artifact; the other modules are companion files, in their own folders.

    Attributes:
        model: The whole model.
        name: The name of the transformers model in it.
        transformer: The transformers model.
    """

    model: Any
    name: str
    transformer: nn.Module

    def add_modules(self, source: Source) -> Source:
        """Give the layers of the transformers model their names in the whole model, and write the files of both."""
        layers = {*find_weight_layers(self.model)}
        inner = {f"{self.name}.{layer}" for layer in find_weight_layers(self.transformer)}
        return replace(
            source,
            tensors={name: self._rename_layers(tensor) for name, tensor in source.tensors.items()},
            converted={f"{self.name}.{layer}": self._rename_layers(part) for layer, part in source.converted.items()},
            write_files=self._write_files,
            elsewhere=frozenset(layers - inner),
        )

    def load_modules(self, artifact: Artifact) -> None:
        """Load the weights of the other modules."""
        for position, module in enumerate(self.model.children()):
            name = f"{position}_{type(module).__name__}/{WEIGHTS_FILE}"
            if name in artifact.manifest.files:
                with artifact.extract(name) as folder:
                    file = TensorFile(folder / name)
                    module.load_state_dict({key: to_torch(RawTensor(file[key].dtype, file.read(key))) for key in file})

    def _rename_layers(self, tensor: SourceTensor) -> SourceTensor:
        if tensor.layer is None:
            return tensor
        origins = tuple(f"{self.name}.{layer}" for layer in tensor.origins)
        return replace(tensor, layer=f"{self.name}.{tensor.layer}", origins=origins)

    def _write_files(self, folder: Path) -> None:
        """Write the configuration of all modules, and the weights of those after the transformers model."""
        with redirect_stderr(io.StringIO()):  # without progress bars
            self.model.save(str(folder), create_model_card=False)
        for file in folder.iterdir():
            if file.is_file() and is_weight_file(file.name):
                file.unlink()


def find_encoder(model: nn.Module) -> SentenceEncoder | None:
    """Recognize a model of sentence-transformers; ``None``: it is another model, or begins with another module."""
    package = sys.modules.get("sentence_transformers")
    if package is None or not isinstance(model, package.SentenceTransformer):
        return None
    first = next(iter(model.children()), None)
    if not getattr(first, "save_in_root", False):
        return None
    found = ((name, module) for name, module in model.named_modules() if is_pretrained(module))
    return next((SentenceEncoder(model, name, module) for name, module in found), None)
