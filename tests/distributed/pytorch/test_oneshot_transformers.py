"""Test that several processes prune models of transformers like one: block by block from files, and with experts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from distributed.processes import run_ranks

transformers = pytest.importorskip("transformers")

from tiny_transformers import family, inputs_of, mixtral  # noqa: E402

HAS_EXPERTS = hasattr(transformers, "GptOssForCausalLM")
"""Whether this version of transformers stacks experts."""


def prune_files(dense: Path, folder: Path) -> None:
    """Prune a model whose weights are in files, as a checkpoint in a folder."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = family("llama")
    model.tie_weights()
    execution = secateur.Execution(weights=dense, folder=folder)
    secateur.prune(model, "2:4", calibration=inputs_of("llama", 4), solver="sparsegpt", execution=execution)


def prune_experts() -> dict[str, Any]:
    torch.manual_seed(0)
    model = mixtral().eval()
    report: Any = secateur.prune(model, "2:4", calibration=inputs_of("mixtral", 3), solver="sparsegpt")
    return {"state": model.state_dict(), "errors": report.errors, "blind": report.magnitude_reasons}


def prune_both(dense: Path, folder: Path) -> dict[str, Any]:
    prune_files(dense, folder)
    return prune_experts() if HAS_EXPERTS else {}


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_files_and_experts_are_pruned_as_by_one_process(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    family("llama").save_pretrained(tmp_path / "dense")
    results = run_ranks(prune_both, 2, tmp_path / "dense", tmp_path / "several")
    prune_files(tmp_path / "dense", tmp_path / "one")
    one, several = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "several")
    assert one.keys() == several.keys()
    assert all(torch.equal(tensor, several[name]) for name, tensor in one.items())
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "several").iterdir()
    )
    expected = prune_experts() if HAS_EXPERTS else {}
    for found in results if HAS_EXPERTS else ():
        assert found["errors"] == expected["errors"]
        assert found["blind"] == expected["blind"]
        for name, value in expected["state"].items():
            assert torch.equal(found["state"][name], value)
