"""The utilities of Neural Compressor's pruner: layers to prune, counts of zeros, elements of auto slim, dummy data."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compat.neural_compressor import WeightPruningConfig
from secateur.compat.neural_compressor.compression.pruner import parse_auto_slim_config
from secateur.compat.neural_compressor.compression.pruner.model_slim.pattern_analyzer import (
    ClassifierHeadSearcher,
    ClassifierHeadSearcherTF,
    Linear2LinearSearcher,
    RecipeSearcher,
    SelfMHASearcher,
    get_common_module,
)
from secateur.compat.neural_compressor.compression.pruner.utils import (
    check_config,
    collect_layer_inputs,
    get_layers,
    get_sparsity_ratio,
    get_sparsity_ratio_tf,
    parse_to_prune,
    parse_to_prune_tf,
    process_config,
    reset_none_to_default,
    safe_get_data,
    safe_get_grad,
    safe_get_shape,
    safe_set_data,
)
from secateur.compat.neural_compressor.data import DATALOADERS, DataLoader, Datasets
from secateur.compat.neural_compressor.utils import logger, set_random_seed
from secateur.compat.neural_compressor.utils.utility import DotDict, LazyImport
from secateur.errors import CalibrationError, ConfigError, UnknownNameError, UnsupportedModelError
from tiny_transformers import family

pytestmark = pytest.mark.usefixtures("registries_restored")


def mlp() -> nn.Sequential:
    body = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Conv1d(8, 8, 1)
    return nn.Sequential(*body, nn.Linear(8, 2), nn.Dropout())


def element(**keys: Any) -> dict[str, Any]:
    return {"op_names": [], "excluded_op_names": [], "pruning_op_types": ["Conv", "Linear"]} | keys


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({}, ["0", "2", "3"]),
        ({"op_names": None}, ["0", "2", "3"]),
        ({"op_names": ["0", "3", "4"]}, ["0", "3"]),
        ({"excluded_op_names": ["2"]}, ["0", "3"]),
        ({"pruning_op_types": ["Conv"]}, ["3"]),
    ],
)
def test_layers_to_prune(keys: dict[str, Any], names: list[str]) -> None:
    assert list(parse_to_prune(element(**keys), mlp())) == names


def test_an_expression_must_be_valid() -> None:
    with pytest.raises(ConfigError, match=r"'\[' must be a regular expression"):
        parse_to_prune(element(op_names=["["]), mlp())


def test_the_head_is_the_last_module_if_it_is_linear() -> None:
    model = mlp()
    assert ClassifierHeadSearcher(model).search(return_name=True) == "4"
    assert ClassifierHeadSearcher(model).search(return_name=False) is model[4]
    assert ClassifierHeadSearcher(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).search() is None


def keras_model() -> Any:
    """Return an object with what the utilities read of a Keras model."""

    def layer(kind: str, name: str, shape: tuple[int, ...]) -> Any:
        weights = [np.ones(shape), np.ones(shape[-1:])] if shape else []
        methods = {"name": name, "weights": weights, "kernel": 0, "get_weights": lambda _: weights}
        return type(kind, (), methods)()

    layers = [layer("Dense", "first", (4, 8)), layer("ReLU", "act", ()), layer("Dense", "last", (8, 2))]
    return SimpleNamespace(layers=layers)


def test_keras_layers() -> None:
    model = keras_model()
    assert ClassifierHeadSearcherTF(model).search() == "last"
    layers = parse_to_prune_tf(element(pruning_op_types=["Dense"]), model)
    assert list(layers) == ["first"]
    pruner = make_pruner(layers, {"first": np.array([[0], [1], [1], [1]])}, 0.25)
    assert get_sparsity_ratio_tf([pruner], model) == (8 / 48, 8 / 48, 8 / 48)


def make_pruner(modules: Any, masks: Any, share: float) -> Any:
    pattern = SimpleNamespace(get_sparsity_ratio=lambda _: share)
    return SimpleNamespace(modules=modules, masks=masks, pattern=pattern)


def test_sparsity_counts_a_weight_once() -> None:
    model = mlp()
    first = torch.ones(8, 8)
    first[:2] = 0
    second = torch.ones(8, 8)
    second[1:3] = 0
    pruners = [make_pruner({"0": model[0]}, {"0": mask}, 0.25) for mask in (first, second)]
    weights, total = 64 * 3 + 16, sum(parameter.numel() for parameter in model.parameters())
    expected = (24 / weights, 24 / total, 32 / weights)
    assert get_sparsity_ratio(pruners, model) == expected
    assert get_sparsity_ratio(pruners, SimpleNamespace(model=model)) == expected
    assert get_sparsity_ratio([], nn.ReLU()) == (0.0, 0.0, 0.0)


def test_process_config_completes_elements() -> None:
    elements = process_config(
        WeightPruningConfig([{"op_names": ["a"]}, {"parameters": {"reg_coeff": 0.2}}], end_step=9, start_step=1)
    )
    assert [(item.op_names, item["end_step"], item.pattern) for item in elements] == [(["a"], 9, "4x1"), ([], 9, "4x1")]
    assert elements[1].reg_coeff == 0.2
    with pytest.raises(ConfigError, match="must be a WeightPruningConfig, found dict"):
        process_config({})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"start_step": -1}, "start_step must be at least 0, found -1"),
        ({"end_step": 0}, "end_step must not be less than start_step, found 0 < 1"),
        ({"target_sparsity": 1.0}, "target_sparsity must be in"),
        ({"pruning_frequency": 0}, "pruning_frequency must be above 0"),
        ({"max_sparsity_ratio_per_op": 1}, "max_sparsity_ratio_per_op must be in"),
        ({"min_sparsity_ratio_per_op": 0.99}, "min_sparsity_ratio_per_op must be in"),
        ({"pruning_scope": "x"}, "pruning_scope must be"),
    ],
)
def test_check_config(keys: dict[str, Any], message: str) -> None:
    settings = process_config(WeightPruningConfig(start_step=1, end_step=2))[0]
    with pytest.raises(ConfigError, match=message):
        check_config(settings | keys)


def test_defaults_replace_none() -> None:
    assert reset_none_to_default(None, "a", 1) is None
    assert reset_none_to_default({"a": None}, "a", 1) == 1
    assert reset_none_to_default(SimpleNamespace(a=2), "a", 1) == 2


def test_layers_are_the_first_module_list() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]), nn.ModuleList())
    assert get_layers(model) is model[0]
    assert get_layers(nn.Linear(2, 2)) == []


def test_access_to_parameters() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    weight.sum().backward()
    safe_set_data(weight, torch.zeros(2, 3))
    assert (safe_get_shape(weight), float(safe_get_data(weight).sum())) == ((2, 3), 0.0)
    assert float(safe_get_grad(weight).sum()) == 6


@pytest.mark.parametrize(("name", "ending"), [("bert", ".output.dense"), ("opt", ".fc2"), ("llama", ".mlp.down_proj")])
def test_auto_slim_finds_feed_forward_networks(name: str, ending: str) -> None:
    model = family(name)
    elements = parse_auto_slim_config(model, ffn2_sparsity=0.5, mha_sparsity=0.25, pruning_scope="local")
    ffn, heads = elements
    assert heads == {"pattern": "mha", "target_sparsity": 0.25, "pruning_scope": "local"}
    assert ffn | {"op_names": None} == {
        "op_names": None,
        "pattern": "channelx1",
        "target_sparsity": 0.5,
        "pruning_scope": "local",
    }
    layers = [key for key, _ in model.named_modules() if key.endswith(ending) and "attention" not in key]
    assert ffn["op_names"] == layers
    assert len(layers) == 3
    batches = [{"input_ids": torch.ones((1, 4), dtype=torch.int64), "labels": 3}]
    assert parse_auto_slim_config(model, batches, ffn2_sparsity=0.5)[0]["op_names"] == ffn["op_names"]


def test_auto_slim_leaves_modes_and_finds_producers() -> None:
    block = nn.Linear(4, 8), nn.Dropout(), nn.GELU(), nn.Linear(8, 4)
    model = nn.Sequential(*block, nn.LayerNorm(4), nn.Linear(4, 2))
    pairs = Linear2LinearSearcher(model, [(torch.ones(2, 4), 0)]).search()
    assert pairs == [{"root_linear": "3", "target_frontier_linears": ["0"]}]
    assert Linear2LinearSearcher(model).from_layer_name_to_object(pairs)[0]["target_frontier_linears"] == [model[0]]
    assert all(module.training for module in model.modules())


def test_auto_slim_says_what_is_missing() -> None:
    with pytest.raises(UnsupportedModelError, match="linear layers that follow each other"):
        parse_auto_slim_config(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), ffn2_sparsity=0.5)
    with pytest.raises(UnsupportedModelError, match="must begin with an embedding"):
        parse_auto_slim_config(nn.Sequential(nn.LayerNorm(4)), ffn2_sparsity=0.5)
    with pytest.raises(CalibrationError, match="first batch"):
        parse_auto_slim_config(nn.Sequential(nn.Linear(4, 4)), [torch.ones(2, 3)], ffn2_sparsity=0.5)
    assert parse_auto_slim_config(nn.ReLU()) == []


def test_images_are_made_up_for_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=64), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    model.append(nn.LayerNorm(4)).append(nn.Linear(4, 2))
    assert parse_auto_slim_config(model, ffn2_sparsity=0.5)[0]["op_names"] == ["4"]


def test_attention_is_found() -> None:
    model = family("bert")
    searcher = SelfMHASearcher(model)
    queries, outputs = searcher.search()
    name = next(name for name, _ in model.named_modules() if name.endswith("layer.0.attention"))
    assert queries[:3] == [f"{name}.self.{kind}" for kind in ("query", "key", "value")]
    assert outputs[0] == f"{name}.output.dense"
    assert (len(queries), len(outputs)) == (9, 3)
    found, nothing = searcher.search(split_qkv_ffn=False)
    assert nothing is None
    first = searcher.from_layer_name_to_object(searcher.obtain_mha_module(found))[0]
    assert first["qkv_name"] == queries[:3]
    assert first["ffn_module"] == [model.get_submodule(outputs[0])]
    assert (first["mha_name"], first["mha_module"]) == ([f"{name}.self"], [model.get_submodule(f"{name}.self")])
    assert SelfMHASearcher(mlp()).search() == ([], [])


def test_modules_are_found_by_recipe() -> None:
    model = family("bert")
    searcher = RecipeSearcher(model, {"BertAttention": ["self.query", "output.dense"], "BertPooler": ["dense"]})
    found = searcher.search("anything")
    assert found == searcher.search_results
    attention = next(module for module in model.modules() if type(module).__name__ == "BertAttention")
    assert found[0] == [attention.self.query, attention.output.dense]
    assert len(found) == sum(type(module).__name__ in searcher.targets for module in model.modules()) >= 3


@pytest.mark.parametrize("form", ["mapping", "list", "tensor"])
def test_inputs_of_blocks(form: str) -> None:
    model = family("opt")
    layers = get_layers(model)
    tokens = torch.ones(1, 4, dtype=torch.long)
    batch = {"mapping": {"input_ids": tokens}, "list": [tokens, None], "tensor": tokens}[form]
    hidden, positional, named = collect_layer_inputs(model, layers, 0, [batch] * 2, device="cpu")
    assert [state.shape for state in hidden] == [(1, 4, 16)] * 2
    assert list(positional) == []
    assert {len(values) for values in named.values()} == {2}
    assert not layers[0]._forward_pre_hooks
    expected = layers[0](hidden[0], **{name: values[0] for name, values in named.items()})
    narrow = nn.ModuleList([nn.Linear(16, 3), layers[1]])
    inputs, _, _ = collect_layer_inputs(model, narrow, 1, [[hidden[0]]])
    assert torch.equal(inputs[0][0], narrow[0](hidden[0]))
    assert (expected[0] if isinstance(expected, tuple) else expected).shape == hidden[0].shape


def test_common_module() -> None:
    assert get_common_module("a.b.c", "a.d") == "a"


def test_dummy_data() -> None:
    samples = Datasets("pytorch")["dummy"](shape=(10, 512), low=0.0, high=10.0, label=True, dtype="int64")
    batches = list(DataLoader("pytorch", samples, batch_size=4, last_batch="discard", distributed=False))
    assert [(tuple(inputs.shape), inputs.dtype, labels.tolist()) for inputs, labels in batches] == [
        ((4, 512), torch.int64, [0] * 4)
    ] * 2
    assert len(DATALOADERS["pytorch"](samples)) == 10
    assert 0 <= min(array.min() for array, _ in samples) <= max(array.max() for array, _ in samples) < 10
    pair = Datasets("pytorch")["dummy"]([(3, 2), (3, 4)], label=False, dtype=["float32", "int8"])[1]
    assert [array.shape for array in pair] == [(2,), (4,)]


def test_data_errors() -> None:
    with pytest.raises(UnknownNameError, match="Unknown data set 'ImageNet'"):
        Datasets("pytorch")["ImageNet"]
    with pytest.raises(UnknownNameError, match="framework must be one of"):
        DataLoader("tensorflow", [])
    with pytest.raises(ConfigError, match="one value per shape"):
        Datasets("pytorch")["dummy"]([(3, 2), (4, 2)])


def test_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="neural_compressor"):
        for name in ("debug", "info", "warning", "warn", "error", "fatal"):
            getattr(logger, name)("%s", name)
        logger.log(logger.DEBUG, {"a": 1})
    assert [record.getMessage() for record in caplog.records][-3:] == ["error", "fatal", "{'a': 1}"]


def test_dictionaries_with_attributes() -> None:
    settings = DotDict({"a": {"b": 1}})
    settings.a.b = 2
    settings.c = 3
    assert settings == {"a": {"b": 2}, "c": 3}
    del settings.c
    for action in (lambda: settings.c, lambda: delattr(settings, "c")):
        with pytest.raises(AttributeError, match="DotDict has no key 'c'"):
            action()


def test_random_seed() -> None:
    set_random_seed(3)
    first = np.random.rand(), float(torch.rand(()))
    set_random_seed(3)
    assert first == (np.random.rand(), float(torch.rand(())))
    assert LazyImport("math").floor(1.5) == 1
