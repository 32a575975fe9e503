"""What an equation is called: its module's path where the name stack holds one, else its line."""

import itertools
import os
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any

from rnn_jax.scans.equations import Equation

OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
INSTALLED = tuple({path + os.sep for path in sysconfig.get_paths().values()})
INSTALLED_PARTS = ("site-packages", "dist-packages")
"""Where code lies that is not the user's own."""

SILENT_TRANSFORMS = {"vmap", "pmap", "shard_map", "checkpoint", "rematted_computation"}
"""Transformations that leave a recurrence what it was, and its name with it."""


def scope_of(eqn: Equation) -> tuple[str, ...]:
    """The name stack of an equation: names of modules, "transpose(jvp)" where it is a gradient."""
    scopes = []
    transforms = []
    for element in eqn.source_info.name_stack.stack:
        if type(element).__name__ == "Transform":
            if element.name not in SILENT_TRANSFORMS:
                transforms.append(element.name)
        else:
            scopes.append(element.name)
    if transforms:
        scopes.insert(
            0, "".join(f"{name}(" for name in transforms)[:-1] + ")" * (len(transforms) - 1)
        )
    return tuple(scopes)


def frames_of(eqn: Equation) -> list[tuple[str, str, int]]:
    """(file, function, line) of the calls that made an equation, innermost first."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return []
    return [(f.file_name, f.function_name, f.line_num) for f in traceback.frames]


def is_users(file: str) -> bool:
    """Whether a file is the user's own: neither installed, nor Python's, nor this library's."""
    if file.startswith("<") and not file.startswith("<ipython"):
        return False
    return not (file.startswith((OWN, *INSTALLED)) or any(part in file for part in INSTALLED_PARTS))


def position(way: Sequence[Equation]) -> str:
    """Function and line of the user's own file, as "encode (model.py:42)".

    Args:
        way: the equation, and before it those around it. Within a jit a traceback may begin there.
    """
    innermost = frames_of(way[-1])[-1:]
    own = (f for eqn in reversed(way) for f in frames_of(eqn) if is_users(f[0]))
    for file, function, line in [*itertools.islice(own, 1), *innermost][:1]:
        return f"{function.split('<locals>.')[-1]} ({os.path.basename(file)}:{line})"
    return way[-1].primitive.name


def name_of(way: Sequence[Equation]) -> str:
    """The path of modules to an equation, which is the last of `way`; else its `position`."""
    return "/".join(name for eqn in way for name in scope_of(eqn)) or position(way)


def unique(names: Sequence[str]) -> Iterator[str]:
    """The same names; what comes again gets "#2", "#3"."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"


def in_function(eqn: Equation, function: str) -> Any:
    """Whether an equation was made within a function of this name."""
    return any(name.split(".")[-1] == function for _, name, _ in frames_of(eqn))
