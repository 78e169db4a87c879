"""Save Keras models as artifacts, and load them back, on every backend."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur._json import parse_json
from secateur._model_limits import ModelLimits
from secateur._third_party import translate_errors
from secateur._wording import format_list
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.manifest import Builder
from secateur.artifact.reader import Artifact, RawTensor
from secateur.artifact.source import Source, SourceTensor, guess_view
from secateur.errors import ArtifactError, ConfigError, ModelLoadError, UnsupportedModelError
from secateur.frameworks.keras import get_kernel, get_view, list_layers
from secateur.planning.keras import find_candidates
from secateur.planning.output_layer import stays_dense_as_output

__all__ = ["build_model", "check_description", "load_weights", "make_source"]

DESCRIPTION = "keras.json"
"""What Keras builds the model from: its own description of the layers."""

NAMES = {dtype.name: name for name, dtype in DTYPES.items()}
"""Keras's name of a type → its name in a file."""

NUMBER = re.compile(r"_\d+(?=/|$)")
"""What Keras counts layers of one kind with, over the whole process."""

REGISTER = "Register the classes that it names, or build the model yourself: secateur.load(path, model)."

SHORTENED = 16
"""Bits that bfloat16 lacks of float32, of which it is the upper half."""


def make_source(model: keras.Model, tokenizer: Any = None) -> Source:
    """A model's weights, and its description if it has one.

    Args:
        model: The model, built.
        tokenizer: Must be ``None``.

    Raises:
        UnsupportedModelError: The model is not built.
        ConfigError: There is a tokenizer.
    """
    if tokenizer is not None:
        raise ConfigError("tokenizer belongs to a model of transformers, and this is a Keras model. Leave it out.")
    if not model.built:
        raise UnsupportedModelError(f"The model {model.name!r} must be built. Call it on one batch first.")
    variables = _name_variables(model)
    layers = {
        id(get_kernel(one.module)): one for one in find_candidates(model, prune_frozen=True) if one.reason is None
    }
    description = _description(model)
    return Source(
        tensors={
            name: SourceTensor(
                dtype=_dtype(name, variable),
                shape=tuple(variable.shape),
                read=partial(_bits, variable),
                view=get_view(layers[id(variable)].module)
                if id(variable) in layers
                else guess_view(tuple(variable.shape)),
                layer=layers[id(variable)].name if id(variable) in layers else None,
                is_prunable=id(variable) in layers
                and not stays_dense_as_output(layers[id(variable)], [*layers.values()]),
            )
            for name, variable in variables.items()
        },
        model=Builder(framework="keras", kind="keras" if description else "code", name=type(model).__name__),
        write_files=partial(_write_description, description),
    )


def load_weights(model: keras.Model, artifact: Artifact) -> keras.Model:
    """Load the tensors of an artifact into a model.

    Raises:
        UnsupportedModelError: The model is not built.
        ArtifactError: Names, shapes or types differ, or a tensor is damaged. The model is unchanged then.
    """
    if not model.built:
        raise UnsupportedModelError(f"The model {model.name!r} must be built. Call it on one batch first.")
    pairs = _match_variables(_name_variables(model), artifact)
    for name, variable in pairs.items():
        entry = artifact.entry(name)
        if (tuple(variable.shape), _dtype(name, variable)) != (entry.shape, entry.dtype):
            raise ArtifactError(
                f"{artifact.path}: tensor {name!r} is {DTYPES[entry.dtype].name} {list(entry.shape)}, and "
                f"{variable.dtype} {list(variable.shape)} in the model. Build the model as it was when it was saved."
            )
    for name in pairs:
        artifact[name]  # verify all tensors before anything changes
    for name, variable in pairs.items():
        variable.assign(_values(artifact[name]))
    return model


def build_model(artifact: Artifact) -> keras.Model:
    """The model in an artifact, not compiled.

    Raises:
        ModelLoadError: Keras cannot build it.
        ArtifactError: A tensor is damaged, or the model is another than the one that was saved.
    """
    artifact.check_files()
    path = artifact.path / DESCRIPTION
    description = parse_json(artifact.read_file(DESCRIPTION), path)
    description.pop("compile_config", None)
    with translate_errors(ModelLoadError, f"Keras cannot build a model from {str(path)!r}", REGISTER):
        check_description(description, _limits(artifact), path)
        model = keras.saving.deserialize_keras_object(description, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise ArtifactError(f"{path}: describes no model, found {type(model).__name__}.")
    return load_weights(model, artifact)


def check_description(description: Mapping[str, Any], limits: ModelLimits, path: Path) -> None:
    """Refuse a description of a model that is larger than its weights.

    The model is built once in a `keras.StatelessScope`, where variables have shapes and no values, in a thread of its
    own: Keras keeps a list of such variables, and the numbers in the names of layers, per thread.

    A description with registered classes that cannot be built this way is not checked.

    Args:
        description: What `keras.saving.serialize_keras_object` returned.
        limits: What the model may have.
        path: Where the description is, for the message.

    Raises:
        ArtifactError: The model is larger.
        Exception: Keras cannot build it; the class is one of Keras's.
    """
    description = _without_states(description)
    known = {name: keras.saving.get_registered_object(name) for name in _names(description)}
    custom = {name: found for name, found in known.items() if found is not None}
    try:
        with ThreadPoolExecutor(1) as executor:
            shapes = executor.submit(_weight_shapes, description, custom).result()
    # Classes of the user's may create variables with values, which the scope refuses.
    except Exception:
        if custom:
            return
        raise
    limits.check(len(shapes), sum(map(math.prod, shapes)), path)


def _limits(artifact: Artifact) -> ModelLimits:
    entries = artifact.manifest.tensors.values()
    return ModelLimits.from_stored(len(entries), sum(entry.count for entry in entries))


def _name_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Every weight by the names that lead to its layer, and its own; of several with one name, the later have a number.

    Its ``path`` would differ between a model that was built and one that was built again from its description.
    """
    owners: dict[int, str] = {}
    for prefix, layer in list_layers(model).items():
        for variable in layer.weights:
            owners[id(variable)] = f"{prefix}/{variable.name}"  # the innermost layer comes last
    found: dict[str, keras.Variable] = {}
    for variable in model.weights:
        own = owners.get(id(variable), variable.name)
        name, count = own, 2
        while name in found:
            name, count = f"{own}@{count}", count + 1
        found[name] = variable
    return found


def _match_variables(variables: Mapping[str, keras.Variable], artifact: Artifact) -> dict[str, keras.Variable]:
    """Name in the artifact → weight of the model.

    Layers without a name of their own have another number in every process; then the order decides.
    """
    stored = list(artifact.manifest.tensors)
    if set(stored) == set(variables):
        return {name: variables[name] for name in stored}
    if _strip_numbers(stored) == _strip_numbers(variables):
        return dict(zip(stored, variables.values(), strict=True))
    missing = [name for name in variables if name not in stored]
    unknown = [name for name in stored if name not in variables]
    raise ArtifactError(
        f"{artifact.path}: does not belong to the model. Only the model has "
        f"{format_list(map(repr, missing)) or 'nothing'}, only the artifact "
        f"{format_list(map(repr, unknown)) or 'nothing'}. Build the model as it was when it was saved."
    )


def _strip_numbers(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [NUMBER.sub("", name) for name in names]


def _dtype(name: str, variable: keras.Variable) -> str:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype not in NAMES:
        raise UnsupportedModelError(f"{name!r} has dtype {dtype}, which safetensors has no name for.")
    return NAMES[dtype]


def _bits(variable: keras.Variable) -> Bits:
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    if keras.backend.standardize_dtype(variable.dtype) == "bfloat16" and array.itemsize > 2:
        return (array.view("<u4") >> SHORTENED).astype("<u2")
    return array.view(f"<u{array.itemsize}").reshape(tuple(variable.shape))


def _values(tensor: RawTensor) -> Any:
    """What a variable of that type can be assigned: NumPy has no bfloat16, and float32 holds all of its numbers."""
    if tensor.dtype == "BF16":
        return (tensor.bits.astype("<u4") << SHORTENED).view(np.float32)
    return tensor.bits.view(DTYPES[tensor.dtype].name)


def _description(model: keras.Model) -> dict[str, Any] | None:
    """What Keras writes of a model without its weights; ``None``: it has classes that do not say how they are made."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    except (NotImplementedError, TypeError, ValueError):
        return None
    found.pop("compile_config", None)
    return found


def _write_description(description: Mapping[str, Any] | None, folder: Path) -> None:
    if description is not None:
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _weight_shapes(description: Any, custom: Mapping[str, Any]) -> list[tuple[int, ...]]:
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(description, custom_objects=dict(custom), safe_mode=True)
    return [tuple(variable.shape) for variable in getattr(model, "weights", ())]


def _without_states(description: Any) -> Any:
    """The description without optimizers, and without states of recurrent layers, which come with values."""
    if isinstance(description, Mapping):
        return {
            name: False if name == "stateful" else _without_states(found)
            for name, found in description.items()
            if name != "compile_config"
        }
    return [_without_states(found) for found in description] if isinstance(description, list) else description


def _names(description: Any) -> Iterator[str]:
    """Every text that may name a class that the user has registered."""
    left = [description]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping | list):
            left += found.values() if isinstance(found, Mapping) else found
