"""How a network learns: its cell, its start, and each cure as a setting that switches it on."""

import dataclasses

import optax

import rnn_jax
from experiments.cli import axes
from experiments.cli.options import UsageError, option
from experiments.setup.cells import (
    CELL_ARGS_HELP,
    CELL_HELP,
    RECURRENT_INITS,
    cell_arguments,
    check_initializer,
    factory_named,
    make_cell,
)
from experiments.setup.switches import Lengthen, lengthen_inputs, switched_cell
from experiments.setup.tasks import OPTIMIZERS, auxiliary_model_for, model_for
from rnn_jax import initializers, objectives
from rnn_jax.cells import ACTIVATIONS
from rnn_jax.gradflow import theory
from rnn_jax.model import Model
from rnn_jax.tasks.task import Task
from rnn_jax.training import optim, regularizers, truncated
from rnn_jax.training.auxiliary import auxiliary_objective
from rnn_jax.training.noise import gradient_noise
from rnn_jax.training.spectrum import soft_orthogonal
from rnn_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Method:
    """Settings of the network and its training; see `--help` of an experiment that has them."""

    cell: str = option("elman", f"the recurrent cell: {CELL_HELP}")
    cell_args: str = option("", CELL_ARGS_HELP)
    activation: str = option("tanh", "of a cell that has a choice", choices=tuple(ACTIVATIONS))
    hidden_size: int = option(50, "H, number of hidden units", minimum=1)
    recurrent_init: str = option("gaussian", "how W is drawn", choices=tuple(RECURRENT_INITS))
    gain: float = option(1.0, "scale of W: its spectral radius if wide", above=0)
    input_std: float = option(
        0.0, "standard deviation of U's entries; 0 for the cell's own", minimum=0
    )
    leak: float = option(0.1, "share of a leaky cell's state renewed at each step", above=0)
    forget_bias: float = option(1.0, "an lstm's initial forget-gate bias")
    chrono: bool = option(False, "start an lstm's forget-gate bias at ln(T - 1)")
    optimizer: str = option("adam", "the update rule", choices=tuple(OPTIMIZERS))
    schedule: str = option(
        "constant", "of the learning rate over training", choices=("constant", "cosine")
    )
    clip_norm: float = option(0.0, "bound on the gradient's global norm; 0 for none", minimum=0)
    adaptive_clip: float = option(
        0.0, "bound on each unit's gradient over its weights; 0 for none", minimum=0
    )
    gradient_noise: float = option(
        0.0, "eta: variance of the noise added to the first gradient; 0 for none", minimum=0
    )
    noise_decay: float = option(0.55, "gamma: the variance falls as iteration^-gamma", minimum=0)
    omega: float = option(0.0, "weight of Pascanu's regularizer; 0 for none", minimum=0)
    zoneout: float = option(
        0.0, "probability that a unit keeps its state at a step; 0 for none", minimum=0
    )
    detach: float = option(
        0.0, "h-detach: probability that a step's recurrent product is cut; 0 for none", minimum=0
    )
    dilation: int = option(1, "steps that the recurrence reaches back", minimum=1)
    auxiliary: float = option(
        0.0,
        "weight of the loss by which each state is asked for a past input; 0 for none",
        minimum=0,
    )
    auxiliary_lag: int = option(10, "how many steps before", minimum=1)
    soft_orthogonal: float = option(
        0.0, "weight of |W^T W - I|^2, which draws W's singular values to 1; 0 for none", minimum=0
    )
    window: int = option(0, "steps that truncated BPTT goes back; 0 for all", minimum=0)
    stride: int = option(0, "steps between two windows; 0 for the window", minimum=0)
    floss_at: str = option(
        "", "iterations before which gradient flossing runs, such as 0,100,200; empty for never"
    )
    floss_steps: int = option(100, "flossing steps each time", minimum=1)
    floss_exponents: int = option(
        0, "k, exponents pushed to 0; 0 for 15/16 of the units", minimum=0
    )
    floss_length: int = option(55, "time steps of a flossing step", minimum=2)
    floss_burn_in: int = option(16, "of which so many at first do not count", minimum=0)
    floss_batch: int = option(1, "sequences of a flossing step", minimum=1)
    floss_rate: float = option(1e-3, "step size of flossing's own Adam", above=0)


def check_method(method: Method) -> None:
    """`UsageError` where settings do not go together."""
    arguments = cell_arguments(factory_named(method.cell), method.cell_args)
    for name, values in arguments.numbers.items():
        if len(values) > 1:
            raise UsageError(
                f"--cell_args={method.cell_args}: {name} has {len(values)} values, but only a "
                "sweep takes several; give one"
            )
    if method.leak > 1:
        raise UsageError(f"--leak={method.leak}: above 1 there is no state to renew; give 0..1")
    check_initializer(method.recurrent_init, method.hidden_size)
    if method.zoneout >= 1:
        raise UsageError(f"--zoneout={method.zoneout:g}: no unit would ever change; give below 1")
    if method.auxiliary and (method.window or method.zoneout or method.detach):
        raise UsageError(
            f"--auxiliary={method.auxiliary:g}: it goes with full BPTT on plain inputs; leave "
            "--window, --zoneout and --detach at 0"
        )
    if method.detach > 1:
        raise UsageError(f"--detach={method.detach:g} is a probability; give at most 1")
    if method.stride > method.window:
        raise UsageError(
            f"--stride={method.stride}: --window={method.window} would leave out the losses "
            "between two windows; give a stride of at most the window"
        )
    if method.floss_burn_in >= method.floss_length:
        raise UsageError(
            f"--floss_burn_in={method.floss_burn_in}: --floss_length={method.floss_length} leaves "
            "no step to count; give less"
        )
    if method.floss_exponents > method.hidden_size:
        raise UsageError(
            f"--floss_exponents={method.floss_exponents}: {method.hidden_size} units have no more "
            "exponents than that"
        )


def check_flossing(method: Method, steps: int, batch_size: int) -> None:
    """`UsageError` where a task's batches are too small for a flossing step."""
    if not floss_iterations(method):
        return
    if method.floss_length > steps:
        raise UsageError(
            f"--floss_length={method.floss_length}: the task's sequences have {steps} steps; give "
            "no more than that"
        )
    if method.floss_batch > batch_size:
        raise UsageError(
            f"--floss_batch={method.floss_batch}: a batch has {batch_size} sequences; give no more"
        )


def cell_of(method: Method, length: int, gain: Array | float | None = None) -> rnn_jax.Cell:
    """The cell, for sequences of so many steps; its gain may be traced, in a sweep."""
    cell = _plain_cell(method, length, gain)
    return switched_cell(cell, method.zoneout, method.detach, method.dilation)


def lengthen_of(method: Method, length: int) -> Lengthen | None:
    """What the cell reads behind its inputs, if anything."""
    cell = _plain_cell(method, length, None)
    return lengthen_inputs(cell, method.zoneout, method.detach, method.dilation)


def _plain_cell(method: Method, length: int, gain: Array | float | None) -> rnn_jax.Cell:
    bias: Array | float = method.forget_bias
    if method.chrono:
        bias = theory.forget_bias_for(max(length, 3))
    factory = factory_named(method.cell)
    arguments = cell_arguments(factory, method.cell_args)
    hparams = {
        "gain": method.gain if gain is None else gain,
        "leak": method.leak,
        "forget_bias": bias,
        **{name: values[0] for name, values in arguments.numbers.items()},
    }
    return make_cell(
        factory,
        method.hidden_size,
        hparams,
        activation=method.activation,
        recurrent_init=method.recurrent_init,
        kernel_init=initializers.normal(method.input_std) if method.input_std else None,
        fixed=arguments.fixed,
    )


def model_of(method: Method, task: Task, length: int, gain: Array | float | None = None) -> Model:
    """The cell with the readout that a task wants."""
    make = auxiliary_model_for if method.auxiliary else model_for
    return make(task, cell_of(method, length, gain))


def objective_of(method: Method, model: Model, task: Task) -> objectives.Objective:
    """What is trained: the task, by full or by truncated BPTT."""
    if method.auxiliary:
        return auxiliary_objective(model, task, method.auxiliary, method.auxiliary_lag)
    if not method.window:
        return objectives.task_objective(model, task)
    return truncated.truncated_objective(model, task, method.window, method.stride or method.window)


def optimizer_of(
    method: Method, learning_rate: Array, num_steps: int
) -> optax.GradientTransformation:
    """The update rule behind the bound on the gradient; rates may be traced."""
    constant = method.schedule == "constant"
    rate = learning_rate if constant else optax.cosine_decay_schedule(learning_rate, num_steps)
    chain = [OPTIMIZERS[method.optimizer](rate)]
    if method.gradient_noise:
        chain.insert(0, gradient_noise(method.gradient_noise, method.noise_decay))
    if method.adaptive_clip:
        chain.insert(0, optax.adaptive_grad_clip(method.adaptive_clip))
    optimizer = optax.chain(*chain) if len(chain) > 1 else chain[0]
    return optim.recorded(optimizer, method.clip_norm or None)


def regularizer_of(method: Method) -> regularizers.Regularizer | None:
    """What is added to the gradient."""
    added = []
    if method.omega:
        added.append(regularizers.pascanu(method.omega))
    if method.soft_orthogonal:
        added.append(soft_orthogonal(method.soft_orthogonal))
    return regularizers.both(*added) if len(added) > 1 else (added[0] if added else None)


def floss_iterations(method: Method) -> list[int]:
    """The iterations before which flossing runs, in order."""
    if not method.floss_at:
        return []
    return sorted(axes.whole_numbers("floss_at", method.floss_at, minimum=0))


def floss_size(method: Method) -> int:
    """k, the number of exponents that flossing pushes to 0."""
    return method.floss_exponents or max(1, round(method.hidden_size * 15 / 16))
