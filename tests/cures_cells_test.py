"""Cells of the literature: each against a step in NumPy written by hand, and what it promises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from marks import slow_but_for
from problems import assert_close, states_and_gradients
from reference import sigmoid

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.cells.cornn import CoRNNState
from rnn_jax.cells.lem import LEMState
from rnn_jax.cells.lru import LRUState, eigenvalues
from rnn_jax.cells.registry import CELLS
from rnn_jax.cells.slstm import SLSTMState
from rnn_jax.initializers import shift
from rnn_jax.matrix_exponential import skew_exponential

T, B, D, H = 5, 3, 2, 4
LENGTHS = np.array([3, T, 1])


# Steps by hand, in the equations of the papers


def relu(z):
    return np.maximum(z, 0)


def antisymmetric(p, h, x):
    return h + p.epsilon * np.tanh(x @ p.U + h @ (p.W - p.W.T) - p.gamma * h + p.b)


def gated_antisymmetric(p, h, x):
    r = h @ (p.W - p.W.T) - p.gamma * h
    z = sigmoid(x @ p.U[:, :H] + r + p.b[:H])
    return h + p.epsilon * z * np.tanh(x @ p.U[:, H:] + r + p.b[H:])


def cornn(p, s, x):
    drive = np.tanh(s.y @ p.W + s.z @ p.Wz + x @ p.U + p.b)
    z = s.z + p.dt * (drive - p.gamma * s.y - p.epsilon * s.z)
    return CoRNNState(s.y + p.dt * z, z)


def lem(p, s, x):
    U_1, U_2, U_z, U_y = np.split(p.U, 4, axis=1)
    W_1, W_2, W_z = np.split(p.W, 3, axis=1)
    b_1, b_2, b_z, b_y = np.split(p.b, 4)
    dt_z = p.dt * sigmoid(s.y @ W_1 + x @ U_1 + b_1)
    dt_y = p.dt * sigmoid(s.y @ W_2 + x @ U_2 + b_2)
    z = (1 - dt_z) * s.z + dt_z * np.tanh(s.y @ W_z + x @ U_z + b_z)
    return LEMState((1 - dt_y) * s.y + dt_y * np.tanh(z @ p.Wy + x @ U_y + b_y), z)


def exponential(A):
    """exp of a skew-symmetric matrix by its eigenvalues, which are imaginary."""
    values, vectors = np.linalg.eigh(1j * A)
    return (vectors * np.exp(-1j * values) @ vectors.conj().T).real


def exp_rnn(p, h, x):
    z = x @ p.U + h @ exponential(p.A - p.A.T)
    return np.sign(z) * relu(np.abs(z) + p.b)


def indrnn(p, h, x):
    return relu(x @ p.U + p.u * h + p.b)


def wave_rnn(p, h, x):
    """Two channels of two places each, place by place."""
    size, channels, _ = p.W.shape
    places = H // channels
    moved = np.zeros_like(h)
    for to in range(channels):
        for n in range(places):
            for k in range(size):
                for start in range(channels):
                    came = start * places + (n - (k - size // 2)) % places
                    moved[:, to * places + n] += h[:, came] * p.W[k, start, to]
    return relu(x @ p.U + moved + p.b)


def lru(p, s, x):
    decay = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
    h = decay * (s.re + 1j * s.im) + np.exp(p.gamma_log) * (x @ (p.B_re + 1j * p.B_im))
    return LRUState(h.real, h.imag)


def min_gru(p, h, x):
    z = sigmoid(x @ p.U[:, :H] + p.b[:H])
    return (1 - z) * h + z * (x @ p.U[:, H:] + p.b[H:])


def min_lstm(p, h, x):
    f, i, n = np.split(x @ p.U + p.b, 3, axis=1)
    f, i = sigmoid(f), sigmoid(i)
    return f / (f + i) * h + i / (f + i) * n


def slstm(p, s, x):
    i, f, z, o = np.split(x @ p.U + s.h @ p.W + p.b, 4, axis=1)
    # The plain c and n, without a stabilizer, and then divided by exp(m).
    c = sigmoid(f) * s.c * np.exp(s.m) + np.exp(i) * np.tanh(z)
    n = sigmoid(f) * s.n * np.exp(s.m) + np.exp(i)
    m = np.maximum(np.log(sigmoid(f)) + s.m, i)
    return SLSTMState(c / np.exp(m), n / np.exp(m), m, sigmoid(o) * c / n)


class Case(NamedTuple):
    """A cell, its step by hand, and the parameters that training does not change."""

    cell: rnn_jax.Cell
    step: Callable[[Any, Any, Any], Any]
    fixed: tuple[str, ...] = ()


CASES = {
    "antisymmetric": Case(rnn_jax.antisymmetric(H), antisymmetric, ("epsilon", "gamma")),
    "gated_antisymmetric": Case(
        rnn_jax.gated_antisymmetric(H), gated_antisymmetric, ("epsilon", "gamma")
    ),
    "cornn": Case(rnn_jax.cornn(H), cornn, ("dt", "gamma", "epsilon")),
    "lem": Case(rnn_jax.lem(H), lem, ("dt",)),
    "exp_rnn": Case(rnn_jax.exp_rnn(H), exp_rnn),
    "indrnn": Case(rnn_jax.indrnn(H), indrnn),
    "wave_rnn": Case(rnn_jax.wave_rnn(H, channels=2), wave_rnn),
    "lru": Case(rnn_jax.lru(H), lru),
    "min_gru": Case(rnn_jax.min_gru(H), min_gru),
    "min_lstm": Case(rnn_jax.min_lstm(H), min_lstm),
    "slstm": Case(rnn_jax.slstm(H), slstm),
}
OLD = {"elman", "leaky", "layer_norm", "lstm", "gru"}
"""Those with a file of tests of their own."""


def test_every_cell_of_the_registry_has_a_step_by_hand():
    assert CELLS.keys() - OLD == CASES.keys()
    for name in CASES:
        assert getattr(rnn_jax, name) is CELLS[name]
        assert name in dir(rnn_jax)


def random_problem(case, seed=0):
    """Random numbers in every leaf; a normalizer is positive, as every sum of exponentials is."""
    rng = np.random.default_rng(seed)

    def draw(leaf, std=0.6):
        return jnp.asarray(std * rng.normal(size=leaf.shape))

    params = jax.eval_shape(lambda key: case.cell.init(key, D), jax.random.key(0))
    params = jax.tree.map(draw, params)
    state = jax.tree.map(draw, jax.eval_shape(lambda p: case.cell.initial_state(p, (B,)), params))
    if isinstance(state, SLSTMState):
        state = state._replace(n=jnp.abs(state.n) + 0.5)
    xs = draw(jax.ShapeDtypeStruct((T, B, D), float), 1.0)
    perturbations = jax.tree.map(
        lambda s: draw(jax.ShapeDtypeStruct((T, *s.shape), float), 0.02), state
    )
    return params, state, xs, perturbations


def run_by_hand(case, problem):
    """All states, example by example until its length, as NumPy."""
    params, state, xs, perturbations = jax.tree.map(np.asarray, problem)
    states = []
    for t in range(T):
        new = jax.tree.map(
            lambda s, p, t=t: s + p[t], case.step(params, state, xs[t]), perturbations
        )
        runs = (t < LENGTHS)[:, None]
        state = jax.tree.map(lambda a, b, runs=runs: np.where(runs, a, b), new, state)
        states.append(state)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def head_by_hand(states):
    """`problems.head` in NumPy."""
    rng = np.random.default_rng(100)
    return sum(
        np.sum(np.sin(leaf * rng.uniform(0.5, 2, size=leaf.shape)))
        for leaf in jax.tree.leaves(states)
    )


@pytest.mark.parametrize("name", CASES)
def test_states_gradients_and_adjoints_are_those_of_the_step_by_hand(x64, name):
    """Of sequences of several lengths; gradients and adjoints by differences of the NumPy run."""
    case = CASES[name]
    problem = random_problem(case)
    states, gradients = states_and_gradients(case.cell, problem, rnn_jax.unroll, LENGTHS)
    assert_close(states, run_by_hand(case, problem), rtol=1e-11)
    flat, unravel = ravel_pytree(problem)
    step = 1e-5
    differences = [
        (
            head_by_hand(run_by_hand(case, unravel(flat + step * unit)))
            - head_by_hand(run_by_hand(case, unravel(flat - step * unit)))
        )
        / (2 * step)
        for unit in np.eye(flat.size)
    ]
    wanted = unravel(jnp.asarray(differences))
    given = gradients[0]
    for field in case.fixed:
        assert getattr(given, field) == 0
        assert getattr(wanted[0], field) != 0
    held = {field: getattr(given, field) for field in case.fixed}
    wanted = (wanted[0]._replace(**held), *wanted[1:]) if held else wanted
    assert_close(tuple(gradients), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["antisymmetric", "exp_rnn"])
def test_parameters_are_prepared_once_a_sequence(x64, name):
    """The matrix that acts is made outside the scan; a step takes the parameters either way."""
    cell = CASES[name].cell
    params, state, xs, _ = random_problem(CASES[name])
    step = jax.jit(cell.step)
    assert_close(step(cell.prepare(params), state, xs[0]), step(params, state, xs[0]))
    for wrap in (rnn_jax.learned_initial_state, rnn_jax.variational_dropout):
        wrapped = wrap(cell)
        own = wrapped.init(jax.random.key(0), D)
        for run in (rnn_jax.unroll, rnn_jax.plain_unroll):
            text = jax.make_jaxpr(lambda p, c=wrapped, run=run: run(c, p, state, xs))(own)
            # By W, and by U where that is in the loop too.
            assert 1 <= products_in_loops(text.jaxpr) <= 2


def products_in_loops(jaxpr, inside=False):
    """How many matrix products are in the bodies of scans."""
    count = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        count += inside and name == "dot_general"
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += products_in_loops(inner, inside or name == "scan")
    return count


# What each promises


def test_exponential_of_skew_matrices(x64):
    rng = np.random.default_rng(0)
    for size in (0.1, 3.0, 40.0, 500.0):
        A = size * rng.normal(size=(6, 6))
        A = A - A.T
        # Of an angle of 1000 the last digits are of 1000, not of 1.
        np.testing.assert_allclose(
            skew_exponential(jnp.asarray(A)), exponential(A), atol=1e-14 * max(1, 10 * size)
        )
    derivative = jax.jvp(skew_exponential, (jnp.asarray(A),), (jnp.asarray(A),))[1]
    np.testing.assert_allclose(derivative, A @ exponential(A), atol=1e-8)


def trained(cell, num_updates, learning_rate):
    """float32 parameters after updates in which a random loss moves them all."""
    params = cell.init(jax.random.key(0), D)
    optimizer = optax.adam(learning_rate)

    def loss(params, key):
        xs = jax.random.normal(key, (T, B, D))
        states = rnn_jax.unroll(cell, params, cell.initial_state(params, (B,)), xs)
        return jnp.sum(jnp.square(cell.emit(states)[-1] - 1))

    def body(now, key):
        params, state = now
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), num_updates)
    start = (params, optimizer.init(params))
    return params, jax.jit(lambda s: jax.lax.scan(body, s, keys)[0][0])(start)


def test_exp_rnn_stays_orthogonal():
    cell = rnn_jax.exp_rnn(16)
    first, last = trained(cell, 200, 1e-2)
    W = [np.asarray(cell.prepare(params).W, np.float64) for params in (first, last)]
    assert np.abs(W[1] - W[0]).max() > 0.1
    for matrix in W:
        np.testing.assert_allclose(np.linalg.svd(matrix)[1], 1, atol=1e-5)


def test_exp_rnn_starts_with_rotations_of_the_angles_asked_for(x64):
    for max_angle in (np.pi, 0.1):
        cell = rnn_jax.exp_rnn(400, max_angle)
        W = cell.prepare(cell.init(jax.random.key(0), D)).W
        angles = np.abs(np.angle(np.linalg.eigvals(W)))
        assert 0.97 * max_angle < angles.max() <= max_angle * (1 + 1e-9)
        assert abs(np.mean(angles) - max_angle / 2) < 0.1 * max_angle


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_antisymmetric_jacobian_neither_grows_nor_decays(x64, gamma):
    """Real parts of the eigenvalues of the ODE's Jacobian: within -gamma..0, whatever W is."""
    cell = rnn_jax.antisymmetric(H, epsilon=0.01, gamma=gamma)
    params, state, xs, _ = random_problem(CASES["antisymmetric"])
    params = params._replace(epsilon=jnp.array(0.01), gamma=jnp.array(gamma))
    step = jax.jacobian(lambda s: cell.step(params, s, xs[0, 0]))(state[0])
    real = np.linalg.eigvals((step - np.eye(H)) / 0.01).real
    assert np.all(real <= 1e-10)
    assert np.all(real >= -gamma - 1e-10)
    # An Elman cell of the same W has some outside.
    other = jax.jacobian(lambda s: jnp.tanh(s @ params.W))(state[0])
    assert np.abs(np.linalg.eigvals(other).real).max() > 0.3


def test_cornn_states_are_bounded(x64):
    """gamma |y|^2 + |z|^2 <= t H dt, for weights that drive every unit as hard as tanh allows."""
    cell = rnn_jax.cornn(H)
    params = cell.init(jax.random.key(0), D)
    dt, gamma, epsilon = 0.042, 2.7, 4.7
    assert (float(params.dt), float(params.gamma), float(params.epsilon)) == (dt, gamma, epsilon)
    assert 2 * epsilon - dt * (epsilon**2 + gamma) >= 1
    xs = jax.random.normal(jax.random.key(1), (200, D))
    for drive in (1.0, 1e3):
        wild = params._replace(W=drive * params.W, Wz=drive * params.Wz, U=1e3 * params.U)
        states = rnn_jax.unroll(cell, wild, cell.initial_state(wild), xs)
        energy = gamma * np.sum(np.square(states.y), 1) + np.sum(np.square(states.z), 1)
        assert np.all(energy <= np.arange(1, 201) * H * dt)
        assert energy.max() > 0.1 * H * dt


def test_lru_eigenvalues_stay_inside_the_unit_circle():
    cell = rnn_jax.lru(64, r_min=0.9, r_max=0.999)
    first, last = trained(cell, 100, 0.1)
    sizes = [np.hypot(*eigenvalues(params)) for params in (first, last)]
    assert np.all((sizes[0] > 0.899) & (sizes[0] < 0.9991))
    assert np.abs(sizes[1] - sizes[0]).max() > 0.05
    assert np.all(sizes[1] < 1)
    # And of any parameters at all, as far as float32 can tell 1 - 1e-7 from 1.
    anything = first._replace(nu_log=jnp.linspace(-15.5, 80, 64))
    assert np.all(np.hypot(*eigenvalues(anything)) < 1)


def test_lru_starts_on_the_ring_with_modes_of_equal_variance(x64):
    cell = rnn_jax.lru(200, r_min=0.5, r_max=0.9, max_phase=0.3)
    params = cell.init(jax.random.key(0), D)
    re, im = map(np.asarray, eigenvalues(params))
    # Uniform on the ring: r^2 is uniform.
    assert abs(np.mean(re**2 + im**2) - (0.25 + 0.81) / 2) < 0.03
    phases = np.arctan2(im, re)
    assert 0 < phases.min() < 0.01 < 0.29 < phases.max() <= 0.3
    xs = jax.random.normal(jax.random.key(1), (400, 20, D))
    states = rnn_jax.unroll(cell, params, cell.initial_state(params, (20,)), xs)
    power = np.mean(np.square(states.re[100:]) + np.square(states.im[100:]), (0, 1))
    wanted = np.sum(np.square(params.B_re) + np.square(params.B_im), 0)
    np.testing.assert_allclose(power, wanted, rtol=0.25)


# Their growth rate, where it is known without a run


def rates_by_hand(name, p, xs):
    """ln of the singular values of ds_T/ds_0 over T, from the parameters and inputs alone."""
    if name == "lru":
        return np.repeat(-np.exp(p.nu_log), 2)
    if name == "indrnn":
        return np.log(np.abs(p.u))
    if name == "exp_rnn":
        return np.zeros(H)
    z = sigmoid(xs @ p.U[:, :H] + p.b[:H])
    return np.mean(np.log(1 - z), axis=0)


@pytest.mark.parametrize(
    "name", slow_but_for({"lru", "exp_rnn"}, ["lru", "exp_rnn", "indrnn", "min_gru"])
)
def test_growth_rates_are_those_of_the_theory(x64, name):
    """Modes decay as |lambda|, units as |u|, an orthogonal W keeps all, a gate keeps 1 - z."""
    cell = rnn_jax.indrnn(H, "identity") if name == "indrnn" else CASES[name].cell
    params, state, xs, _ = random_problem(CASES[name])
    if name == "exp_rnn":
        params = params._replace(b=jnp.zeros(H))  # modrelu is the identity then.
    state = jax.tree.map(lambda s: s[0], state)
    found = gradflow.jacobian_product(cell, params, state, xs[:, 0]) / T
    p = jax.tree.map(np.asarray, params)
    wanted = np.sort(rates_by_hand(name, p, np.asarray(xs[:, 0])))[::-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


def test_a_wave_travels_round_the_ring_and_is_not_lost(x64):
    cell = rnn_jax.wave_rnn(12, channels=3)
    params = cell.init(jax.random.key(0), D)
    start = jnp.asarray(np.random.default_rng(0).uniform(size=12))
    states = rnn_jax.unroll(cell, params, start, jnp.zeros((4, D)))
    for t in range(4):
        moved = np.roll(np.reshape(start, (3, 4)), t + 1, axis=1)
        np.testing.assert_allclose(states[t], moved.ravel(), rtol=1e-12)
    irnn = rnn_jax.elman(12, "relu", recurrent_init=shift())
    one = rnn_jax.wave_rnn(12)
    weights = (irnn.init(jax.random.key(0), D), one.init(jax.random.key(0), D))
    a, b = (c.step(p, start, jnp.zeros(D)) for c, p in zip((irnn, one), weights, strict=True))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_slstm_is_finite_where_its_gates_are_not():
    cell = rnn_jax.slstm(H)
    params = cell.init(jax.random.key(0), D)
    for size in (-400.0, 400.0):
        wild = params._replace(b=params.b.at[:H].set(size))
        states, gradient = jax.value_and_grad(
            lambda p: jnp.sum(rnn_jax.unroll(cell, p, cell.initial_state(p), jnp.ones((T, D))).h)
        )(wild)
        assert np.isfinite(states)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_min_lstm_weighs_gates_that_are_both_nearly_zero():
    cell = rnn_jax.min_lstm(H)
    params = cell.init(jax.random.key(0), D)
    closed = params._replace(b=jnp.concatenate([jnp.full(2 * H, -300.0), jnp.ones(H)]))
    h = cell.step(closed, jnp.zeros(H), jnp.zeros(D))
    np.testing.assert_allclose(h, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rnn_jax.wave_rnn(7, channels=2), "hidden_size is 7, which 2 channels do not"),
        (lambda: rnn_jax.wave_rnn(7, kernel_size=4), "kernel_size is 4; give an odd number"),
        (lambda: rnn_jax.indrnn(7, "swish"), "activation 'swish' is not known"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0, 2.5])
def test_sizes_are_positive_whole_numbers(name, size):
    with pytest.raises(ValueError, match=rf"hidden_size is {size!r}; .* at least 1"):
        CELLS[name](size)
    with pytest.raises(ValueError, match=rf"input_size is {size!r}; .* at least 1"):
        CASES[name].cell.init(jax.random.key(0), size)
