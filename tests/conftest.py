"""Every test runs strictly: rank promotion raises, warnings are errors, four CPU devices."""

import os
from pathlib import Path

from xla_flags import with_quick_compilation

# Before JAX is imported: neither devices nor flags can be changed later.
os.environ["XLA_FLAGS"] = with_quick_compilation(os.environ.get("XLA_FLAGS", ""))
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
