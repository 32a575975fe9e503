"""Each remedy, applied as it is worded, moves the quantity that it was named for."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from remedied_networks import (
    FLAX,
    OURS,
    B,
    H,
    T,
    independent_horizon,
    independent_logs,
    independent_rate,
    inputs,
    read,
)

import rnn_jax
from rnn_jax import ElmanParams, gradflow
from rnn_jax.gradflow import LastStep
from rnn_jax.gradflow.anatomy import anatomies, name_of, values_of
from rnn_jax.gradflow.trials import Edit, edited

LAST = LastStep(lambda state: state.sum(-1))
IDENTITY, TANH = (rnn_jax.elman(H, phi) for phi in ("identity", "tanh"))
LEAKY = rnn_jax.leaky(H, "identity")


def random(std, shape, seed=0):
    values = std * np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def orthogonal(gain=1.0):
    return rnn_jax.initializers.orthogonal(gain)(jax.random.key(1), (H, H))


def elman(W, u=0.3, bias=0.0):
    return ElmanParams(random(u, (1, H)), jnp.asarray(W, jnp.float32), jnp.full(H, bias))


XS = random(1.0, (T, B, 1), seed=5)


def diagnosed(cell, params, xs=XS, losses=LAST, state=None):
    state = cell.initial_state(params, (B,)) if state is None else state
    return gradflow.diagnose(cell, params, state, xs, losses)


def remedy(found, name):
    """The remedy of that name; the diagnosis must contain it."""
    return {remedy.name: remedy for remedy in found.remedies}[name]


def check_remedies(ill):
    """Every remedy is there, is worded with its number, and does what it promises."""
    cell, xs = ill.cell, inputs(ill.input_std)
    params = ill.change(cell.init(jax.random.key(2), 1))
    state = cell.initial_state(params, (B,))
    found = gradflow.diagnose(cell, params, state, xs, LastStep(read(cell)))
    assert tuple(remedy.name for remedy in found.remedies) == ill.remedies, str(found)
    before = independent_logs(cell, params, state, xs)
    for advised in found.remedies:
        assert advised.moves in ("growth rate", "horizon", "saturation", "gradient norm")
        if not advised.edits:
            continue
        mended = gradflow.apply_remedy(advised, params)
        assert jax.tree.map(jnp.shape, mended) == jax.tree.map(jnp.shape, params)
        after = independent_logs(cell, mended, state, xs)
        check_promise(advised, before, after)
        for edit in advised.edits:
            assert name_of(params, edit.part) in advised.advice
        assert_says(advised.advice, advised.setting)


def assert_says(advice, number):
    """Some number of the sentence is this one, rounded as one would."""
    numbers = [float(word) for word in re.findall(r"-?[\d.]*\d(?:e[+-]\d+)?", advice)]
    # 1 as the gain of an orthogonal matrix is said in words.
    assert np.any(np.isclose(numbers, number, rtol=0.01, atol=0.005)) or number == 1.0, advice


def check_promise(advised, before, after):
    """Against the independent measurement, which is a little different from ours."""
    if advised.moves == "growth rate":
        assert abs(advised.after) <= 0.5 * abs(advised.before)
        np.testing.assert_allclose(advised.before, independent_rate(before), rtol=0.05, atol=0.01)
        np.testing.assert_allclose(advised.after, independent_rate(after), rtol=0.05, atol=0.01)
    if advised.moves == "horizon":
        assert advised.after >= 2 * advised.before
        assert independent_horizon(before) == advised.before
        np.testing.assert_allclose(independent_horizon(after), advised.after, rtol=0.2)
    if advised.moves == "saturation":
        assert advised.after < 0.5 * advised.before


QUICK = ("elman", "relu-off", "leaky", "layer_norm", "lstm", "gru", "stack", "linen.MGUCell")
"""One of each kind of remedy and of cell; the others are the same code on other numbers."""
ALL = OURS | FLAX


@pytest.mark.parametrize("name", QUICK)
def test_every_remedy_does_what_it_promises(name):
    check_remedies(ALL[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ALL) - set(QUICK)))
def test_every_remedy_of_every_cell_does_what_it_promises(name):
    check_remedies(ALL[name]())


@pytest.mark.parametrize("name", ["orthogonal W", "gated cell"])
def test_a_cell_that_is_named_beside_a_remedy_has_a_healthy_gradient(name):
    """The number that speaks for it, T or the spread of W, is in the sentence."""
    ill = OURS["elman"]()
    params = ill.cell.init(jax.random.key(2), 1)
    found = diagnosed(ill.cell, params, inputs(ill.input_std))
    advice = remedy(found, name).advice
    call = re.search(r"rnn_jax\.(exp_rnn|lru)\((\d+)(?:, r_min=([\d.]+))?\)", advice)
    cell = getattr(rnn_jax, call[1])(int(call[2]), **({"r_min": float(call[3])} if call[3] else {}))
    assert int(call[2]) == H
    losses = LastStep(read(cell))
    named = cell.init(jax.random.key(2), 1)
    assert diagnosed(cell, named, inputs(ill.input_std), losses).verdict == "healthy"
    if call[3]:
        np.testing.assert_allclose(float(call[3]), 1 - 1 / T, rtol=1e-3)


NAMES = {
    "linen.SimpleCell": "params['h']['kernel']",
    "linen.LSTMCell": "params['hf']['bias']",
    "linen.OptimizedLSTMCell": "params['hf']['bias']",
    "linen.GRUCell": "params['iz']['bias']",
    "linen.MGUCell": "params['if']['bias']",
    "nnx.SimpleCell": "params['dense_h']['kernel']",
    "nnx.LSTMCell": "params['hf']['bias']",
    "nnx.OptimizedLSTMCell": f"params['dense_h']['bias'][{H}:{2 * H}]",
    "nnx.GRUCell": f"params['dense_i']['bias'][{H}:{2 * H}]",
}


@pytest.mark.parametrize("name", FLAX)
def test_a_flax_cell_is_recognised_by_its_parameters(name):
    """A gate of bias 30 hands the old state on as it is; nothing is asked of our own layout."""
    cell = FLAX[name]().cell
    params = cell.init(jax.random.key(0), 1)
    (found,) = anatomies(params)
    part = found.gate_bias or found.recurrent
    assert name_of(params, part) == NAMES[name]
    assert values_of(params, part).size in (H, H * H)
    if found.gate_bias is None:
        return
    params = edited(params, [Edit(part, "set", 30.0)])
    state = jax.tree.map(lambda s: random(1.0, s.shape), cell.initial_state(params))
    # Of an LSTM the cell state comes first, and new is c + i g.
    by_old = jax.jacobian(lambda s: cell.step(params, s, jnp.ones(1)))(state)
    first = jax.tree.leaves(by_old)[0]
    np.testing.assert_allclose(first, np.eye(H), atol=1e-5)


def factories():
    """What makes a cell of so many units; a cell added later is among them."""
    public = {name: getattr(rnn_jax, name) for name in rnn_jax.__all__}
    return [
        name
        for name, function in public.items()
        if inspect.isfunction(function)
        and next(iter(inspect.signature(function).parameters), "") == "hidden_size"
    ]


@pytest.mark.parametrize("name", factories())
def test_every_cell_of_ours_is_known_to_the_remedies(name):
    cell = getattr(rnn_jax, name)(H)
    params = cell.init(jax.random.key(0), 2)
    (found,) = anatomies(params)
    parts = [part for scaled in found.scales.values() for part in scaled]
    parts += [found.recurrent, found.inputs, found.bias, found.gate_bias, found.leak]
    for part in filter(None, parts):
        assert values_of(params, part).size
    assert found.gate_bias or found.leak or found.recurrent
    assert {"elman", "leaky", "layer_norm_elman", "lstm", "gru"} <= set(factories())


def test_the_parts_of_wrapped_cells_are_named_from_the_outside():
    cell = rnn_jax.stack([rnn_jax.learned_initial_state(rnn_jax.lstm(H)), rnn_jax.elman(H)])
    params = cell.init(jax.random.key(0), 1)
    lower, upper = anatomies(params)
    assert name_of(params, lower.gate_bias) == f"params[0].cell.b[{H}:{2 * H}]"
    assert name_of(params, upper.recurrent) == "params[1].W"
    inside = {"encoder": {"cell": FLAX["linen.GRUCell"]().cell.init(jax.random.key(0), 1)}}
    (found,) = anatomies(inside)
    assert name_of(inside, found.gate_bias) == "params['encoder']['cell']['iz']['bias']"


@pytest.mark.parametrize("params", [{"i": jnp.ones(3), "h": jnp.ones(3)}, 0.5, {"i": {}, "h": {}}])
def test_what_only_looks_like_flax_is_not_taken_for_it(params):
    assert anatomies(params) == []


@pytest.mark.parametrize(("leak", "w"), [(0.1, 4.0), (0.4, 0.0), (0.4, -1.0)])
def test_scale_w_of_a_leaky_cell(leak, w):
    """1 - leak of the gradient goes past W, so what scales W must count it, or say something else.

    W = w * identity and no input: each step back is a factor 1 - leak + leak w.
    """
    params = rnn_jax.LeakyParams(*elman(w * np.eye(H)), jnp.asarray(leak))
    before = diagnosed(LEAKY, params, jnp.zeros_like(XS))
    np.testing.assert_allclose(before.growth_rate, np.log(abs(1 - leak + leak * w)), rtol=1e-5)
    assert before.remedies
    for advice in before.remedies:
        if advice.name == "scale W":
            rate = np.log(abs(1 - leak + leak * w * advice.setting))
            assert abs(rate) < 0.2 * abs(before.growth_rate)


def test_an_open_forget_gate_is_not_told_to_close():
    """Here the output gate is shut, and no bias of the forget gate is to blame."""
    cell = rnn_jax.lstm(H)
    params = cell.init(jax.random.key(2), 1)
    b = jnp.repeat(jnp.array([0.0, 7.0, 0.0, -12.0]), H)
    params = params._replace(U=0.3 * params.U, W=0.1 * params.W, b=b)
    before = diagnosed(cell, params, losses=LastStep(read(cell)))
    assert before.verdict == "vanishing"
    assert "forget-gate bias" not in [advice.name for advice in before.remedies]


def test_gated_cell():
    before = diagnosed(TANH, elman(orthogonal(0.5)))
    advice = remedy(before, "gated cell")
    assert (before.verdict, advice.moves) == ("vanishing", "horizon")
    assert f"rnn_jax.lstm({H}, forget_bias={advice.setting:.1f})" in advice.advice
    cell = rnn_jax.lstm(H, forget_bias=advice.setting)
    params = cell.init(jax.random.key(3), 1)
    after = diagnosed(cell, params, losses=LastStep(read(cell)))
    assert after.horizon > 5 * before.horizon


CHAOTIC = rnn_jax.elman(32, recurrent_init=rnn_jax.initializers.gaussian(3.0))


@pytest.fixture(scope="module")
def exploding():
    """Parameters, and the diagnosis of the network."""
    params = CHAOTIC.init(jax.random.key(0), 1)
    return params, diagnosed(CHAOTIC, params, losses=LastStep(lambda s: 0.01 * s.sum(-1)))


def cut_gradient(params, window):
    """dL/dtheta through the last `window` steps, the state cut off before them.

    The network is chaotic, so another program's rounding makes it a little different.
    """

    def loss(params):
        start = jnp.zeros((B, 32))
        if window < T:
            states = rnn_jax.plain_unroll(CHAOTIC, params, start, XS[:-window])
            start = jax.lax.stop_gradient(states[-1])
        states = rnn_jax.plain_unroll(CHAOTIC, params, start, XS[-window:])
        return 0.01 * jnp.mean(states[-1].sum(-1))

    return jax.jit(jax.grad(loss))(params)


def test_a_bound_for_clipping_is_the_norm_before_the_gradient_has_grown(exploding):
    params, before = exploding
    advice = remedy(before, "clip the gradient")
    assert (before.verdict, advice.moves) == ("exploding", "gradient norm")
    logs = independent_logs(CHAOTIC, params, jnp.zeros((B, 32)), XS)
    grown = (logs[::-1] - logs[-1]).max(axis=1)
    window = int(np.argmax(grown >= np.log(10)))
    bound = optax.tree.norm(cut_gradient(params, window))
    np.testing.assert_allclose([advice.setting, advice.after], bound, rtol=0.02)
    assert f"optax.clip_by_global_norm({advice.setting:.3g})" in advice.advice
    assert f"its last {window} steps, before it has grown tenfold" in advice.advice
    growth = float(advice.advice.partition("grows ")[2].partition("-fold")[0])
    np.testing.assert_allclose(growth, np.exp(grown.max()), rtol=2e-2)
    grads = cut_gradient(params, T)
    np.testing.assert_allclose(advice.before, optax.tree.norm(grads), rtol=0.02)
    assert advice.before > 100 * advice.after
    clip = optax.clip_by_global_norm(advice.setting)
    clipped = clip.update(grads, clip.init(params))[0]
    np.testing.assert_allclose(optax.tree.norm(clipped), advice.after, rtol=1e-5)


def test_a_shorter_window_bounds_the_gradient(exploding):
    params, before = exploding
    advice = remedy(before, "shorter window")
    cut = optax.tree.norm(cut_gradient(params, int(advice.setting)))
    np.testing.assert_allclose(advice.after, cut, rtol=0.02)
    assert cut < 0.01 * advice.before


def test_where_the_states_explode_too_the_bound_is_the_size_of_the_parameters():
    params = elman(orthogonal(1.5))
    advice = remedy(diagnosed(IDENTITY, params), "clip the gradient")
    np.testing.assert_allclose(advice.setting, optax.tree.norm(params), rtol=1e-5)
    assert f"|theta| is {advice.setting:.3g}" in advice.advice


def test_growth_beyond_the_range_of_floats_is_written_in_powers_of_ten():
    before = diagnosed(IDENTITY, elman(1e12 * np.eye(H)), xs=jnp.zeros_like(XS))
    assert before.verdict == "exploding"
    assert f"10^{12 * (T - 1)}-fold" in remedy(before, "clip the gradient").advice
    np.testing.assert_allclose(remedy(before, "scale W").setting, 1e-12, rtol=1e-3)


def test_nothing_to_mend():
    assert diagnosed(IDENTITY, elman(0.97 * np.eye(H))).remedies == ()


def test_a_remedy_that_is_not_a_change_of_parameters_says_what_to_do(exploding):
    params, before = exploding
    with pytest.raises(ValueError, match=r"'clip the gradient' is not a change .*: put optax.clip"):
        gradflow.apply_remedy(remedy(before, "clip the gradient"), params)


def test_a_loss_that_does_not_see_the_state():
    found = diagnosed(TANH, elman(orthogonal()), losses=LastStep(lambda s: 0 * s.sum(-1)))
    assert found.verdict == "dead"
    assert [advice.name for advice in found.remedies] == ["loss"]
