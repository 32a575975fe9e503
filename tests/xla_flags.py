"""How XLA compiles the programs of tests: quickly, unless it is told to do as it does for users.

Nearly all of the default suite's time is compilation, and its programs run for milliseconds. The
evidence is compiled as users compile.
"""

import importlib.metadata
from typing import Any

DEVICES = 4
LEVEL = "xla_backend_optimization_level"
EMITTERS = "xla_cpu_use_fusion_emitters"
"""Those through MLIR compile three times as long. JAX 0.10 has others too, later versions not."""
HAS_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")

AS_USERS_DO: dict[str, Any] = {LEVEL: 3} | ({EMITTERS: True} if HAS_EMITTERS else {})
"""`compiler_options` of `jax.jit` for the same, whatever XLA_FLAGS say."""


def with_quick_compilation(given: str) -> str:
    """XLA_FLAGS for tests: several devices, and no optimization unless its level was given."""
    flags = [given, f"--xla_force_host_platform_device_count={DEVICES}"]
    if LEVEL not in given:
        flags.append(f"--{LEVEL}=0")
        if HAS_EMITTERS:
            flags.append(f"--{EMITTERS}=false")
    return " ".join(flags)
