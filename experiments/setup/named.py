"""What a command line names: an entry of a registry, or a function of the user's own.

my_module:my_cell    the function `my_cell` of `my_module`, found where Python finds modules
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.cli.options import UsageError


def named(flag: str, name: str, registry: Mapping[str, Any], kind: str) -> Callable[..., Any]:
    """The function that a flag names.

    Args:
        flag: its name, for messages.
        name: a key of the registry, or module:function.
        registry: name -> function.
        kind: what it makes, for messages.

    Raises:
        UsageError: it is in no registry, or there is no such module or function.
    """
    if name in registry:
        return registry[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise UsageError(
            f"--{flag}={name}: take one of {', '.join(registry)}, or my_module:my_{kind} for one "
            "of your own"
        )
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise UsageError(f"--{flag}={name}: give module:function, such as my_module:my_{kind}")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UsageError(
            f"--{flag}={name}: module {module} cannot be imported ({error}); run the command in "
            "the folder that holds it, or put that on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"--{flag}={name}: module {module} has no function {function}")
    return found
