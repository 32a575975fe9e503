"""`rnn_jax.equinox` and `bridge.from_equinox` against a plain scan over Equinox's cells."""

import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from marks import slow
from problems import assert_close

import rnn_jax.equinox
from rnn_jax.bridge import from_equinox

T, B, D, H = 6, 3, 2, 4


class Leaky(eqx.Module):
    """A user's own."""

    weight: jax.Array
    leak: jax.Array
    function: object
    hidden_size: int = eqx.field(static=True, default=H)
    input_size: int = eqx.field(static=True, default=D)

    def __call__(self, x, hidden):
        drive = self.function(self.weight @ jnp.concatenate([x, hidden]))
        return hidden + self.leak * (drive - hidden)


def leaky(key):
    return Leaky(jax.random.normal(key, (H, D + H)), jnp.asarray(0.3), jnp.tanh)


CELLS = {
    "GRUCell": lambda key: eqx.nn.GRUCell(D, H, key=key),
    "LSTMCell": lambda key: eqx.nn.LSTMCell(D, H, key=key),
    "GRU without bias": lambda key: eqx.nn.GRUCell(D, H, use_bias=False, key=key),
    "LSTM without bias": lambda key: eqx.nn.LSTMCell(D, H, use_bias=False, key=key),
    "own": leaky,
}
QUICK = {"GRUCell", "LSTMCell", "own"}
NAMES = [name if name in QUICK else slow(name) for name in CELLS]


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Scan(eqx.Module):
    """What a user of Equinox writes."""

    cell: eqx.Module
    reverse: bool = eqx.field(static=True, default=False)

    def __call__(self, xs):
        hidden = jnp.zeros(H)
        if isinstance(self.cell, eqx.nn.LSTMCell):
            hidden = (hidden, hidden)

        def step(hidden, x):
            new = self.cell(x, hidden)
            return new, jax.tree.leaves(new)[0]

        return lax.scan(step, hidden, xs, reverse=self.reverse)[1]


def loss(model, xs):
    outputs = jax.vmap(model)(xs)
    return jnp.sum(jnp.sin(2 * outputs)), (outputs, "sine")


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_and_watch_are_a_scan_and_its_gradient(x64, name):
    cell, xs = CELLS[name](jax.random.key(0)), random((B, T, D))
    ours, plain = (make(cell, reverse=True) for make in (rnn_jax.equinox.RNN, Scan))
    program = str(jax.make_jaxpr(jax.vmap(ours))(xs))
    hoisted = re.search(rf"f64\[{B},{T},\d+\] = dot_general", program)
    assert bool(hoisted) == (name != "own")
    (wanted, aux), grads = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(plain, xs)
    for model in (ours, plain):
        value, found, norms = eqx.filter_jit(rnn_jax.equinox.watch(loss, has_aux=True))(model, xs)
        assert value[1][1] == "sine"
        assert_close((value[0], value[1][0]), (wanted, aux[0]), rtol=1e-10)
        assert_close(jax.tree.leaves(found.cell), jax.tree.leaves(grads.cell), rtol=1e-9)
        assert jax.tree.structure(found.cell) == jax.tree.structure(grads.cell)
        (norm,) = norms.values()
        assert norm.shape == (T, B)
        if model is ours:
            first = norm
    assert_close(first, norm, rtol=1e-9)
    assert first.min() > 0


def test_the_layer_starts_where_it_is_told_and_returns_whole_states():
    cell, xs = CELLS["LSTMCell"](jax.random.key(0)), random((T, D)).astype(jnp.float32)
    rnn = rnn_jax.equinox.RNN(cell)
    start = (jnp.ones(H), 2 * jnp.ones(H))
    h, c = rnn.states(xs, start)
    wanted = cell(xs[0], start)
    assert_close((h[0], c[0]), wanted, rtol=1e-5)
    np.testing.assert_array_equal(rnn(xs, start), h)
    model = eqx.nn.Sequential([rnn, eqx.nn.Lambda(jnp.sum)])
    assert model(xs, key=jax.random.key(0)).shape == ()
    with pytest.raises(ValueError, match=r"nothing says what function starts from: give hidden="):
        rnn_jax.equinox.RNN(lambda x, h: h)(xs)


@pytest.mark.parametrize("name", NAMES)
def test_a_bridged_cell_is_the_cell(x64, name):
    factory = CELLS[name]
    cell = from_equinox(factory)
    assert (cell.affine is not None) == (name != "own")
    params = cell.init(jax.random.key(3), D)
    xs = random((T, B, D))

    def ours(params, xs):
        return cell.emit(rnn_jax.unroll(cell, params, cell.initial_state(params, (B,)), xs))

    def plain(params, xs):
        static = eqx.filter(factory(jax.random.key(0)), eqx.is_inexact_array, inverse=True)
        return jax.vmap(Scan(eqx.combine(params, static)), 1, 1)(xs)

    def value(run, params, xs):
        return jnp.sum(jnp.sin(2 * run(params, xs)))

    found, wanted = (
        jax.jit(jax.value_and_grad(value, (1, 2)), static_argnums=0)(run, params, xs)
        for run in (ours, plain)
    )
    assert_close(found, wanted, rtol=1e-10)
    assert_close(params, eqx.filter(factory(jax.random.key(3)), eqx.is_inexact_array))


def test_a_cell_itself_and_a_function():
    own = leaky(jax.random.key(7))
    params = from_equinox(own).init(jax.random.key(0), D)
    np.testing.assert_array_equal(params.weight, own.weight)
    cell = from_equinox(
        lambda x, h: {"h": 0.5 * h["h"] + x},
        hidden={"h": jnp.ones(D)},
        input_shape=(D,),
        emit=lambda h: h["h"],
    )
    params = cell.init(jax.random.key(0), D)
    assert cell.emit(cell.initial_state(params, (B,))).shape == (B, D)


def test_remedies_name_the_users_own_parameter():
    from rnn_jax.gradflow.anatomy import anatomies, name_of

    params = from_equinox(CELLS["LSTMCell"]).init(jax.random.key(0), D)
    (anatomy,) = anatomies({"rnn": params})
    assert name_of({"rnn": params}, anatomy.gate_bias) == f"params['rnn'].bias[{H}:{2 * H}]"
    assert anatomy.gate == "forget"
    (gated,) = anatomies(from_equinox(CELLS["GRUCell"]).init(jax.random.key(0), D))
    assert (gated.gate, gated.gate_bias.columns) == ("update", (H, 2 * H))


def test_errors():
    with pytest.raises(ValueError, match=r"wants a cell .* or a function key -> cell, but was .*3"):
        from_equinox(3)
    with pytest.raises(ValueError, match=r"nothing says what function starts from: give hidden="):
        from_equinox(lambda x, h: h)
    with pytest.raises(ValueError, match=r"the factory failed to make a cell of a key: .*let it"):
        from_equinox(lambda key: eqx.nn.GRUCell(D, H))


def test_without_equinox_one_line_says_what_to_install():
    program = "import sys; sys.modules['equinox'] = None; import rnn_jax.bridge, rnn_jax.equinox"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: rnn_jax.equinox needs Equinox, which is not installed: "
        "pip install 'rnn_jax[equinox]'"
    )
