"""How XLA compiles the programs of tests."""

import importlib.metadata

DEVICES = 4
LEVEL = "--xla_backend_optimization_level"


def with_quick_compilation(given: str) -> str:
    """XLA_FLAGS for tests: several devices, and no optimization unless its level was given.

    Nearly all of the suite's time is compilation, and its programs run for milliseconds. The
    evidence gives the level that users have.
    """
    flags = [given, f"--xla_force_host_platform_device_count={DEVICES}"]
    if LEVEL not in given:
        flags.append(f"{LEVEL}=0")
        if importlib.metadata.version("jaxlib").startswith("0.10."):
            # The emitters through MLIR compile three times as long. Later versions have no others.
            flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)
