"""Every test runs strictly: rank promotion raises, warnings are errors, four CPU devices."""

import os
from pathlib import Path

# Before JAX is imported: a device count cannot be changed later.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# More threads than devices: see `rnn_jax.sharding.use_cpu_devices`.
os.environ.setdefault("NPROC", "8")

# Most of the suite's time is compilation: the second run of it takes a third of the first.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


EVERY_CELL = {"cells_test", "unroll_test", "memory_test", "bridge_weights_test", "segmented_test"}
"""Modules whose tests run on every cell; all others leave those of `SIMILAR` to the evidence."""
SIMILAR = {"gru", "leaky", "relu", "GRUCell", "MGUCell", "SimpleCell", "OptimizedLSTMCell"}
"""Cells that measurements treat as they treat Elman's, the LSTM or a cell of the user's own."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        words = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        if SIMILAR.intersection(words) and item.path.stem not in EVERY_CELL:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def x64():
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs of a module are dropped after it: thousands of them slow a process down."""
    yield
    jax.clear_caches()
