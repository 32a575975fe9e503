"""Weights copied between our cells, Flax's and PyTorch's: the same outputs and gradients."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problems import assert_close, random_like

import rnn_jax
from rnn_jax.bridge import from_flax, from_linen, from_nnx, from_pytorch, to_flax

T, B, D, H = 5, 3, 2, 4
OURS = {"SimpleCell": rnn_jax.elman, "LSTMCell": rnn_jax.lstm, "GRUCell": rnn_jax.gru}
OURS["OptimizedLSTMCell"] = rnn_jax.lstm
CASES = [("linen", name) for name in OURS] + [
    pytest.param("nnx", name, marks=() if name == "GRUCell" else pytest.mark.slow) for name in OURS
]
DOUBLE = {"param_dtype": jnp.float64, "dtype": jnp.float64}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def foreign(library, name):
    if library == "linen":
        return from_linen(getattr(nn, name)(H, **DOUBLE))
    return from_nnx(lambda rngs: getattr(nnx, name)(D, H, rngs=rngs, **DOUBLE))


def foreign_params(rng, library, name):
    cell = foreign(library, name)
    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    return cell, random_like(rng, shapes, 0.6)


def run(cell, params, xs):
    return cell.emit(rnn_jax.unroll(cell, params, cell.initial_state(params, xs.shape[1:-1]), xs))


def graded(cell, params, xs, weights):
    """Outputs, and gradients of sum(sin(k o)) by params and xs."""

    def value(params, xs):
        outputs = run(cell, params, xs)
        return jnp.sum(jnp.sin(weights * outputs)), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(params, xs)
    return outputs, *gradients


@pytest.mark.parametrize(("library", "name"), CASES)
def test_ours_is_flax_with_its_weights(x64, rng, library, name):
    """The gradients too: those by Flax's weights, renamed, are those by ours."""
    cell, theirs = foreign_params(rng, library, name)
    ours = from_flax(theirs)
    xs, weights = (jnp.asarray(rng.normal(size=(T, B, n))) for n in (D, H))
    outputs, gradient, by_input = graded(OURS[name](H), ours, xs, weights)
    wanted, flax_gradient, flax_by_input = graded(cell, theirs, xs, weights)
    assert_close((outputs, by_input), (wanted, flax_by_input), rtol=1e-10)
    renamed = from_flax(flax_gradient)
    if library == "nnx" and name == "GRUCell":
        gradient = gradient._replace(d=renamed.d)  # Flax's nnx GRU has no such bias.
    assert_close(gradient, renamed, rtol=1e-10)


@pytest.mark.parametrize(("library", "name"), CASES)
def test_round_trips_are_exact(x64, rng, library, name):
    _, theirs = foreign_params(rng, library, name)
    ours = from_flax(theirs)
    back = to_flax(ours, like=jax.tree.map(jnp.zeros_like, theirs))
    jax.tree.map(np.testing.assert_array_equal, back, theirs)
    jax.tree.map(np.testing.assert_array_equal, from_flax(back), ours)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(ours)) or library == "nnx"


def test_gates_side_by_side_and_apart_are_the_same_weights(x64, rng):
    """One LSTM in all four of Flax's forms."""
    ours = from_flax(foreign_params(rng, "linen", "LSTMCell")[1])
    xs = jnp.asarray(rng.normal(size=(T, B, D)))
    wanted = run(rnn_jax.lstm(H), ours, xs)
    for library in ("linen", "nnx"):
        for name in ("LSTMCell", "OptimizedLSTMCell"):
            cell, like = foreign_params(rng, library, name)
            np.testing.assert_allclose(run(cell, to_flax(ours, like), xs), wanted, rtol=1e-10)


def test_weights_that_do_not_fit(x64, rng):
    linen_gru = foreign_params(rng, "linen", "GRUCell")[1]
    nnx_gru = foreign_params(rng, "nnx", "GRUCell")[1]
    ours = from_flax(linen_gru)
    with pytest.raises(
        ValueError, match=r"d that is not zero, .*linen's with its reset gate, or params._repl"
    ):
        to_flax(ours, nnx_gru)
    to_flax(ours._replace(d=jnp.zeros_like(ours.d)), nnx_gru)
    with pytest.raises(ValueError, match=r"params are GRUParams, but .* wants LSTMParams"):
        to_flax(ours, foreign_params(rng, "nnx", "LSTMCell")[1])
    with pytest.raises(ValueError, match=r"\(5, 4\).* but the Flax cell wants .*\(2, 4\)"):
        to_flax(ours._replace(U=jnp.zeros((5, 3 * H))), linen_gru)
    cell, carry = nn.ConvLSTMCell(H, (1,)), (jnp.ones((1, H)),) * 2
    tree = jax.eval_shape(cell.init, jax.random.key(0), carry, jnp.ones((1, D)))["params"]
    with pytest.raises(ValueError, match=r"entries \['hh', 'ih'\], those of no Flax SimpleCell"):
        from_flax(tree)


# PyTorch: numbers made by tests/data/pytorch_layers.py

TORCH = {"RNN": rnn_jax.elman, "LSTM": rnn_jax.lstm, "GRU": rnn_jax.gru}


@functools.cache
def pytorch(name):
    """The state_dict, its gradients, and what else the file holds."""
    with np.load(Path(__file__).parent / "data" / "pytorch_layers.npz") as file:
        numbers = {key: file[key] for key in file.files}
    own = {key.removeprefix(f"{name}/"): numbers[key] for key in numbers if key.startswith(name)}
    gradients = {key.removeprefix("grad/"): own[key] for key in own if key.startswith("grad/")}
    state_dict = {key: own[key] for key in own if key.endswith(("_l0", "_l1"))}
    state_dict = {key: own[key] for key in state_dict if "/" not in key}
    return numbers["xs"], numbers["weights"], state_dict, gradients, own["outputs"]


@pytest.mark.parametrize("name", TORCH)
def test_a_stack_with_pytorchs_weights_is_pytorchs_layers(x64, name):
    xs, weights, state_dict, gradients, outputs = pytorch(name)
    deep = rnn_jax.stack([TORCH[name](H)] * 2)
    params = from_pytorch(state_dict)
    given, by_params, by_input = graded(deep, params, jnp.asarray(xs), jnp.asarray(weights))
    np.testing.assert_allclose(given, outputs, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(by_input, gradients["xs"], rtol=1e-9, atol=1e-12)
    for n, layer in enumerate(by_params):
        wanted = {key[:-3]: value for key, value in gradients.items() if key.endswith(f"_l{n}")}
        np.testing.assert_allclose(layer.U, wanted["weight_ih"].T, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.W, wanted["weight_hh"].T, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.b, wanted["bias_ih"], rtol=1e-9, atol=1e-12)
        if name == "GRU":
            d = wanted["bias_hh"][2 * H :]
            np.testing.assert_allclose(layer.d, d, rtol=1e-9, atol=1e-12)


def test_pytorch_layers_without_biases(x64):
    xs, _, state_dict, _, _ = pytorch("GRU")
    bare = {key: value for key, value in state_dict.items() if "bias" not in key}
    zeros = {key: value * ("bias" not in key) for key, value in state_dict.items()}
    given, wanted = (
        run(rnn_jax.stack([rnn_jax.gru(H)] * 2), from_pytorch(entries), jnp.asarray(xs))
        for entries in (bare, zeros)
    )
    np.testing.assert_array_equal(given, wanted)


def test_state_dicts_that_do_not_fit():
    good = pytorch("LSTM")[2]
    for extra in ("rnn.weight_ih_l0", "weight_ih_l0_reverse", "weight_hr_l0"):
        with pytest.raises(ValueError, match=rf"entries \['{extra}'\].*strip the prefix"):
            from_pytorch(good | {extra: np.zeros(3)})
    with pytest.raises(ValueError, match=r"has entries none, but those of one RNN"):
        from_pytorch({})
    with pytest.raises(ValueError, match=r"no weight_ih_l0; give every layer from 0 on"):
        from_pytorch({key: value for key, value in good.items() if not key.endswith("l0")})
    with pytest.raises(ValueError, match=r"weight_hh_l0 \(8, 4\), but .* 1 gate \(RNN\), 3"):
        from_pytorch(good | {"weight_hh_l0": np.zeros((8, 4))})
