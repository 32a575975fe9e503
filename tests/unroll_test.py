"""`unroll` against BPTT written by hand, finite differences, and a scan that JAX differentiates."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.flatten_util import ravel_pytree

import rnn_jax
from rnn_jax import adjoint, plain_unroll, unroll

T, B, D, H, O = 7, 3, 2, 5, 2


def fast_and_slow() -> rnn_jax.Cell:
    """A user's own cell: two variables of different sizes in a dict, and no structure named."""

    def step(params, state, x):
        fast, slow = state["fast"], state["slow"]
        drive = x @ params["input"] + slow @ params["feedback"]
        fast = jnp.tanh(fast * jnp.broadcast_to(params["decay"], fast.shape) + drive)
        return {"fast": fast, "slow": 0.8 * slow + fast[..., :2] * fast[..., 2:]}

    def init(key, input_size):
        shapes = {"input": (input_size, 4), "feedback": (2, 4), "decay": (4,)}
        return {
            name: jax.random.normal(jax.random.fold_in(key, n), shape)
            for n, (name, shape) in enumerate(shapes.items())
        }

    def initial_state(params, batch_shape=()):
        dtype = params["input"].dtype
        return {
            "fast": jnp.zeros((*batch_shape, 4), dtype),
            "slow": jnp.zeros((*batch_shape, 2), dtype),
        }

    return rnn_jax.Cell(init, initial_state, step, emit=lambda state: state["fast"])


CELLS = {
    "elman": rnn_jax.elman(H),
    "leaky": rnn_jax.leaky(H),
    "lstm": rnn_jax.lstm(H),
    "gru": rnn_jax.gru(H),
    "user": fast_and_slow(),
}
LENGTHS = np.array([4, T, 1])
PADDING = np.arange(T)[:, None] >= LENGTHS


@pytest.fixture(params=CELLS)
def cell(request):
    return CELLS[request.param]


class Problem(NamedTuple):
    """What `unroll` is given; every number random, perturbations included."""

    params: Any
    state: Any
    xs: Any
    perturbations: Any


def random_like(rng, tree, std):
    return jax.tree.map(lambda leaf: jnp.asarray(std * rng.normal(size=leaf.shape)), tree)


def problem(cell, batch_shape=(B,), seed=0):
    rng = np.random.default_rng(seed)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = random_like(rng, params, 0.5)
    if isinstance(params, rnn_jax.LeakyParams):
        params = params._replace(leak=jnp.asarray(rng.uniform(0.2, 0.8)))
    state = jax.eval_shape(lambda p: cell.initial_state(p, batch_shape), params)
    perturbations = jax.tree.map(lambda s: np.zeros((T, *s.shape)), state)
    return Problem(
        params,
        random_like(rng, state, 0.5),
        jnp.asarray(rng.normal(size=(T, *batch_shape, D))),
        random_like(rng, perturbations, 0.1),
    )


def head(states):
    """A function of all states in which no two entries of a leaf count alike."""
    rng = np.random.default_rng(100)
    return sum(
        jnp.sum(jnp.sin(leaf * rng.uniform(0.5, 2, size=leaf.shape)))
        for leaf in jax.tree.leaves(states)
    )


def loss(cell, problem, run=unroll, lengths=None):
    params, state, xs, perturbations = problem
    return head(run(cell, params, state, xs, perturbations=perturbations, lengths=lengths))


@functools.partial(jax.jit, static_argnums=(0, 2))
def states_and_gradients(cell, problem, run=unroll, lengths=None):
    """The states, and the gradients by parameters, s_0, xs and perturbations, in one program."""
    params, state, xs, perturbations = problem
    states = run(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
    return states, jax.grad(loss, 1)(cell, problem, run, lengths)


def assert_close(given, wanted, rtol=1e-11, atol=1e-12):
    """Equal trees, up to rounding in float64."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), given, wanted)


# Against hand-written BPTT


def elman_problem(activation, seed=0):
    """Random weights and data, run and differentiated by hand and by `unroll`."""
    rng = np.random.default_rng(seed)
    weights = reference.random_weights(rng, D, H, O)
    s_0, x, y = (rng.normal(size=shape) for shape in ((B, H), (T, B, D), (T, B, O)))
    data = (weights, reference.PHI[activation], s_0, x, y)
    run = reference.forward(*data)

    def squared(weights, s_0, x, perturbations):
        cell = rnn_jax.elman(H, activation)
        params = rnn_jax.ElmanParams(weights.U, weights.W, weights.b)
        states = unroll(cell, params, s_0, x, perturbations=perturbations)
        outputs = states @ weights.V
        outputs = outputs + jnp.broadcast_to(weights.c, outputs.shape)
        return jnp.mean((outputs - y) ** 2), states

    arguments = jax.tree.map(jnp.asarray, (weights, s_0, x, np.zeros((T, B, H))))
    (value, states), gradients = jax.jit(jax.value_and_grad(squared, (0, 1, 2, 3), has_aux=True))(
        *arguments
    )
    return data, run, value, states, gradients


@pytest.mark.parametrize("activation", reference.PHI)
def test_elman_equals_hand_written_bptt(x64, activation):
    data, run, value, states, gradients = elman_problem(activation)
    by_hand = reference.backward(*data, run)
    np.testing.assert_allclose(states, run.states, rtol=1e-12)
    np.testing.assert_allclose(value, run.loss, rtol=1e-12)
    assert_close(gradients, (by_hand.weights, by_hand.s_0, by_hand.x, by_hand.adjoints))


@pytest.mark.parametrize("activation", reference.PHI)
def test_textbook_sum_is_the_gradient(x64, activation):
    data, run, _, _, gradients = elman_problem(activation, seed=1)
    terms = reference.textbook_terms(*data, run)
    later = np.triu_indices(T, 1)
    assert np.all(terms[later] == 0)
    earlier = np.tril_indices(T)
    assert np.all(np.linalg.norm(terms[earlier], axis=(1, 2)) > 0)
    assert_close(gradients[0].W, terms.sum(axis=(0, 1)))


def test_last_adjoint_is_the_immediate_gradient(x64):
    data, run, _, _, gradients = elman_problem("tanh")
    by_hand = reference.backward(*data, run)
    assert_close(gradients[3][-1], by_hand.immediate[-1])
    # Before the last step the future has its part, or the line above would say nothing.
    assert np.all(np.abs(gradients[3][:-1] - by_hand.immediate[:-1]).max(axis=(1, 2)) > 1e-5)


def test_last_adjoint_is_the_immediate_gradient_exactly(x64, cell):
    given = problem(cell)
    states, gradients = states_and_gradients(cell, given)
    immediate = jax.jit(jax.grad(head))(states)
    last = jax.tree.map(lambda leaf: np.asarray(leaf)[-1], (gradients.perturbations, immediate))
    assert_close(*last, rtol=1e-15, atol=0)


# Against finite differences


def test_gradients_equal_central_differences(x64, cell):
    """Every single derivative: parameters, s_0, xs and perturbations away from zero."""
    given = problem(cell)
    flat, unravel = ravel_pytree(given)
    step = 1e-5

    @jax.jit
    def differences(flat):
        def value(point):
            return loss(cell, unravel(point))

        shifts = step * jnp.eye(flat.size)
        up, down = (
            jax.vmap(value)(jnp.broadcast_to(flat, shifts.shape) + sign * shifts)
            for sign in (1, -1)
        )
        return (up - down) / (2 * step)

    _, gradients = states_and_gradients(cell, given)
    # Rounding of a loss of order 10 gives 1e-10, the third derivative as much.
    np.testing.assert_allclose(ravel_pytree(gradients)[0], differences(flat), atol=2e-8)


# Three routes to the same numbers


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_structured_generic_and_plain_routes_agree(x64, cell, lengths):
    given = problem(cell, seed=2)
    plain = states_and_gradients(cell, given, plain_unroll, lengths)
    assert_close(states_and_gradients(cell, given, unroll, lengths), plain)
    if cell.affine is not None:
        generic = cell._replace(affine=None)
        assert_close(states_and_gradients(generic, given, unroll, lengths), plain)


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_projecting_inputs_inside_the_scan_changes_nothing(x64, monkeypatch, name):
    """What is done with sequences too long for x_t U of all t at once."""
    cell, given = CELLS[name], problem(CELLS[name], seed=2)
    hoisted = states_and_gradients(cell, given, unroll, LENGTHS)
    calls = []

    def project(params, x):
        calls.append(x.ndim)
        return cell.affine.project(params, x)

    monkeypatch.setattr(adjoint, "HOISTED_ELEMENTS", T * B * H - 1)
    spy = cell._replace(affine=cell.affine._replace(project=project))
    assert_close(states_and_gradients(spy, given, unroll, LENGTHS), hoisted)
    assert 2 in calls


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_routes_agree_without_perturbations(x64, name):
    cell, given = CELLS[name], problem(CELLS[name])._replace(perturbations=None)
    assert_close(states_and_gradients(cell, given), states_and_gradients(cell, given, plain_unroll))


@pytest.mark.parametrize("name", ["elman", "lstm", "user"])
def test_batch_axes_agree(x64, name):
    """[T, D], [T, B, D] and [T, 2, B, D] are the same examples; parameter gradients add up."""
    cell = CELLS[name]
    given = problem(cell, (2, B))
    states, gradients = jax.device_get(states_and_gradients(cell, given))
    immediate = jax.device_get(jax.jit(jax.grad(head))(states))

    @jax.jit
    def states_and_part(given, immediate):
        def weighted(given):
            params, state, xs, perturbations = given
            states = unroll(cell, params, state, xs, perturbations=perturbations)
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, immediate, states))), states

        gradients, states = jax.grad(weighted, has_aux=True)(given)
        return states, gradients

    given = jax.device_get(given)
    batches, examples = [(0,), (1,)], [(a, b) for a in range(2) for b in range(B)]
    for indices in (batches, examples):
        total = jax.tree.map(np.zeros_like, given.params)
        for index in indices:
            at, of_time = take(index), take((slice(None), *index))
            part = Problem(
                given.params, at(given.state), of_time(given.xs), of_time(given.perturbations)
            )
            part_states, part_gradients = states_and_part(part, of_time(immediate))
            assert_close(part_states, of_time(states))
            assert_close(part_gradients.state, at(gradients.state))
            assert_close(part_gradients.xs, of_time(gradients.xs))
            assert_close(part_gradients.perturbations, of_time(gradients.perturbations))
            total = jax.tree.map(np.add, total, jax.device_get(part_gradients.params))
        assert_close(total, gradients.params)


def take(index):
    return functools.partial(jax.tree.map, lambda leaf: leaf[index])


# Padding


def test_state_stays_as_it_was_on_padding(x64, cell):
    given = problem(cell)
    padded, _ = states_and_gradients(cell, given, unroll, LENGTHS)
    full, _ = states_and_gradients(cell, given)
    for frozen, moving in zip(jax.tree.leaves(padded), jax.tree.leaves(full), strict=True):
        for example, length in enumerate(LENGTHS):
            np.testing.assert_allclose(
                frozen[:length, example], moving[:length, example], rtol=1e-13
            )
            last = np.broadcast_to(frozen[length - 1, example], frozen[length:, example].shape)
            np.testing.assert_array_equal(frozen[length:, example], last)


def test_padding_gets_exactly_no_gradient(x64, cell):
    _, gradients = states_and_gradients(cell, problem(cell), unroll, LENGTHS)
    for leaf in (gradients.xs, *jax.tree.leaves(gradients.perturbations)):
        assert np.all(np.asarray(leaf)[PADDING] == 0)
        assert np.all(np.abs(np.asarray(leaf)[~PADDING]).max(axis=-1) > 0)


@pytest.mark.parametrize("name", ["elman", "lstm", "user"])
def test_padded_example_equals_the_shorter_sequence(x64, name):
    """A head on the last state: the padding's garbage changes neither loss nor gradient."""
    cell, length = CELLS[name], 4
    given = problem(cell, ())
    rest = 1e6 * jnp.asarray(np.random.default_rng(5).normal(size=(T - length, D)))
    padded = given._replace(xs=jnp.concatenate([given.xs[:length], rest]))
    short = Problem(
        given.params,
        given.state,
        given.xs[:length],
        jax.tree.map(lambda p: p[:length], given.perturbations),
    )

    def last_state_loss(given, lengths):
        params, state, xs, perturbations = given
        states = unroll(cell, params, state, xs, perturbations=perturbations, lengths=lengths)
        return head(jax.tree.map(lambda s: s[-1], states))

    evaluate = jax.jit(jax.value_and_grad(last_state_loss))
    value, gradients = evaluate(padded, jnp.array(length))
    wanted_value, wanted = evaluate(short, None)
    cut = gradients._replace(
        xs=gradients.xs[:length],
        perturbations=jax.tree.map(lambda p: p[:length], gradients.perturbations),
    )
    assert_close((value, cut), (wanted_value, wanted), rtol=1e-13)


# Transformations


@pytest.mark.parametrize("name", ["elman", "lstm", "user"])
def test_vmap_over_parameters_equals_each_alone(x64, name):
    cell = CELLS[name]
    given = problem(cell)
    several = [problem(cell, seed=seed).params for seed in range(3)]
    gradient = jax.grad(lambda params: loss(cell, given._replace(params=params)))
    stacked = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *p: np.stack(p), *several))
    alone = jax.jit(gradient)
    for n, params in enumerate(several):
        assert_close(jax.tree.map(lambda g, n=n: np.asarray(g)[n], stacked), alone(params))


def test_vmap_over_examples_and_lengths_equals_the_batch(x64):
    cell = CELLS["gru"]
    given = problem(cell)

    def one(state, xs, perturbations, length):
        return unroll(cell, given.params, state, xs, perturbations=perturbations, lengths=length)

    mapped = jax.jit(jax.vmap(one, in_axes=(0, 1, 1, 0), out_axes=1))(
        given.state, given.xs, given.perturbations, jnp.asarray(LENGTHS)
    )
    batched = unroll(
        cell, *given[:3], perturbations=given.perturbations, lengths=jnp.asarray(LENGTHS)
    )
    assert_close(mapped, batched)


def test_works_without_jit(x64):
    cell, given = CELLS["elman"], problem(CELLS["elman"])
    eager = jax.grad(lambda given: loss(cell, given, lengths=LENGTHS))(given)
    assert_close(eager, states_and_gradients(cell, given, unroll, LENGTHS)[1])


def test_plain_unroll_has_forward_mode(x64, cell):
    given, direction = problem(cell), problem(cell, seed=7)
    _, gradients = states_and_gradients(cell, given)

    @jax.jit
    def derivative(given, direction):
        return jax.jvp(lambda g: loss(cell, g, plain_unroll), (given,), (direction,))[1]

    along = sum(
        np.vdot(g, d)
        for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(derivative(given, direction), along, rtol=1e-11)


def test_forward_mode_of_unroll_is_refused_as_such():
    """JAX's own words, not a complaint about shapes that fit."""
    cell = CELLS["elman"]
    params = cell.init(jax.random.key(0), D)
    xs = jnp.ones((T, D))
    with pytest.raises(TypeError, match=r"^can't apply forward-mode autodiff"):
        jax.jvp(lambda xs: unroll(cell, params, jnp.zeros(H), xs), (xs,), (xs,))


def count_traces(function, num_steps):
    """How often JAX calls the step of a cell while it traces `function(cell, xs)`."""
    calls = []

    def step(params, state, x):
        calls.append(None)
        return jnp.tanh(params * state + x)

    cell = rnn_jax.Cell(
        init=lambda key, input_size: jnp.ones(()),
        initial_state=lambda params, batch_shape=(): jnp.zeros((*batch_shape, 1)),
        step=step,
    )
    jax.make_jaxpr(lambda xs: function(cell, xs))(jnp.ones((num_steps, B, 1)))
    return len(calls)


def test_forward_traces_the_step_once():
    def forward(cell, xs):
        return unroll(cell, jnp.ones(()), jnp.zeros((B, 1)), xs)

    assert count_traces(forward, 2) == 1
    assert count_traces(forward, 50) == 1


def test_gradient_traces_the_step_as_often_for_any_length():
    def gradient(cell, xs):
        return jax.grad(lambda p: jnp.sum(unroll(cell, p, jnp.zeros((B, 1)), xs)))(jnp.ones(()))

    assert count_traces(gradient, 2) == count_traces(gradient, 50) <= 4


# What is wrong is said


def arguments(**changes):
    cell = CELLS["elman"]
    params = cell.init(jax.random.key(0), D)
    given = {"state": jnp.zeros((B, H)), "xs": jnp.zeros((T, B, D)), **changes}
    state, xs = given.pop("state"), given.pop("xs")
    return (cell, params, state, xs), given


ERRORS = {
    "features": ({"xs": jnp.zeros((T, B, 4))}, r"x of shape \(3, 4\).*U=\(2, 5\)"),
    "state size": ({"state": jnp.zeros((B, 6))}, r"\(3, 6\).*\(7, 3, 2\).*\(3, 5\)"),
    "batch": ({"xs": jnp.zeros((T, 4, D))}, r"\(3, 5\).*\(7, 4, 2\).*\(4, 5\)"),
    "state without batch": ({"state": jnp.zeros(H)}, r"\(5,\).*\(7, 3, 2\).*\(3, 5\)"),
    "state of another kind": (
        {"state": rnn_jax.LSTMState(jnp.zeros((B, H)), jnp.zeros((B, H)))},
        r"LSTMState\(c=\(3, 5\), h=\(3, 5\)\).*want \(3, 5\)",
    ),
    "rank 1": ({"xs": jnp.zeros(T)}, r"\(7,\).*\[T, B, D\] or \[T, D\].*xs\[:, None\]"),
    "no steps": ({"xs": jnp.zeros((0, B, D))}, r"\(0, 3, 2\): no time step"),
    "perturbations' steps": (
        {"perturbations": jnp.zeros((T - 1, B, H))},
        r"perturbations.*\(6, 3, 5\).*\(7, 3, 5\)",
    ),
    "perturbations' size": (
        {"perturbations": jnp.zeros((T, B, 1))},
        r"perturbations.*\(7, 3, 1\).*\(7, 3, 5\)",
    ),
    "lengths' shape": ({"lengths": jnp.array([1, 2])}, r"\(2,\).*\(7, 3, 2\).*\(3,\)"),
    "lengths' type": ({"lengths": jnp.array([1.0, 2.0, 3.0])}, r"\(3,\) and type float32.*whole"),
    "length 0": ({"lengths": jnp.array([1, 0, 3])}, r"from 0 to 3.*in 1\.\.7"),
    "length beyond T": ({"lengths": np.array([1, 8, 3])}, r"from 1 to 8.*in 1\.\.7"),
}


@pytest.mark.parametrize("run", [unroll, plain_unroll])
@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
def test_error_names_what_was_given_and_wanted(run, changes, message):
    positional, named = arguments(**changes)
    with pytest.raises(ValueError, match=message):
        run(*positional, **named)


@pytest.mark.parametrize("run", [unroll, plain_unroll])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda params, state, x: state[..., :2] + x, r"\(3, 5\).*\(3, 2\)"),
        (lambda params, state, x: (state + x).astype("float16"), r"float32.*float16"),
    ],
    ids=["shape", "type"],
)
def test_a_step_must_return_a_state_like_the_one_it_is_given(run, step, message):
    cell = rnn_jax.Cell(lambda *_: (), lambda _, shape=(): jnp.zeros((*shape, H)), step)
    with pytest.raises(ValueError, match=message):
        run(cell, (), jnp.zeros((B, H)), jnp.zeros((T, B, 1)))


def test_errors_are_the_same_under_jit():
    (cell, params, state, xs), _ = arguments(state=jnp.zeros((B, 6)))
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(7, 3, 2\).*\(3, 5\)"):
        jax.jit(unroll, static_argnums=0)(cell, params, state, xs)
