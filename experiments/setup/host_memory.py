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
    return host_bytes()


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


def host_bytes() -> int | None:
    """Memory that this process can still have on its host; None where nobody tells."""
    return min((n for n in (_host_bytes(), _group_bytes()) if n is not None), default=None)


LINE_BYTES = 4000
"""A network's line of networks.jsonl once it is read: measured 4,040 with training."""
MAX_GROUPS = 10_000
"""Groups of networks of one command: each is compiled, a second or more."""


def check_networks(count: int, arrays: int, lower: str) -> None:
    """`UsageError` where the lines and arrays of so many networks do not fit on the host.

    Args:
        count: networks.
        arrays: bytes that are kept of each. When they are gathered, they are there three times.
        lower: as in `check_fits`.
    """
    available = host_bytes()
    if available is not None:
        words = f"{lower}: {count:,} networks are asked for"
        check_fits(count * (LINE_BYTES + 3 * arrays), words, available)


def check_groups(count: int, lower: str) -> None:
    """`UsageError` where more programs are asked for than anybody waits for."""
    if count > MAX_GROUPS:
        raise UsageError(
            f"this asks for {count:,} programs, each compiled; at most {MAX_GROUPS:,} are: give "
            f"fewer values of {lower}"
        )


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
