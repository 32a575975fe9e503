"""JAX as the command line asks for it: devices, and compiled programs kept for the next run."""

import os
from pathlib import Path

import jax

from rnn_jax import sharding


def start_jax(cpu_devices: int, compilation_cache: bool) -> None:
    """Makes devices of a CPU and keeps compiled programs, before anything is computed."""
    sharding.use_cpu_devices(cpu_devices)
    use_compilation_cache(compilation_cache)


def use_compilation_cache(enabled: bool) -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run starts faster."""
    jax.config.update("jax_enable_compilation_cache", enabled)
    if not enabled:
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "rnn_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
