"""Save Keras models as artifacts and load them, on every backend."""

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
from secateur.planning.output_layer import explain_default

__all__ = ["build_model", "check_description", "load_weights", "make_source"]

DESCRIPTION = "keras.json"
"""The file with Keras's description of the layers, from which Keras builds the model."""

NAMES = {dtype.name: name for name, dtype in DTYPES.items()}
"""Keras's name of a data type → its name in a file."""

NUMBER = re.compile(r"_\d+(?=/|$)")
"""Matches the number that Keras appends to the names of layers, which it counts per process."""

REGISTER_HINT = "Register the classes that it names, or build the model yourself: secateur.load(path, model)."

BFLOAT16_SHIFT = 16
"""bfloat16 is the upper 16 bits of float32."""


def make_source(model: keras.Model, tokenizer: Any = None) -> Source:
    """Collect the weights of a model, and its description if it has one.

    Args:
        model: The model, built.
        tokenizer: Must be ``None``.

    Raises:
        UnsupportedModelError: The model is not built.
        ConfigError: There is a tokenizer.
    """
    if tokenizer is not None:
        raise ConfigError("tokenizer is for transformers models, and this is a Keras model. Leave it out.")
    if not model.built:
        raise UnsupportedModelError(f"The model {model.name!r} must be built. Call it on one batch first.")
    variables = _name_variables(model)
    layers = {
        id(get_kernel(candidate.module)): candidate
        for candidate in find_candidates(model, prune_frozen=True)
        if candidate.reason is None
    }
    description = _describe_model(model)
    return Source(
        tensors={
            name: SourceTensor(
                dtype=_get_dtype(name, variable),
                shape=tuple(variable.shape),
                read=partial(_read_bits, variable),
                view=get_view(layers[id(variable)].module)
                if id(variable) in layers
                else guess_view(tuple(variable.shape)),
                layer=layers[id(variable)].name if id(variable) in layers else None,
                is_prunable=id(variable) in layers
                and explain_default(layers[id(variable)], [*layers.values()]) is None,
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
        ArtifactError: Names, shapes or data types differ, or a tensor is damaged. The model does not change.
    """
    if not model.built:
        raise UnsupportedModelError(f"The model {model.name!r} must be built. Call it on one batch first.")
    pairs = _match_variables(_name_variables(model), artifact)
    for name, variable in pairs.items():
        entry = artifact.entry(name)
        if (tuple(variable.shape), _get_dtype(name, variable)) != (entry.shape, entry.dtype):
            raise ArtifactError(
                f"{artifact.path}: tensor {name!r} is {DTYPES[entry.dtype].name} {list(entry.shape)}, and "
                f"{variable.dtype} {list(variable.shape)} in the model. Build the model as it was when it was saved."
            )
    for name in pairs:
        artifact[name]  # verify all tensors before anything changes
    for name, variable in pairs.items():
        variable.assign(_to_keras_values(artifact[name]))
    return model


def build_model(artifact: Artifact) -> keras.Model:
    """Build the model in an artifact, without compiling it.

    Raises:
        ModelLoadError: Keras cannot build it.
        ArtifactError: A tensor is damaged, or the description belongs to another model.
    """
    artifact.check_files()
    path = artifact.path / DESCRIPTION
    description = parse_json(artifact.read_file(DESCRIPTION), path)
    description.pop("compile_config", None)
    with translate_errors(ModelLoadError, f"Keras cannot build a model from {str(path)!r}", REGISTER_HINT):
        check_description(description, _compute_limits(artifact), path)
        model = keras.saving.deserialize_keras_object(description, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise ArtifactError(f"{path}: must describe a model, found {type(model).__name__}.")
    return load_weights(model, artifact)


def check_description(description: Mapping[str, Any], limits: ModelLimits, path: Path) -> None:
    """Refuse the description of a model that is larger than its weights.

    The model is built once in a `keras.StatelessScope`, where variables have shapes but no values. This happens in a
    separate thread, because Keras keeps a list of such variables, and the numbers in the names of layers, per thread.

    A description with registered classes that cannot be built this way is not checked.

    Args:
        description: What `keras.saving.serialize_keras_object` returned.
        limits: The largest model that may be built.
        path: The file with the description, for the message.

    Raises:
        ArtifactError: The model exceeds the limits.
        Exception: Any exception that Keras raises when it cannot build the model.
    """
    description = _remove_states(description)
    registered = {name: keras.saving.get_registered_object(name) for name in _iterate_texts(description)}
    custom = {name: value for name, value in registered.items() if value is not None}
    try:
        with ThreadPoolExecutor(1) as executor:
            shapes = executor.submit(_get_weight_shapes, description, custom).result()
    # Custom classes may create variables with values, which the scope refuses.
    except Exception:
        if custom:
            return
        raise
    limits.check(len(shapes), sum(map(math.prod, shapes)), path)


def _compute_limits(artifact: Artifact) -> ModelLimits:
    entries = artifact.manifest.tensors.values()
    return ModelLimits.from_stored(len(entries), sum(entry.count for entry in entries))


def _name_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Name each weight after the path of its layer and its own name; repeated names get a number.

    The ``path`` of a variable is not used: it differs between a model and its copy that is built from the description.
    """
    owners: dict[int, str] = {}
    for prefix, layer in list_layers(model).items():
        for variable in layer.weights:
            owners[id(variable)] = f"{prefix}/{variable.name}"  # the innermost layer comes last
    named: dict[str, keras.Variable] = {}
    for variable in model.weights:
        base = owners.get(id(variable), variable.name)
        name, count = base, 2
        while name in named:
            name, count = f"{base}@{count}", count + 1
        named[name] = variable
    return named


def _match_variables(variables: Mapping[str, keras.Variable], artifact: Artifact) -> dict[str, keras.Variable]:
    """Map each name in the artifact to a weight of the model.

    Keras numbers layers without an explicit name per process. If only these numbers differ, weights match by order.
    """
    names = list(artifact.manifest.tensors)
    if set(names) == set(variables):
        return {name: variables[name] for name in names}
    if _strip_numbers(names) == _strip_numbers(variables):
        return dict(zip(names, variables.values(), strict=True))
    missing = [name for name in variables if name not in names]
    unknown = [name for name in names if name not in variables]
    raise ArtifactError(
        f"{artifact.path}: does not belong to the model. Only the model has "
        f"{format_list(map(repr, missing)) or 'nothing'}, only the artifact "
        f"{format_list(map(repr, unknown)) or 'nothing'}. Build the model as it was when it was saved."
    )


def _strip_numbers(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [NUMBER.sub("", name) for name in names]


def _get_dtype(name: str, variable: keras.Variable) -> str:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype not in NAMES:
        raise UnsupportedModelError(f"{name!r} has dtype {dtype}, which safetensors does not support.")
    return NAMES[dtype]


def _read_bits(variable: keras.Variable) -> Bits:
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    if keras.backend.standardize_dtype(variable.dtype) == "bfloat16" and array.itemsize > 2:
        return (array.view("<u4") >> BFLOAT16_SHIFT).astype("<u2")
    return array.view(f"<u{array.itemsize}").reshape(tuple(variable.shape))


def _to_keras_values(tensor: RawTensor) -> Any:
    """Convert a tensor to values for a Keras variable: bfloat16 as float32, because NumPy has no bfloat16."""
    if tensor.dtype == "BF16":
        return (tensor.bits.astype("<u4") << BFLOAT16_SHIFT).view(np.float32)
    return tensor.bits.view(DTYPES[tensor.dtype].name)


def _describe_model(model: keras.Model) -> dict[str, Any] | None:
    """Serialize a model without its weights; ``None``: it has classes that Keras cannot serialize."""
    try:
        description: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    except (NotImplementedError, TypeError, ValueError):
        return None
    description.pop("compile_config", None)
    return description


def _write_description(description: Mapping[str, Any] | None, folder: Path) -> None:
    if description is not None:
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _get_weight_shapes(description: Any, custom: Mapping[str, Any]) -> list[tuple[int, ...]]:
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(description, custom_objects=dict(custom), safe_mode=True)
    return [tuple(variable.shape) for variable in getattr(model, "weights", ())]


def _remove_states(description: Any) -> Any:
    """Remove optimizers from a description, and the states of recurrent layers, which have values."""
    if isinstance(description, Mapping):
        return {
            name: False if name == "stateful" else _remove_states(value)
            for name, value in description.items()
            if name != "compile_config"
        }
    return [_remove_states(value) for value in description] if isinstance(description, list) else description


def _iterate_texts(description: Any) -> Iterator[str]:
    """Yield every string in a description, any of which may name a registered class."""
    pending = [description]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list):
            pending += value.values() if isinstance(value, Mapping) else value
