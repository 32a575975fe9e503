"""Flax cells as Cells: against `nn.RNN`, with gradients, and every error."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from marks import slow
from problems import assert_close

import rnn_jax
from rnn_jax import gradflow, losses, objectives, sweep, training
from rnn_jax.bridge import from_linen, from_nnx
from rnn_jax.training import optim
from rnn_jax.types import Batch

T, B, D, H = 5, 3, 2, 4
IMAGE = (3, 4, 2)
DOUBLE = {"param_dtype": jnp.float64, "dtype": jnp.float64}


class Echo(nn.RNNCellBase):
    """A user's own: the output is one of three leaves, and neither the first nor the last."""

    features: int

    @nn.compact
    def __call__(self, carry, x):
        drive = nn.Dense(self.features, param_dtype=jnp.float64)(x)
        fast = jnp.tanh(drive + 0.5 * carry["slow"])
        slow = 0.9 * carry["slow"] + 0.1 * fast
        return {"a": carry["fast"][..., :1], "fast": fast, "slow": slow}, fast

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        zeros = jnp.zeros((*input_shape[:-1], self.features), jnp.float64)
        return {"a": zeros[..., :1], "fast": zeros, "slow": zeros}

    @property
    def num_feature_axes(self):
        return 1


class EchoNNX(nnx.RNNCellBase):
    """The same in nnx, with a random stream and a constant of its own that no step moves."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(D, H, rngs=rngs, param_dtype=jnp.float64)
        self.decay = nnx.Variable(jnp.asarray(0.9))
        self.stream = rngs.carry.fork()

    def __call__(self, carry, x):
        fast, slow = carry
        new = jnp.tanh(self.dense(x) + 0.5 * slow)
        return (new, self.decay.get_value() * slow + 0.1 * fast), new

    def initialize_carry(self, input_shape, rngs):
        zeros = jnp.zeros((*input_shape[:-1], H), jnp.float64)
        return zeros, zeros

    @property
    def num_feature_axes(self):
        return 1


LINEN = {
    "SimpleCell": lambda: nn.SimpleCell(H, **DOUBLE),
    "LSTMCell": lambda: nn.LSTMCell(H, **DOUBLE),
    "OptimizedLSTMCell": lambda: nn.OptimizedLSTMCell(H, **DOUBLE),
    "GRUCell": lambda: nn.GRUCell(H, **DOUBLE),
    "MGUCell": lambda: nn.MGUCell(H, **DOUBLE),
    "ConvLSTMCell": lambda: nn.ConvLSTMCell(H, (2, 2), **DOUBLE),
    "Echo": lambda: Echo(H),
}
NNX = {
    "SimpleCell": lambda rngs: nnx.SimpleCell(D, H, rngs=rngs, **DOUBLE),
    "LSTMCell": lambda rngs: nnx.LSTMCell(D, H, rngs=rngs, **DOUBLE),
    "OptimizedLSTMCell": lambda rngs: nnx.OptimizedLSTMCell(D, H, rngs=rngs, **DOUBLE),
    "GRUCell": lambda rngs: nnx.GRUCell(D, H, rngs=rngs, **DOUBLE),
    "EchoNNX": EchoNNX,
}


def linen_problem(name):
    """The Cell, its parameters, its inputs, and Flax's own run over them."""
    module = LINEN[name]()
    image = IMAGE if name == "ConvLSTMCell" else None
    cell = from_linen(module, input_shape=image)
    size = int(np.prod(image or (D,)))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, size)))
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), size)

    def flax_run(params, xs):
        shaped = xs.reshape(T, B, *image) if image else xs
        layer = nn.RNN(module, time_major=True)
        return layer.apply({"params": {"cell": params}}, shaped).reshape(T, B, -1)

    return cell, params, xs, flax_run


def nnx_problem(name):
    cell = from_nnx(NNX[name], **({} if name != "EchoNNX" else {"input_shape": (D,)}))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, D)))
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), D)

    def flax_run(params, xs):
        module = NNX[name](nnx.Rngs(7))
        nnx.update(module, params)
        return nnx.RNN(module, time_major=True)(xs)

    return cell, params, xs, flax_run


QUICK = {"LSTMCell", "ConvLSTMCell", "Echo", "EchoNNX"}
"""What the others have too is left to the evidence: they are bridged in the same way."""
PROBLEMS = [
    (make, name) if name in QUICK else slow(make, name)
    for make, names in ((linen_problem, LINEN), (nnx_problem, NNX))
    for name in names
]


@pytest.mark.parametrize(("make", "name"), PROBLEMS)
def test_unroll_and_gradients_are_those_of_flax(x64, make, name):
    cell, params, xs, flax_run = make(name)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, size=(T, B, 1)))

    def ours(params, xs):
        return cell.emit(rnn_jax.unroll(cell, params, cell.initial_state(params, (B,)), xs))

    def value(run, params, xs):
        outputs = run(params, xs)
        scaled = outputs * jnp.broadcast_to(weights, outputs.shape)
        return jnp.sum(jnp.sin(scaled)), outputs

    (given, outputs), gradients = jax.jit(
        jax.value_and_grad(functools.partial(value, ours), (0, 1), has_aux=True)
    )(params, xs)
    (wanted, flax_outputs), flax_gradients = jax.jit(
        jax.value_and_grad(functools.partial(value, flax_run), (0, 1), has_aux=True)
    )(params, xs)
    assert outputs.dtype == jnp.float64
    assert_close((given, outputs, gradients), (wanted, flax_outputs, flax_gradients), rtol=1e-10)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    "make",
    [
        lambda: from_linen(nn.LSTMCell(H)),
        slow(lambda: from_nnx(lambda rngs: nnx.GRUCell(D, H, rngs=rngs))),
    ],
    ids=["linen", "nnx"],
)
def test_a_foreign_cell_trains_and_is_measured(make):
    cell = make()
    model = rnn_jax.sequence_model(cell, D)
    objective = objectives.next_step_objective(model, losses.squared_error)
    optimizer = optim.recorded(optax.adam(1e-2))

    def sample(key):
        xs = jax.random.normal(key, (T + 1, B, D))
        return Batch(inputs=xs[:-1], targets=0.5 * xs[:-1])

    state = training.init_state(model, optimizer, jax.random.key(0), D, B)
    state, metrics = training.train_chunk(
        objective, optimizer, sample, state, jax.random.key(1), 40
    )
    assert metrics.loss[-5:].mean() < 0.9 * metrics.loss[:5].mean()
    assert metrics.trace.shape == (40, T)
    assert np.all(np.asarray(metrics.trace) > 0)

    params, xs = state.params.cell, sample(jax.random.key(2)).inputs
    start = cell.initial_state(params, (B,))

    def step_losses(states):
        return jnp.sum(cell.emit(states) ** 2, axis=-1)

    def total(perturbations):
        states = rnn_jax.plain_unroll(cell, params, start, xs, perturbations=perturbations)
        return jnp.sum(step_losses(states))

    adjoints = jax.grad(total)(rnn_jax.zero_perturbations(start, T))
    squares = sum(np.sum(np.square(leaf), axis=-1) for leaf in jax.tree.leaves(adjoints))
    logs = gradflow.state_gradients(cell, params, start, xs, step_losses)
    np.testing.assert_allclose(np.exp(2 * logs), squares, rtol=1e-4)
    assert gradflow.diagnose(cell, params, start, xs, step_losses).verdict


def bare(cell):
    return cell._replace(affine=None, prepare=None)


KNOWN = {
    "linen": lambda: from_linen(lambda: nn.OptimizedLSTMCell(H, **DOUBLE)),
    "nnx": lambda: from_nnx(nnx.GRUCell(D, H, rngs=nnx.Rngs(3), **DOUBLE)),
    "own type": lambda: from_nnx(nnx.SimpleCell(D, H, rngs=nnx.Rngs(3))),
    "mixed": lambda: from_linen(nn.MGUCell(H, dtype=jnp.float32, param_dtype=jnp.float64)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_cells_come_with_their_structure(x64, name):
    """With it and without it gradients and remedies are the same, by the user's own names."""
    cell = KNOWN[name]()
    assert cell.affine is not None
    drawn = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), D)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), drawn)
    state = cell.initial_state(params, (B,))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, D)))

    def total(cell, params, xs):
        states = rnn_jax.unroll(cell, params, state, xs)
        return jnp.sum(jnp.sin(3 * cell.emit(states)))

    def both(params, xs):
        return [jax.value_and_grad(total, (1, 2))(c, params, xs) for c in (cell, bare(cell))]

    with_it, without = jax.jit(both)(params, xs)
    exact = name in ("linen", "nnx")
    assert_close(with_it, without, rtol=1e-10 if exact else 1e-4, atol=1e-12 if exact else 1e-5)
    assert jax.tree.structure(with_it[1][0]) == jax.tree.structure(params)


def test_a_cell_itself_keeps_its_weights():
    own = nnx.GRUCell(D, H, rngs=nnx.Rngs(3))
    params = from_nnx(own).init(jax.random.key(0), D)
    np.testing.assert_array_equal(params["dense_h"]["kernel"], own.dense_h.kernel[...])


def test_a_foreign_cell_in_a_sweep():
    """Each lane is the network alone."""
    cell = from_linen(nn.SimpleCell(H))

    def fit(size, key):
        weights_key, inputs_key = jax.random.split(key)
        params = cell.init(weights_key, D)
        xs = size * jax.random.normal(inputs_key, (T, D))
        last = rnn_jax.unroll(cell, params, cell.initial_state(params), xs)
        return cell.emit(last)[-1]

    sizes, keys = jnp.array([0.1, 0.5, 1.0]), jax.random.split(jax.random.key(0), 3)
    found = sweep.sweep(fit, sizes, keys, width=2)
    alone = jax.jit(fit)
    wanted = [alone(size, key) for size, key in zip(sizes, keys, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert np.ptp(found, axis=0).min() > 1e-3


def test_padding_of_a_foreign_cell(x64):
    cell, params, xs, _ = linen_problem("Echo")
    lengths = np.array([2, T, 1])
    padding = np.arange(T)[:, None] >= lengths

    def value(xs):
        states = rnn_jax.unroll(cell, params, cell.initial_state(params, (B,)), xs, lengths=lengths)
        return jnp.sum(jnp.sin(cell.emit(states))), states

    gradient, states = jax.grad(value, has_aux=True)(xs)
    assert not np.asarray(gradient)[padding].any()
    assert np.asarray(gradient)[~padding].all()
    for leaf in jax.tree.leaves(states):
        np.testing.assert_array_equal(leaf[2:, 0], np.broadcast_to(leaf[1, 0], leaf[2:, 0].shape))


def test_states_without_a_batch_and_with_two_batch_axes(x64):
    cell, params, xs, flax_run = linen_problem("ConvLSTMCell")
    wanted = flax_run(params, xs)
    for shape in ((), (1, 2)):
        some = xs[:, :2].reshape(T, *shape, *xs.shape[2:]) if shape else xs[:, 0]
        states = rnn_jax.unroll(cell, params, cell.initial_state(params, shape), some)
        emitted = np.asarray(cell.emit(states))
        reference = wanted[:, :2].reshape(emitted.shape) if shape else wanted[:, 0]
        np.testing.assert_allclose(emitted, reference, rtol=1e-10)


def test_only_weights_are_params_and_only_the_carry_is_state(x64):
    cell, params, _, _ = nnx_problem("EchoNNX")
    shapes = {"dense": {"kernel": (D, H), "bias": (H,)}}
    assert jax.tree.map(jnp.shape, params) == shapes
    assert jax.tree.map(jnp.shape, cell.initial_state(params)) == ((H,), (H,))
    other = cell.init(jax.random.key(1), D)
    assert np.all(params["dense"]["kernel"] != other["dense"]["kernel"])


def test_a_cell_that_computes_its_output_apart(x64):
    """No variable is shared then: one step with random numbers tells which leaf it is."""

    class Twice(Echo):
        @nn.compact
        def __call__(self, carry, x):
            drive = nn.Dense(self.features)(x)
            return {**carry, "slow": jnp.tanh(drive)}, jnp.tanh(drive)

    state = {"a": jnp.ones(1), "fast": 2 * jnp.ones(H), "slow": 3 * jnp.ones(H)}
    np.testing.assert_array_equal(from_linen(Twice(H)).emit(state), state["slow"])


# Errors: each names the cell and the way out


class Projected(Echo):
    """The output is a function of the carry."""

    @nn.compact
    def __call__(self, carry, x):
        carry, fast = Echo(self.features, name="echo")(carry, x)
        return carry, nn.Dense(7)(fast)


class Counting(Echo):
    """A whole number in the carry."""

    @nn.compact
    def __call__(self, carry, x):
        return {**carry, "count": carry["count"] + 1}, carry["fast"]

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return super().initialize_carry(rng, input_shape) | {"count": jnp.zeros((), jnp.int32)}


class Growing(Echo):
    """A carry that changes its shape."""

    @nn.compact
    def __call__(self, carry, x):
        return carry | {"fast": jnp.zeros(2 * self.features)}, carry["fast"]


class Sized(Echo):
    """A carry as long as the input."""

    @nn.compact
    def __call__(self, carry, x):
        new = jnp.tanh(carry * self.param("decay", nn.initializers.ones, ()) + x)
        return new, new

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)


class Normalized(Echo):
    """Statistics beside the parameters."""

    @nn.compact
    def __call__(self, carry, x):
        carry, fast = Echo(self.features, name="echo")(carry, x)
        return carry, nn.BatchNorm(use_running_average=False)(fast)


class Dropped(Echo):
    """Needs a random key at each step."""

    @nn.compact
    def __call__(self, carry, x):
        return Echo(self.features, name="echo")(carry, nn.Dropout(0.5, deterministic=False)(x))


class Carryless(nn.RNNCellBase):
    """No initialize_carry of its own."""

    def __call__(self, carry, x):
        return carry, carry


class DroppedNNX(EchoNNX):
    """Draws at each step."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry, x):
        return super().__call__(carry, self.dropout(x))


class CarrylessNNX(nnx.RNNCellBase):
    """No initialize_carry of its own."""

    def __init__(self, rngs):
        pass


LINEN_ERRORS = {
    "a number": (3, r"wants an instance of a flax.linen cell, but was given 3; .*from_nnx"),
    "a class": (nn.GRUCell, r"instance of a flax.linen cell, but was given .*GRUCell\(features=16"),
    "no carry": (Carryless(), r"Carryless has no initialize_carry; give it one"),
    "a layer": (nn.Dense(3), r"Dense has no initialize_carry; give it one"),
    "an RNN": (nn.RNN(nn.GRUCell(3)), r"RNN has no initialize_carry; .*bridge the cell itself"),
    "projected": (Projected(H), r"output of Projected, shape \[\(7,\)\], is no leaf .*pass emit="),
    "a counter": (Counting(H), r"Counting keeps int32 in its carry\['count'\].*no gradient; keep"),
    "a shape": (Growing(H), r"step of Growing turns a carry of shapes .*\(8,\).*make it return"),
    "statistics": (Normalized(H), r"Normalized has variables \['batch_stats'\].*out of the cell"),
    "dropout": (Dropped(H), r"Dropped failed with an input of shape \(1,\): .*dropout.*; give"),
    "an image": (nn.ConvLSTMCell(3, (2, 2)), r"ConvLSTMCell failed .*\(1,\).*input_shape="),
}
NNX_ERRORS = {
    "a number": (3, r"wants a cell or a function rngs -> cell, but was given int; for"),
    "no module": (lambda rngs: nn.GRUCell(3), r"returned a GRUCell; .*there is from_linen"),
    "no rngs": (lambda: None, r"the factory failed to make a cell .*let it take rngs alone"),
    "no carry": (CarrylessNNX, r"CarrylessNNX has no initialize_carry; give it one"),
    "dropout": (DroppedNNX, r"step of DroppedNNX changes its variables .*dropout.*count.*switch"),
}


@pytest.mark.parametrize("case", LINEN_ERRORS)
def test_linen_errors(x64, case):
    module, message = LINEN_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        from_linen(module)


@pytest.mark.parametrize("case", NNX_ERRORS)
def test_nnx_errors(x64, case):
    factory, message = NNX_ERRORS[case]
    shape = (D,) if case == "dropout" else None
    with pytest.raises(ValueError, match=message):
        from_nnx(factory, input_shape=shape)


def test_the_ways_out_lead_out(x64):
    emit = lambda state: 2 * state["fast"]  # noqa: E731
    cell = from_linen(Projected(H), emit=emit)
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), D)
    states = rnn_jax.unroll(cell, params, cell.initial_state(params), jnp.ones((T, D)))
    np.testing.assert_array_equal(cell.emit(states), 2 * states["fast"])

    with pytest.raises(ValueError, match=r"carry of Sized .* bridge it with input_shape=\(5,\)"):
        from_linen(Sized(H)).init(jax.random.key(0), 5)
    sized = from_linen(Sized(H), input_shape=(5,))
    params = sized.init(jax.random.key(0), 5)
    assert sized.initial_state(params, (B,)).shape == (B, 5)


def test_input_sizes_that_do_not_fit():
    cell = from_linen(nn.ConvLSTMCell(H, (2, 2)), input_shape=IMAGE)
    with pytest.raises(ValueError, match=r"input_size is 7, but ConvLSTMCell .*\(3, 4, 2\).* 24"):
        cell.init(jax.random.key(0), 7)
    cell = from_nnx(lambda rngs: nnx.GRUCell(D, H, rngs=rngs))
    with pytest.raises(ValueError, match=r"GRUCell failed with an input of shape \(7,\).*; give"):
        cell.init(jax.random.key(0), 7)
