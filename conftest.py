"""What is set before any test imports a framework, and what the Keras backend of this process has to do with it.

Keras has one backend per process. The whole suite runs on one that cannot train, and then what trains runs once for
each that can: ``KERAS_BACKEND=jax pytest tests/backends src/secateur/training/keras``, and so on.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KERAS_BACKEND", "numpy")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from secateur._packages import KERAS_BACKENDS

BACKEND = os.environ["KERAS_BACKEND"]

collect_ignore_glob = [] if BACKEND in KERAS_BACKENDS else ["tests/backends/*", "src/secateur/training/keras/*"]


def pytest_report_header() -> str:
    """Say which backend this process tests."""
    return f"keras backend: {BACKEND}" + ("" if BACKEND in KERAS_BACKENDS else " (what trains is left out)")
