"""The same code is lowered for a GPU and a TPU, on a machine that has neither."""

import jax
import jax.numpy as jnp
import optax
import pytest
from marks import slow_but_for

import rnn_jax
from rnn_jax import gradflow, objectives, optim, regularizers, train
from rnn_jax.tasks.adding import adding

PLATFORMS = ("cuda", "tpu")
H, B, T = 4, 2, 6
CELLS = {
    "elman": lambda: rnn_jax.elman(H),
    "layer norm": lambda: rnn_jax.layer_norm_elman(H),
    "leaky": lambda: rnn_jax.leaky(H),
    "lstm": lambda: rnn_jax.lstm(H),
    "gru": lambda: rnn_jax.gru(H),
    "stack": lambda: rnn_jax.stack([rnn_jax.lstm(H), rnn_jax.elman(H)]),
}


def lowered(function, *arguments):
    """The text of a program for every platform."""
    for platform in PLATFORMS:
        yield jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", slow_but_for(CELLS.keys() - {"leaky", "gru"}, CELLS))
def test_training_is_lowered_for_every_platform(name):
    """A start and a chunk of steps, with clipping, traces and Omega: a loop and no callback."""
    task = adding(T, B)
    model = rnn_jax.last_only(CELLS[name](), 1)
    objective = objectives.task_objective(model, task)
    optimizer = optim.recorded(optax.adam(1e-2), 1.0)

    def program(key):
        state = train.fresh_state(model, optimizer, key, 2, B)
        return train.scan_steps(
            objective, optimizer, task.sample, state, key, 3, regularize=regularizers.pascanu(1.0)
        )

    for text in lowered(program, jax.random.key(0)):
        assert "stablehlo.while" in text
        assert "callback" not in text


MEASURES = {
    "state_gradients": lambda *given: gradflow.state_gradients(*given, last),
    "credit_matrix": lambda *given: gradflow.credit_matrix(*given, every),
    "parameter_terms": lambda *given: gradflow.parameter_terms(*given, every),
    "jacobian_product": gradflow.jacobian_product,
    "lyapunov_spectrum": gradflow.lyapunov_spectrum,
}


def every(states):
    return jnp.sum(states, axis=-1)


last = gradflow.LastStep(lambda state: jnp.sum(state, axis=-1))


@pytest.mark.parametrize("name", MEASURES)
def test_gradient_flow_is_lowered_for_every_platform(name):
    cell = rnn_jax.elman(H)
    params = jax.eval_shape(lambda key: cell.init(key, 1), jax.random.key(0))
    state, xs = jnp.zeros((B, H)), jnp.zeros((T, B, 1))
    for text in lowered(lambda *given: MEASURES[name](cell, *given), params, state, xs):
        assert "callback" not in text
