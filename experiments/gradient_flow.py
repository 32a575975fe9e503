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
from experiments.analysis.kept_networks import choose
from experiments.analysis.rebuilt import rebuild
from experiments.analysis.sweep_theory import predicted_slope as theory_of
from experiments.cli import axes
from experiments.cli.compilation_cache import use_compilation_cache
from experiments.cli.options import check, launch
from experiments.cli.run_folder import open_run_folder
from experiments.reports.gradient_flow import power_of_ten, save_figures
from experiments.setup.gradient_flow import FlowConfig, fresh
from experiments.setup.networks import Network
from rnn_jax import gradflow, plots
from rnn_jax.io import parameters, records


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
        settings, choice = records.load_config(config.run), choose(config.run, config.network)
        return rebuild(config.run, settings, choice, config.moment, (config.cell,)).network
    gates = 2 if config.cell == "lstm" else 1
    check_memory(gates * config.hidden_size, config.length, config.batch_size)
    return fresh(config, gain)


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
    if not config.run:
        parameters.save(workdir, parameters.STAGES[0], {"cell": network.params})
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
