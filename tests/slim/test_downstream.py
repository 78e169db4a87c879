"""What people do with a slimmed model works as with any other."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
import secateur.runtime

INPUTS = torch.linspace(-2, 2, 16 * 32).sin().reshape(16, 32)


def make_dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


@pytest.fixture
def model() -> nn.Sequential:
    dense = make_dense()
    config = {"pattern": "channels", "target_sparsity": 0.5, "pruning_scope": "local"}
    secateur.prune(dense, config, example_inputs=INPUTS)
    secateur.slim(dense, example_inputs=INPUTS)
    assert dense[2].weight.shape == (32, 32)
    return dense


def test_copies_exports_and_compiles(model: nn.Sequential) -> None:
    expected = model(INPUTS)
    assert torch.equal(copy.deepcopy(model)(INPUTS), expected)
    assert torch.equal(torch.export.export(model, (INPUTS,)).module()(INPUTS), expected)
    assert torch.equal(torch.compile(copy.deepcopy(model), backend="eager")(INPUTS), expected)


def test_onnx(model: nn.Sequential, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (INPUTS,), tmp_path / "slim.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), model(INPUTS), rtol=0, atol=1e-5)


def test_blocks_after_slimming_are_saved_and_compiled(model: nn.Sequential, tmp_path: Path) -> None:
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.75})
    expected = model(INPUTS)
    secateur.save(model, tmp_path)
    assert torch.equal(secateur.load(tmp_path, make_dense()).eval()(INPUTS), expected)
    assert secateur.verify(tmp_path).problems == {}
    secateur.runtime.compile(model, INPUTS)
    torch.testing.assert_close(model(INPUTS), expected, rtol=0, atol=1e-5)
