import pickle
from typing import Any

import numpy as np
import pytest

from secateur import frameworks
from secateur.errors import ConfigError, LayerError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import FRAMEWORKS, NoFramework, WeightView, detect_framework, get_framework, import_leaf

torch = pytest.importorskip("torch")


def test_a_model_of_no_framework() -> None:
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module or a keras\.Model, found dict"):
        detect_framework({})
    with pytest.raises(UnsupportedModelError, match="found list"):
        import_leaf("secateur.training", [])


def test_a_leaf_is_that_of_the_models_framework() -> None:
    assert import_leaf("secateur.frameworks", torch.nn.ReLU()).__name__ == "secateur.frameworks.pytorch"


def test_a_keras_model_is_one_of_keras() -> None:
    keras = pytest.importorskip("keras")
    assert detect_framework(keras.Sequential()) == "keras"


def test_an_unknown_framework_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown framework 'jax'\. Known: pytorch, keras, array\."):
        get_framework("jax")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_there_is_one_instance_of_each_framework(name: str) -> None:
    if name == "keras":
        pytest.importorskip("keras")
    framework = get_framework(name)
    assert framework.name == name
    assert get_framework(name) is framework
    assert pickle.loads(pickle.dumps(framework)) is framework  # noqa: S301


def test_arrays_have_views_and_no_values() -> None:
    array, view = get_framework("array"), WeightView(shape=(4, 2), output_axes=(0,), input_axes=(1,))
    assert array.get_view(view) is view
    assert array.get_weight_id(view) == id(view)
    scores = np.ones(2)
    assert array.from_array(array.to_array(scores), scores) is scores
    with pytest.raises(LayerError, match="has no values"):
        array.read_weight(view)
    with pytest.raises(UnsupportedModelError, match="need a WeightView for each layer, found Linear"):
        array.get_view(torch.nn.Linear(2, 2))


def test_no_framework_reads_nothing() -> None:
    none: Any = NoFramework()
    for read in (none.get_view, none.read_weight):
        with pytest.raises(ConfigError, match=r"has no framework, so it cannot read Linear layers\. Create it with"):
            read(torch.nn.Linear(2, 2))
    assert isinstance(pickle.loads(pickle.dumps(none)), NoFramework)  # noqa: S301


def test_public_names_exist() -> None:
    assert all(hasattr(frameworks, name) for name in frameworks.__all__)
