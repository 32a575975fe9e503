"""`diagnose` at its edges: short, single, padded and broken; and the numbers beside its verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from labelled_gates import OWN

import rnn_jax
from rnn_jax import ElmanParams, gradflow
from rnn_jax.gradflow import LastStep

B, H, D, T = 3, 4, 2, 30
TANH, IDENTITY = rnn_jax.elman(H), rnn_jax.elman(H, "identity")
LAST = LastStep(lambda state: state.sum(-1))


def every(states):
    """`[T, ...]`: no two units count alike."""
    return jnp.sin(states) @ jnp.arange(1, H + 1, dtype=states.dtype)


def network(W, batch_shape=(B,), num_steps=T, seed=0, size=1.0):
    """Random U, b, s_0 and xs of standard deviation `size`."""
    rng = np.random.default_rng(seed)
    U, b, state, xs = (
        jnp.asarray(size * rng.normal(size=shape), jnp.float32)
        for shape in ((D, H), (H,), (*batch_shape, H), (num_steps, *batch_shape, D))
    )
    return ElmanParams(U, jnp.asarray(W, jnp.float32), b), state, xs


def orthogonal(g=1.0, seed=0):
    return g * np.linalg.qr(np.random.default_rng(seed).normal(size=(H, H)))[0]


def own(factors, losses=LAST):
    """Diagnosis of s_t = x_t s_{t-1} for factors `[T, B]`."""
    factors = np.asarray(factors, np.float32)
    start = jnp.zeros((factors.shape[1], 1))
    return gradflow.diagnose(OWN, jnp.ones(()), start, jnp.asarray(factors[..., None]), losses)


def same(a, b, rtol=1e-5):
    """All that was measured is equal; T, and with it the advice, may differ."""
    assert (a.verdict, a.sure, a.fit_steps) == (b.verdict, b.sure, b.fit_steps)
    for field in ("slope", "slope_error", "horizon", "saturation", "exponent"):
        wanted = getattr(b, field)
        np.testing.assert_allclose(getattr(a, field), wanted, rtol=rtol, atol=1e-6, err_msg=field)


# Too little to go by


@pytest.mark.parametrize("num_steps", [1, 4])
def test_too_short_to_be_sure(num_steps):
    found = gradflow.diagnose(IDENTITY, *network(orthogonal(0.5), num_steps=num_steps), LAST)
    assert np.isnan(found.slope)
    assert (found.slope_error, found.sure, found.verdict) == (np.inf, False, "healthy")
    assert (found.num_steps, found.fit_steps, found.horizon) == (num_steps, (1, num_steps), np.inf)
    assert "not sure" in str(found)
    assert "none could be fitted" in str(found)


def test_five_steps_are_enough():
    found = gradflow.diagnose(IDENTITY, *network(orthogonal(0.1), num_steps=5), LAST)
    assert (found.verdict, found.sure, found.fit_steps) == ("vanishing", True, (1, 5))
    np.testing.assert_allclose(found.slope, np.log(0.1), rtol=1e-6)


@pytest.mark.parametrize("step", [1, 4])
def test_loss_with_too_few_steps_before_it(step):
    def losses(states):
        return states.sum(-1).at[: step - 1].set(0).at[step:].set(0)

    found = gradflow.diagnose(IDENTITY, *network(orthogonal(0.5)), losses)
    assert np.isnan(found.slope)
    assert (found.slope_error, found.sure, found.verdict) == (np.inf, False, "healthy")
    assert found.fit_steps == (1, step)


def test_loss_at_an_early_step_is_fitted_before_it():
    """The steps after the loss are none of its lags."""

    def losses(states):
        return states.sum(-1).at[:11].set(0).at[12:].set(0)

    found = gradflow.diagnose(IDENTITY, *network(orthogonal(0.5)), losses)
    assert (found.verdict, found.sure) == ("vanishing", True)
    np.testing.assert_allclose(found.slope, np.log(0.5), rtol=1e-6)
    first, last = found.fit_steps
    assert first == 1
    assert last in (11, 12)


def test_constant_gradient():
    found = gradflow.diagnose(IDENTITY, *network(np.eye(H)), LAST)
    assert (found.slope, found.slope_error, found.horizon) == (0, 0, np.inf)
    assert (found.verdict, found.sure, found.remedies) == ("healthy", True, ())


# One example, one unit


@pytest.mark.parametrize(("losses", "lengths"), [(LAST, None), (every, 21)])
def test_unbatched_is_a_batch_of_one(losses, lengths):
    params, state, xs = network(orthogonal(0.8), batch_shape=())
    batched = None if lengths is None else jnp.array([lengths])
    one = gradflow.diagnose(TANH, params, state[None], xs[:, None], losses, lengths=batched)
    single = None if lengths is None else jnp.array(lengths)
    found = gradflow.diagnose(TANH, params, state, xs, losses, lengths=single)
    np.testing.assert_equal(found, one)
    assert np.isfinite(found.slope)


def test_one_unit_and_one_example():
    cell = rnn_jax.elman(1, "identity")
    params = ElmanParams(jnp.ones((1, 1)), jnp.full((1, 1), -0.5), jnp.zeros(1))
    found = gradflow.diagnose(cell, params, jnp.zeros((1, 1)), jnp.ones((T, 1, 1)), LAST)
    assert (found.verdict, found.sure, found.horizon) == ("vanishing", True, 10)
    np.testing.assert_allclose([found.slope, found.exponent], np.log(0.5), rtol=1e-6)


# What examples say


@pytest.mark.parametrize(("others", "verdict"), [(1, "vanishing"), (2, "mixed")])
def test_nine_in_ten_make_a_majority(others, verdict):
    factors = np.full((T, 10), 0.5)
    factors[:, :others] = 2.0
    assert own(factors).verdict == verdict


def test_a_dip_within_the_sequence_is_not_healthy():
    """It falls to 1e-6 and comes back: "healthy" is none of the other verdicts."""
    factors = np.concatenate([np.full((20, 2), 2.0), np.full((20, 2), 0.5)])
    found = own(factors)
    assert found.horizon == 10
    assert found.verdict != "healthy"


def test_a_bent_profile_is_not_sure():
    """All of the fall is in the last tenth: no slope speaks for the whole."""
    factors = np.ones((200, 1))
    factors[:15] = 0.5
    found = own(factors)
    assert (found.verdict, found.sure) == ("vanishing", False)


# Padding


def test_padding_changes_nothing():
    """Without the lengths the states would overflow on it."""
    params, state, xs = network(orthogonal(50.0), num_steps=12)
    padded = jnp.concatenate([xs, jnp.full((T - 12, B, D), 9.0)])
    plain = gradflow.diagnose(IDENTITY, params, state, xs, LAST)
    found = gradflow.diagnose(IDENTITY, params, state, padded, LAST, lengths=jnp.full(B, 12))
    same(found, plain)
    np.testing.assert_allclose(found.slope, np.log(50), rtol=1e-6)


def test_losses_of_different_sizes_and_lengths():
    """A large loss of a short sequence is no part of the slope."""
    sizes = jnp.array([1e6, 1.0, 1e-6])
    given = network(orthogonal(0.9))
    losses = LastStep(lambda state: sizes * state.sum(-1))
    found = gradflow.diagnose(IDENTITY, *given, losses, lengths=jnp.array([15, 30, 22]))
    np.testing.assert_allclose(found.slope, np.log(0.9), atol=3 * found.slope_error + 1e-6)
    assert found.slope_error < 1e-5


# Broken


def test_nan_is_named_before_anything_else():
    params, state, xs = network(1e30 * np.eye(H))
    broken = xs.at[4, 1, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"^xs is not finite: \[4, 1, 0\] is nan"):
        gradflow.diagnose(TANH, params, state, broken, LAST)
    with pytest.raises(ValueError, match=r"^xs is not finite: \[4, 0\] is nan"):
        gradflow.diagnose(TANH, params, state[1], broken[:, 1], LAST)
    with pytest.raises(ValueError, match=r"^state is not finite"):
        gradflow.diagnose(TANH, params, state.at[0, 0].set(jnp.inf), xs, LAST)
    with pytest.raises(ValueError, match=r"^params is not finite: b"):
        gradflow.diagnose(TANH, params._replace(b=params.b.at[1].set(jnp.nan)), state, xs, LAST)


def test_forward_overflow_is_named():
    params, state, xs = network(1e20 * np.eye(H))
    with pytest.raises(ValueError, match=r"the states leave the finite range at time step 2 of 30"):
        gradflow.diagnose(IDENTITY, params, state, xs, LAST)


def test_loss_without_a_gradient_gets_no_verdict():
    """The norm of 0 has gradient NaN, which must not pass for an exact zero."""
    params, state, xs = network(orthogonal(0.5))
    params = jax.tree.map(jnp.zeros_like, params)

    def losses(states):
        return jnp.linalg.norm(states, axis=-1)

    with pytest.raises(ValueError, match="gradient"):
        gradflow.diagnose(TANH, params, state, xs, losses)


def test_shapes_that_do_not_fit():
    params, state, xs = network(orthogonal())
    with pytest.raises(ValueError, match="step_losses returned shape"):
        gradflow.diagnose(TANH, params, state, xs, lambda states: jnp.mean(states))
    with pytest.raises(ValueError, match="LastStep's loss returned shape"):
        gradflow.diagnose(TANH, params, state, xs, LastStep(jnp.sum))
    with pytest.raises(ValueError, match="xs has shape"):
        gradflow.diagnose(TANH, params, state, xs[:, 0, 0], LAST)


# The numbers beside the verdict


@pytest.mark.parametrize("lengths", [None, [30, 20, 12]])
def test_saturation_is_that_of_numpy(lengths):
    params, state, xs = network(orthogonal(1.5), size=2.0)
    valid = np.arange(T)[:, None] < np.array([T] * B if lengths is None else lengths)
    U, W, b, s, x = (np.asarray(a, np.float64) for a in (*params, state, xs))
    slopes = []
    for x_t in x:
        z = x_t @ U + s @ W + b
        s = np.tanh(z)
        slopes.append(np.cosh(z) ** -2)
    lengths = None if lengths is None else jnp.asarray(lengths)
    found = gradflow.diagnose(TANH, params, state, xs, LAST, lengths=lengths)
    wanted = np.mean(np.array(slopes)[valid] < 0.05)
    assert 0.2 < wanted < 0.95
    np.testing.assert_allclose(found.saturation, wanted, rtol=1e-6)


def test_exponent_is_the_largest_of_the_spectrum():
    given = network(orthogonal(1.3))
    spectrum = gradflow.lyapunov_spectrum(TANH, *given, burn_in=T // 5)
    found = gradflow.diagnose(TANH, *given, LAST)
    np.testing.assert_allclose(found.exponent, spectrum[0], rtol=1e-5)
    assert spectrum[0] - spectrum[1] > 0.01
    found = gradflow.diagnose(IDENTITY, *network(orthogonal(1.3)), LAST)
    np.testing.assert_allclose(found.exponent, np.log(1.3), rtol=1e-6)


def test_report_says_it_all():
    found = gradflow.diagnose(TANH, *network(orthogonal(0.3), size=0.1), LAST)
    report = str(found)
    assert report.startswith("gradient: vanishing\n")
    assert f"{found.slope:+.4f} ± {found.slope_error:.4f} nats per step back" in report
    assert f"fitted on t = 1..{found.fit_steps[1]}" in report
    assert f"{found.horizon:.0f} steps until it has fallen to 1/1000; T is {T}" in report
    assert f"{found.exponent:+.4f}" in report
    assert "0% of units have phi' < 0.05" in report
    assert len(found.remedies) >= 2
    for number, remedy in enumerate(found.remedies, 1):
        assert f"{number}. {remedy.name}: {remedy.advice}" in report
    assert "all but 0.1% of it comes from the last 6 steps before the loss" in report
    assert f"\ntask: {found.task}\ntry:\n" in report
    assert len(report.splitlines()) == 8 + len(found.remedies)


def test_the_former_names_still_work():
    found = gradflow.diagnose(TANH, *network(orthogonal(0.3)), LAST)
    assert (found.slope, found.slope_error) == (found.growth_rate, found.growth_rate_error)


@jax.jit
def cut_gradient(params, state, xs, ends, window):
    """dL/dtheta by `jax.grad` through a state cut off `window` steps before each example's end."""

    def loss(params):
        def step(s, inputs):
            t, x = inputs
            cut = jnp.where((t == ends - window)[:, None], jax.lax.stop_gradient(s), s)
            return jnp.where((t < ends)[:, None], TANH.step(params, cut, x), s), None

        return jnp.mean(jax.lax.scan(step, state, (jnp.arange(T), xs))[0].sum(-1))

    return jax.grad(loss)(params)


@pytest.mark.parametrize("lengths", [None, [30, 25, 14]])
def test_what_lies_beyond_the_horizon_adds_little(lengths):
    given = network(orthogonal(0.4))
    ends = jnp.full(B, T) if lengths is None else jnp.array(lengths)
    found = gradflow.diagnose(TANH, *given, LAST, lengths=None if lengths is None else ends)
    assert found.verdict == "vanishing"
    full, cut = (cut_gradient(*given, ends, w) for w in (T + 1, int(found.horizon)))
    rest = jax.tree.map(jnp.subtract, full, cut)
    size, left = (np.sqrt(sum(np.sum(np.square(g)) for g in tree)) for tree in (full, rest))
    np.testing.assert_allclose(found.left_out, left / size, rtol=1e-3)
    assert 1e-5 < found.left_out < 0.01


def test_both_directions_are_diagnosed_one_by_one():
    both = rnn_jax.bidirectional(TANH, TANH)
    params = both.init(jax.random.key(0), D)
    state, xs = both.initial_state(params, (B,)), jnp.ones((T, B, D))
    with pytest.raises(ValueError, match=r"given a Bidirectional; .*diagnose each direction"):
        gradflow.diagnose(both, params, state, xs, LAST)


# Did the task need the reach?


def outcome_of(loss, chance_loss, gain=0.3):
    given = network(orthogonal(gain), size=0.1)
    cell = IDENTITY if gain >= 1 else TANH
    return gradflow.diagnose(cell, *given, LAST, outcome=gradflow.Outcome(loss, chance_loss))


@pytest.mark.parametrize(
    ("loss", "gain", "words"),
    [
        (
            8.5e-6,
            0.3,
            "learned (loss 8.5e-06; 0.02 without memory): it does not need a gradient that reaches "
            "further back than 6 steps, and nothing has to change",
        ),
        (
            0.0199,
            0.3,
            "not learned (loss 0.02; 0.02 without memory): if the answer lies more than 6 steps "
            "before the loss, this gradient hardly knows of it",
        ),
        (0.01, 0.3, "learned in part (loss 0.01; 0.02 without memory): if the answer lies more"),
        (
            0.02,
            1.0,
            "not learned (loss 0.02; 0.02 without memory): the gradient reaches all of the "
            "sequence, so look elsewhere",
        ),
        (1e-4, 2.0, "learned (loss 0.0001; 0.02 without memory): but one large gradient can undo"),
    ],
)
def test_a_verdict_stands_beside_what_the_task_needed(loss, gain, words):
    found = outcome_of(loss, 0.02, gain)
    assert found.task.startswith(words)
    assert f"\ntask: {words}" in str(found)
    needless = found.verdict == "vanishing" and loss < 0.001
    assert ("\nto reach further all the same, try the following" in str(found)) == needless
    assert bool(found.remedies) == (gain != 1.0)


def test_without_a_loss_the_report_says_what_could_not_be_learned():
    found = gradflow.diagnose(TANH, *network(orthogonal(0.3), size=0.1), LAST)
    assert found.task.startswith("inputs more than 6 steps before a loss have next to no part in")
    assert "if your loss is good already, the task does not need them" in found.task
    assert gradflow.diagnose(IDENTITY, *network(np.eye(H)), LAST).task == ""


@pytest.mark.parametrize(("loss", "chance_loss"), [(0.1, 0.0), (0.1, np.nan), (np.nan, 1.0)])
def test_losses_that_say_nothing_are_refused(loss, chance_loss):
    with pytest.raises(ValueError, match=r"^outcome\.(chance_)?loss is (0\.0|nan); give "):
        outcome_of(loss, chance_loss)
