"""The settings of one picture of the gradient, and the fresh network that they describe."""

import dataclasses

from experiments.cli.options import option
from experiments.setup.cells import (
    CELL_ARGS_HELP,
    CELL_HELP,
    RECURRENT_INITS,
    cell_arguments,
    check_initializer,
    factory_named,
    make_cell,
)
from experiments.setup.networks import Network, fresh_network
from rnn_jax.cells import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Settings of one picture; see `--help`."""

    cell: str = option("elman", f"the recurrent cell: {CELL_HELP}")
    cell_args: str = option("", CELL_ARGS_HELP)
    activation: str = option("tanh", "of an elman or leaky cell", choices=tuple(ACTIVATIONS))
    hidden_size: int = option(64, "H, number of hidden units", minimum=1)
    recurrent_init: str = option("gaussian", "how W is drawn", choices=tuple(RECURRENT_INITS))
    gain: float = option(1.0, "scale of W: its spectral radius if wide", above=0)
    compare_gains: str = option(
        "", "axis: gains to draw side by side, such as 0.5,1,2; empty for none"
    )
    length: int = option(100, "T, number of time steps", minimum=1)
    batch_size: int = option(16, "B, number of sequences", minimum=1)
    input_std: float = option(0.1, "standard deviation of the inputs", minimum=0)
    loss: str = option("last", "which steps have a loss", choices=("last", "every"))
    run: str = option("", "folder of a run whose network is to be looked at; empty for a fresh one")
    network: str = option(
        "", "which of a run's networks: its number, or settings such as cure=lstm,seed=1"
    )
    moment: str = option("end", "of the run's training", choices=("start", "end"))
    seed: int = option(0, "of weights, inputs and loss", minimum=0)
    workdir: str = option("runs/gradient_flow", "folder for figures and arrays")
    overwrite: bool = option(False, "replace a run of other settings in --workdir")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


def fresh(config: FlowConfig, gain: float | None = None) -> Network:
    """The network that the settings describe, at another gain if one is given."""
    factory = factory_named(config.cell)
    check_initializer(config.recurrent_init, config.hidden_size)
    arguments = cell_arguments(factory, config.cell_args)
    cell = make_cell(
        factory,
        config.hidden_size,
        {
            "gain": config.gain if gain is None else gain,
            **{name: values[0] for name, values in arguments.numbers.items()},
        },
        activation=config.activation,
        recurrent_init=config.recurrent_init,
        fixed=arguments.fixed,
    )
    return fresh_network(
        cell, config.seed, config.length, config.batch_size, config.input_std, config.loss
    )
