"""How much memory is left, and whether something fits into it."""

from pathlib import Path

import jax

from experiments.cli.options import UsageError


def available_bytes() -> int | None:
    """Memory that the default device has left; None where nobody tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if jax.default_backend() != "cpu":
        return None
    left = [found for found in (_host_bytes(), _group_bytes()) if found is not None]
    return min(left, default=None)


def _host_bytes() -> int | None:
    """What Linux says could be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return None


def _group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of a container leaves; None where there is none."""
    try:
        limit = int((folder / "memory.max").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Files that are kept in memory give way.
        return limit - int((folder / "memory.current").read_text()) + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None


def check_fits(needed: int, lower: str, available: int | None = None) -> None:
    """`UsageError` where a program needs more memory than there is.

    Args:
        needed: bytes.
        lower: the flags that make it less, as the message names them.
        available: bytes; those that are left on the default device unless given.
    """
    available = available_bytes() if available is None else available
    if available is not None and needed > available:
        raise UsageError(
            f"this takes about {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are "
            f"free: lower {lower}"
        )
