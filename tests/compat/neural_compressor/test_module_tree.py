"""Every import of Neural Compressor's pruning code resolves, and `install` provides it under that name."""

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

from secateur.compat import neural_compressor
from secateur.compat.neural_compressor._removed import REMOVED
from secateur.errors import MissingPackageError, StateError

PACKAGE = "secateur.compat.neural_compressor"

NAMES = {
    "": "WeightPruningConfig benchmark mix_precision quantization set_random_seed",
    "adaptor.tf_utils.util": "version1_lt_version2",
    "compression.pruner": "model_slim prepare_pruning parse_auto_slim_config",
    "compression.pruner.criteria": "CRITERIA BlockMaskCriterion GradientCriterion MagnitudeCriterion PruningCriterion "
    "RetrainFreeCriterion SnipCriterion SnipMomentumCriterion get_criterion register_criterion",
    "compression.pruner.regs": "REGS BaseReg GroupLasso get_reg get_reg_type register_reg",
    "compression.pruner.pruners": "PRUNERS get_pruner parse_valid_pruner_types register_pruner",
    "compression.pruner.pruners.base": "BasePruner KerasBasePruner PRUNERS PytorchBasePruner register_pruner",
    "compression.pruner.pruners.basic": "KerasBasicPruner PytorchBasicPruner",
    "compression.pruner.pruners.block_mask": "PytorchBlockMaskPruner",
    "compression.pruner.pruners.mha": "PythonMultiheadAttentionPruner",
    "compression.pruner.pruners.pattern_lock": "PytorchPatternLockPruner",
    "compression.pruner.pruners.progressive": "PytorchProgressivePruner",
    "compression.pruner.pruners.retrain_free": "PytorchRetrainFreePruner",
    "compression.pruner.pruners.sparse_gpt": "SparseGPTPruner",
    "compression.pruner.schedulers": "SCHEDULERS IterativeScheduler OneshotScheduler PruningScheduler get_scheduler "
    "register_scheduler",
    "compression.pruner.tf_criteria": "CRITERIA MagnitudeCriterion PruningCriterion get_tf_criterion "
    "register_criterion",
    "compression.pruner.model_slim.auto_slim": "generate_ffn2_pruning_config generate_mha_pruning_config",
    "compression.pruner.model_slim.pattern_analyzer": "ClassifierHeadSearcher Linear2LinearSearcher "
    "RecipeSearcher SelfMHASearcher",
    "compression.pruner.utils": "check_config collect_layer_inputs get_layers get_sparsity_ratio parse_last_linear "
    "parse_to_prune process_config",
    "compression.hpo": "ContinuousSearchSpace DiscreteSearchSpace GridSearcher SearchSpace SimulatedAnnealingOptimizer "
    "prepare_hpo",
    "compression.pruner.dsnot": "DSnoT",
    "compression.pruner.wanda": "prune_wanda",
    "compression.pruner.wanda.wrapper": "WrappedGPT",
    "compression.pruner.wanda.utils": "get_module_list get_tensor_sparsity_ratio",
    "conf.dotdict": "DotDict",
    "config": "DistillationConfig HPOConfig IntermediateLayersKnowledgeDistillationLossConfig "
    "KnowledgeDistillationLossConfig SelfKnowledgeDistillationLossConfig WeightPruningConfig",
    "data": "DATALOADERS DataLoader Datasets",
    "data.dataloaders.pytorch_dataloader": "PyTorchDataLoader",
    "training": "WeightPruningConfig prepare_compression prepare_pruning",
    "utils": "logger",
    "utils.constant": "FP32",
    "utils.logger": "Logger log",
    "utils.utility": "DotDict LazyImport",
}
"""Module → the names that the tests, documentation and examples of Neural Compressor import from it."""


@pytest.mark.parametrize("module", NAMES)
def test_imports_resolve(module: str) -> None:
    for name in NAMES[module].split():
        source = ".".join(filter(None, (PACKAGE, module)))
        # As `from source import name` does, submodules that are not loaded yet are loaded.
        assert hasattr(import_module(source), name) or import_module(f"{source}.{name}")


@pytest.mark.parametrize("module", REMOVED)
def test_names_beside_pruning_raise_on_use(module: str) -> None:
    loaded = import_module(".".join(filter(None, (PACKAGE, module))))
    for name in REMOVED[module]:
        removed = getattr(loaded, name)
        if isinstance(removed, ModuleType):  # a module of the same name, which another test has imported
            continue
        for use in (removed, lambda removed=removed: removed["x"], lambda removed=removed: removed.fit):
            with pytest.raises(MissingPackageError, match=rf"^{name} does not belong to pruning.*\. [A-Z].*\.$"):
                use()
        assert not hasattr(removed, "__wrapped__")  # what inspect and doctest ask of any object
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        loaded.unknown  # noqa: B018


def run_python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_install_serves_every_submodule_as_the_same_object() -> None:
    code = """
import pickle, sys
import secateur.compat.neural_compressor as compat
compat.install(), compat.install()
import neural_compressor
import neural_compressor.compression.pruner as p
from neural_compressor import WeightPruningConfig
from neural_compressor.config import WeightPruningConfig as Config
from neural_compressor.utils import logger
import neural_compressor.utils.utility
assert neural_compressor is compat and WeightPruningConfig is compat.WeightPruningConfig is Config
assert p is sys.modules["secateur.compat.neural_compressor.compression.pruner"]
assert p.__spec__.name == p.__name__ == "secateur.compat.neural_compressor.compression.pruner"
assert neural_compressor.utils.utility.DotDict is compat.utils.utility.DotDict
from secateur.compat.neural_compressor.utils.utility import DotDict
assert type(pickle.loads(pickle.dumps(DotDict({"a": 1})))) is DotDict
old = b"cneural_compressor.utils.utility\\nDotDict\\n."
assert pickle.loads(old) is DotDict
try:
    import neural_compressor.nothing
except ModuleNotFoundError as error:
    print(error)
print(sum(type(finder).__name__ == "_AliasFinder" for finder in sys.meta_path))
compat.uninstall(), compat.uninstall()
try:
    import neural_compressor
except ModuleNotFoundError as error:
    print(error)
"""
    assert run_python(code).splitlines() == [
        "No module named 'neural_compressor.nothing'",
        "1",
        "No module named 'neural_compressor'",
    ]


def test_other_imports_work_as_before() -> None:
    neural_compressor.install()
    try:
        neural_compressor.install()
        assert import_module("neural_compressor") is neural_compressor
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'neural_compressor\.nothing'"):
            import_module("neural_compressor.nothing")
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'secateur\.nothing'"):
            import_module("secateur.nothing")
    finally:
        neural_compressor.uninstall()
    neural_compressor.uninstall()
    with pytest.raises(ModuleNotFoundError, match="No module named 'neural_compressor'"):
        import_module("neural_compressor")


def test_importing_does_not_install() -> None:
    code = "import secateur.compat.neural_compressor, importlib.util as u; print(u.find_spec('neural_compressor'))"
    assert run_python(code) == "None\n"


def test_install_refuses_the_real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neural_compressor", sys)
    with pytest.raises(StateError, match="needs the name 'neural_compressor' to be free"):
        neural_compressor.install()
