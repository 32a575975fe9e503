"""Which of a program's recurrences are meant, and what to say where there are none."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence

import jax

from rnn_jax.scans.search import Found, Recurrence

Select = str | Iterable[str] | Callable[[str], bool]
"""Names of recurrences, with the wildcards of a shell; or a function of a name."""


def selected(recurrences: Sequence[Recurrence], select: Select | None) -> list[Recurrence]:
    """Those that are selected, all where nothing is; `ValueError` for what selects none."""
    names = [r.name for r in recurrences]
    if select is None:
        return list(recurrences)
    if callable(select):
        chosen = {name for name in names if select(name)}
        if not chosen:
            raise ValueError(f"select takes none of the recurrences; there are {names}")
    else:
        chosen = set()
        for pattern in (select,) if isinstance(select, str) else tuple(select):
            matching = {n for n in names if n == pattern or fnmatch.fnmatchcase(n, pattern)}
            if not matching:
                raise ValueError(f"select names {pattern!r}, but the recurrences are {names}")
            chosen |= matching
    return [r for r in recurrences if r.name in chosen]


def nothing_found(found: Found) -> str:
    """What was looked at in a program without recurrences, and what to do."""
    looked = (
        f"{found.num_equations} equations were looked at, also within jit, checkpoint, cond, scan, "
        "custom derivatives and shard_map"
    )
    if found.stateless:
        what = (
            f"the scans in this loss carry no recurrent state ({looked}): "
            f"{', '.join(found.stateless)}; what a carry only holds, moves, overwrites or adds to "
            "is not computed from its own old value"
        )
    else:
        what = (
            f"there is no lax.scan in this loss ({looked}); a Python loop over time is not seen: "
            "write it with lax.scan, a layer such as flax.linen.RNN, or rnn_jax.unroll"
        )
    if found.unwatchable:
        what += f". Found, but nothing to watch: {', '.join(found.unwatchable)}"
    if getattr(jax.config, "jax_disable_jit"):  # noqa: B009, not in the types of every JAX
        what += ". Under jax.disable_jit() every scan is a Python loop"
    return what
