"""A recurrence inside a model, as gradflow takes it: against `watch` and answers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rnn_jax
from rnn_jax import gradflow

T, B, D, H = 6, 3, 2, 4


def draw(seed, *shape, scale=0.6):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


@pytest.fixture
def weights(x64):
    return {"U": draw(0, D, H), "W": draw(1, H, H), "V": draw(2, H, 2)}


def elman(p, h, x):
    return jnp.tanh(x @ p["U"] + h @ p["W"])


def adjoints_of(layer):
    """lambda_t of every leaf, from e_t and the layer's own step alone."""
    cell, params, state, xs, immediate = layer

    @jax.jit
    def total(zeros):
        states = rnn_jax.plain_unroll(cell, params, state, xs, perturbations=zeros)
        pairs = zip(*map(jax.tree.leaves, (states, immediate.gradients)), strict=True)
        return sum(jnp.sum(s * e) for s, e in pairs)

    num_steps = jax.tree.leaves(immediate.gradients)[0].shape[0]
    return jax.tree.leaves(jax.grad(total)(rnn_jax.zero_perturbations(state, num_steps)))


def close(got, wanted, tolerance=1e-10):
    assert jnp.shape(got) == jnp.shape(wanted)
    scale = float(np.abs(wanted).max())
    assert scale > 0
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * scale)


def check(loss, *args, backward=(), outer=0, **options):
    """Layers of a loss whose lambda_t are those of `watch`; the ones that read backward flipped."""
    layers = rnn_jax.inspect(loss, *args, **options)
    watched = jax.jit(rnn_jax.watch(loss, adjoints=True, **options))(*args)[2]
    names = [name if not outer else f"{name}[{i}]" for name in watched for i in range(outer or 1)]
    assert sorted(layers) == names
    for name, layer in layers.items():
        wanted = watched[name.split("[")[0]]
        if outer:
            wanted = [a[int(name.split("[")[1][:-1])] for a in wanted]
        if name in backward:
            wanted = [a[::-1] for a in wanted]
        for got, leaf in zip(adjoints_of(layer), wanted, strict=True):
            close(got, leaf)
        logs = gradflow.state_gradients(*layer)
        close(np.exp(logs), np.sqrt(sum(jnp.sum(a**2, -1) for a in wanted)))
    return layers


# Programs of plain JAX, a kind each.


def outputs_inside(p, xs):
    """The head within the step, on the new state and on the old one."""

    def body(h, x):
        new = elman(p, h, x)
        return new, (new @ p["V"]) * jnp.sin(h @ p["V"])

    return jnp.sum(lax.scan(body, jnp.ones((B, H)), xs)[1] ** 2)


def masked(p, xs):
    """Padding keeps the state, and the loss is accumulated in the carry beside a counter."""
    lengths = jnp.asarray([6, 2, 4])

    def body(carry, x):
        t, h, total = carry
        valid = (t < lengths)[:, None]
        new = elman(p, h, x)
        h = jnp.where(valid, new, h)
        loss = jnp.sum(jnp.where(valid, new @ p["V"], 0) ** 2)
        return (t + 1, h, total + loss), None

    return lax.scan(body, (0, jnp.ones((B, H)), 0.0), xs)[0][2]


def reversed_scan(p, xs):
    hs = lax.scan(lambda h, x: (elman(p, h, x),) * 2, jnp.ones((B, H)), xs, reverse=True)[1]
    return jnp.sum(jnp.sin(hs) * jnp.arange(T)[:, None, None])


def two_layers(p, xs):
    """The first under a checkpoint in a jit; its adjoints go through the second."""

    @jax.jit
    def first(p, xs):
        step = jax.checkpoint(lambda h, x: (elman(p, h, x),) * 2)
        return lax.scan(step, jnp.ones((B, H)), xs)[1]

    def body(h, x):
        h = jnp.tanh(x @ p["W"].T + h @ p["W"])
        return h, None

    return jnp.sum(jnp.sin(lax.scan(body, jnp.zeros((B, H)), first(p, xs))[0]))


def within_cond(p, xs):
    def run(p):
        return jnp.sum(lax.scan(lambda h, x: (elman(p, h, x),) * 2, jnp.ones((B, H)), xs)[1] ** 2)

    return lax.cond(p["U"][0, 0] < 100, run, lambda p: jnp.sum(p["W"]), p)


def mapped(p, xs):
    """One example's scan under vmap, with a mask of its own for each."""
    keep = jnp.asarray(np.random.default_rng(5).integers(1, 3, (B, H)) * 0.8)

    def one(xs, keep):
        return lax.scan(lambda h, x: (elman(p, h * keep, x),) * 2, jnp.ones(H), xs)[1]

    return jnp.sum(jax.vmap(one, in_axes=(1, 0))(xs, keep) ** 2)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def other_gates(p, xs):
    """Two leaves of other batch axes that feed each other are one state."""

    def body(carry, x):
        h, gain = carry
        h = elman(p, h, x) * gain[:, None] + doubled(0.1 * h)
        return (h, jax.nn.sigmoid(gain * jnp.sum(h, -1))), h

    return jnp.sum(lax.scan(body, (jnp.ones((B, H)), jnp.ones(B)), xs)[1] ** 2)


def without_batch(p, xs):
    return jnp.sum(lax.scan(lambda h, x: (elman(p, h, x),) * 2, jnp.ones(H), xs[:, 0])[1] ** 2)


PLAIN = {
    f.__name__: f
    for f in (
        outputs_inside,
        masked,
        reversed_scan,
        two_layers,
        within_cond,
        mapped,
        without_batch,
    )
}


@pytest.mark.parametrize("name", PLAIN)
def test_adjoints_are_those_of_watch(weights, name):
    loss, xs = PLAIN[name], draw(3, T, B, D)
    names = list(jax.eval_shape(rnn_jax.watch(loss), weights, xs)[2])
    layers = check(loss, weights, xs, backward=names if name == "reversed_scan" else ())
    batch = () if name == "without_batch" else (B,)
    assert {gradflow.state_gradients(*layer).shape for layer in layers.values()} == {(T, *batch)}


def test_the_state_is_all_that_feeds_it(weights):
    xs = draw(3, T, B, D)
    layers = rnn_jax.inspect(other_gates, weights, xs)
    adjoints = jax.jit(rnn_jax.watch(other_gates, adjoints=True))(weights, xs)[2]
    (h, *_), (gain, *_) = adjoints.values()
    for layer in layers.values():
        assert [leaf.shape for leaf in layer.state] == [(B, H), (B,)]
        of_h, of_gain = adjoints_of(layer)
        close(of_gain, gain)
        # What h does to the gain of the same step, watch counts with h.
        states = rnn_jax.plain_unroll(*layer[:4])
        before = jnp.concatenate([layer.state[1][None], states[1][:-1]])
        slope = states[1] * (1 - states[1]) * before
        close(of_h + (of_gain * slope)[..., None], h)


def test_credit_against_zeros_by_hand(weights):
    """dL_t/ds_k of a masked loss with its head in the step, one loss and one state at a time."""
    xs, lengths = draw(3, T, B, D), np.array([6, 2, 4])
    targets = draw(4, T, B, 2)

    def losses(p, zeros):
        def body(h, inputs):
            x, z, y = inputs
            h = elman(p, h, x) + z
            return h, jnp.sum((h @ p["V"] - y) ** 2, -1)

        values = lax.scan(body, jnp.ones((B, H)), (xs, zeros, targets))[1]
        return jnp.where(jnp.arange(T)[:, None] < lengths[None], values, 0.0)

    def loss(p):
        return jnp.sum(losses(p, jnp.zeros((T, B, H))))

    (layer,) = rnn_jax.inspect(loss, weights).values()
    got = gradflow.credit_matrix(*layer)
    # [T, B, T, B, H]: each loss by each zero.
    every = jax.jit(jax.jacrev(losses, argnums=1))(weights, jnp.zeros((T, B, H)))
    own = jnp.stack([every[:, b, :, b] for b in range(B)])
    wanted = jnp.sqrt(jnp.mean(jnp.sum(own**2, -1), axis=0))
    np.testing.assert_allclose(np.exp(got), wanted, rtol=1e-9)


def test_jacobians_exponents_terms_and_bias_of_a_layer_in_a_model(weights):
    """Against the same network as a `Cell` of one's own, its loss as a function of the states."""
    xs = draw(3, T, B, D)
    (layer,) = rnn_jax.inspect(mapped, weights, xs).values()
    keep = jnp.asarray(np.random.default_rng(5).integers(1, 3, (B, H)) * 0.8)
    cell = rnn_jax.Cell(
        None,
        lambda p, batch_shape=(): jnp.zeros((*batch_shape, H)),
        lambda p, h, x: elman({"U": p[0], "W": p[1]}, h * x[..., D:], x[..., :D]),
    )
    params = (weights["U"], weights["W"])
    whole = jnp.concatenate([xs, jnp.broadcast_to(keep, (T, B, H))], -1)
    own = (cell, params, jnp.ones((B, H)), whole)

    def losses(states):
        return jnp.sum(states**2, axis=-1)

    close(gradflow.jacobian_product(*layer[:4]), gradflow.jacobian_product(*own), 1e-8)
    close(gradflow.lyapunov_spectrum(*layer[:4]), gradflow.lyapunov_spectrum(*own), 1e-8)
    for got, wanted in (
        (gradflow.parameter_terms(*layer), gradflow.parameter_terms(*own, losses)),
        (gradflow.truncation_bias(*layer)[1:], gradflow.truncation_bias(*own, losses)[1:]),
    ):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    assert gradflow.diagnose(*layer).verdict == gradflow.diagnose(*own, losses).verdict
    # A mask is nothing that is learned.
    assert layer.params.constants == ()
    sensitivity = gradflow.parameter_sensitivity(*layer[:4]).own
    wanted = gradflow.parameter_sensitivity(*own)
    close(sensitivity["W"], wanted[1])


def test_logarithms_far_outside_floats(weights):
    """600 steps by which a gradient shrinks to e^-1500 of itself: float64 has no such number."""
    p = {"W": jnp.asarray(0.05)}
    num_steps = 600

    def loss(p):
        h = lax.scan(lambda h, _: (p["W"] * h, None), jnp.ones((B, H)), None, length=num_steps)[0]
        return jnp.sum(h)

    (layer,) = rnn_jax.inspect(loss, p).values()
    logs = gradflow.state_gradients(*layer)
    wanted = np.log(0.05) * np.arange(num_steps)[::-1] + np.log(np.sqrt(H))
    np.testing.assert_allclose(logs, np.broadcast_to(wanted[:, None], (num_steps, B)), rtol=1e-12)


def nested(p, xs):
    """Chunks of time: the outer scan hands the state on, and is a recurrence itself."""

    def chunk(h, xs):
        return lax.scan(lambda h, x: (elman(p, h, x),) * 2, h, xs)

    return jnp.sum(lax.scan(chunk, jnp.ones((B, H)), xs.reshape(2, T // 2, B, D))[1] ** 2)


def test_a_scan_within_a_scan_is_a_layer_for_each_outer_step(weights):
    """lambda_t of the first chunk goes through the second one's scan."""
    xs = draw(3, T, B, D)
    watched = jax.jit(rnn_jax.watch(nested, adjoints=True))(weights, xs)[2]
    inner, outer = sorted(watched)
    layers = rnn_jax.inspect(nested, weights, xs)
    assert list(layers) == [outer, f"{inner}[0]", f"{inner}[1]"]
    for i in range(2):
        (got,) = adjoints_of(layers[f"{inner}[{i}]"])
        close(got, watched[inner][0][i])
    (got,) = adjoints_of(layers[outer])
    close(got, watched[outer][0])


def test_arguments_aux_and_keyword_arguments(weights):
    def loss(xs, p, scale):
        return scale * outputs_inside(p, xs), {"scale": scale}

    xs = draw(3, T, B, D)
    (one,) = rnn_jax.inspect(loss, xs, weights, argnums=1, has_aux=True, scale=2.0).values()
    (wanted,) = rnn_jax.inspect(outputs_inside, weights, xs).values()
    assert set(one.params.own) == {"U", "W"}
    close(one.step_losses.gradients, 2 * wanted.step_losses.gradients)
    (several,) = rnn_jax.inspect(
        loss, xs, weights, argnums=(0, 1), has_aux=True, scale=2.0
    ).values()
    close(several.params.own[1]["W"], weights["W"])
    assert several.params.own[0] is None


def test_a_layer_within_a_jit(weights):
    xs = draw(3, T, B, D)

    @jax.jit
    def logs(p, xs):
        (layer,) = rnn_jax.inspect(outputs_inside, p, xs).values()
        return gradflow.state_gradients(*layer)

    (layer,) = rnn_jax.inspect(outputs_inside, weights, xs).values()
    close(logs(weights, xs), gradflow.state_gradients(*layer))


def test_examples_that_read_each_other_are_one(weights):
    def loss(p):
        def body(h, x):
            h = elman(p, h, x)
            return h - jnp.mean(h, axis=0, keepdims=True), h

        return jnp.sum(jnp.sin(lax.scan(body, jnp.ones((B, H)), draw(3, T, B, D))[1]))

    (layer,) = rnn_jax.inspect(loss, weights).values()
    assert gradflow.state_gradients(*layer).shape == (T,)
    assert gradflow.lyapunov_spectrum(*layer[:4]).shape == (B * H,)


def test_weights_that_are_cast_keep_their_name(weights):
    def loss(p):
        total = jnp.sum(p["V"])
        half = jax.tree.map(lambda a: a.astype(jnp.float32).T, p)

        def body(h, x):
            h = jnp.tanh(x @ half["U"].T + h @ half["W"].T + total.astype(jnp.float32))
            return h, h

        xs = draw(3, T, B, D).astype(jnp.float32)
        return jnp.sum(jnp.sin(lax.scan(body, jnp.ones((B, H), jnp.float32), xs)[1]))

    (layer,) = rnn_jax.inspect(loss, weights).values()
    assert set(layer.params.own) == {"U", "W"}
    assert len(layer.params.constants) == 1
    (wanted,) = jax.jit(rnn_jax.watch(loss, adjoints=True))(weights)[2].values()
    close(adjoints_of(layer)[0], wanted[0], 1e-5)
    terms = gradflow.parameter_terms(*layer)
    gradient = jax.jit(jax.grad(loss))(weights)["U"]
    # The first step's summand alone is not the gradient; over one step it is.
    assert terms.own["U"].shape == (T,)
    assert np.isfinite(np.asarray(terms.own["U"])).all()
    assert np.any(gradient != 0)


def test_what_cannot_be_inspected_is_refused_in_one_line(weights):
    xs = draw(3, T, B, D)
    with pytest.raises(ValueError, match=r"there is no lax\.scan"):
        rnn_jax.inspect(lambda p: jnp.sum(p["W"]), weights)
    with pytest.raises(ValueError, match="select names 'x'"):
        rnn_jax.inspect(outputs_inside, weights, xs, select="x")
    (layer,) = rnn_jax.inspect(outputs_inside, weights, xs).values()
    with pytest.raises(ValueError, match="draws no parameters"):
        layer.cell.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="it cannot step from"):
        layer.cell.step(layer.params, layer.state[0], layer.xs[0])

    def not_taken(p):
        run = lambda p: jnp.sum(lax.scan(lambda h, x: (elman(p, h, x), h), jnp.ones((B, H)), xs)[1])  # noqa: E731
        return lax.cond(p["U"][0, 0] > 100, run, lambda p: jnp.sum(p["W"]), p)

    assert rnn_jax.inspect(not_taken, weights) == {}
