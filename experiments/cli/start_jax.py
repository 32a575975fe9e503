"""JAX as the command line asks for it: devices, and compiled programs kept for the next run."""

from experiments.cli.compilation_cache import use_compilation_cache
from rnn_jax import sharding


def start_jax(cpu_devices: int, compilation_cache: bool) -> None:
    """Makes devices of a CPU and keeps compiled programs, before anything is computed."""
    sharding.use_cpu_devices(cpu_devices)
    use_compilation_cache(compilation_cache)
