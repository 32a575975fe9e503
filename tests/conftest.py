"""Every test runs strictly: rank promotion raises, warnings are errors, two CPU devices."""

import os

# Before JAX is imported: a device count cannot be changed later.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# More threads than devices: see `rnn_jax.sharding.use_cpu_devices`.
os.environ.setdefault("NPROC", "4")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield
