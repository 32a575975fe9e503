"""A frozen dataclass of settings, its absl flags, and their checks, from one definition.

    @dataclasses.dataclass(frozen=True)
    class Config:
        num_steps: int = option(6000, "training iterations", minimum=1)

`launch(main, Config)` defines a flag for each field, parses the command line into a `Config` and
calls `main(config)`. The same checks hold for a `Config` made in Python (`check`). A field whose
default is `()` has no flag: it takes the words of the command line that are none.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from absl import app, flags, logging

from experiments.cli.flag_files import check_flag_files
from experiments.cli.signals import EXIT_CODE, Interrupted, command_to_resume, end_at_signals

Config = TypeVar("Config")

KINDS = {
    bool: "give true or false",
    int: "give a whole number",
    float: "give a number",
    str: "give a text",
}
NO_MEMORY = "RESOURCE_EXHAUSTED"
"""How XLA begins to say that memory is used up."""
LARGEST = 2**31 - 1
"""No whole number of a setting is larger: no axis of an array, and no seed, may be."""
MOST_DEVICES = 256
"""Devices that a CPU may be made into: each takes threads and a share of every array."""
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, 2.0**128 - 2.0**104
"""Between these lie the sizes of float32's numbers: a setting outside would be 0 or inf."""


class UsageError(ValueError):
    """A setting that cannot be; the message names the flag, what was given and what is wanted."""


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: int = LARGEST,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    affects_results: bool = True,
    renamed_from: Sequence[str] = (),
) -> Any:
    """A setting with its help text and its limits.

    Args:
        default: its value unless given; its type is the setting's.
        help: one line for `--help`.
        minimum: smallest value allowed.
        maximum: largest whole number allowed.
        above: the value must be larger than this.
        choices: the only texts allowed.
        affects_results: whether what comes out depends on it; if not, it is not kept with a run.
        renamed_from: names that the flag had before; they are refused with the new name.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "choices": choices,
        "affects_results": affects_results,
        "renamed_from": tuple(renamed_from),
    }
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Raises `UsageError` for the first setting outside its limits."""
    for field in dataclasses.fields(config):
        value, limits = getattr(config, field.name), field.metadata
        wanted = _violation(value, field.default, limits)
        if wanted:
            given = value if isinstance(value, str) and value.isprintable() else repr(value)
            raise UsageError(f"--{field.name}={given}: {wanted}")


def _violation(value: Any, default: Any, limits: Any) -> str | None:
    if limits["choices"] and value not in limits["choices"]:
        return f"take one of {', '.join(limits['choices'])}"
    kind = type(default)
    # A truth value is a number to Python; a whole number is one to everybody.
    if not isinstance(value, int | float if kind is float else kind) or (
        isinstance(value, bool) and kind is not bool
    ):
        return KINDS[kind]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return None
    if isinstance(value, int) and (value > limits["maximum"] or value < -LARGEST):
        return f"give a number of at most {limits['maximum']}"
    if not math.isfinite(value):
        return "give a finite number"
    if not fits_float32(value):
        return FLOAT32
    if limits["minimum"] is not None and value < limits["minimum"]:
        return f"give a number of at least {limits['minimum']}"
    if limits["above"] is not None and value <= limits["above"]:
        return f"give a number above {limits['above']}"
    return None


FLOAT32 = (
    f"float32 holds sizes of {SMALLEST_FLOAT:.2g} to {LARGEST_FLOAT:.2g}; give a number among these"
)


def fits_float32(value: float) -> bool:
    """Whether a number is still one, and not 0 or inf, when a program computes with it."""
    return value == 0 or SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT


def define_flags(config_class: type, flag_values: flags.FlagValues, module: str) -> None:
    """Defines one flag for each field, listed by `--help` under `module`."""
    define: dict[type, Callable[..., Any]] = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(config_class):
        if field.default == ():
            continue
        help = field.metadata["help"]
        if field.metadata["choices"]:
            help += f" ({' | '.join(field.metadata['choices'])})"
        define[type(field.default)](field.name, field.default, help, flag_values=flag_values)
        flag_values.register_key_flag_for_module(module, flag_values[field.name])


def from_flags(
    config_class: type[Config], flag_values: flags.FlagValues, words: Sequence[str] = ()
) -> Config:
    """The settings given by parsed flags and by the words that are none, checked.

    Raises:
        UsageError: a setting outside its limits, or words for which the config has no field.
    """
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if field.default == ():
            settings[field.name], words = tuple(words), ()
        else:
            settings[field.name] = flag_values[field.name].value
    if words:
        raise UsageError(f"{words[0]!r} is not a flag; flags look like --name=value")
    config = config_class(**settings)
    check(config)
    return config


def launch(main: Callable[[Any], int | None], config_class: type) -> None:
    """Runs `main(config)` with settings from the command line, and exits.

    A wrong flag or an error of the user's (`ValueError`, `FloatingPointError`) ends in one line on
    standard error: exit code 2 for a setting, 1 for a run that went wrong. A run that a signal
    stopped ends with `signals.EXIT_CODE` and the line that goes on with it; where there is nothing
    to go on from, the signal ends it at once.
    """
    end_at_signals()
    module = sys.argv[0]
    # JAX says at level INFO which accelerators it did not find.
    logging.set_verbosity(logging.WARNING)
    define_flags(config_class, flags.FLAGS, module)
    config: list[Any] = []

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            check_flag_files(argv[1:])
            rest = flags.FLAGS(argv)
            config.append(from_flags(config_class, flags.FLAGS, rest[1:]))
        except flags.UnrecognizedFlagError as error:
            new = new_name(config_class, error.flagname)
            hint = f"--{error.flagname} is now --{new}" if new else str(error)
            _exit(f"{hint}; --help lists the flags", 2)
        except (flags.Error, ValueError) as error:
            _exit(str(error) + "; --help lists the flags", 2)
        return rest

    def run(argv: Sequence[str]) -> None:
        del argv
        try:
            sys.exit(main(config[0]))
        except UsageError as error:
            _exit(str(error), 2)
        except Interrupted as stopped:
            names = [field.name for field in dataclasses.fields(config_class)]
            line = command_to_resume(sys.orig_argv, names)
            sys.stderr.write(f"{stopped}; to go on:\n  {line}\n")
            sys.exit(EXIT_CODE)
        except (ValueError, FloatingPointError) as error:
            _exit(str(error), 1)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and NO_MEMORY not in str(error):
                raise
            _exit("there is not enough memory for this; lower the sizes that the flags set", 1)
        except OSError as error:
            # A full disk, a folder that is gone: files are whole or absent, so all else is kept.
            _exit(
                f"{error.filename or 'a file'}: {error.strerror}; what was written before is whole",
                1,
            )

    app.run(run, flags_parser=parse)


def new_name(config_class: type, old: str) -> str | None:
    """The flag that has taken the place of an old one; None where there is none."""
    for field in dataclasses.fields(config_class):
        if old.removeprefix("no") in field.metadata["renamed_from"] or (
            old in field.metadata["renamed_from"]
        ):
            return field.name
    return None


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"error: {one_line(message)}\n")
    sys.exit(code)


def one_line(message: str) -> str:
    """A message on one line: what a terminal would not print as it is, escaped."""
    return "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1]
        for letter in " ".join(message.splitlines())
    )
