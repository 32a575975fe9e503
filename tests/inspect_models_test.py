"""`inspect` on unmodified models of Flax, Equinox and the library; whose parameters it names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from inspect_test import adjoints_of, close
from jax import lax

import rnn_jax
from rnn_jax import gradflow

T, B, D, H = 7, 3, 2, 4
LENGTHS = np.array([7, 2, 5])
TOKENS = np.random.default_rng(0).integers(0, 9, size=(B, T))
DOUBLE = {"param_dtype": jnp.float64}


class Classifier(nn.Module):
    """Tokens, padded batches, an LSTM below both directions of a GRU, a head."""

    @nn.compact
    def __call__(self, tokens, lengths):
        xs = nn.Embed(9, D, **DOUBLE)(tokens)
        xs = nn.RNN(nn.OptimizedLSTMCell(H, **DOUBLE))(xs, seq_lengths=lengths)
        both = nn.Bidirectional(nn.RNN(nn.GRUCell(H, **DOUBLE)), nn.RNN(nn.GRUCell(H, **DOUBLE)))
        xs = both(xs, seq_lengths=lengths)
        valid = jnp.arange(T)[None, :, None] < lengths[:, None, None]
        return nn.Dense(3, **DOUBLE)(jnp.sum(jnp.where(valid, xs, 0), axis=1))


def test_a_padded_bidirectional_linen_classifier(x64):
    model = Classifier()
    params = jax.jit(model.init)(jax.random.key(0), TOKENS, LENGTHS)

    def loss(params, tokens, lengths):
        return -jnp.mean(jax.nn.log_softmax(model.apply(params, tokens, lengths))[:, 0])

    layers = rnn_jax.inspect(loss, params, TOKENS, LENGTHS)
    watched = jax.jit(rnn_jax.watch(loss, adjoints=True))(params, TOKENS, LENGTHS)[2]
    lstm, forward, backward = layers
    assert lstm == "Classifier/RNN_0"
    assert set(watched) == set(layers)
    c, h = adjoints_of(layers[lstm])
    close(h, watched[lstm][1])
    # What c does to h of the same step, watch counts with c: o (1 - tanh(c)^2).
    states = rnn_jax.plain_unroll(*layers[lstm][:4])
    through_h = h * states[1] / jnp.tanh(states[0]) * (1 - jnp.tanh(states[0]) ** 2)
    close(c + through_h, watched[lstm][0])
    close(adjoints_of(layers[forward])[0], watched[forward][0])
    # The backward one starts at each example's own end.
    (got,), (given,) = adjoints_of(layers[backward]), watched[backward]
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(got[:length, b], given[:length, b][::-1], rtol=1e-9)
        assert np.all(got[length:, b] == 0)
    kernel = params["params"]["OptimizedLSTMCell_0"]["hf"]["kernel"]
    assert layers[lstm].params.own["params"]["OptimizedLSTMCell_0"]["hf"]["kernel"] is kernel
    assert gradflow.diagnose(*layers[forward]).verdict == "healthy"


class Rememberer(nn.Module):
    cell: nn.Module

    @nn.compact
    def __call__(self, xs):
        return nn.Dense(1)(nn.RNN(self.cell, name="reader")(xs)[:, -1])


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        (nn.OptimizedLSTMCell(8), "params['cell']['hf']['bias']"),
        (nn.SimpleCell(8), "params['cell']['h']['kernel']"),
    ],
)
def test_remedies_name_and_change_the_users_own_parameters(cell, named):
    model, xs = Rememberer(cell), jnp.asarray(np.random.default_rng(1).normal(size=(B, 60, D)))
    params = jax.jit(model.init)(jax.random.key(0), xs)["params"]
    params = {**params, "cell": jax.tree.map(lambda w: 0.5 * w, params["cell"])}

    def loss(params, xs):
        return jnp.mean(model.apply({"params": params}, xs) ** 2)

    (layer,) = rnn_jax.inspect(loss, params, xs).values()
    found = gradflow.diagnose(*layer)
    assert found.verdict == "vanishing"
    remedy = next(r for r in found.remedies if named in r.advice and r.edits)
    better = gradflow.apply_remedy(remedy, params)
    assert jax.tree.structure(better) == jax.tree.structure(params)
    np.testing.assert_array_equal(better["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    (after,) = rnn_jax.inspect(loss, better, xs).values()
    horizon = gradflow.diagnose(*after).horizon
    assert horizon > 2 * found.horizon


def test_an_nnx_model():
    class Tagger(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(D, H, rngs=rngs), rngs=rngs)
            self.head = nnx.Linear(H, 1, rngs=rngs)

        def __call__(self, xs):
            return self.head(self.rnn(xs))

    graph, params, rest = nnx.split(Tagger(nnx.Rngs(0)), nnx.Param, ...)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)

    def loss(params):
        return jnp.mean(nnx.merge(graph, params, rest, copy=True)(xs)[:, -1] ** 2)

    (layer,) = rnn_jax.inspect(loss, params).values()
    (wanted,) = jax.jit(rnn_jax.watch(loss, adjoints=True))(params)[2].values()
    close(adjoints_of(layer)[0], wanted[0], 1e-4)
    cells = gradflow.anatomy.anatomies(layer.params)
    assert [cell.gate for cell in cells] == ["update"]


def test_an_equinox_model():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Reader(eqx.Module):
        cell: eqx.nn.LSTMCell
        head: eqx.nn.Linear

        def __call__(self, xs):
            start = (jnp.zeros(H), jnp.zeros(H))
            (h, _), _ = lax.scan(lambda s, x: (self.cell(x, s), None), start, xs)
            return self.head(h)

    keys = jax.random.split(jax.random.key(0))
    model = Reader(eqx.nn.LSTMCell(D, H, key=keys[0]), eqx.nn.Linear(H, 1, key=keys[1]))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(B, 40, D)), jnp.float32)

    def loss(model, xs):
        return jnp.mean(jax.vmap(eqx.combine(model, static))(xs) ** 2)

    (layer,) = rnn_jax.inspect(loss, params, xs).values()
    assert gradflow.state_gradients(*layer).shape == (40, B)
    found = gradflow.diagnose(*layer)
    remedy = next(r for r in found.remedies if f"params.cell.bias[{H}:{2 * H}]" in r.advice)
    better = gradflow.apply_remedy(remedy, params)
    assert isinstance(better, Reader)
    np.testing.assert_allclose(better.cell.bias[H : 2 * H], remedy.setting, rtol=1e-6)
    np.testing.assert_array_equal(better.cell.bias[:H], params.cell.bias[:H])


def test_pytorch_layouts_are_recognised():
    weights = {
        "rnn": {
            "weight_ih_l0": jnp.zeros((H, D)),
            "weight_hh_l0": jnp.zeros((H, H)),
            "bias_ih_l0": jnp.zeros(H),
            "bias_hh_l0": jnp.zeros(H),
            "weight_ih_l1": jnp.zeros((4 * H, H)),
            "weight_hh_l1": jnp.zeros((4 * H, H)),
            "bias_hh_l1": jnp.zeros(4 * H),
        },
        "gru": {"weight_hh": jnp.zeros((3 * H, H)), "bias": jnp.zeros(3 * H)},
        "other": {"weight_hh": jnp.zeros((2 * H, H)), "bias": jnp.zeros(2 * H)},
    }
    found = {a.scales["W"][0].path: a for a in gradflow.anatomy.anatomies(weights)}
    assert {path: a.gate for path, a in found.items()} == {
        "['gru']['weight_hh']": "update",
        "['rnn']['weight_hh_l0']": "",
        "['rnn']['weight_hh_l1']": "forget",
    }
    elman, gates = (found[f"['rnn']['weight_hh_l{n}']"] for n in (0, 1))
    assert elman.inputs.path == "['rnn']['weight_ih_l0']"
    assert elman.bias.path == "['rnn']['bias_hh_l0']"
    assert gates.gate_bias == ("['rnn']['bias_hh_l1']", (H, 2 * H))


# The library's own unroll: its cell is known, and so is its structure.

UNROLLED = {
    "lstm": (lambda: rnn_jax.lstm(H), None),
    "elman": (lambda: rnn_jax.elman(H), LENGTHS),
    "stack": (lambda: rnn_jax.stack([rnn_jax.elman(H), rnn_jax.gru(H)]), LENGTHS),
    "segmented": (lambda: rnn_jax.segmented(rnn_jax.gru(H), 3), None),
}


@pytest.mark.parametrize("name", UNROLLED)
def test_a_cell_that_is_unrolled_in_a_loss(x64, name):
    make, lengths = UNROLLED[name]
    cell = make()
    own = cell.init(jax.random.key(0), D)
    rng = np.random.default_rng(1)
    params = {"rnn": jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), own)}
    params["head"] = jnp.asarray(rng.normal(size=(H, 2)))
    xs = jnp.asarray(rng.normal(size=(T, B, D)))
    state = cell.initial_state(params["rnn"], (B,))

    def loss(params, xs):
        states = rnn_jax.unroll(cell, params["rnn"], state, xs, lengths=lengths)
        # Of a padded example the last state stays to the end.
        return jnp.sum(jnp.sin(cell.emit(states)[jnp.array([1, T - 1])] @ params["head"]))

    ((_, layer),) = rnn_jax.inspect(loss, params, xs).items()
    (wanted,) = jax.jit(rnn_jax.watch(loss, adjoints=True))(params, xs)[2].values()
    for got, leaf in zip(adjoints_of(layer), wanted, strict=True):
        close(got, leaf)
    assert set(layer.params.own) == {"rnn"}
    found = [cell.scales["W"][0].path for cell in gradflow.anatomy.anatomies(layer.params)]
    assert all(path.startswith("['rnn']") for path in found)
    assert found
    if name == "elman":
        assert np.isfinite(gradflow.diagnose(*layer).saturation)


def test_an_unroll_under_vmap_is_refused_in_one_line():
    cell = rnn_jax.elman(H)
    params = jax.vmap(lambda key: cell.init(key, D))(jax.random.split(jax.random.key(0), 2))

    def loss(params):
        run = lambda p: rnn_jax.unroll(cell, p, jnp.zeros((B, H)), jnp.ones((T, B, D)))  # noqa: E731
        return jnp.sum(jax.vmap(run)(params))

    with pytest.raises(ValueError, match=r"rnn_jax\.unroll under jax\.vmap"):
        rnn_jax.inspect(loss, params)
