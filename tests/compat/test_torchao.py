"""Tests of configurations of torchao, which lead to the same zeros."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.compat import ImportedRun, torchao
from secateur.errors import CalibrationError, ConfigError, LayerError, SecateurError, StateError, UnknownNameError
from secateur.oneshot import Execution, Progress

TENSORS = [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))


def get_zeros(model: nn.Sequential) -> list[torch.Tensor]:
    return [model[0].weight.detach() == 0, model[2].weight.detach() == 0]


def compute_reference_zeros(config: list[dict[str, Any]], **given_keys: Any) -> list[torch.Tensor]:
    """Compute the zeros with torch's sparsifier, which torchao adopted."""
    sparsifier = pytest.importorskip("torch.ao.pruning").WeightNormSparsifier(**given_keys)
    model = net()
    sparsifier.prepare(model, [dict(one) for one in config])
    sparsifier.step()
    sparsifier.squash_mask()
    return get_zeros(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("given_keys", "pattern"),
    [
        ({}, "1x4"),
        ({"sparse_block_shape": (1, 1)}, "1x1"),
        ({"sparse_block_shape": (4, 1), "sparsity_level": 0.75}, "4x1"),
        ({"sparse_block_shape": (8, 8), "sparsity_level": 0.25}, "8x8"),
        ({"sparse_block_shape": (8, 8), "sparsity_level": 0.25, "norm": 1}, "8x8"),
        ({"sparsity_level": 1.0, "zeros_per_block": 2}, "2:4"),
        ({"sparsity_level": 1.0, "zeros_per_block": 1}, "3:4"),
        ({"sparsity_level": 1.0, "zeros_per_block": 3}, "1:4"),
        ({"sparsity_level": 1.0, "sparse_block_shape": (1, 8), "zeros_per_block": 3}, "5:8"),
        ({"sparsity_level": 0.0}, "1x4"),
    ],
)
def test_the_same_zeros(given_keys: dict[str, Any], pattern: str) -> None:
    expected = compute_reference_zeros(TENSORS, **given_keys)
    model = net()
    run = torchao.weight_norm_sparsifier(TENSORS, **given_keys)
    run.prune(model)
    assert run.config.pattern == pattern
    assert all(torch.equal(mine, other) for mine, other in zip(get_zeros(model), expected, strict=True))


@settings(max_examples=30)
@given(
    level=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    group=st.sampled_from([2, 4, 8]),
    share=st.integers(1, 7),
)
def test_a_share_of_the_groups(level: float, group: int, share: int) -> None:
    removed = min(share, group - 1)
    model = net()
    shape = (1, group)
    torchao.weight_norm_sparsifier(sparsity_level=level, sparse_block_shape=shape, zeros_per_block=removed).prune(model)
    for mask in get_zeros(model):
        pruned = mask.reshape(-1, group).sum(dim=1)
        assert set(pruned.tolist()) <= {0, removed}
        assert int((pruned == removed).sum()) == round(level * len(pruned))


def test_keys_of_a_tensor_apply_to_that_tensor() -> None:
    config: list[dict[str, Any]] = [
        {"tensor_fqn": "0.weight", "sparsity_level": 0.75},
        {"tensor_fqn": ".2.weight", "sparse_block_shape": (1, 4), "zeros_per_block": 2, "sparsity_level": 1.0},
    ]
    model = net()
    report = torchao.weight_norm_sparsifier(config, sparse_block_shape=(4, 1)).prune(model)
    assert [(layer.name, layer.pattern, layer.sparsity) for layer in report.layers] == [
        ("0", "4x1", 0.75),
        ("2", "2:4", 0.5),
    ]


def test_without_a_list_all_linear_layers_are_pruned() -> None:
    model = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Linear(8, 8), nn.Linear(8, 8))
    assert [layer.name for layer in torchao.weight_norm_sparsifier().prune(model).layers] == ["1", "2"]


def test_only_listed_tensors_are_pruned() -> None:
    report = torchao.weight_norm_sparsifier([{"tensor_fqn": "2.weight"}]).prune(net())
    assert [layer.name for layer in report.layers] == ["2"]


@pytest.mark.parametrize(("block", "pattern", "sparsity"), [(None, "1x1", 0.75), (4, "2:4", 0.5), (8, "4:8", 0.5)])
def test_wanda(block: int | None, pattern: str, sparsity: float) -> None:
    run = torchao.wanda_sparsifier(TENSORS, sparsity_level=0.75, semi_structured_block_size=block)
    assert (run.solver, run.config.pattern) == ("wanda", pattern)
    with pytest.raises(CalibrationError, match="Wanda needs calibration data"):
        run.prune(net())
    report = run.prune(net(), calibration=[torch.randn(64, 32)])
    assert [layer.sparsity for layer in report.layers] == [sparsity] * 2


def test_an_imported_run_accepts_an_execution(tmp_path: Path) -> None:
    steps: list[Progress] = []
    run = torchao.wanda_sparsifier(TENSORS)
    execution = Execution(folder=tmp_path / "run", progress=steps.append)
    run.prune(net(), calibration=[torch.randn(64, 32)], execution=execution)
    assert steps[-1].done == steps[-1].total
    assert (tmp_path / "run").is_dir()
    with pytest.raises(ConfigError, match="execution has no effect without calibration data"):
        torchao.semi_sparse_weight().prune(net(), execution=execution)


def test_patterns_of_packed_weights() -> None:
    assert torchao.semi_sparse_weight().prune(net()).sparsity == 0.5
    run = torchao.block_sparse_weight(sparsity_level=0.5, blocksize=16)
    assert run.config.pattern == "16x16"
    assert [layer.sparsity for layer in run.prune(net()).layers] == [0.5, 0.5]
    assert torchao.block_sparse_weight(sparsity_level=0.5).config.pattern == "64x64"


@pytest.mark.parametrize(
    ("call", "config", "given_keys", "message"),
    [
        (
            "weight_norm_sparsifier",
            [{"tensor_fqn": "0.bias"}],
            {},
            r"config\[0\]: tensor_fqn must be the full name of a",
        ),
        ("weight_norm_sparsifier", [{}], {}, r"config\[0\]: tensor_fqn must be .* found None"),
        ("weight_norm_sparsifier", [*TENSORS, *TENSORS], {}, "'0', '2' more than once"),
        (
            "weight_norm_sparsifier",
            [{"tensor_fqn": "0.weight", "sparsity": 1}],
            {},
            "unknown key 'sparsity'. Did you mean 'sparsity_level'",
        ),
        ("weight_norm_sparsifier", [], {}, "config must be a list of dictionaries"),
        ("weight_norm_sparsifier", TENSORS[0], {}, "config must be a list of dictionaries"),
        ("weight_norm_sparsifier", None, {"sparsity_level": 1.5}, r"sparsity_level must be in \[0, 1\], found 1.5"),
        ("weight_norm_sparsifier", None, {"sparse_block_shape": 4}, "sparse_block_shape must be two positive integers"),
        (
            "weight_norm_sparsifier",
            None,
            {"sparse_block_shape": (0, 4)},
            "sparse_block_shape must be two positive integers",
        ),
        (
            "weight_norm_sparsifier",
            None,
            {"zeros_per_block": 5},
            "zeros_per_block must be between 1 and 4, the size of a block",
        ),
        (
            "weight_norm_sparsifier",
            None,
            {"zeros_per_block": 0},
            "zeros_per_block must be between 1 and 4, the size of a block",
        ),
        (
            "weight_norm_sparsifier",
            None,
            {"zeros_per_block": 2, "sparse_block_shape": (4, 1)},
            "has no counterpart in blocks of 4 rows",
        ),
        ("weight_norm_sparsifier", None, {"norm": 3}, "norm must be 1 or 2, found 3"),
        ("wanda_sparsifier", None, {"semi_structured_block_size": 1}, "an integer of at least 2, found 1"),
        ("wanda_sparsifier", [{"tensor_fqn": "0.weight", "zeros_per_block": 1}], {}, "unknown key 'zeros_per_block'"),
    ],
)
def test_invalid_arguments(call: str, config: Any, given_keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        getattr(torchao, call)(config, **given_keys)


@pytest.mark.parametrize(
    ("config", "shape", "kind", "message"),
    [
        ([{"tensor_fqn": "4.weight"}], (1, 4), UnknownNameError, "'4' matches no layer"),
        (
            [{"tensor_fqn": "0.weight"}],
            (1, 7),
            LayerError,
            "layer '0' was named but cannot be pruned: 32 input channels",
        ),
        (
            [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "sparsity_level": 1.0}],
            (1, 7),
            LayerError,
            "layer '0' was named",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model(
    config: Any, shape: tuple[int, int], kind: type[SecateurError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        torchao.weight_norm_sparsifier(config, sparse_block_shape=shape).prune(net())


def test_a_one_shot_run_cannot_train_and_vice_versa() -> None:
    once = torchao.semi_sparse_weight()
    with pytest.raises(StateError, match=r"This run prunes in one shot with 'magnitude'\. Call prune"):
        once.prepare(net(), optimizer=None)
    training = ImportedRun(name="sparsity_stage", config=secateur.PruningConfig())
    with pytest.raises(StateError, match=r"The run 'sparsity_stage' prunes during training\. Call prepare"):
        training.prune(net())


def test_the_configuration_can_be_saved() -> None:
    config = torchao.weight_norm_sparsifier(TENSORS).config
    assert secateur.PruningConfig.from_yaml(config.to_yaml()) == config
