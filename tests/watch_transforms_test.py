"""`watch` under JAX's transformations, on meshes, in a training loop, in other precisions."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import jit_as_users_do
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rnn_jax

T, B, H = 5, 4, 3
XS = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, H)).astype(np.float32))
W = jnp.asarray(0.5 * np.random.default_rng(1).normal(size=(H, H)).astype(np.float32))


def run(w, xs):
    def body(h, x):
        h = jnp.tanh(x + h @ w)
        return h, h

    return lax.scan(body, 0 * xs[0], xs)[1]


def loss_fn(w, xs):
    return jnp.sum(jnp.sin(run(w, xs)))


@functools.cache
def reference():
    """Loss, gradient and norms `[T, B]` without any transformation."""
    value, grads, norms = jax.jit(rnn_jax.watch(loss_fn))(W, XS)
    (norm,) = norms.values()
    return value, grads, norm


def agrees(result, rtol=1e-5):
    value, grads, norms = result
    wanted_value, wanted_grads, wanted_norm = reference()
    np.testing.assert_allclose(value, wanted_value, rtol=rtol)
    np.testing.assert_allclose(grads, wanted_grads, rtol=rtol, atol=rtol)
    (norm,) = norms.values()
    np.testing.assert_allclose(norm, wanted_norm, rtol=rtol)


def test_vmap_of_the_watched_loss_is_an_ensemble():
    stacked = jnp.stack([W, 2 * W])
    value, grads, norms = jax.jit(jax.vmap(rnn_jax.watch(loss_fn), in_axes=(0, None)))(stacked, XS)
    agrees(jax.tree.map(lambda leaf: leaf[0], (value, grads, norms)))
    assert not np.allclose(next(iter(norms.values()))[0], next(iter(norms.values()))[1])


def test_vmap_within_the_loss_has_its_axis_before_the_units():
    def loss(w, xs):
        return jnp.sum(jax.vmap(lambda x: loss_fn(w, x), 1)(xs))

    agrees(jax.jit(rnn_jax.watch(loss))(W, XS))


def test_watched_inside_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def step(w, xs):
        value, grads, norms = rnn_jax.watch(loss_fn)(w, xs)
        return lax.psum(value, "data"), grads, norms

    # The gradient of what is the same on every device is the sum over devices by itself.
    specs = (P(), P(), P(None, "data"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=specs)
    agrees(jax.jit(mapped)(W, XS))


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_shard_map_within_the_loss_has_an_axis_for_the_devices(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def loss(w, xs):
        local = jax.shard_map(
            lambda w, xs: lax.psum(loss_fn(w, xs), "data"),
            mesh=mesh,
            in_specs=(P(), P(None, "data")),
            out_specs=P(),
            check_vma=check_vma,
        )
        return local(w, xs)

    value, grads, norms = jax.jit(rnn_jax.watch(loss))(W, XS)
    ((name, norm),) = norms.items()
    assert norm.shape == (2, T, B // 2)
    agrees((value, grads, {name: jnp.moveaxis(norm, 0, 1).reshape(T, B)}))


def test_a_state_that_is_the_same_on_every_device_has_a_device_axis_of_one():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def loss(w, xs):
        return jax.shard_map(loss_fn, mesh=mesh, in_specs=(P(), P()), out_specs=P())(w, xs)

    value, grads, norms = jax.jit(rnn_jax.watch(loss))(W, XS)
    ((name, norm),) = norms.items()
    agrees((value, grads, {name: norm[0]}))


def test_pmap_around_and_within():
    halves = jnp.stack([XS[:, :2], XS[:, 2:]])
    value, grads, norms = jax.pmap(rnn_jax.watch(loss_fn), in_axes=(None, 0))(W, halves)
    ((name, norm),) = norms.items()
    whole = {name: jnp.concatenate([norm[0], norm[1]], axis=1)}
    agrees((jnp.sum(value), jnp.sum(grads, 0), whole))

    def loss(w, halves):
        return jnp.sum(jax.pmap(loss_fn, in_axes=(None, 0))(w, halves))

    value, grads, norms = jax.jit(rnn_jax.watch(loss))(W, halves)
    ((name, norm),) = norms.items()
    agrees((value, grads, {name: jnp.concatenate([norm[0], norm[1]], axis=1)}))


@pytest.mark.parametrize("nested", [False, True])
def test_an_explicit_mesh(nested):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        xs = jax.device_put(XS, NamedSharding(mesh, P(None, "data")))
        loss = jax.jit(loss_fn) if nested else loss_fn
        value, grads, norms = jax.jit(rnn_jax.watch(loss))(W, xs)
        (norm,) = norms.values()
        assert jax.typeof(norm).sharding.spec == P(None, "data")
        agrees((value, grads, norms))


@pytest.mark.parametrize("kind", ["shard_map", "explicit", "explicit, mesh not set"])
def test_our_unroll_on_meshes(kind):
    cell = rnn_jax.elman(H)
    params = cell.init(jax.random.key(0), H)

    def loss(params, xs):
        state = cell.initial_state(params, xs.shape[1:-1])
        return jnp.sum(jnp.sin(rnn_jax.unroll(cell, params, state, xs)))

    ((name, wanted),) = jax.jit(rnn_jax.watch(loss))(params, XS)[2].items()
    types = (AxisType.Auto if kind == "shard_map" else AxisType.Explicit,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=types)
    xs = jax.device_put(XS, NamedSharding(mesh, P(None, "data")))

    def norms(params, xs):
        return rnn_jax.watch(loss)(params, xs)[2]

    if kind == "shard_map":
        spec = P(None, "data")
        norms = jax.shard_map(norms, mesh=mesh, in_specs=(P(), spec), out_specs=spec)
    with jax.set_mesh(mesh) if kind == "explicit" else contextlib.nullcontext():
        got = jax.jit(norms)(params, xs)[name]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert got.sharding.spec[1] == "data"


def test_training_steps_scanned_over_batches_with_donated_buffers():
    optimizer = optax.adam(0.1)

    def train(w, batches, watched):
        def step(carry, xs):
            w, state = carry
            if watched:
                loss, grads, norms = rnn_jax.watch(loss_fn)(w, xs)
            else:
                (loss, grads), norms = jax.value_and_grad(loss_fn)(w, xs), {}
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(w, updates), state), (loss, norms)

        (w, _), outputs = lax.scan(step, (w, optimizer.init(w)), batches)
        return w, *outputs

    batches = jnp.stack([XS, -XS, 2 * XS])
    step = jit_as_users_do(train, static_argnums=2, donate_argnums=0)
    plain = step(jnp.copy(W), batches, False)
    trained, losses, norms = step(jnp.copy(W), batches, True)
    np.testing.assert_array_equal(trained, plain[0])
    np.testing.assert_array_equal(losses, plain[1])
    (norm,) = norms.values()
    assert norm.shape == (3, T, B)
    np.testing.assert_allclose(norm[0], reference()[2], rtol=1e-5)


def test_arguments_pass_as_through_value_and_grad():
    """Keywords, pytrees, statics, several argnums, aux with names in it, keys of both kinds."""

    def loss(settings, params, batch, *, key, training):
        xs = run(params["cell"]["w"], batch["xs"])
        if training:
            xs = xs * jax.random.bernoulli(key, settings["keep"], xs.shape)
        picked = jnp.take_along_axis(xs[-1], batch["labels"][:, None], axis=1)
        return params["scale"] * jnp.sum(picked), {"mode": "train", "states": xs, "n": 3}

    params = {"cell": {"w": W}, "scale": jnp.float32(2)}
    batch = {"xs": XS, "labels": jnp.array([0, 1, 2, 1])}
    args = ({"keep": 0.9}, params, batch)
    options = {"argnums": (-2, 0), "has_aux": True}
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        own = jax.value_and_grad(loss, **options)(*args, key=key, training=False)
        (value, aux), grads, norms = rnn_jax.watch(loss, **options)(*args, key=key, training=False)
        assert (aux["mode"], aux["n"]) == ("train", 3)
        jax.tree.map(np.testing.assert_allclose, (value, grads), (own[0][0], own[1]))
        np.testing.assert_allclose(aux["states"], own[0][1]["states"], rtol=1e-6)
        assert next(iter(norms.values())).shape == (T, B)

        def noisy(params, key, training):
            return loss(args[0], params, batch, key=key, training=training)[0]

        watched = jit_as_users_do(rnn_jax.watch(noisy), static_argnames="training")
        own = jit_as_users_do(jax.value_and_grad(noisy), static_argnames="training")
        results = watched(params, key, training=True)[:2], own(params, key, training=True)
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_watched_function_keeps_its_name_and_signature():
    watched = rnn_jax.watch(loss_fn)
    assert watched.__name__ == "loss_fn"
    jax.jit(watched, static_argnames="xs", inline=True)
    jax.eval_shape(rnn_jax.watch(functools.partial(loss_fn, xs=XS)), W)


def test_norms_can_be_differentiated_and_pushed_forward():
    def total_norm(w):
        (norm,) = rnn_jax.watch(loss_fn)(w, XS)[2].values()
        return jnp.sum(norm)

    @jax.jit
    def all_three(w):
        pushed = jax.jvp(total_norm, (w,), (jnp.ones_like(w),))[1]
        differences = (total_norm(w + 1e-2) - total_norm(w - 1e-2)) / 2e-2
        return pushed, jnp.sum(jax.grad(total_norm)(w)), differences

    pushed, pulled, differences = all_three(W)
    np.testing.assert_allclose(pushed, pulled, rtol=1e-3)
    np.testing.assert_allclose(pushed, differences, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norms_of_low_precision_are_float32(dtype):
    value, grads, norms = jit_as_users_do(rnn_jax.watch(loss_fn))(W.astype(dtype), XS.astype(dtype))
    own = jit_as_users_do(jax.value_and_grad(loss_fn))(W.astype(dtype), XS.astype(dtype))
    assert value == own[0]
    np.testing.assert_array_equal(grads, own[1])
    (norm,) = norms.values()
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, reference()[2], rtol=0.1)


def test_complex_states_have_real_norms():
    def loss(a):
        states = lax.scan(lambda s, x: (a * s + x,) * 2, jnp.ones((B, H), complex), XS + 1j)[1]
        return jnp.sum(jnp.abs(states[-1]) ** 2)

    _, _, norms = jax.jit(rnn_jax.watch(loss))(0.5 + 0.5j)
    (norm,) = norms.values()
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm[:-1] / norm[1:], 0.5**0.5, rtol=1e-5)


def test_a_norm_below_the_square_root_of_the_smallest_number():
    def loss(a):
        return 1e-25 * jnp.sum(lax.scan(lambda s, x: (a * s + x, None), jnp.ones((B, H)), XS)[0])

    (norm,) = jax.jit(rnn_jax.watch(loss))(0.5)[2].values()
    np.testing.assert_allclose(norm[-1], 1e-25 * H**0.5, rtol=1e-5)
