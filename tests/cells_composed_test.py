"""Cells made of cells: stacks, masks, learned initial states, layer normalization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    CELLS,
    LENGTHS,
    PADDING,
    B,
    D,
    H,
    Problem,
    T,
    assert_close,
    fast_and_slow,
    loss,
    problem,
    random_like,
    states_and_gradients,
)

import rnn_jax
from rnn_jax import gradflow, losses, objectives, plain_unroll, training
from rnn_jax.training import optim
from rnn_jax.types import Batch

DROPPED = rnn_jax.variational_dropout
LEARNED = rnn_jax.learned_initial_state
COMPOSED = {
    "stack": rnn_jax.stack([CELLS["lstm"], CELLS["user"], rnn_jax.elman(3)]),
    "dropped stack": rnn_jax.stack([DROPPED(CELLS["elman"]), DROPPED(CELLS["lstm"])]),
    "learned": LEARNED(CELLS["lstm"]),
    "layer norm": rnn_jax.layer_norm_elman(H),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Once for each cell, so that all tests of a cell run next to each other and compile it once.
@pytest.fixture(params=COMPOSED, scope="module")
def cell(request):
    return COMPOSED[request.param]


def initial(cell, input_size=D):
    return jax.jit(cell.init, static_argnums=1)(jax.random.key(0), input_size)


# Every one of them against a plain scan over its step


def scan(cell, params, state, xs, *, perturbations, lengths=None):
    """A scan written here, that knows nothing of layers or lengths but a Python list of them."""
    states = []
    for t in range(T):
        new = cell.step(params, state, xs[t])
        new = jax.tree.map(lambda s, p, t=t: s + p[t], new, perturbations)
        if lengths is not None:
            runs = t < np.asarray(LENGTHS)
            new = jax.tree.map(
                lambda a, b, runs=runs: jnp.where(
                    jnp.broadcast_to(runs.reshape(-1, *[1] * (a.ndim - 1)), a.shape), a, b
                ),
                new,
                state,
            )
        states.append(new)
        state = new
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def test_states_and_gradients_are_those_of_a_scan(x64, cell):
    given = problem(cell)
    states, gradients = states_and_gradients(cell, given, rnn_jax.unroll, LENGTHS)
    wanted = states_and_gradients(cell, given, scan, LENGTHS)
    assert_close((states, gradients), wanted)
    for leaf in jax.tree.leaves(gradients.perturbations):
        assert np.all(np.any(np.asarray(leaf) != 0, axis=(1, 2)))


def test_padding_freezes_the_state_and_has_no_gradient(x64, cell):
    states, gradients = states_and_gradients(cell, problem(cell), rnn_jax.unroll, LENGTHS)
    for b, length in enumerate(LENGTHS):
        for leaf in jax.tree.leaves(states):
            np.testing.assert_array_equal(
                leaf[length:, b],
                np.broadcast_to(leaf[length - 1, b], leaf[length:, b].shape),
            )
    for leaf in jax.tree.leaves((gradients.perturbations, gradients.xs)):
        assert not np.asarray(leaf)[PADDING].any()
        assert np.asarray(leaf)[~PADDING].all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stack", "layer norm"])
def test_gradients_without_a_batch_axis(x64, name):
    cell = COMPOSED[name]
    given = problem(cell, ())
    wanted = states_and_gradients(cell, given, plain_unroll)
    assert_close(states_and_gradients(cell, given), wanted)


def test_perturbation_gradients_by_finite_differences(x64):
    cell = COMPOSED["stack"]
    given = problem(cell)
    direction = random_like(np.random.default_rng(3), given.perturbations, 1.0)
    run = jax.jit(functools.partial(loss, cell))

    def moved(h):
        shift = jax.tree.map(lambda p, d: p + h * d, given.perturbations, direction)
        return run(given._replace(perturbations=shift))

    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    gradients = states_and_gradients(cell, given)[1].perturbations
    inner = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradients, direction)))
    np.testing.assert_allclose(inner, slope, rtol=1e-7)


def test_gradient_flow_measures_it(x64, cell):
    """|dL/ds_t| over all of a state's leaves, against the perturbations' gradients."""
    params, state, xs, _ = problem(cell)

    def step_losses(states):
        return jnp.sum(jnp.sin(cell.emit(states)), axis=-1)

    logs = gradflow.state_gradients(cell, params, state, xs, step_losses)

    def total(perturbations):
        states = plain_unroll(cell, params, state, xs, perturbations=perturbations)
        return jnp.sum(step_losses(states))

    adjoints = jax.jit(jax.grad(total))(rnn_jax.zero_perturbations(state, T))
    norms = [np.sum(np.square(leaf), axis=-1) for leaf in jax.tree.leaves(adjoints)]
    np.testing.assert_allclose(np.exp(2 * logs), sum(norms), rtol=1e-10)


def test_diagnose_runs_on_a_stack(x64):
    cell = COMPOSED["dropped stack"]
    params, state, xs, _ = problem(cell)
    found = gradflow.diagnose(
        cell, params, state, xs, gradflow.LastStep(lambda state: jnp.sum(cell.emit(state), axis=-1))
    )
    assert found.verdict


# Stacks


def test_each_layer_reads_what_the_one_below_emits_at_the_same_step(x64, rng):
    below, above = CELLS["lstm"], CELLS["elman"]
    deep = rnn_jax.stack([below, above])
    params, state, xs, _ = problem(deep)
    states = rnn_jax.unroll(deep, params, state, xs)
    c, h = (np.asarray(s) for s in state[0])
    s = np.asarray(state[1])
    for t in range(T):
        c, h = below.step(params[0], rnn_jax.LSTMState(c, h), xs[t])
        s = np.tanh(h @ params[1].U + s @ params[1].W + np.asarray(params[1].b)[None])
        np.testing.assert_allclose(states[1][t], s, rtol=1e-12)
        np.testing.assert_allclose(states[0].h[t], h, rtol=1e-12)
    np.testing.assert_array_equal(deep.emit(states), states[1])


def test_a_stack_of_stacks(x64):
    nested = rnn_jax.stack([rnn_jax.stack([CELLS["gru"], CELLS["elman"]]), CELLS["leaky"]])
    flat = rnn_jax.stack([CELLS["gru"], CELLS["elman"], CELLS["leaky"]])
    given = problem(flat)

    def nest(three):
        return (three[:2], three[2])

    states, gradients = states_and_gradients(
        nested,
        Problem(nest(given.params), nest(given.state), given.xs, nest(given.perturbations)),
    )
    wanted, flat_gradients = states_and_gradients(flat, given)
    assert_close(states, nest(wanted))
    assert_close(gradients.params, nest(flat_gradients.params))
    assert_close(gradients.perturbations, nest(flat_gradients.perturbations))


def test_layers_get_the_input_size_of_the_layer_below():
    deep = rnn_jax.stack([rnn_jax.lstm(4), fast_and_slow(), rnn_jax.elman(3)])
    params = jax.eval_shape(lambda key: deep.init(key, D), jax.random.key(0))
    assert (params[0].U.shape, params[1]["input"].shape, params[2].U.shape) == (
        (D, 16),
        (4, 4),
        (4, 3),
    )
    same = initial(rnn_jax.stack([rnn_jax.elman(D), rnn_jax.elman(D)]))
    assert np.all(np.asarray(same[0].U) != same[1].U)
    assert jax.tree.map(jnp.shape, deep.initial_state(params, (2, B)))[2] == (2, B, 3)


def test_layers_keep_their_structure():
    """A layer's recurrent weight gradient is one product over time: none in the reverse scan."""
    deep = rnn_jax.stack([CELLS["elman"], CELLS["elman"]])
    given = jax.eval_shape(lambda: problem(deep))
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(deep, p), allow_int=True))(given)
    scans = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    inside = [str(eqn.params["jaxpr"]).count("dot_general") for eqn in scans]
    assert inside == [1] * 4


def test_stack_wants_cells():
    with pytest.raises(ValueError, match=r"at least one Cell, but was given none; for example"):
        rnn_jax.stack([])
    with pytest.raises(ValueError, match=r"at least one Cell, but was given \['int'\]"):
        rnn_jax.stack([rnn_jax.elman(2), 3])


def test_a_lower_layer_reaches_a_loss_on_the_top_one_step_later(x64):
    deep = rnn_jax.stack([CELLS["elman"], CELLS["gru"]])
    params, state, xs, perturbations = problem(deep)

    def top(perturbations, run):
        states = run(deep, params, state, xs, perturbations=perturbations)
        return jnp.sum(jnp.sin(states[1][-1]))

    below, above = jax.jit(jax.grad(top), static_argnums=1)(perturbations, rnn_jax.unroll)
    assert_close((below, above), jax.jit(jax.grad(top), static_argnums=1)(perturbations, scan))
    assert not np.any(below[-1])
    assert np.all(below[:-1] != 0)
    assert np.all(above != 0)


@pytest.mark.slow
def test_a_model_runs_freely_on_a_stack():
    model = rnn_jax.sequence_model(COMPOSED["dropped stack"], output_size=D)
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), D)
    state = model.cell.initial_state(params.cell, (B,))
    x = jnp.ones((B, D))
    outputs, _ = rnn_jax.free_run(model, params, state, x, 3)
    for wanted in outputs:
        state = model.cell.step(params.cell, state, x)
        x = model.readout(params.readout, model.cell.emit(state))
        np.testing.assert_allclose(wanted, x, rtol=1e-5, atol=1e-6)


# Masks


def test_masks_multiply_the_input_and_the_recurrent_state(x64, rng):
    """By hand: the GRU's own copy of the state, z s, is not dropped."""
    cell = DROPPED(rnn_jax.gru(H))
    params, s, xs, _ = problem(cell)
    m_x, m_s = (1 + np.asarray(mask) for mask in (params.inputs, params.states))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    U, W, b, d = (np.asarray(leaf) for leaf in params.cell)
    s, x = np.asarray(s), np.asarray(xs[0])
    a, r = (x * m_x) @ U + b, (s * m_s) @ W
    reset, z = sigmoid(a + r)[:, :H], sigmoid(a + r)[:, H : 2 * H]
    n = np.tanh(a[:, 2 * H :] + reset * (r[:, 2 * H :] + d))
    np.testing.assert_allclose(cell.step(params, s, x), (1 - z) * n + z * s, rtol=1e-12)


def drawn(cell, **rates):
    params = initial(cell, 200)
    return rnn_jax.draw_masks(jax.random.key(1), params, (100,), **rates)


def test_masks_have_their_rate_and_their_mean():
    params = drawn(DROPPED(rnn_jax.lstm(50)), input_rate=0.2, state_rate=0.5)
    assert params.inputs.shape == (100, 200)
    assert params.states.h.shape == (100, 50)
    for mask, rate in ((params.inputs, 0.2), (params.states.h, 0.5)):
        factors = 1 + np.asarray(mask)
        # Standard error of a share of 5,000: 0.7 %.
        assert abs(np.mean(factors == 0) - rate) < 0.03
        np.testing.assert_allclose(factors[factors != 0], 1 / (1 - rate), rtol=1e-6)


def test_each_layer_and_key_has_masks_of_its_own():
    layers = drawn(rnn_jax.stack([DROPPED(rnn_jax.elman(200))] * 2), input_rate=0.5, state_rate=0.5)
    masks = [layers[0].inputs, layers[1].inputs, layers[0].states, layers[1].states]
    masks.append(rnn_jax.draw_masks(jax.random.key(2), layers, (100,), input_rate=0.5)[0].inputs)
    for a in range(5):
        for b in range(a):
            assert 0.4 < np.mean(np.asarray(masks[a] != masks[b])) < 0.6


@pytest.mark.slow
def test_nothing_is_dropped_unless_drawn(x64):
    plain = rnn_jax.lstm(H)
    params = initial(DROPPED(plain))
    given = problem(plain)._replace(params=params.cell, perturbations=None)
    given = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), given)
    wanted = plain.step(*given[:2], given.xs[0])
    assert_close(DROPPED(plain).step(params, given.state, given.xs[0]), wanted)
    none = rnn_jax.draw_masks(jax.random.key(0), params, (B,))
    assert_close(DROPPED(plain).step(none, given.state, given.xs[0]), wanted)


@pytest.mark.slow
def test_weight_gradients_under_drawn_masks_by_finite_differences(x64):
    cell = COMPOSED["dropped stack"]
    given = problem(cell)
    direction = random_like(np.random.default_rng(3), given.params, 1.0)

    def value(params):
        params = rnn_jax.draw_masks(jax.random.key(5), params, (B,), input_rate=0.3, state_rate=0.4)
        return loss(cell, given._replace(params=params))

    gradient = jax.jit(jax.grad(value))(given.params)
    run = jax.jit(lambda h: value(jax.tree.map(lambda p, d: p + h * d, given.params, direction)))
    slope = (run(1e-5) - run(-1e-5)) / 2e-5
    inner = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(inner, slope, rtol=1e-7)
    for layer in gradient:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((layer.inputs, layer.states)))


@pytest.mark.slow
def test_masks_are_drawn_under_vmap(x64):
    cell = COMPOSED["dropped stack"]
    given = problem(cell)

    def value(params, key):
        masked = rnn_jax.draw_masks(key, params, (B,), input_rate=0.5)
        return loss(cell, given._replace(params=masked))

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(given.params, keys)
    alone = jax.jit(jax.grad(value))
    for n, key in enumerate(keys):
        assert_close(jax.tree.map(lambda leaf, n=n: leaf[n], together), alone(given.params, key))


def test_training_with_dropout_leaves_the_masks_alone():
    """Masks from a key of the batch; AdamW decays every weight, but a mask of 0 stays 0."""
    cell = rnn_jax.stack([DROPPED(rnn_jax.elman(H)), DROPPED(rnn_jax.gru(H))])
    model = rnn_jax.sequence_model(cell, 1)
    plain = objectives.next_step_objective(model, losses.squared_error)

    def run(params, carry, batch, perturbations):
        key, values = batch.targets
        params = rnn_jax.draw_masks(key, params, (B,), input_rate=0.2, state_rate=0.2)
        return plain.run(params, carry, batch._replace(targets=values), perturbations)

    def sample(key):
        xs = jax.random.normal(key, (T, B, 1))
        return Batch(inputs=xs, targets=(key, xs))

    optimizer = optim.recorded(optax.adamw(1e-2, weight_decay=0.5))
    state = training.init_state(model, optimizer, jax.random.key(0), 1, B)
    before = jax.tree.map(np.asarray, state.params.cell)
    state, metrics = training.train_chunk(
        plain._replace(run=run), optimizer, sample, state, jax.random.key(1), 3
    )
    for old, new in zip(before, state.params.cell, strict=True):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((new.inputs, new.states)))
        assert np.all(old.cell.W != new.cell.W)
    assert np.all(np.isfinite(metrics.loss))


def test_rates_are_probabilities_and_masks_are_there_to_draw():
    params = initial(DROPPED(rnn_jax.elman(2)))
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"state_rate is {rate}; give a probability in"):
            rnn_jax.draw_masks(jax.random.key(0), params, state_rate=rate)
    with pytest.raises(ValueError, match="no masks to draw; wrap the cell"):
        rnn_jax.draw_masks(jax.random.key(0), params.cell, state_rate=0.5)
    with pytest.raises(ValueError, match="wants a cell with `affine` parts"):
        DROPPED(fast_and_slow())


# Learned initial states


def test_a_learned_state_is_repeated_over_the_batch_and_its_gradient_summed(x64):
    cell = LEARNED(rnn_jax.lstm(H))
    given = problem(cell)

    def value(params):
        return loss(cell, given._replace(params=params, state=cell.initial_state(params, (B,))))

    gradient = jax.jit(jax.grad(value))(given.params).state
    by_example = states_and_gradients(
        cell, given._replace(state=cell.initial_state(given.params, (B,)))
    )[1].state
    assert_close(gradient, jax.tree.map(lambda g: jnp.sum(g, axis=0), by_example))
    assert np.all(np.asarray(gradient.c) != 0)
    repeated = cell.initial_state(given.params, (2, B))
    for index in np.ndindex(2, B):
        np.testing.assert_array_equal(repeated.h[index], given.params.state.h)


def test_a_learned_state_starts_where_the_cell_does():
    params = initial(LEARNED(rnn_jax.elman(H)))
    wanted = initial(rnn_jax.elman(H))
    np.testing.assert_array_equal(params.cell.W, wanted.W)
    np.testing.assert_array_equal(params.state, np.zeros(H))


def test_learned_states_in_a_stack(x64):
    cell = rnn_jax.stack([LEARNED(rnn_jax.gru(H)), LEARNED(rnn_jax.elman(2))])
    params = problem(cell).params
    np.testing.assert_array_equal(cell.initial_state(params, (B,))[1][2], params[1].state)


# Layer normalization


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_layer_norm_step(x64, rng, activation):
    cell = rnn_jax.layer_norm_elman(H, activation, epsilon=1e-3)
    p, s, xs, _ = problem(cell)
    z = np.asarray(xs[0]) @ p.U + np.asarray(s) @ p.W
    normal = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-3)
    wanted = normal * np.asarray(p.gain)[None] + np.asarray(p.b)[None]
    wanted = np.tanh(wanted) if activation == "tanh" else wanted
    np.testing.assert_allclose(cell.step(p, s, xs[0]), wanted, rtol=1e-12)


def test_layer_norm_does_not_see_the_scale_of_its_weights(x64):
    cell = rnn_jax.layer_norm_elman(H, epsilon=0.0)
    p, s, xs, _ = problem(cell)
    scaled = p._replace(U=7 * p.U, W=7 * p.W)
    assert_close(rnn_jax.unroll(cell, scaled, s, xs), rnn_jax.unroll(cell, p, s, xs))


def test_layer_norm_initial_gain_and_bias():
    params = initial(rnn_jax.layer_norm_elman(H))
    np.testing.assert_array_equal(params.gain, np.ones(H))
    np.testing.assert_array_equal(params.b, np.zeros(H))
    with pytest.raises(ValueError, match="activation 'swish' is not known"):
        rnn_jax.layer_norm_elman(H, "swish")


def test_problem_is_random_in_every_number(x64):
    """The comparisons above rest on it: no mask, gain or state is at its neutral value."""
    given = problem(COMPOSED["dropped stack"])
    assert isinstance(given, Problem)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(given))
