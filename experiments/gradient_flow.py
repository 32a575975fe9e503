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

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import rnn_jax
from experiments.networks import (
    CELLS,
    RECURRENT_INITS,
    Network,
    fresh_network,
    make_cell,
    network_of_run,
)
from experiments.options import UsageError, check, launch, option
from experiments.runner import open_workdir, use_compilation_cache
from rnn_jax import gradflow, plots, records
from rnn_jax.cells import ACTIVATIONS
from rnn_jax.types import Array, Params, State, StepLosses


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Settings of one picture; see `--help`."""

    cell: str = option("elman", "the recurrent cell", choices=CELLS)
    activation: str = option("tanh", "of an elman or leaky cell", choices=tuple(ACTIVATIONS))
    hidden_size: int = option(64, "H, number of hidden units", minimum=1)
    recurrent_init: str = option("gaussian", "how W is drawn", choices=tuple(RECURRENT_INITS))
    gain: float = option(1.0, "scale of W: its spectral radius if wide", above=0)
    compare_gains: str = option(
        "", "comma-separated gains to draw side by side, such as 0.5,1,2; empty for none"
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


class Measured(NamedTuple):
    """What is measured on one network; logarithms in nats.

    Attributes:
        log_norms: ln|dL/ds_t|, `[T, B]`.
        credit: ln rms|dL_t/ds_k|, `[T, T]`.
        terms: name -> ln norm of each summand of that parameter's gradient, `[T]`.
        exponents: Lyapunov exponents, `[N]`.
        lags: `[L]`.
        singular_values: ln singular values of the product over the last so many steps, `[L, N]`.
        eigenvalues: of W, or of the last Jacobian where the cell has no single W, `[N]`.
    """

    log_norms: np.ndarray
    credit: np.ndarray
    terms: dict[str, np.ndarray]
    exponents: np.ndarray
    lags: np.ndarray
    singular_values: np.ndarray
    eigenvalues: np.ndarray


class Result(NamedTuple):
    """What was measured, and where it is."""

    measured: Measured
    compared: list[plots.Flow]
    workdir: Path


def gains_of(config: FlowConfig) -> list[float]:
    """The gains of --compare_gains; `UsageError` unless they are positive numbers."""
    words = [word for word in config.compare_gains.split(",") if word.strip()]
    try:
        gains = [float(word) for word in words]
    except ValueError:
        gains = [-1.0]
    if any(not (0 < gain < float("inf")) for gain in gains):
        raise UsageError(
            f"--compare_gains={config.compare_gains}: give positive numbers, such as 0.5,1,2"
        )
    return gains


def network_of(config: FlowConfig, gain: float | None = None) -> Network:
    """The network that the settings describe, at another gain if one is given."""
    if config.run and gain is None:
        return network_of_run(config.run, config.moment)
    cell = make_cell(
        config.cell,
        config.hidden_size,
        config.activation,
        config.recurrent_init,
        config.gain if gain is None else gain,
    )
    return fresh_network(
        cell, config.seed, config.length, config.batch_size, config.input_std, config.loss
    )


def exponents_of(network: Network) -> Array:
    """Lyapunov exponents on the network's own inputs, the first fifth of the steps left out."""
    burn_in = network.xs.shape[0] // 5
    return gradflow.lyapunov_spectrum(
        network.cell, network.params, network.state, network.xs, burn_in=burn_in
    )


def measure(network: Network) -> Measured:
    """Everything that is drawn of one network."""
    arguments = (network.cell, network.params, network.state, network.xs)
    terms = gradflow.parameter_terms(*arguments, network.step_losses)
    lags = np.unique(np.geomspace(1, network.xs.shape[0], 24).astype(int))
    return Measured(
        log_norms=np.asarray(gradflow.state_gradients(*arguments, network.step_losses)),
        credit=np.asarray(gradflow.credit_matrix(*arguments, _of_every_step(network))),
        terms={
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(terms)
        },
        exponents=np.asarray(exponents_of(network)),
        lags=lags,
        singular_values=np.asarray(singular_values_by_lag(network, lags)),
        eigenvalues=eigenvalues_of(network),
    )


def _of_every_step(network: Network) -> StepLosses:
    """The mean emitted unit as the loss of each step: each has its row in the credit matrix."""
    return lambda states: jnp.mean(network.cell.emit(states), axis=-1)


def singular_values_by_lag(network: Network, lags: np.ndarray) -> Array:
    """ln singular values `[L, N]` of the Jacobian product over the last so many steps.

    Of the batch's first example. All lags run in one program: a step before the lag's first is the
    identity.
    """
    cell, params = network.cell, network.params
    first = jax.tree.map(lambda s: s[0], network.state)
    xs = network.xs[:, 0]
    num_steps = xs.shape[0]
    states = rnn_jax.plain_unroll(cell, params, first, xs)
    all_states = jax.tree.map(lambda s, rest: jnp.concatenate([s[None], rest]), first, states)

    def step(params: Params, state: State, x: Array) -> State:
        return jax.tree.map(
            lambda new, old: jnp.where(x[-1] > 0, new, old),
            cell.step(params, state, x[:-1]),
            state,
        )

    def of_lag(lag: Array) -> Array:
        active = (jnp.arange(num_steps) >= num_steps - lag).astype(xs.dtype)
        start = jax.tree.map(lambda s: s[num_steps - lag], all_states)
        inputs = jnp.concatenate([xs, active[:, None]], axis=1)
        return gradflow.jacobian_product(
            cell._replace(step=step, affine=None), params, start, inputs
        )

    return jax.jit(jax.vmap(of_lag))(jnp.asarray(lags))


def eigenvalues_of(network: Network) -> np.ndarray:
    """Eigenvalues of W for an Elman cell, else of the last step's Jacobian (first example)."""
    if isinstance(network.params, rnn_jax.ElmanParams):
        return np.linalg.eigvals(np.asarray(network.params.W, np.float64))
    start = jax.tree.map(lambda s: s[0], network.state)
    states = rnn_jax.plain_unroll(network.cell, network.params, start, network.xs[:, 0])
    flat, unravel = ravel_pytree(jax.tree.map(lambda s: s[-1], states))
    jacobian = jax.jacobian(
        lambda s: ravel_pytree(network.cell.step(network.params, unravel(s), network.xs[-1, 0]))[0]
    )(flat)
    return np.linalg.eigvals(np.asarray(jacobian, np.float64))


def compare(config: FlowConfig) -> list[plots.Flow]:
    """The same network at each gain of --compare_gains."""
    flows = []
    for gain in gains_of(config):
        network = network_of(config, gain)
        logs = gradflow.state_gradients(
            network.cell, network.params, network.state, network.xs, network.step_losses
        )
        exponent = float(exponents_of(network)[0])
        flows.append(plots.Flow(f"gain {gain:g}", np.asarray(logs), exponent))
    return flows


def save_figures(workdir: Path, measured: Measured, compared: list[plots.Flow]) -> None:
    """Draws what was measured; titles say what was found."""
    exponent = float(measured.exponents[0])
    rho = float(np.max(np.abs(measured.eigenvalues)))
    lost = float(np.median(measured.log_norms[0] - measured.log_norms[-1]))
    spread = measured.singular_values[-1]
    name, terms = max(measured.terms.items(), key=lambda item: np.max(item[1]))
    figures = {
        "profile": plots.flow_profile(
            plots.Flow("", measured.log_norms, exponent),
            f"Back over {len(measured.log_norms)} steps the gradient changes by a factor "
            f"e^{lost:.1f} = {_power_of_ten(lost)}",
        ),
        "credit": plots.credit_heatmap(
            measured.credit,
            "Each loss acts on the states before it, "
            + ("less and less the longer ago" if exponent < 0 else "more and more the longer ago"),
        ),
        "summands": plots.summand_profile(
            measured.terms,
            f"dL/d{name} has the largest summand, at k = {1 + int(np.argmax(terms))} "
            f"of {len(terms)}",
        ),
        "singular_values": plots.singular_values_by_lag(
            measured.lags,
            measured.singular_values,
            f"After {measured.lags[-1]} steps one direction is scaled by "
            f"{_power_of_ten(spread[0])}, another by {_power_of_ten(spread[-1])}",
            exponent,
        ),
        "eigenvalues": plots.eigenvalue_plane(measured.eigenvalues, f"Spectral radius {rho:.3g}"),
    }
    if compared:
        figures["comparison"] = plots.flow_comparison(
            compared, "On its way back to the first step a gradient vanishes, survives or explodes"
        )
    for name, figure in figures.items():
        figure.savefig(workdir / f"{name}.png")


def _power_of_ten(log: float) -> str:
    return f"10^{log / np.log(10):.1f}" if np.isfinite(log) else "0"


def run(config: FlowConfig) -> Result:
    """Measures and draws; leaves the folder behind."""
    check(config)
    gains_of(config)
    workdir = open_workdir("gradient_flow", config)
    network = network_of(config)
    measured = measure(network)
    compared = compare(config)
    for name in ("log_norms", "credit", "exponents", "lags", "singular_values", "eigenvalues"):
        records.save_array(workdir, name, getattr(measured, name))
    records.save_tree(workdir, "terms", measured.terms)
    save_figures(workdir, measured, compared)
    return Result(measured, compared, workdir)


def main(config: FlowConfig) -> None:
    """Runs the experiment and says in words what the figures show."""
    use_compilation_cache(config.compilation_cache)
    result = run(config)
    measured = result.measured
    lost = float(np.median(measured.log_norms[0] - measured.log_norms[-1]))
    print(
        f"From the last step back to the first the gradient changes by a factor of "
        f"{_power_of_ten(lost)}: {lost / max(1, len(measured.log_norms) - 1):+.3f} nats per step; "
        f"the largest Lyapunov exponent is {measured.exponents[0]:+.3f}."
    )
    for flow in result.compared:
        change = float(np.median(flow.log_norms[0] - flow.log_norms[-1]))
        print(f"{flow.name}: {_power_of_ten(change)}, exponent {flow.exponent:+.3f}")
    print(f"Figures and arrays: {result.workdir}/")


if __name__ == "__main__":
    launch(main, FlowConfig)
