"""Each cell's step against NumPy written by hand; initial weights by the spectrum they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import sigmoid

import rnn_jax
from rnn_jax import initializers
from rnn_jax.cells import ACTIVATIONS

B, D, H = 3, 2, 5
FACTORIES = {
    "elman": rnn_jax.elman,
    "leaky": rnn_jax.leaky,
    "lstm": rnn_jax.lstm,
    "gru": rnn_jax.gru,
    "mgu": rnn_jax.mgu,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_params(rng, cell):
    """float64 normal numbers of the shapes that the cell's own parameters have."""
    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)


# Steps


@pytest.mark.parametrize("activation", reference.PHI)
def test_elman_step(x64, rng, activation):
    cell = rnn_jax.elman(H, activation)
    p, s, x = random_params(rng, cell), rng.normal(size=(B, H)), rng.normal(size=(B, D))
    wanted = reference.PHI[activation].function(x @ p.U + s @ p.W + p.b)
    np.testing.assert_allclose(cell.step(p, s, x), wanted, rtol=1e-13)


@pytest.mark.parametrize("leak", [0.3, np.linspace(0.1, 1, H)], ids=["scalar", "per unit"])
def test_leaky_step(x64, rng, leak):
    cell = rnn_jax.leaky(H, "sigmoid")
    p = random_params(rng, cell)._replace(leak=jnp.asarray(leak))
    s, x = rng.normal(size=(B, H)), rng.normal(size=(B, D))
    wanted = (1 - leak) * s + leak * sigmoid(x @ p.U + s @ p.W + p.b)
    np.testing.assert_allclose(cell.step(p, s, x), wanted, rtol=1e-13)


def test_lstm_step(x64, rng):
    cell = rnn_jax.lstm(H)
    p, x = random_params(rng, cell), rng.normal(size=(B, D))
    c, h = rng.normal(size=(2, B, H))

    def gate(n):
        block = slice(n * H, (n + 1) * H)
        return x @ p.U[:, block] + h @ p.W[:, block] + p.b[block]

    i, f, g, o = sigmoid(gate(0)), sigmoid(gate(1)), np.tanh(gate(2)), sigmoid(gate(3))
    new_c = f * c + i * g
    state = cell.step(p, rnn_jax.LSTMState(c, h), x)
    np.testing.assert_allclose(state.c, new_c, rtol=1e-13)
    np.testing.assert_allclose(state.h, o * np.tanh(new_c), rtol=1e-13)
    np.testing.assert_array_equal(cell.emit(state), state.h)


def test_gru_step(x64, rng):
    cell = rnn_jax.gru(H)
    p, s, x = random_params(rng, cell), rng.normal(size=(B, H)), rng.normal(size=(B, D))
    (U_r, U_z, U_n), (W_r, W_z, W_n) = (np.split(weight, 3, axis=1) for weight in (p.U, p.W))
    b_r, b_z, b_n = np.split(p.b, 3)
    r = sigmoid(x @ U_r + s @ W_r + b_r)
    z = sigmoid(x @ U_z + s @ W_z + b_z)
    n = np.tanh(x @ U_n + b_n + r * (s @ W_n + p.d))
    np.testing.assert_allclose(cell.step(p, s, x), (1 - z) * n + z * s, rtol=1e-13)


@pytest.mark.parametrize("reset_gate", [True, False])
def test_mgu_step(x64, rng, reset_gate):
    cell = rnn_jax.mgu(H, reset_gate=reset_gate)
    p, s, x = random_params(rng, cell), rng.normal(size=(B, H)), rng.normal(size=(B, D))
    (U_f, U_n), (W_f, W_n) = (np.split(weight, 2, axis=1) for weight in (p.U, p.W))
    b_f, b_n = np.split(p.b, 2)
    f = sigmoid(x @ U_f + s @ W_f + b_f)
    n = np.tanh(x @ U_n + b_n + (f if reset_gate else 1) * (s @ W_n + p.d))
    np.testing.assert_allclose(cell.step(p, s, x), (1 - f) * n + f * s, rtol=1e-13)


@pytest.mark.parametrize("name", FACTORIES)
def test_step_broadcasts_over_batch_axes(x64, rng, name):
    cell = FACTORIES[name](H)
    p, x = random_params(rng, cell), rng.normal(size=(2, B, D))
    s = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape),
        jax.eval_shape(lambda: cell.initial_state(p, (2, B))),
    )
    together = cell.step(p, s, x)
    for index in np.ndindex(2, B):
        one = cell.step(p, jax.tree.map(lambda leaf, i=index: leaf[i], s), x[index])
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-12), together, one
        )


# Shapes

SHAPES = {
    "elman": rnn_jax.ElmanParams(U=(D, H), W=(H, H), b=(H,)),
    "leaky": rnn_jax.LeakyParams(U=(D, H), W=(H, H), b=(H,), leak=()),
    "lstm": rnn_jax.LSTMParams(U=(D, 4 * H), W=(H, 4 * H), b=(4 * H,)),
    "gru": rnn_jax.GRUParams(U=(D, 3 * H), W=(H, 3 * H), b=(3 * H,), d=(H,)),
    "mgu": rnn_jax.MGUParams(U=(D, 2 * H), W=(H, 2 * H), b=(2 * H,), d=(H,)),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_parameters_and_zero_state_have_the_shapes_named(name):
    cell = FACTORIES[name](H)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == SHAPES[name]
    for batch_shape in ((), (B,), (2, B)):
        state = cell.initial_state(params, batch_shape)
        leaves = (state.c, state.h) if name == "lstm" else (state,)
        for leaf in leaves:
            assert leaf.shape == (*batch_shape, H)
            assert not leaf.any()


@pytest.mark.parametrize("name", FACTORIES)
def test_parameters_and_states_are_of_one_type(x64, name):
    """JAX's default one, whatever xs are, or the scan's carry would change its type on the way."""
    cell = FACTORIES[name](H)

    def params_and_states(key, xs):
        params = cell.init(key, D)
        return params, rnn_jax.unroll(cell, params, cell.initial_state(params), xs)

    made = jax.eval_shape(params_and_states, jax.random.key(0), jnp.zeros((2, D), jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", FACTORIES)
def test_initial_weights_follow_the_key(name):
    cell = FACTORIES[name](H)
    init = jax.jit(cell.init, static_argnums=1)
    first, again, other = (init(jax.random.key(seed), D) for seed in (0, 0, 1))
    for weight in ("U", "W"):
        a, b, c = (np.asarray(getattr(params, weight)) for params in (first, again, other))
        np.testing.assert_array_equal(a, b)
        assert np.all(a != c)


@pytest.mark.parametrize("name", FACTORIES)
def test_given_initializers_are_used(name):
    cell = FACTORIES[name](
        H, kernel_init=initializers.uniform(0.1), recurrent_init=initializers.identity(0.5)
    )
    params = cell.init(jax.random.key(0), D)
    assert 0 < np.abs(params.U).max() <= 0.1
    blocks = params.W.shape[1] // H
    np.testing.assert_array_equal(params.W, np.tile(0.5 * np.eye(H), blocks))


@pytest.mark.parametrize("name", ["elman", "leaky"])
def test_given_bias_initializer_is_used(name):
    cell = FACTORIES[name](H, bias_init=jax.nn.initializers.constant(0.25))
    np.testing.assert_array_equal(cell.init(jax.random.key(0), D).b, np.full(H, 0.25))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_each_gate_is_orthogonal_and_drawn_for_itself(name):
    params = FACTORIES[name](H).init(jax.random.key(0), D)
    gates = np.split(np.asarray(params.W), params.W.shape[1] // H, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(H), atol=1e-6)
    assert not np.allclose(gates[0], gates[1], atol=0.1)


def test_forget_bias():
    for given, wanted in (({"forget_bias": 2.5}, 2.5), ({}, 1)):
        cell = rnn_jax.lstm(H, recurrent_init=initializers.identity(), **given)
        b = np.asarray(cell.init(jax.random.key(0), D).b)
        np.testing.assert_array_equal(b.reshape(4, H), [[0] * H, [wanted] * H, [0] * H, [0] * H])


def test_leak_is_a_parameter_with_a_gradient(x64, rng):
    cell = rnn_jax.leaky(H, leak=0.25, recurrent_init=initializers.identity())
    initial = cell.init(jax.random.key(0), D)
    assert initial.leak == 0.25
    p, xs = random_params(rng, cell)._replace(leak=jnp.array(0.25)), rng.normal(size=(4, D))

    def last(leak):
        params = jax.tree.map(jnp.asarray, p._replace(leak=leak))
        return rnn_jax.unroll(cell, params, jnp.zeros(H), jnp.asarray(xs))[-1].sum()

    gradient = jax.jit(jax.grad(last))(jnp.array(0.25))
    s, ds = np.zeros(H), np.zeros(H)
    for x in xs:
        # d/d leak of (1 - leak) s + leak phi(z(s)), the state before depending on the leak too.
        phi = np.tanh(x @ p.U + s @ p.W + p.b)
        ds = phi - s + 0.75 * ds + 0.25 * (1 - phi**2) * (ds @ p.W)
        s = 0.75 * s + 0.25 * phi
    np.testing.assert_allclose(gradient, ds.sum(), rtol=1e-12)
    assert abs(gradient) > 0.1


# Activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_derivative(x64, rng, name):
    function, slope = ACTIVATIONS[name]
    z = jnp.asarray(np.concatenate([3 * rng.normal(size=200), [0.0, 30.0, -30.0]]))
    derivative = jax.vmap(jax.grad(function))(z)
    np.testing.assert_allclose(slope(function(z)), derivative, rtol=1e-10, atol=1e-15)
    assert derivative.max() > 0.2


def test_activations_of_the_reference_are_those_of_the_library(x64, rng):
    z = rng.normal(size=50)
    for name, phi in reference.PHI.items():
        np.testing.assert_allclose(ACTIVATIONS[name].function(z), phi.function(z), rtol=1e-13)
    np.testing.assert_allclose(
        ACTIVATIONS["softplus"].function(z), np.log(1 + np.exp(z)), rtol=1e-13
    )


@pytest.mark.parametrize("factory", [rnn_jax.elman, rnn_jax.leaky])
def test_unknown_activation_lists_the_known(factory):
    with pytest.raises(ValueError, match=r"'swish'.*identity, relu, sigmoid, softplus, tanh"):
        factory(H, "swish")


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("size", [0, -1, 2.5, True, "16"])
def test_sizes_are_positive_whole_numbers(name, size):
    with pytest.raises(ValueError, match=rf"hidden_size is {size!r}; .* at least 1"):
        FACTORIES[name](size)
    with pytest.raises(ValueError, match=rf"input_size is {size!r}; .* at least 1"):
        FACTORIES[name](H).init(jax.random.key(0), size)


# Initializers


def draw(init, *shape, seed=0):
    return np.asarray(init(jax.random.key(seed), shape, jnp.float64))


def test_spectral_radius_is_exact(x64):
    for rho in (0.95, 2.0):
        weights = draw(initializers.spectral_radius(rho, std=0.01), 30, 30)
        np.testing.assert_allclose(np.abs(np.linalg.eigvals(weights)).max(), rho, rtol=1e-12)


def test_orthogonal_has_singular_values_gain(x64):
    weights = draw(initializers.orthogonal(1.5), 30, 30)
    np.testing.assert_allclose(np.linalg.svd(weights)[1], np.full(30, 1.5), rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(weights)), np.full(30, 1.5), rtol=1e-12)


def test_uniform_fills_its_bounds(x64):
    weights = draw(initializers.uniform(0.3), 200, 200)
    assert -0.3 <= weights.min() < -0.299
    assert 0.299 < weights.max() <= 0.3
    # Standard error of the mean: 0.3 / sqrt(3) / 200 = 9e-4.
    assert abs(weights.mean()) < 4e-3


def test_uniform_torch_is_bounded_by_the_last_axis(x64):
    """Gain 1/sqrt(3), PyTorch's default (see its documentation of `torch.nn.RNN`)."""
    weights = draw(initializers.uniform_torch, 100, 400)
    assert 0.0499 < np.abs(weights).max() <= 0.05
    recurrent = draw(initializers.uniform_torch, 400, 400)
    # Relative standard error of a standard deviation from 160,000 uniform numbers: 0.1 %.
    np.testing.assert_allclose(recurrent.std() * 20, 3**-0.5, rtol=5e-3)


def test_normal_and_gaussian_have_their_standard_deviation(x64):
    # Relative standard error from 40,000 normal numbers: 0.35 %.
    np.testing.assert_allclose(draw(initializers.normal(0.02), 400, 100).std(), 0.02, rtol=0.015)
    weights = draw(initializers.gaussian(3.0), 400, 100)
    np.testing.assert_allclose(weights.std(), 3 / 20, rtol=0.015)
    # Normal, not only of that variance: 4.55 % lie beyond two standard deviations.
    np.testing.assert_allclose(np.mean(np.abs(weights) > 0.3), 0.0455, rtol=0.1)


def test_identity(x64):
    np.testing.assert_array_equal(draw(initializers.identity(0.9), 4, 4), 0.9 * np.eye(4))


@pytest.mark.parametrize(
    "init",
    [
        initializers.normal(1.0),
        initializers.gaussian(1.0),
        initializers.uniform(1.0),
        initializers.uniform_torch,
        initializers.orthogonal(),
        initializers.identity(),
        initializers.shift(),
        initializers.spectral_radius(1.0),
        initializers.zeros,
    ],
)
def test_initializers_give_the_type_asked_for(x64, init):
    for dtype in (jnp.float32, jnp.float64):
        assert init(jax.random.key(0), (6, 6), dtype).dtype == dtype
