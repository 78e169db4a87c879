"""What is set before any test imports a framework, and what the Keras backend of this process has to do with it.

Keras has one backend per process. The whole suite runs on one that cannot train, and then what trains runs once for
each that can: ``KERAS_BACKEND=jax pytest tests/backends src/secateur/training/keras``, and so on.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib import import_module

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KERAS_BACKEND", "numpy")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A step of a tiny model is compiled far longer than it runs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

from secateur._packages import KERAS_BACKENDS

BACKEND = os.environ["KERAS_BACKEND"]

if BACKEND == "jax" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests train the same few models, so most steps were compiled before, in another test or in its process.
    folder = tempfile.mkdtemp(prefix="jax-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

collect_ignore_glob = [] if BACKEND in KERAS_BACKENDS else ["tests/backends/*", "src/secateur/training/keras/*"]

# Coverage's tracer sees every call of Python: these imports, of which it records nothing, take half as long again.
LARGE_PACKAGES = ["keras"]
if BACKEND not in KERAS_BACKENDS:
    LARGE_PACKAGES += ["torch", "transformers.modeling_utils", "sklearn.metrics", "hypothesis", "matplotlib.figure"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Pause the garbage collector; where coverage is measured, import large packages while its tracer pauses."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        return  # the controller of several processes collects nothing
    gc.disable()
    tracer = sys.gettrace()
    if tracer is None:
        return
    sys.settrace(None)
    try:
        for package in LARGE_PACKAGES:
            with suppress(ImportError):
                import_module(package)
    finally:
        sys.settrace(tracer)


def pytest_collection_finish() -> None:
    """Keep what was imported out of the garbage collector: a test that calls it would wait a second for that."""
    gc.enable()
    _freeze()
    if BACKEND == "tensorflow":
        # A step of a tiny model is optimized longer than it runs. Processes that tests start do optimize.
        import_module("tensorflow").config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    elif "keras" in sys.modules:
        # Keras would import TensorFlow, in two seconds, to set its seed, or to see whether a value is one of its types.
        import_module("keras.src.utils.module_utils").tensorflow._available = False


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After each file, keep what it imported out of the garbage collector too."""
    if nextitem is not None and nextitem.path != item.path:
        _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Say which backend this process tests."""
    return f"keras backend: {BACKEND}" + ("" if BACKEND in KERAS_BACKENDS else " (what trains is left out)")
