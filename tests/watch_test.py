"""dL/ds_t of scans anywhere in a program, against zeros added by hand to the same program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_as_users_do
from jax import lax

import rnn_jax

T, B, D, H = 5, 3, 2, 4


def draw(seed, *shape, scale=0.6):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


def weights(seed=0, inputs=D, hidden=H):
    return {"U": draw(seed, inputs, hidden), "W": draw(seed + 1, hidden, hidden)}


def elman(p, h, x):
    return jnp.tanh(x @ p["U"] + h @ p["W"])


def check(loss, zeros, *args):
    """loss(params, *args, zeros=None) at zeros, a dict of lists of leaves, against `watch`."""

    @jit_as_users_do
    def both(params, *args):
        by_hand = jax.value_and_grad(lambda p, z: loss(p, *args, zeros=z), argnums=(0, 1))
        return rnn_jax.watch(loss, adjoints=True)(params, *args), by_hand(params, zeros)

    (value, grads, adjoints), (wanted_value, (wanted_grads, wanted)) = both(*args)
    assert value == wanted_value
    jax.tree.map(np.testing.assert_array_equal, grads, wanted_grads)
    assert [len(leaves) for leaves in adjoints.values()] == [len(w) for w in wanted.values()]
    for got, leaves in zip(adjoints.values(), wanted.values(), strict=True):
        for a, leaf in zip(got, leaves, strict=True):
            assert a.dtype == leaf.dtype
            tolerance = 1e-11 if a.dtype == jnp.float64 else 1e-5
            np.testing.assert_allclose(a, leaf, rtol=tolerance, atol=tolerance * np.abs(leaf).max())
            assert np.any(leaf != 0)


def add(h, z):
    return h if z is None else h + z


def at(zeros, name, leaf=0):
    return None if zeros is None else zeros[name][leaf]


# One kind of program each. The zeros stand where a person would write them.


def plain(p, xs, zeros=None):
    def body(h, inputs):
        x, z = inputs
        h = add(elman(p, h, x), z)
        return h, h @ p["W"]

    return jnp.sum(jnp.sin(lax.scan(body, jnp.ones((B, H)), (xs, at(zeros, "a")))[1]))


def reverse(p, xs, zeros=None):
    def body(h, inputs):
        x, z = inputs
        h = add(elman(p, h, x), z)
        return h, h

    last, hs = lax.scan(body, jnp.ones((B, H)), (xs, at(zeros, "a")), reverse=True)
    return jnp.sum(last**2) + jnp.sum(jnp.sin(hs) * jnp.arange(T)[:, None, None])


def flipped(p, xs, zeros=None):
    def body(h, inputs):
        x, z = inputs
        h = add(elman(p, h, x), z)
        return h, h

    z = at(zeros, "a")
    hs = lax.scan(body, jnp.ones((B, H)), (xs[::-1], None if z is None else z[::-1]))[1]
    return jnp.sum(jnp.sin(hs) * jnp.arange(T)[:, None, None])


def lstm_like(p, xs, zeros=None):
    def body(state, inputs):
        (c, h), (x, of_c, of_h) = state, inputs
        gate = elman(p, h, x)
        c = add(c * jax.nn.sigmoid(gate) + gate, of_c)
        h = add(jnp.tanh(c) * gate, of_h)
        return (c, h), h

    start = (jnp.zeros((B, H)), jnp.zeros((B, H)))
    return jnp.sum(lax.scan(body, start, (xs, at(zeros, "a"), at(zeros, "a", 1)))[1] ** 2)


def within_step(wrap):
    """The step within a jit or a checkpoint: its state and its output come out together."""

    def loss(p, xs, zeros=None):
        @wrap
        def step(p, h, x, z):
            h = add(elman(p, h, x), z)
            return h, jnp.sin(h) @ p["W"]

        def body(h, inputs):
            return step(p, h, *inputs)

        return jnp.sum(lax.scan(body, jnp.ones((B, H)), (xs, at(zeros, "a")))[1] ** 2)

    return loss


def around(wrap):
    """The whole scan within something."""

    def loss(p, xs, zeros=None):
        def run(p, xs, z):
            def body(h, inputs):
                x, z = inputs
                h = add(elman(p, h, x), z)
                return h, h

            return lax.scan(body, jnp.ones((B, H)), (xs, z))[1]

        return jnp.sum(jnp.sin(wrap(run)(p, xs, at(zeros, "a"))))

    return loss


def in_cond(run):
    def chosen(p, xs, z):
        return lax.cond(xs[0, 0, 0] > 100, lambda *a: 2 * jnp.ones((T, B, H)), run, p, xs, z)

    return chosen


def in_vmap(run):
    """Over examples, the batch last outside and first in the scan."""

    def mapped(p, xs, z):
        def one(x, z):
            def body(h, inputs):
                x, z = inputs
                h = add(elman(p, h, x), z)
                return h, h

            return lax.scan(body, jnp.ones(H), (x, z))[1]

        return jax.vmap(one, in_axes=(1, None if z is None else 1), out_axes=1)(xs, z)

    return mapped


def in_custom_jvp(run):
    @jax.custom_jvp
    def ruled(p, xs, z):
        return run(p, xs, z)

    @ruled.defjvp
    def _(primals, tangents):
        return jax.jvp(run, primals, tangents)

    def called(p, xs, z):
        return ruled(p, xs, jnp.zeros((T, B, H)) if z is None else z)

    return called


def masked_twin(p, xs, zeros=None):
    """The output is computed from the state before padding is masked."""

    def body(h, inputs):
        (x, t), z = inputs
        valid = (t < jnp.array([5, 2, 3]))[:, None]
        new = elman(p, h, x)
        new, old = add(new, z), add(h, z)
        return jnp.where(valid, new, old), jnp.sin(new) * valid

    return jnp.sum(lax.scan(body, jnp.ones((B, H)), ((xs, jnp.arange(T)), at(zeros, "a")))[1])


def concatenated(p, xs, zeros=None):
    def body(state, inputs):
        x, z = inputs
        c, h = jnp.split(state, 2, axis=-1)
        gate = elman(p, h, x)
        c = add(0.5 * c + gate, None if z is None else z[..., :H])
        h = add(jnp.tanh(c), None if z is None else z[..., H:])
        return jnp.concatenate([c, h], axis=-1), h

    return jnp.sum(lax.scan(body, jnp.ones((B, 2 * H)), (xs, at(zeros, "a")))[1] ** 2)


def fori(p, xs, zeros=None):
    def body(t, carry):
        h, total = carry
        z = None if zeros is None else zeros["a"][0][t]
        h = add(elman(p, h, xs[t]), z)
        return h, total + jnp.sum(h**2)

    return lax.fori_loop(0, T, body, (jnp.ones((B, H)), 0.0))[1]


PROGRAMS = {
    "plain": plain,
    "reverse": reverse,
    "flipped": flipped,
    "lstm_like": lstm_like,
    "step_in_jit": within_step(jax.jit),
    "step_in_remat": within_step(jax.checkpoint),
    "in_jit": around(jax.jit),
    "in_remat": around(jax.checkpoint),
    "in_cond": around(in_cond),
    "in_vmap": around(in_vmap),
    "in_custom_jvp": around(in_custom_jvp),
    "masked_twin": masked_twin,
    "concatenated": concatenated,
    "fori": fori,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_kind_of_program_equals_zeros_added_by_hand(name, x64):
    size = 2 * H if name == "concatenated" else H
    zeros = [jnp.zeros((T, B, size))] * (2 if name == "lstm_like" else 1)
    check(PROGRAMS[name], {"a": zeros}, weights(), draw(9, T, B, D))


def test_norms_are_over_the_last_axis_and_all_leaves(x64):
    args = weights(), draw(9, T, B, D)
    (norm,) = jax.jit(rnn_jax.watch(lstm_like))(*args)[2].values()
    (leaves,) = jax.jit(rnn_jax.watch(lstm_like, adjoints=True))(*args)[2].values()
    wanted = np.sqrt(sum(np.sum(np.square(leaf), axis=-1) for leaf in leaves))
    assert norm.shape == (T, B)
    np.testing.assert_allclose(norm, wanted, rtol=1e-12)


def test_nested_scans_have_an_axis_for_the_outer_one(x64):
    def loss(p, xs, zeros=None):
        def inner(h, inputs):
            x, z = inputs
            h = add(elman(p, h, x), z)
            return h, jnp.sin(h)

        def outer(h, inputs):
            xs, z, within = inputs
            h, ys = lax.scan(inner, 0.5 * h, (xs, within))
            h = add(h, z)
            return h, jnp.sum(ys) + jnp.sum(h**3)

        xs = xs.reshape(2, T, B, D), at(zeros, "outer in loss"), at(zeros, "within outer")
        return jnp.sum(lax.scan(outer, jnp.ones((B, H)), xs)[1])

    zeros = {"outer in loss": [jnp.zeros((2, B, H))], "within outer": [jnp.zeros((2, T, B, H))]}
    check(loss, zeros, weights(), draw(9, 2 * T, B, D))


def test_a_branch_that_is_not_taken_has_zero_adjoints(x64):
    def loss(p, xs, taken):
        def run(xs):
            return jnp.sum(lax.scan(lambda h, x: (elman(p, h, x), None), jnp.ones((B, H)), xs)[0])

        return lax.cond(taken, run, lambda xs: jnp.sum(p["U"]), xs)

    watched = jax.jit(rnn_jax.watch(loss))
    for taken in (True, False):
        _, _, norms = watched(weights(), draw(9, T, B, D), taken)
        (norm,) = norms.values()
        assert np.all((norm > 0) == taken)


def test_a_rule_of_the_users_own_keeps_its_gradient_and_shows_the_functions_own_adjoints(x64):
    def hidden(p, xs, z=None):
        def body(h, inputs):
            x, z = inputs
            h = add(elman(p, h, x), z)
            return h, h

        return lax.scan(body, jnp.ones((B, H)), (xs, z))[1]

    @jax.custom_vjp
    def clipped(p, xs):
        return hidden(p, xs)

    def forward(p, xs):
        return jax.vjp(hidden, p, xs)

    clipped.defvjp(forward, lambda pull, g: jax.tree.map(lambda x: x * 0.1, pull(g)))

    def loss(p, xs):
        return jnp.sum(jnp.sin(clipped(p, xs)))

    p, xs = weights(), draw(9, T, B, D)
    value, grads, adjoints = jit_as_users_do(rnn_jax.watch(loss, adjoints=True))(p, xs)
    wanted_value, wanted = jit_as_users_do(jax.value_and_grad(loss))(p, xs)
    assert value == wanted_value
    jax.tree.map(np.testing.assert_array_equal, grads, wanted)
    by_hand = jax.jit(jax.grad(lambda z: jnp.sum(jnp.sin(hidden(p, xs, z)))))(jnp.zeros((T, B, H)))
    np.testing.assert_allclose(adjoints.popitem()[1][0], by_hand, rtol=1e-12)


def random_program(seed):
    """Three layers, each of a random kind, one after the other."""
    rng = np.random.default_rng(seed)
    kinds = [str(rng.choice(["plain", "reverse", "remat", "vmap", "cond", "jit"])) for _ in "abc"]
    dtypes = [jnp.float64 if rng.random() < 0.7 else jnp.float32 for _ in "abc"]
    two_leaves = [bool(rng.random() < 0.5) for _ in "abc"]

    def layer(kind, dtype, two, p, xs, z):
        p = jax.tree.map(lambda w: w.astype(dtype), p)
        xs = xs.astype(dtype)

        def step(state, inputs):
            x, of_h, of_m = inputs
            h, m = state if two else (state, 0)
            h = add(elman(p, h + m, x), of_h)
            if not two:
                return h, h
            m = add(0.9 * m + h, of_m)
            return (h, m), h * m

        if kind == "remat":
            step = jax.checkpoint(step)
        start = jnp.zeros((*xs.shape[1:-1], H), dtype)
        if kind == "vmap":
            start = jnp.zeros(H, dtype)

        def run(xs, *z):
            first = (start, start) if two else start
            return lax.scan(step, first, (xs, *z), reverse=kind == "reverse")[1]

        if kind == "vmap":
            axes = [1, *(None if leaf is None else 1 for leaf in z)]
            return jax.vmap(run, in_axes=axes, out_axes=1)(xs, *z)
        if kind == "jit":
            return jax.jit(run)(xs, *z)
        if kind == "cond":
            return lax.cond(
                jnp.sum(xs) < 1e9, run, lambda xs, *z: jnp.zeros((T, B, H), dtype), xs, *z
            )
        return run(xs, *z)

    def loss(params, xs, zeros=None):
        for n, (kind, dtype, two) in enumerate(zip(kinds, dtypes, two_leaves, strict=True)):
            z = at(zeros, n), at(zeros, n, 1) if two else None
            xs = layer(kind, dtype, two, params[n], xs, z)
        return jnp.sum(jnp.sin(xs.astype(jnp.float64)))

    zeros = {
        n: [jnp.zeros((T, B, H), dtype)] * (1 + two)
        for n, (dtype, two) in enumerate(zip(dtypes, two_leaves, strict=True))
    }
    return loss, zeros


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_equal_zeros_added_by_hand(seed, x64):
    loss, zeros = random_program(seed)
    params = [weights(seed), weights(seed + 2, H), weights(seed + 4, H)]
    check(loss, zeros, params, draw(seed, T, B, D))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 60))
def test_more_random_programs_equal_zeros_added_by_hand(seed, x64):
    test_random_programs_equal_zeros_added_by_hand(seed, None)
