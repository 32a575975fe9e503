"""What every measurement is given: lists, one time step, no example, and what does not fit."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnn_jax
from rnn_jax import gradflow, norms, objectives, training
from rnn_jax.gradflow import LastStep
from rnn_jax.losses import squared_error
from rnn_jax.training import optim, regularizers
from rnn_jax.types import Batch

T, B, D, H = 5, 2, 3, 4
CELL = rnn_jax.elman(H)
PARAMS = rnn_jax.ElmanParams(
    *(np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((D, H), (H, H), H))
)
XS = np.random.default_rng(1).normal(size=(T, B, D)).astype(np.float32)
ZERO = np.zeros((B, H), np.float32)


def losses(states):
    return jnp.sum(states, axis=-1)


MEASUREMENTS = {
    "state_gradients": functools.partial(gradflow.state_gradients, step_losses=losses),
    "segments": functools.partial(
        gradflow.state_gradients, step_losses=LastStep(losses), segment_length=1
    ),
    "leaf_gradients": functools.partial(gradflow.leaf_gradients, step_losses=losses),
    "credit_matrix": functools.partial(gradflow.credit_matrix, step_losses=losses),
    "parameter_terms": functools.partial(gradflow.parameter_terms, step_losses=losses),
    "truncation_bias": functools.partial(gradflow.truncation_bias, step_losses=losses),
    "jacobian_product": gradflow.jacobian_product,
    "lyapunov_spectrum": gradflow.lyapunov_spectrum,
    "parameter_sensitivity": gradflow.parameter_sensitivity,
    "value_and_grad": lambda cell, *given: gradflow.value_and_grad(cell, losses)(*given),
    "flossing_loss": regularizers.flossing_loss,
    "diagnose": functools.partial(gradflow.diagnose, step_losses=losses),
    "origin": functools.partial(gradflow.origin_of_nonfinite, step_losses=losses),
}
each = pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
traced = pytest.mark.parametrize(
    "measure",
    [m for name, m in MEASUREMENTS.items() if name not in ("diagnose", "origin")],
    ids=[name for name in MEASUREMENTS if name not in ("diagnose", "origin")],
)


@traced
def test_a_list_is_an_array(measure):
    """Traced only: that the same program is made of both."""

    def program(xs):
        traced = jax.make_jaxpr(lambda params, state: measure(CELL, params, state, xs))
        # What is computed, whatever its values are called.
        return re.findall(r" = (\w+)", str(traced(PARAMS, ZERO)))

    assert program(XS.tolist()) == program(jnp.asarray(XS))


WRONG = {
    "no example": ((ZERO[:0], XS[:, :0]), r"\(5, 0, 3\): an empty batch"),
    "no step": ((ZERO, XS[:0]), r"\(0, 2, 3\): no time step; xs is \[T, B, D\], time first"),
    "list": ((ZERO, np.swapaxes(XS, 0, 1).tolist()), r"\(2, 4\), but cell and xs \(2, 5, 3\)"),
    "batch first": ((ZERO, np.swapaxes(XS, 0, 1)), r"time first.*jnp\.swapaxes\(xs, 0, 1\)$"),
    "whole numbers": ((ZERO, XS.astype(int)), "embed tokens first"),
    "mixed types": ((jnp.asarray(ZERO, jnp.bfloat16), XS), "^params are float32, .*bfloat16"),
    "whole numbers in the state": ((ZERO.astype(int), XS), "^state is of type int"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
@each
def test_what_does_not_fit_is_one_line(measure, given, message):
    if measure is MEASUREMENTS["origin"] and message.endswith("an empty batch"):
        pytest.skip("of no example nothing is broken")
    with pytest.raises(ValueError, match=message) as raised:
        measure(CELL, PARAMS, *given)
    assert "\n" not in str(raised.value)


@traced
def test_one_time_step_has_results_of_the_same_form(measure):
    def forms(xs):
        found = jax.eval_shape(lambda *given: measure(CELL, *given), PARAMS, ZERO, xs)
        return [leaf.ndim for leaf in jax.tree.leaves(found)]

    assert forms(XS[:1]) == forms(XS)


def test_at_one_time_step_the_adjoint_is_the_direct_gradient():
    logs = jax.jit(functools.partial(MEASUREMENTS["state_gradients"], CELL))(PARAMS, ZERO, XS[:1])
    np.testing.assert_allclose(logs, np.full((1, B), np.log(np.sqrt(H))), rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("xs", r"^xs is not finite: \[3, 1, 0\] is nan"),
        ("state", r"^state is not finite: \[1, 2\] is nan"),
        ("params", r"^params is not finite: leak is nan"),
    ],
)
def test_a_nan_is_named_by_its_place(place, message):
    cell = rnn_jax.leaky(H)
    given = {"params": rnn_jax.LeakyParams(*PARAMS, leak=np.float32(0.5)), "state": ZERO, "xs": XS}
    if place == "params":
        given["params"] = given["params"]._replace(leak=np.float32(np.nan))
    else:
        given[place] = given[place].copy()
        given[place][{"xs": (3, 1, 0), "state": (1, 2)}[place]] = np.nan
    with pytest.raises(ValueError, match=message):
        gradflow.state_gradients(cell, **given, step_losses=losses)


# An empty batch in training


def test_an_empty_batch_is_refused_by_training():
    model = rnn_jax.sequence_model(CELL, D)
    objective = objectives.next_step_objective(model, squared_error)
    optimizer = optim.recorded(optax.sgd(0.1))
    start = jax.eval_shape(
        lambda key: training.fresh_state(model, optimizer, key, D, 0), jax.random.key(0)
    )
    empty = jax.ShapeDtypeStruct((T, 0, D), jnp.float32)
    with pytest.raises(ValueError, match=r"\(5, 0\): an empty batch has no mean loss"):
        jax.eval_shape(
            lambda state, batch: training.train_step(objective, optimizer, state, batch),
            start,
            Batch(empty, empty),
        )


def test_norms_of_an_empty_batch():
    adjoints = rnn_jax.LSTMState(jnp.zeros((T, 0, H)), jnp.zeros((T, 0, H)))
    assert norms.state_norm(adjoints, 2).shape == (T, 0)
    with pytest.raises(ValueError, match=r"\(5, 0, 4\): an empty batch"):
        norms.adjoint_norms(adjoints)
