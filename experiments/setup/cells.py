"""The cell that settings describe: by name or of the user's own, with its hyperparameters."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import rnn_jax
from experiments.cli import axes
from experiments.cli.options import UsageError
from experiments.setup.named import named
from rnn_jax import initializers
from rnn_jax.cells.registry import CELLS, hyperparameters, takes
from rnn_jax.types import Array, Initializer

Factory = Callable[..., rnn_jax.Cell]
Number = float | Array

CELL_HELP = f"{', '.join(CELLS)}, or my_module:my_cell for a factory of your own"
CELL_ARGS_HELP = (
    "further arguments of the cell's factory, such as eps=0.01,gamma=0.1; in a sweep a number may "
    "be an axis: eps=0.01:0.1:10"
)
SPARSE_NONZEROS = 15
"""Entries in each row of a sparse W."""
RECURRENT_INITS: dict[str, Callable[[Any], Initializer]] = {
    "orthogonal": initializers.orthogonal,
    "gaussian": initializers.gaussian,
    "identity": initializers.identity,
    "shift": initializers.shift,
    "torch": lambda gain: _scaled(gain, initializers.uniform_torch),
    "spectral": initializers.spectral_radius,
    "sparse": lambda gain: initializers.sparse(SPARSE_NONZEROS, rho=gain),
}
"""name -> (gain -> initializer of W)."""


class CellArguments(NamedTuple):
    """What --cell_args gives.

    Attributes:
        fixed: name -> a whole number, truth value or word, which changes the program.
        numbers: name -> values of a hyperparameter, several in a sweep.
    """

    fixed: dict[str, Any]
    numbers: dict[str, list[float]]


def _scaled(gain: Number, init: Initializer) -> Initializer:
    return lambda *args: gain * init(*args)


def check_initializer(recurrent_init: str, hidden_size: int) -> None:
    """`UsageError` where a W of this size cannot be drawn in this way."""
    if recurrent_init == "sparse" and hidden_size < SPARSE_NONZEROS:
        raise UsageError(
            f"--hidden_size={hidden_size}: a sparse W has {SPARSE_NONZEROS} entries in each row; "
            "give at least as many units, or another --recurrent_init"
        )


def factory_named(name: str) -> Factory:
    """The factory of --cell; `UsageError` where there is none, or it has no hidden_size."""
    factory = named("cell", name, CELLS, "cell")
    if not takes(factory, "hidden_size"):
        raise UsageError(
            f"--cell={name}: {name.partition(':')[2]}{inspect.signature(factory)} has no argument "
            "hidden_size; a factory of cells takes it first"
        )
    return factory


def cell_arguments(factory: Factory, text: str) -> CellArguments:
    """The arguments of --cell_args; `UsageError` names the one that is wrong."""
    fixed: dict[str, Any] = {}
    numbers: dict[str, list[float]] = {}
    parameters = inspect.signature(factory).parameters
    for name, value in _pairs(text).items():
        if name not in parameters or name == "hidden_size":
            others = [known for known in parameters if known != "hidden_size"]
            raise UsageError(
                f"--cell_args={text}: the cell has no argument {name}; it has "
                f"{', '.join(others) or 'none'}"
            )
        default = parameters[name].default
        if isinstance(default, bool):
            fixed[name] = axes.words("cell_args", value, ("true", "false")) == ["true"]
        elif isinstance(default, int):
            (fixed[name],) = axes.whole_numbers("cell_args", value, minimum=-(10**9))[:1]
        elif isinstance(default, str):
            fixed[name] = value
        else:
            numbers[name] = axes.numbers("cell_args", value)
    return CellArguments(fixed, numbers)


def known_arguments(factories: Sequence[Factory], text: str) -> list[str]:
    """For each factory the part of --cell_args that it takes; an axis it lacks is left out.

    Raises:
        UsageError: an argument that no factory takes.
    """
    pairs = _pairs(text)
    for name in pairs:
        if name == "hidden_size" or not any(takes(factory, name) for factory in factories):
            raise UsageError(f"--cell_args={text}: no cell of --cell has an argument {name}")
    return [
        ",".join(f"{name}={value}" for name, value in pairs.items() if takes(factory, name))
        for factory in factories
    ]


def _pairs(text: str) -> dict[str, str]:
    """name=value pairs; a part without a name is a further value of the one before it."""
    found: dict[str, str] = {}
    last = ""
    for part in (word.strip() for word in text.split(",") if word.strip()):
        name, equals, value = part.partition("=")
        if equals:
            if name in found:
                raise UsageError(f"--cell_args={text}: {name} is there twice; give it once")
            last = name.strip()
            found[last] = value.strip()
        elif last:
            found[last] += f",{part}"
        else:
            raise UsageError(f"--cell_args={text}: give name=value, such as eps=0.01,gamma=0.1")
    return found


def cell_hparams(factory: Factory) -> tuple[str, ...]:
    """Hyperparameters of a cell that have a flag of their own, as far as the factory takes them."""
    own = hyperparameters(factory)
    names = []
    if takes(factory, "recurrent_init"):
        names.append("gain")
    if takes(factory, "bias_init"):
        names.append("bias_std")
    return (*names, *(name for name in ("leak", "forget_bias") if name in own))


def make_cell(
    factory: Factory,
    hidden_size: int,
    hparams: Mapping[str, Number],
    *,
    activation: str = "tanh",
    recurrent_init: str = "gaussian",
    kernel_init: Initializer | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> rnn_jax.Cell:
    """A cell from its factory; U is scaled so that unit inputs give unit pre-activations.

    Args:
        factory: of `CELLS`, or the user's own.
        hidden_size: H.
        hparams: numbers by name, of which the factory gets those that it takes: gain scales
            the recurrent weights, bias_std is the standard deviation of the bias. They may be
            traced: a sweep varies them within one program.
        activation, recurrent_init, kernel_init: where the factory takes them.
        fixed: its other arguments.
    """
    given: dict[str, Any] = dict(fixed or {})
    if takes(factory, "activation"):
        given.setdefault("activation", activation)
    if takes(factory, "recurrent_init"):
        given["recurrent_init"] = RECURRENT_INITS[recurrent_init](hparams.get("gain", 1.0))
    if takes(factory, "kernel_init"):
        given["kernel_init"] = kernel_init
    if takes(factory, "bias_init"):
        given["bias_init"] = initializers.normal(hparams.get("bias_std", 0.0))
    given |= {name: value for name, value in hparams.items() if takes(factory, name)}
    try:
        cell = factory(hidden_size=hidden_size, **given)
    except TypeError as error:
        raise UsageError(f"--cell: its factory cannot be called ({error})") from error
    if not isinstance(cell, rnn_jax.Cell):
        raise UsageError(
            f"--cell: its factory returned {type(cell).__name__}, but an rnn_jax.Cell is wanted"
        )
    return cell


def cell_at(settings: Mapping[str, Any], hparams: Mapping[str, Number]) -> rnn_jax.Cell:
    """The cell of settings that many networks share, at one network's hyperparameters.

    Args:
        settings: cell and hidden_size; activation, recurrent_init and cell_args where there are.
        hparams: see `make_cell`.
    """
    factory = factory_named(settings["cell"])
    return make_cell(
        factory,
        settings["hidden_size"],
        hparams,
        activation=settings.get("activation", "tanh"),
        recurrent_init=settings.get("recurrent_init", "gaussian"),
        fixed=cell_arguments(factory, settings.get("cell_args", "")).fixed,
    )
