"""`watch` on unmodified models: Flax Linen, Flax NNX, Equinox, and the library's own `unroll`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_as_users_do
from flax import linen as nn
from flax import nnx
from jax import lax

import rnn_jax

T, B, D, H = 6, 3, 2, 4
TOKENS = np.random.default_rng(0).integers(0, 9, size=(B, T))
XS = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
LENGTHS = np.array([6, 2, 4])


def against_value_and_grad(loss, *args, **options):
    """Loss, gradients and norms; the first two are the user's own to the last bit."""
    loss_and_grads = jit_as_users_do(jax.value_and_grad(loss))(*args)
    value, grads, norms = jit_as_users_do(rnn_jax.watch(loss, **options))(*args)
    assert value == loss_and_grads[0]
    jax.tree.map(np.testing.assert_array_equal, grads, loss_and_grads[1])
    return value, grads, norms


class Classifier(nn.Module):
    """Tokens, dropout, padded batches, a head."""

    @nn.compact
    def __call__(self, tokens, lengths):
        xs = nn.Embed(9, D)(tokens)
        xs = nn.RNN(nn.GRUCell(H))(xs, seq_lengths=lengths)
        xs = nn.Dropout(0.3, deterministic=False)(xs)
        (_, last), _ = nn.RNN(nn.LSTMCell(H), return_carry=True)(xs, seq_lengths=lengths)
        return nn.Dense(9)(last)


def test_a_linen_classifier_with_dropout_and_padding():
    model = Classifier()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = jax.jit(model.init)(keys, TOKENS, LENGTHS)

    def loss(params, tokens, lengths, key):
        logits = model.apply(params, tokens, lengths, rngs={"dropout": key})
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    args = params, TOKENS, LENGTHS, jax.random.key(2)
    _, _, norms = against_value_and_grad(loss, *args)
    assert list(norms) == ["Classifier/RNN_0", "Classifier/RNN_1"]
    for norm in norms.values():
        assert norm.shape == (T, B)
        # Of a step past an example's end no loss knows.
        assert np.array_equal(np.asarray(norm) != 0, np.arange(T)[:, None] < LENGTHS)


class Reader(nn.Module):
    reverse: bool
    masked: bool

    @nn.compact
    def __call__(self, xs, zeros):
        lengths = jnp.asarray(LENGTHS) if self.masked else None
        rnn = nn.RNN(nn.SimpleCell(H), reverse=self.reverse, keep_order=True)
        return rnn(xs, seq_lengths=lengths)


@pytest.mark.parametrize("masked", [False, True])
def test_a_reversed_linen_rnn_is_shown_in_the_given_order(masked):
    """Its loss is of one step alone, so no adjoint is left of it: there the sequence was read."""
    model = Reader(True, masked)
    params = jax.jit(model.init)(jax.random.key(0), XS, None)
    cell = nn.SimpleCell(H)

    def loss(params, chosen):
        return jnp.sum(model.apply(params, XS, None)[:, chosen] ** 2)

    def by_hand(zeros, chosen):
        own = {"params": params["params"]["SimpleCell_0"]}
        total = 0.0
        for b, length in enumerate(LENGTHS if masked else [T] * B):
            h = jnp.zeros(H)
            for t in reversed(range(length)):
                h = cell.apply(own, h, XS[b, t])[0] + zeros[t, b]
                total += jnp.sum(h**2) if t == chosen else 0
        return total

    for chosen in (0, 1):
        (norm,) = against_value_and_grad(loss, params, chosen)[2].values()
        wanted = jax.jit(jax.grad(by_hand), static_argnums=1)(jnp.zeros((T, B, H)), chosen)
        np.testing.assert_allclose(norm, np.linalg.norm(wanted, axis=-1), rtol=2e-5)
        assert np.all((norm == 0)[:chosen])


def test_both_directions_of_a_linen_bidirectional_share_an_axis():
    model = nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H)))
    params = jax.jit(model.init)(jax.random.key(0), XS)
    _, _, norms = against_value_and_grad(lambda p: jnp.sum(model.apply(p, XS)[:, 2]), params)
    (forward,) = (n for name, n in norms.items() if "forward" in name)
    (backward,) = (n for name, n in norms.items() if "backward" in name)
    steps = np.arange(T)
    assert np.array_equal(np.all(np.asarray(forward) != 0, axis=1), steps <= 2)
    assert np.array_equal(np.all(np.asarray(backward) != 0, axis=1), steps >= 2)


@pytest.mark.parametrize(
    "cell", ["SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell"]
)
def test_linen_cells_remat_and_vmap(cell):
    """The adjoints of Flax's cells from the bridge, whose states are perturbed after the step."""
    plain = getattr(nn, cell)(H)
    model = nn.RNN(nn.remat(getattr(nn, cell))(H))
    params = jax.jit(model.init)(jax.random.key(0), XS)

    def loss(p):
        return jnp.sum(jnp.sin(model.apply(p, XS)))

    (adjoints,) = against_value_and_grad(loss, params, adjoints=True)[2].values()
    bridged = rnn_jax.bridge.from_linen(plain)
    own = next(iter(params["params"].values()))
    state = bridged.initial_state(own, (B,))
    xs = jnp.swapaxes(jnp.asarray(XS), 0, 1)

    def perturbed(zeros):
        states = rnn_jax.plain_unroll(bridged, own, state, xs, perturbations=zeros)
        return jnp.sum(jnp.sin(bridged.emit(states)))

    wanted = jax.tree.leaves(jax.grad(perturbed)(rnn_jax.zero_perturbations(state, T)))
    np.testing.assert_allclose(adjoints[-1], wanted[-1], rtol=1e-4, atol=1e-6)
    if len(wanted) == 2:
        # c reaches the loss through h of the same step, too: dh/dc of h = o tanh(c).
        states = rnn_jax.plain_unroll(bridged, own, state, xs)
        c, h = jax.tree.leaves(states)
        through_h = wanted[1] * (h / jnp.tanh(c)) * (1 - jnp.tanh(c) ** 2)
        np.testing.assert_allclose(adjoints[0], wanted[0] + through_h, rtol=1e-3, atol=1e-5)


def test_nnx_models():
    class Tagger(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(D, H, rngs=rngs), rngs=rngs)
            self.both = nnx.Bidirectional(
                nnx.RNN(nnx.SimpleCell(H, H, rngs=rngs), rngs=rngs),
                nnx.RNN(nnx.SimpleCell(H, H, rngs=rngs), rngs=rngs),
                rngs=rngs,
            )

        def __call__(self, xs):
            return self.both(self.rnn(xs))

    graph, params, rest = nnx.split(Tagger(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params):
        return jnp.sum(nnx.merge(graph, params, rest, copy=True)(XS)[:, 2])

    _, _, norms = against_value_and_grad(loss, params)
    assert [n.shape for n in norms.values()] == [(T, B)] * 3
    steps = np.arange(T)
    seen = [np.all(np.asarray(n) != 0, axis=1) for n in norms.values()]
    assert np.array_equal(seen[1], steps <= 2)
    assert np.array_equal(seen[2], steps >= 2)


def test_equinox_models():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Tagger(eqx.Module):
        cell: eqx.nn.GRUCell
        head: eqx.nn.Linear

        def __call__(self, xs):
            def step(h, x):
                h = self.cell(x, h)
                return h, self.head(h)

            return lax.scan(step, jnp.zeros(H), xs)[1]

    keys = jax.random.split(jax.random.key(0))
    model = Tagger(eqx.nn.GRUCell(D, H, key=keys[0]), eqx.nn.Linear(H, 1, key=keys[1]))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @eqx.filter_jit
    def predict(model, xs):
        return jax.vmap(model)(xs)

    def loss(params, xs):
        return jnp.mean(predict(eqx.combine(params, static), xs) ** 2)

    _, _, norms = against_value_and_grad(loss, params, XS)
    ((name, norm),) = norms.items()
    assert name.startswith("Tagger.__call__ (watch_models_test.py:")
    assert norm.shape == (T, B)
    assert np.all(np.asarray(norm) > 0)


# The library's own unroll: the adjoints of its own backward pass.


def stacked():
    return rnn_jax.stack([rnn_jax.elman(H), rnn_jax.lstm(H)])


UNROLLED = {
    "lstm": (lambda: rnn_jax.lstm(H), None),
    "stack": (stacked, LENGTHS),
    "segmented": (lambda: rnn_jax.segmented(stacked(), 4), LENGTHS),
}


@pytest.mark.parametrize("name", UNROLLED)
def test_unroll_shows_the_adjoints_of_its_own_backward_pass(name):
    make, lengths = UNROLLED[name]
    cell = make()
    params = cell.init(jax.random.key(0), D)
    xs = jnp.swapaxes(jnp.asarray(XS), 0, 1)
    state = cell.initial_state(params, (B,))

    def loss(params, zeros=None):
        states = rnn_jax.unroll(cell, params, state, xs, perturbations=zeros, lengths=lengths)
        return jnp.sum(jnp.sin(cell.emit(states)))

    ((shown, adjoints),) = against_value_and_grad(loss, params, adjoints=True)[2].items()
    assert shown.startswith("test_unroll_shows") or shown.startswith("loss (watch_models_test.py")
    wanted = jax.jit(jax.grad(loss, argnums=1))(params, rnn_jax.zero_perturbations(state, T))
    for a, w in zip(adjoints, jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, w, rtol=1e-5, atol=1e-6)
    assert len(adjoints) == len(jax.tree.leaves(wanted))


def test_unroll_under_vmap_has_adjoints_for_each_member():
    cell = rnn_jax.elman(H)
    params = jax.vmap(lambda key: cell.init(key, D))(jax.random.split(jax.random.key(0), 2))
    xs = jnp.swapaxes(jnp.asarray(XS), 0, 1)

    def of_one(params):
        states = rnn_jax.unroll(cell, params, jnp.zeros((B, H)), xs)
        return jnp.sum(jnp.sin(states))

    def loss(params):
        return jnp.sum(jax.vmap(of_one)(params))

    (norm,) = against_value_and_grad(loss, params)[2].values()
    (one,) = jax.vmap(rnn_jax.watch(of_one))(params)[2].values()
    np.testing.assert_allclose(norm, np.swapaxes(one, 0, 1), rtol=1e-5)


def test_unroll_runs_its_own_backward_pass_under_watch():
    """A cell whose derivative by hand is wrong shows that its rule is the one that runs."""
    cell = rnn_jax.gru(H)
    wrong = cell.affine.derivative._replace(
        pull=lambda s, new, kept, g: jax.tree.map(
            lambda a: 0.5 * a, cell.affine.derivative.pull(s, new, kept, g)
        )
    )
    params, xs = cell.init(jax.random.key(0), D), jnp.ones((T, B, D))
    norms = []
    for derivative in (cell.affine.derivative, wrong):
        own = cell._replace(affine=cell.affine._replace(derivative=derivative))

        def loss(p, own=own):
            return jnp.sum(rnn_jax.unroll(own, p, jnp.zeros((B, H)), xs)[-1])

        norms.append(np.asarray(next(iter(rnn_jax.watch(loss)(params)[2].values()))))
    right, halved = norms
    np.testing.assert_allclose(halved, right * 0.5 ** np.arange(T)[::-1, None], rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_both_directions_of_bidirectional_unroll_share_an_axis(masked):
    network = rnn_jax.bidirectional(rnn_jax.elman(H), rnn_jax.lstm(H))
    params = network.init(jax.random.key(0), D)
    xs = jnp.swapaxes(jnp.asarray(XS), 0, 1)
    state = network.initial_state(params, (B,))
    lengths = jnp.asarray(LENGTHS) if masked else None

    def loss(params):
        states = rnn_jax.bidirectional_unroll(network, params, state, xs, lengths=lengths)
        return jnp.sum(network.emit(states)[1])

    _, _, norms = against_value_and_grad(loss, params)
    assert [name.split("/")[-1] for name in norms] == ["backward", "forward"]
    backward, forward = (np.asarray(n) != 0 for n in norms.values())
    steps, ends = np.arange(T)[:, None], LENGTHS if masked else np.full(B, T)
    assert np.array_equal(forward, np.broadcast_to(steps <= 1, (T, B)))
    assert np.array_equal(backward, (steps >= 1) & (steps < ends))
