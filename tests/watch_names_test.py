"""What `watch` shows, under which name, and what it refuses."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit_as_users_do
from flax import linen as nn
from flax import nnx
from jax import lax

import rnn_jax
from rnn_jax.scans import find_recurrences

T, B, H = 6, 3, 4
XS = np.random.default_rng(0).normal(size=(T, B, H)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(H, H)).astype(np.float32)


def shown(loss, *args):
    """Names and positions of leaves that would be shown; nothing is compiled."""
    found = find_recurrences(jax.make_jaxpr(loss)(*args).jaxpr)
    return {r.name: tuple(leaf.position for leaf in r.leaves) for r in found.recurrences}


# Which leaves of a carry are recurrent state. Every step has the state h as leaf 0, and one more.


def step_h(w, h, x):
    return jnp.tanh(x + h @ w)


NO_STATE = {
    "counter": (0.0, lambda h, a, x: a + 1),
    "accumulated loss": (0.0, lambda h, a, x: a + jnp.sum(h**2)),
    "accumulated where": (0.0, lambda h, a, x: jnp.where(x[0, 0] > 0, a + jnp.sum(h), a)),
    "accumulated in a loop": (
        0.0,
        lambda h, a, x: lax.fori_loop(0, 3, lambda i, b: b + h[i, i], a),
    ),
    "accumulated in a branch": (
        0.0,
        lambda h, a, x: lax.cond(x[0, 0] > 0, lambda: a + 1, lambda: a),
    ),
    "held": (np.ones((B, H)), lambda h, a, x: a),
    "overwritten": (np.ones((B, H)), lambda h, a, x: h),
    "last output kept": (np.ones((B, H)), lambda h, a, x: jnp.where(x > 0, h, a)),
    "buffer filled": (np.ones((T, B, H)), lambda h, a, x: a.at[2].set(h)),
    "buffer shifted": (np.ones((T, B, H)), lambda h, a, x: jnp.concatenate([a[1:], h[None]])),
    "maximum": (0.0, lambda h, a, x: jnp.maximum(a, jnp.max(h))),
    "integer": (0, lambda h, a, x: 3 * a + jnp.argmax(h)),
    "key": (jax.random.key(0), lambda h, a, x: jax.random.split(a)[0]),
}
STATE = {
    "leaky": (np.ones((B, H)), lambda h, a, x: 0.9 * a + h),
    "masked": (np.ones((B, H)), lambda h, a, x: jnp.where(x > 0, jnp.sin(a), a)),
    "residual": (np.ones((B, H)), lambda h, a, x: a + jnp.sin(a)),
    "in a jit": (np.ones((B, H)), lambda h, a, x: jax.jit(jnp.sin)(a)),
    "in a branch": (np.ones((B, H)), lambda h, a, x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, a)),
    "doubled": (np.ones((B, H)), lambda h, a, x: a + a),
    "counts down": (np.ones((B, H)), lambda h, a, x: h - a),
}


@pytest.mark.parametrize("kind", [*NO_STATE, *STATE])
def test_a_leaf_is_state_if_it_is_computed_from_its_own_old_value(kind):
    start, new = {**NO_STATE, **STATE}[kind]

    def loss(w):
        def body(carry, x):
            h, a = carry
            h = step_h(w, h, x)
            return (h, new(h, a, x)), h

        # Held by the scan itself, a leaf that never changes is no carry: hence the sum.
        return jnp.sum(lax.scan(body, (jnp.ones((B, H)), start), XS)[1])

    (leaves,) = shown(loss, W).values()
    assert leaves == ((0, 1) if kind in STATE else (0,))


def test_leaves_on_a_cycle_are_state_together():
    def loss(w, cycle):
        def body(carry, x):
            a, b, _aside = carry
            return (jnp.tanh(b + x), a, a if cycle else b), None

        return jnp.sum(lax.scan(body, (jnp.ones((B, H)),) * 3, XS)[0][2])

    assert list(shown(functools.partial(loss, cycle=True), W).values()) == [(0, 1)]


def test_leaves_of_other_batch_axes_have_a_name_of_their_own():
    def loss(w):
        def body(carry, x):
            h, mean = carry
            h = step_h(w, h - mean[None], x)
            return (h, 0.9 * mean + 0.1 * jnp.mean(h, 0)), h

        with jax.named_scope("model"):
            return jnp.sum(lax.scan(body, (jnp.ones((B, H)), jnp.ones(H)), XS)[1])

    assert shown(loss, W) == {"model": (0,), "model/carry_1": (1,)}
    norms = rnn_jax.watch(loss)(W)[2]
    assert {name: n.shape for name, n in norms.items()} == {"model": (T, B), "model/carry_1": (T,)}


def test_two_leaves_that_hold_one_variable_count_once():
    def loss(w, twice):
        def body(carry, x):
            h = step_h(w, carry[-1], x)
            return ((h, h) if twice else (h,)), h

        start = jnp.ones((B, H))
        return jnp.sum(lax.scan(body, (start, start) if twice else (start,), XS)[1] ** 2)

    results = [rnn_jax.watch(loss)(W, twice) for twice in (True, False)]
    twice, once = (next(iter(norms.values())) for _, _, norms in results)
    np.testing.assert_allclose(twice, once, rtol=1e-6)


# Names.


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, xs):
        rnn = nn.RNN(nn.SimpleCell(H), name="tagger")
        return rnn(rnn(xs))


class Model(nn.Module):
    @nn.compact
    def __call__(self, xs):
        return nn.RNN(nn.GRUCell(H))(Encoder(name="encoder")(xs))


def test_linen_names_are_paths_of_modules_and_unique():
    model = Model()
    params = model.init(jax.random.key(0), XS)
    names = list(shown(lambda p: jnp.sum(model.apply(p, XS)), params))
    assert names == ["Model/encoder/tagger", "Model/encoder/tagger#2", "Model/RNN_0"]


def test_other_names_are_function_and_line_of_the_users_file():
    def encode(w, xs):
        return lax.scan(lambda h, x: (step_h(w, h, x),) * 2, jnp.ones((B, H)), xs)[1]

    line = encode.__code__.co_firstlineno + 1

    def loss(w):
        return jnp.sum(jax.jit(encode)(w, jax.jit(encode)(w, XS)))

    here = f"encode (watch_names_test.py:{line})"
    assert list(shown(loss, W)) == [here, f"{here}#2"]


def test_nnx_names_are_the_users_line_not_one_within_flax():
    rnn = nnx.RNN(nnx.SimpleCell(H, H, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    graph, state = nnx.split(rnn)

    def predict(state):
        return jnp.sum(nnx.merge(graph, state)(XS))

    (name,) = shown(predict, state)
    assert re.fullmatch(r".*predict \(watch_names_test.py:\d+\)", name)


def test_the_users_own_scopes_are_names_within_a_scan_and_a_jit_too():
    def loss(w):
        @jax.jit
        def inner(h, xs):
            with jax.named_scope("fast"):
                return lax.scan(lambda h, x: (step_h(w, h, x), None), h, xs)[0]

        with jax.named_scope("slow"):
            xs = XS.reshape(2, 3, B, H)
            return jnp.sum(lax.scan(lambda h, x: (inner(h, x), None), jnp.ones((B, H)), xs)[0])

    assert list(shown(loss, W)) == ["slow", "slow/fast"]


def scoped(w, *names):
    total = 0.0
    for name in names:
        with jax.named_scope(name):
            total += jnp.sum(lax.scan(lambda h, x: (step_h(w, h, x),) * 2, jnp.ones((B, H)), XS)[1])
    return total


@pytest.mark.parametrize(
    ("select", "wanted"),
    [
        ("up", ["up"]),
        (["up", "down"], ["down", "up"]),
        ("up*", ["up", "up#2"]),
        (lambda name: "#" in name, ["up#2"]),
        (None, ["down", "up", "up#2"]),
    ],
)
def test_select_takes_names_patterns_and_functions(select, wanted):
    watched = rnn_jax.watch(lambda w: scoped(w, "up", "up", "down"), select=select)
    assert sorted(jax.eval_shape(watched, W)[2]) == wanted


# What is refused.


def two_steps(w):
    return lax.scan(lambda h, x: (step_h(w, h, x),) * 2, jnp.ones((B, H)), XS)[1]


def accumulating(w):
    return lax.scan(lambda a, x: (a + jnp.sum(x @ w), None), 0.0, XS)[0]


def searching(w):
    return lax.while_loop(lambda h: jnp.sum(h) < 5, lambda h: 1.1 * h @ w, jnp.ones((B, H)))


REFUSED = {
    "no scan": (lambda w: jnp.sum(w), (W,), {}, r"no lax.scan in this loss \(1 equations were"),
    "no state": (accumulating, (W,), {}, r"no recurrent state .*accumulating \(watch_names_test"),
    "while": (
        lambda w: jnp.sum(lax.stop_gradient(searching(1 * w))),
        (W,),
        {},
        r"nothing to watch: the while_loop at searching \(watch_names_test",
    ),
    "not a scalar": (two_steps, (W,), {}, r"the loss is float32\[6, 3, 4\], but a floating scalar"),
    "an integer": (lambda w: jnp.argmax(two_steps(w)), (W,), {}, r"the loss is int32\[\], but"),
    "a pair": (lambda w: (jnp.sum(two_steps(w)), w), (W,), {}, "a tuple of 2.*has_aux=True"),
    "not a pair": (lambda w: jnp.sum(two_steps(w)), (W,), {"has_aux": True}, "has_aux=True wants"),
    "a string": (lambda w: "loss", (W,), {}, "the loss is a str, but"),
    "argnums": (lambda w: jnp.sum(two_steps(w)), (W,), {"argnums": 1}, "argnums is 1, but"),
    "integer params": (
        lambda p: jnp.sum(two_steps(p["w"])),
        ({"w": W, "n": np.arange(3)},),
        {},
        r"argument 0\['n'\] is int32\[3\], which has no gradient",
    ),
    "unknown name": (
        lambda w: scoped(w, "up"),
        (W,),
        {"select": "down"},
        r"'down', but .*\['up'\]",
    ),
    "nothing selected": (
        lambda w: scoped(w, "up"),
        (W,),
        {"select": lambda name: False},
        r"takes none .*\['up'\]",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_watched_is_refused_in_one_line(what):
    loss, args, options, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(rnn_jax.watch(loss, **options), *args)
    assert "\n" not in str(error.value)


def test_disabled_jit_is_named_where_no_scan_is_found():
    with jax.disable_jit(), pytest.raises(ValueError, match="disable_jit"):
        rnn_jax.watch(lambda w: scoped(w, "up"))(W)


def test_a_while_loop_beside_scans_is_named_in_a_warning():
    def loss(w):
        return scoped(w, "up") + jnp.sum(lax.stop_gradient(searching(w)))

    with pytest.warns(
        UserWarning, match=r"no dL/ds_t of the while_loop at searching \(watch_names"
    ):
        out = jax.eval_shape(rnn_jax.watch(loss), W)
    assert list(out[2]) == ["up"]


def test_a_while_loop_that_draws_random_numbers_is_not_worth_a_warning():
    def loss(w):
        return scoped(w, "up") + jnp.sum(jax.random.gamma(jax.random.key(0), 2.0, (3,)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(rnn_jax.watch(loss), W)


@pytest.mark.parametrize("num_steps", [0, 1])
@pytest.mark.parametrize("batch", [(), (B,)])
def test_short_scans_and_carries_without_a_batch(num_steps, batch):
    def loss(w):
        xs = jnp.ones((num_steps, *batch, H))
        return jnp.sum(lax.scan(lambda h, x: (step_h(w, h, x), None), jnp.ones((*batch, H)), xs)[0])

    _, grads, norms = rnn_jax.watch(loss)(W)
    (norm,) = norms.values()
    # dL/ds_1 is 1 in each of H units.
    np.testing.assert_allclose(norm, np.full((num_steps, *batch), H**0.5), rtol=1e-6)
    assert np.any(np.asarray(grads) != 0) == (num_steps > 0)


def test_a_state_of_one_number_without_any_axis():
    def loss(a):
        return lax.scan(lambda s, x: (a * s + x, None), 1.0, jnp.ones(3))[0]

    (norm,) = rnn_jax.watch(loss)(0.5)[2].values()
    np.testing.assert_allclose(norm, [0.25, 0.5, 1.0])


def test_integers_and_keys_in_the_carry_stay_what_they_are():
    def loss(w):
        def body(carry, x):
            h, n, key = carry
            key, now = jax.random.split(key)
            h = step_h(w, h, x) * jax.random.bernoulli(now, 0.5, (B, H))
            return (h, n + 1, key), n

        (h, n, _), _ = lax.scan(body, (jnp.ones((B, H)), 0, jax.random.key(0)), XS)
        return jnp.sum(h) * n

    value, grads, norms = jit_as_users_do(rnn_jax.watch(loss))(W)
    wanted = jit_as_users_do(jax.value_and_grad(loss))(W)
    assert value == wanted[0]
    np.testing.assert_array_equal(grads, wanted[1])
    assert next(iter(norms.values())).shape == (T, B)
