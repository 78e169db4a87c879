"""What a model's reference finds, and what it says when it finds nothing."""

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import MissingPackageError, ModelLoadError, UnknownNameError, UnsupportedModelError
from secateur.models import load_model

CODE = """
import functools
from torch import nn

whole = nn.Sequential(nn.Linear(8, 8))
partial = functools.partial(nn.Linear, 8, 4)

def build():
    return nn.Linear(8, 4)

def broken():
    raise KeyError("weights.pt")

def needs(width):
    return nn.Linear(width, width)

def refused():
    from secateur.errors import ConfigError
    raise ConfigError("mine")

class Nets:
    @staticmethod
    def small():
        return nn.Linear(2, 2)
"""

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    (tmp_path / "sample_nets.py").write_text(CODE, "utf-8")
    (tmp_path / "broken_nets.py").write_text("\n1 / 0\n", "utf-8")
    (tmp_path / "poor_nets.py").write_text("import no_such_package.deep\n", "utf-8")
    (tmp_path / "strict_nets.py").write_text("import secateur\nsecateur.plan(3, {})\n", "utf-8")
    (tmp_path / "stopped_nets.py").write_text('raise KeyboardInterrupt("stop")\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    return "sample_nets"


def folder_with(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("whole", nn.Sequential), ("build", nn.Linear), ("partial", nn.Linear), ("Nets.small", nn.Linear)],
)
def test_code_in_the_current_directory(nets: str, name: str, kind: type[nn.Module]) -> None:
    assert isinstance(load_model(f"{nets}:{name}"), kind)


def test_a_model_is_not_called(nets: str) -> None:
    assert load_model(f"{nets}:whole") is sys.modules[nets].whole


def test_path_is_left_as_it_was(nets: str) -> None:
    before = list(sys.path)
    load_model(f"{nets}:build")
    with pytest.raises(ModelLoadError):
        load_model(f"{nets}:broken")
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nowhere", UnknownNameError, "'nowhere' is not a folder. Pass 'package.module:name'"),
        ("sample_nets.py:build", UnknownNameError, "must name a module, not its file. Write 'sample_nets:build'"),
        ("sample-nets:build", UnknownNameError, "must have the form"),
        (":build", UnknownNameError, "must have the form"),
        ("sample_nets:", UnknownNameError, "must have the form"),
        ("no_such_module:build", UnknownNameError, "no module 'no_such_module', neither in the current directory"),
        ("torch.no_such_part:build", UnknownNameError, "no module 'torch.no_such_part'"),
        ("sample_nets:biuld", UnknownNameError, "'sample_nets' has no 'biuld'. Did you mean 'build'?"),
        ("sample_nets:Nets.large", UnknownNameError, "has no 'Nets.large'"),
        ("sample_nets:broken", ModelLoadError, r"raised KeyError: 'weights.pt' \(sample_nets.py, line 12\)"),
        ("sample_nets:needs", ModelLoadError, r"raised TypeError: needs\(\) missing 1 required .*: 'width'\.$"),
        ("sample_nets:refused", secateur.SecateurError, "^mine$"),
        (
            "broken_nets:build",
            ModelLoadError,
            r"Importing 'broken_nets' raised ZeroDivisionError.*broken_nets.py, line 2",
        ),
        ("strict_nets:build", UnsupportedModelError, "found int"),
        ("stopped_nets:build", KeyboardInterrupt, "^stop$"),
        ("poor_nets:build", MissingPackageError, "'poor_nets' imports 'no_such_package', which is not installed"),
    ],
)
@pytest.mark.usefixtures("nets")
def test_errors_of_code(reference: str, error: type[BaseException], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(reference)


def test_folder_is_built_without_weights(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = BERT | {"architectures": ["BertForSequenceClassification"]}
    model = load_model(folder_with(tmp_path, config))
    assert type(model).__name__ == "BertForSequenceClassification"
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_folder_of_unknown_architecture_is_the_plain_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = load_model(folder_with(tmp_path, BERT | {"architectures": ["BertForMyself", "AutoModel"]}))
    assert type(model).__name__ == "BertModel"


def test_plan_of_a_folder_is_that_of_the_model_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = BERT | {"architectures": ["BertForMaskedLM"]}
    without_weights = load_model(folder_with(tmp_path, config))
    itself = transformers.BertForMaskedLM(transformers.AutoConfig.from_pretrained(tmp_path))
    plans = [secateur.plan(model, {"pattern": "2:4"}).to_dict() for model in (without_weights, itself)]
    assert plans[0] == plans[1]


def test_folder_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "shipped_weights" / "model").mkdir(parents=True)
    folder_with(tmp_path / "shipped_weights" / "model", BERT)
    monkeypatch.syspath_prepend(tmp_path)
    assert type(load_model("shipped_weights/model")).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no_such_model"}, "model type `no_such_model`"),
        (BERT | {"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
    ],
)
def test_errors_of_folders(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelLoadError, match=message) as raised:
        load_model(folder_with(tmp_path, config))
    assert "\n" not in str(raised.value)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has no config.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"'{package}'.*pip install .*\[transformers\]"):
        load_model(folder_with(tmp_path, BERT))


def test_meta_weights_are_seen() -> None:
    with torch.device("meta"):
        assert nn.Linear(2, 2).weight.device.type == "meta"


def zip_of(name: str, content: str) -> bytes:
    """A zip file with one member."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content)
        return file.getvalue()


def test_a_keras_file_of_a_layer_is_refused(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="fc")]).save(tmp_path / "m.keras")
    layer = keras.saving.serialize_keras_object(keras.layers.Dense(3, name="fc"))
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(layer) if name == "config.json" else content)
    with pytest.raises(ModelLoadError, match=r"Keras cannot read a model from '.*m\.keras'"):
        load_model(str(tmp_path / "m.keras"))


def test_a_keras_file_is_read(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64, name="fc"), keras.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    found = load_model(str(tmp_path / "m.keras"))
    assert next(layer.name for layer in secateur.plan(found, {"pattern": "4x1"}).layers) == "fc"


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("missing.keras", None, UnknownNameError, r"There is no file '.*missing\.keras'"),
        ("broken.keras", b"PK\x03\x04 no zip", ModelLoadError, r"Keras cannot read a model from '.*broken\.keras'"),
        ("empty.keras", b"", ModelLoadError, "Keras cannot read a model"),
        ("other.keras", zip_of("config.json", "{}"), ModelLoadError, r"it has no model\.weights\.h5"),
    ],
)
def test_a_bad_keras_file_is_an_error(tmp_path: Path, name: str, content: Any, kind: type, message: str) -> None:
    pytest.importorskip("keras")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=message):
        load_model(str(tmp_path / name))
