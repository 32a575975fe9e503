"""Compiled programs are kept in a folder of the user's, so that a second run starts faster.

A run does not need the folder: where it cannot be used, one line says so and programs are compiled
anew.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from rnn_jax.io.writing import write_atomically

WITHOUT = "programs are compiled anew at every start; --nocompilation_cache leaves this line out"


def use_compilation_cache(enabled: bool) -> None:
    """Keeps compiled programs, where they can be kept, in the folder of `cache_folder`."""
    jax.config.update("jax_enable_compilation_cache", enabled)
    if not enabled:
        return
    try:
        folder = cache_folder()
        if "://" not in folder:
            _check_writable(Path(folder))
    except (OSError, RuntimeError) as error:
        jax.config.update("jax_enable_compilation_cache", False)
        place = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        sys.stderr.write(f"no compilation cache ({place}): {WITHOUT}\n")
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _warn_in_one_line(folder)


def cache_folder() -> str:
    """JAX's own setting where the user made one, else rnn_jax in the user's folder of caches.

    Raises:
        RuntimeError: the user has no home folder, and nothing else names one.
    """
    if own := getattr(jax.config, "jax_compilation_cache_dir", None):
        return str(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return str(Path(base) / "rnn_jax")
    try:
        return str(Path.home() / ".cache" / "rnn_jax")
    except RuntimeError:
        raise RuntimeError(
            "there is no home folder; XDG_CACHE_HOME may name a folder for caches"
        ) from None


def _check_writable(folder: Path) -> None:
    """`OSError` unless files can be written to the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"writable-{os.getpid()}"
    write_atomically(probe, "")
    probe.unlink()


def _warn_in_one_line(folder: str) -> None:
    """Of all programs that JAX cannot write to the cache, or read from it, the first is reported.

    The folder's disk may be full, or a process may have been killed while it wrote there.
    """
    before = warnings.showwarning
    seen: list[Warning | str] = []

    def show(message: Warning | str, *others: Any, **more: Any) -> None:
        if "persistent compilation cache" not in str(message):
            before(message, *others, **more)
        elif not seen:
            seen.append(message)
            reason = str(message).partition("': ")[2].splitlines()[0]
            sys.stderr.write(
                f"the compilation cache in {folder} fails ({reason}): programs that are not in it "
                "are compiled anew; remove the folder or make room\n"
            )

    warnings.showwarning = show
