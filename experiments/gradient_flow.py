"""See vanishing and exploding gradients in one network, and in several side by side.

The network is fresh from an initializer (--cell, --recurrent_init, --gain), or out of the folder
of another experiment (--run). Its loss is the last output, or all of them, in a random direction.
Drawn are: ln|dL/ds_t| over t beside the largest Lyapunov exponent; the credit matrix dL_t/ds_k; the
summands of each parameter's gradient; the singular values of the Jacobian product by lag; the
eigenvalues of W beside the unit circle. --compare_gains draws several gains side by side.

Flags files:
  experiments/flags/gradient_flow.flags   the three textbook cases side by side, details of the last
  experiments/flags/vanishing.flags       a gradient that vanishes
  experiments/flags/exploding.flags       a gradient that explodes
  experiments/flags/edge.flags            a gradient that does neither

Examples:
  python -m experiments.gradient_flow --flagfile=experiments/flags/gradient_flow.flags
  python -m experiments.gradient_flow --run=runs/sine --moment=end --workdir=runs/sine_flow
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.analysis.flow_measurements import (
    Measured,
    check_memory,
    exponents_of,
    measure,
    slope_bounds,
)
from experiments.analysis.sine_network import network_of_run
from experiments.analysis.sweep_theory import predicted_slope as theory_of
from experiments.cli import axes
from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import check, launch, option
from experiments.cli.run_folder import open_run_folder
from experiments.reports.gradient_flow import power_of_ten, save_figures
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
from rnn_jax import gradflow, plots
from rnn_jax.cells import ACTIVATIONS
from rnn_jax.io import records


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
    moment: str = option("end", "of the run's training", choices=("start", "end"))
    seed: int = option(0, "of weights, inputs and loss", minimum=0)
    workdir: str = option("runs/gradient_flow", "folder for figures and arrays")
    overwrite: bool = option(False, "replace a run of other settings in --workdir")
    compilation_cache: bool = option(True, "keep compiled programs in the user's cache folder")


class Result(NamedTuple):
    """What was measured, and where it is."""

    measured: Measured
    compared: list[plots.Flow]
    workdir: Path


def gains_of(config: FlowConfig) -> list[float]:
    """The gains of --compare_gains; `UsageError` unless they are positive numbers."""
    if not config.compare_gains:
        return []
    return axes.numbers("compare_gains", config.compare_gains, above=0)


def network_of(config: FlowConfig, gain: float | None = None) -> Network:
    """The network that the settings describe, at another gain if one is given."""
    if config.run and gain is None:
        return network_of_run(config.run, config.moment)
    factory = factory_named(config.cell)
    check_initializer(config.recurrent_init, config.hidden_size)
    gates = 2 if config.cell == "lstm" else 1
    check_memory(gates * config.hidden_size, config.length, config.batch_size)
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


def predicted_slope(config: FlowConfig, gain: float) -> float | None:
    """What theory says of a fresh network before any run; None where it says nothing."""
    if config.run:
        return None
    # Unit normal U: the input's variance is that of x.
    return theory_of(config.cell, config.activation, config.recurrent_init, gain, config.input_std)


def compare(config: FlowConfig) -> list[plots.Flow]:
    """The same network at each gain of --compare_gains."""
    flows = []
    for gain in gains_of(config):
        network = network_of(config, gain)
        arguments = (network.cell, network.params, network.state, network.xs)
        flows.append(
            plots.Flow(
                name=f"gain {gain:g}",
                log_norms=np.asarray(gradflow.state_gradients(*arguments, network.step_losses)),
                exponent=float(exponents_of(network)[0]),
                predicted=predicted_slope(config, gain),
                verdict=gradflow.diagnose(*arguments, network.step_losses).verdict,
            )
        )
    return flows


def run(config: FlowConfig) -> Result:
    """Measures and draws; leaves the folder behind."""
    check(config)
    gains_of(config)
    network = network_of(config)
    with records.held(config.workdir):
        return _run(config, network, open_run_folder("gradient_flow", config))


def _run(config: FlowConfig, network: Network, workdir: Path) -> Result:
    measured = measure(network)
    compared = compare(config)
    for name in (
        "log_norms",
        "credit",
        "exponents",
        "lags",
        "singular_values",
        "product_eigenvalues",
        "eigenvalues",
    ):
        records.save_array(workdir, name, getattr(measured, name))
    records.save_tree(workdir, "terms", measured.terms)
    flow = plots.Flow(
        "",
        measured.log_norms,
        float(measured.exponents[0]),
        predicted_slope(config, config.gain),
        slope_bounds(network, config.activation),
    )
    save_figures(workdir, measured, flow, compared)
    return Result(measured, compared, workdir)


def main(config: FlowConfig) -> None:
    """Runs the experiment and says in words what the figures show."""
    use_compilation_cache(config.compilation_cache)
    result = run(config)
    print(result.measured.diagnosis)
    for flow in result.compared:
        change = float(np.median(flow.log_norms[0] - flow.log_norms[-1]))
        print(f"{flow.name}: {flow.verdict}, changed by {power_of_ten(change)}")
    print(f"Figures and arrays: {result.workdir}/")


if __name__ == "__main__":
    launch(main, FlowConfig)
