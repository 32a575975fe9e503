"""`rnn_jax.linen.RNN` against `flax.linen.RNN`: parameters, outputs, carries, gradients, routes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn
from marks import slow
from problems import assert_close

import rnn_jax
import rnn_jax.linen

T, B, D, H = 6, 3, 2, 4
DOUBLE = {"param_dtype": jnp.float64, "dtype": jnp.float64}
LENGTHS = np.array([2, T, 1])
NORMAL = {**DOUBLE, "carry_init": nn.initializers.normal()}


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def lstm_carry():
    return random((B, H), 1), random((B, H), 2)


CASES = {
    "SimpleCell": (lambda: nn.SimpleCell(H, **DOUBLE), (T, B, D), {"time_major": True}, {}),
    "relu": (
        lambda: nn.SimpleCell(H, activation_fn=nn.relu, **DOUBLE),
        (B, T, D),
        {"variable_axes": {"intermediates": 0}, "variable_carry": "batch_stats", "unroll": 3},
        {},
    ),
    "residual": (
        lambda: nn.SimpleCell(H, residual=True, **DOUBLE),
        (B, T, D),
        {"reverse": True, "return_carry": True},
        {"seq_lengths": LENGTHS},
    ),
    "LSTMCell": (
        lambda: nn.LSTMCell(H, **DOUBLE),
        (B, T, D),
        {"reverse": True, "split_rngs": {"params": False, "dropout": True}},
        {"seq_lengths": LENGTHS, "keep_order": True, "return_carry": True, "carry": lstm_carry},
    ),
    "OptimizedLSTMCell": (
        lambda: nn.OptimizedLSTMCell(H, **DOUBLE),
        (T, 2, B, D),
        {"keep_order": True},
        {"seq_lengths": np.stack([LENGTHS, LENGTHS[::-1]]), "reverse": True, "time_major": True},
    ),
    "GRUCell": (lambda: nn.GRUCell(H, **DOUBLE), (T, D), {"return_carry": True}, {}),
    "MGUCell": (
        lambda: nn.MGUCell(H, **NORMAL),
        (B, T, D),
        {"return_carry": True},
        {"seq_lengths": LENGTHS, "init_key": jax.random.key(3)},
    ),
    "no reset gate": (
        lambda: nn.MGUCell(H, reset_gate=False, **DOUBLE),
        (B, T, D),
        {"reverse": True, "keep_order": True},
        {},
    ),
}
QUICK = {"residual", "LSTMCell", "OptimizedLSTMCell", "MGUCell"}


def compared(cell, shape, fields, call, dtype=jnp.float64):
    """Loss, results and gradients of our layer and of Flax's, and the jaxpr of the former."""
    layers = [make(cell, **fields) for make in (rnn_jax.linen.RNN, nn.RNN)]
    call = dict(call)
    carry = call.pop("carry", lambda: None)()
    xs = random(shape).astype(dtype)
    drawn = jax.eval_shape(layers[0].init, jax.random.key(0), xs)
    assert drawn == jax.eval_shape(layers[1].init, jax.random.key(0), xs)
    params = jax.tree.map(lambda leaf: 0.5 * random(leaf.shape, 5).astype(leaf.dtype), drawn)

    def loss(layer, params, xs, carry):
        results = layer.apply(params, xs, initial_carry=carry, **call)
        parts = [
            jnp.sum(jnp.sin(random(leaf.shape, 6) * leaf)) for leaf in jax.tree.leaves(results)
        ]
        return sum(parts), results

    def both(params, xs, carry):
        return [
            jax.value_and_grad(loss, (1, 2, 3), has_aux=True)(layer, params, xs, carry)
            for layer in layers
        ]

    program = jax.make_jaxpr(lambda *args: loss(layers[0], *args))(params, xs, carry)
    return *jax.jit(both)(params, xs, carry), str(program)


@pytest.mark.parametrize("case", [c if c in QUICK else slow(c) for c in CASES])
def test_results_and_gradients_are_those_of_flax(x64, case):
    cell, shape, fields, call = CASES[case]
    ours, flax, program = compared(cell(), shape, fields, call)
    assert "custom_vjp" in program
    assert jax.tree.map(jnp.result_type, ours) == jax.tree.map(jnp.result_type, flax)
    assert_close(ours, flax, rtol=1e-10)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(ours[1]))


@pytest.mark.parametrize(
    "make", [nn.LSTMCell, slow(nn.GRUCell), slow(nn.MGUCell)], ids=lambda make: make.__name__
)
def test_products_in_bfloat16_and_states_in_float32(make):
    """As exact as two orders of summation in bfloat16 can be; types are the same."""
    cell = make(H, dtype=jnp.bfloat16)
    fields = {"return_carry": True}
    ours, flax, program = compared(cell, (B, T, D), fields, {}, jnp.bfloat16)
    assert "custom_vjp" in program
    assert "bf16" in program
    assert jax.tree.map(jnp.result_type, ours) == jax.tree.map(jnp.result_type, flax)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        a, b = (np.asarray(leaf, np.float64) for leaf in (a, b))
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


def test_weights_are_drawn_as_by_flax():
    xs = np.ones((B, T, D), np.float32)
    drawn = [
        make(nn.GRUCell(H)).init(jax.random.key(0), xs) for make in (rnn_jax.linen.RNN, nn.RNN)
    ]
    jax.tree.map(np.testing.assert_array_equal, *drawn)


# Where Flax's own scan runs: the program is Flax's to the letter.


class Noisy(nn.RNNCellBase):
    """Draws at each step, and counts the steps in a variable."""

    @nn.compact
    def __call__(self, carry, x):
        steps = self.variable("stats", "steps", lambda: jnp.zeros(()))
        if not self.is_initializing():
            steps.value += 1
        x = nn.Dropout(0.5, deterministic=False)(nn.Dense(H)(x))
        new = jnp.tanh(carry + x)
        return new, new

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], H))

    @property
    def num_feature_axes(self):
        return 1


PER_STEP = {
    "variable_axes": {"params": 0},
    "variable_broadcast": False,
    "split_rngs": {"params": True},
}
NOISY = {"variable_carry": "stats", "split_rngs": {"params": False, "dropout": True}}
OTHERS = {
    "weights of each step": (lambda: nn.GRUCell(H), PER_STEP),
    "random numbers": (Noisy, NOISY),
    "other gates": (lambda: nn.LSTMCell(H, gate_fn=nn.hard_sigmoid), {}),
    "lifted": (lambda: nn.remat(nn.GRUCell)(H), {}),
    "image": (lambda: nn.ConvLSTMCell(H, (2,)), {}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_cells_run_in_flaxs_own_scan(case):
    make, fields = OTHERS[case]
    xs = np.ones((B, T, 3, D) if case == "image" else (B, T, D), np.float32)
    programs = []
    for layer in (rnn_jax.linen.RNN, nn.RNN):
        rnn = layer(make(), **fields)
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        if case == "random numbers":
            # Flax cannot make the variables of a carry within the scan.
            carry = jnp.zeros((B, H))
            variables = jax.eval_shape(make().init, keys, carry, xs[:, 0])
            variables = {name: {"cell": own} for name, own in variables.items()}
        else:
            variables = jax.eval_shape(rnn.init, keys, xs)

        def apply(variables, xs, rnn=rnn, keys=keys):
            return rnn.apply(variables, xs, rngs={"dropout": keys["dropout"]}, mutable=["stats"])

        programs.append(str(jax.make_jaxpr(apply)(variables, xs)))
    assert programs[0] == programs[1]


def test_interceptors_and_recorded_intermediates_see_the_cell():
    xs = np.ones((B, T, D), np.float32)
    rnn = rnn_jax.linen.RNN(nn.GRUCell(H), variable_axes={"intermediates": 1})
    params = jax.eval_shape(rnn.init, jax.random.key(0), xs)
    seen = []

    def note(run, args, kwargs, context):
        seen.append(type(context.module).__name__)
        return run(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(rnn.apply, params, xs)
    assert seen.count("GRUCell") > 0
    assert seen.count("RNN") == 1
    for capture, count in ((True, 3), (False, 0)):
        _, found = jax.eval_shape(
            lambda p, c=capture: rnn.apply(
                p, xs, capture_intermediates=c, mutable=["intermediates", "other"]
            ),
            params,
        )
        assert ("cell" in found.get("intermediates", {})) == (count > 0)


def test_what_does_not_fit_is_said_by_flax():
    rnn = rnn_jax.linen.RNN(nn.GRUCell(H))
    params = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((B, T, D)))
    with pytest.raises(errors.ScopeParamShapeError):
        jax.eval_shape(rnn.apply, params, jnp.ones((B, T, D + 1)))


# Within a user's model.


class Tower(nn.Module):
    """Both directions, then a rematerialized layer, an ensemble of three, and two of one layer."""

    rnn: type

    @nn.compact
    def __call__(self, xs):
        directions = self.rnn(nn.GRUCell(H)), self.rnn(nn.GRUCell(H))
        xs = nn.Bidirectional(*directions)(xs, seq_lengths=LENGTHS)
        xs = nn.remat(self.rnn)(nn.GRUCell(H), name="remat")(xs)
        ensemble = nn.vmap(
            self.rnn,
            in_axes=None,
            axis_size=3,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        xs = ensemble(nn.SimpleCell(H), name="ensemble")(xs).mean(0)
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(self.rnn, name="layers")(xs, None)[0]


class Layer(nn.Module):
    rnn: type

    @nn.compact
    def __call__(self, xs, _):
        return self.rnn(nn.GRUCell(H), name="layer")(xs), None


def test_within_bidirectional_remat_vmap_and_scan_and_watched():
    """The same parameters, loss, gradients, and the same names and norms in `rnn_jax.watch`."""
    xs = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    models = Tower(rnn_jax.linen.RNN), Tower(nn.RNN)
    params = jax.jit(models[0].init)(jax.random.key(0), xs)
    wanted = jax.eval_shape(models[1].init, jax.random.key(0), xs)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)

    def watched(model, params):
        def loss(params):
            return jnp.sum(jnp.sin(model.apply(params, xs)))

        return rnn_jax.watch(loss)(params)

    ours, flax = jax.jit(lambda p: [watched(model, p) for model in models])(params)
    assert list(ours[2]) == list(flax[2])
    assert any("ensemble" in name for name in ours[2])
    assert_close(ours, flax, rtol=1e-4, atol=1e-6)
