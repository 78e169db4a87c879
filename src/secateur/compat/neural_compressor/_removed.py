"""Names of Intel Neural Compressor that do not belong to pruning: importing them works, using them raises an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from secateur.errors import MissingPackageError

__all__ = ["build_getattr"]

PACKAGE = "secateur.compat.neural_compressor"

QUANTIZATION = "Quantize the pruned model with torchao, or with the quantization of Intel Neural Compressor itself."
MEASUREMENT = "Measure accuracy with the code that evaluates the model, and speed with secateur.benchmark."
EXPORT = "Export the pruned model with torch.onnx.export or torch.export."
LOADING = "Load the pruned model with secateur.load or with the library that it comes from."
TRAINING = "Train Keras models with manager.model.fit(...), or in a loop that calls the callbacks of the manager."
TENSORFLOW = "Prune Keras models with secateur.keras, and read data with tf.data or keras.utils."
LANGUAGE_MODELS = "Evaluate language models with the package lm-eval."

REMOVED: dict[str, dict[str, str]] = {
    "": {
        "Metric": MEASUREMENT,
        "METRICS": MEASUREMENT,
        "PostTrainingQuantConfig": QUANTIZATION,
    },
    "adaptor": {"FRAMEWORKS": QUANTIZATION},
    "adaptor.pytorch": {"get_example_inputs": QUANTIZATION},
    "benchmark": {"benchmark_with_raw_cmd": MEASUREMENT, "fit": MEASUREMENT},
    "conf.config": {"default_workspace": QUANTIZATION},
    "config": {
        "AccuracyCriterion": QUANTIZATION,
        "BenchmarkConfig": MEASUREMENT,
        "MixedPrecisionConfig": QUANTIZATION,
        "PostTrainingQuantConfig": QUANTIZATION,
        "TF2ONNXConfig": EXPORT,
        "Torch2ONNXConfig": EXPORT,
        "TuningCriterion": QUANTIZATION,
    },
    "data": {"LabelShift": TENSORFLOW, "TensorflowShiftRescale": TENSORFLOW},
    "data.dataloaders.tensorflow_dataloader": {"TensorflowDataLoader": TENSORFLOW},
    "evaluation.bigcode_eval": {"evaluate": LANGUAGE_MODELS},
    "evaluation.lm_eval": {"LMEvalParser": LANGUAGE_MODELS, "evaluate": LANGUAGE_MODELS},
    "mix_precision": {"fit": QUANTIZATION},
    "model": {"Model": LOADING},
    "model.tensorflow_model": {"TensorflowQATModel": TENSORFLOW},
    "quantization": {"fit": QUANTIZATION},
    "utils": {"create_obj_from_config": TRAINING},
    "utils.create_obj_from_config": {
        "create_dataloader": TENSORFLOW,
        "create_eval_func": MEASUREMENT,
        "create_train_func": TRAINING,
    },
    "utils.load_huggingface": {"OptimizedModel": LOADING, "save_for_huggingface_upstream": LOADING},
    "utils.pytorch": {"load": LOADING},
}
"""Module → name → what to do instead."""


class _Removed:
    """Placeholder for a name that is not provided, which raises an error when it is used.

    Args:
        name: The name.
        advice: What to do instead.
    """

    def __init__(self, name: str, advice: str) -> None:
        self._name = name
        self._advice = advice

    def __call__(self, *_args: Any, **_options: Any) -> NoReturn:
        self._refuse()

    def __getitem__(self, key: Any) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise MissingPackageError(
            f"{self._name} does not belong to pruning, so secateur.compat.neural_compressor does not provide it. "
            f"{self._advice}"
        )


def build_getattr(module: str) -> Callable[[str], Any]:
    """Build the ``__getattr__`` of a module of this package: names in `REMOVED` raise an error when they are used.

    Args:
        module: The module's ``__name__``.
    """
    return partial(_get_removed, module)


def _get_removed(module: str, name: str) -> Any:
    advice = REMOVED.get(module.removeprefix(PACKAGE).lstrip("."), {}).get(name)
    if advice is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return _Removed(name, advice)
