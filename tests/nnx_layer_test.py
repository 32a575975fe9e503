"""`rnn_jax.nnx`: `RNN` against `flax.nnx.RNN`, and `watch` against `nnx.value_and_grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from marks import slow
from problems import assert_close

import rnn_jax.nnx

T, B, D, H = 6, 3, 2, 4
DOUBLE = {"param_dtype": jnp.float64, "dtype": jnp.float64}
LENGTHS = np.array([2, T, 1])


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def cell(kind, **options):
    return lambda: kind(D, H, rngs=nnx.Rngs(0), **{**DOUBLE, **options})


CASES = {
    "SimpleCell": (
        cell(nnx.SimpleCell, residual=True),
        (T, D),
        {"return_carry": True, "unroll": 2},
        {"reverse": True},
    ),
    "LSTMCell": (
        cell(nnx.LSTMCell),
        (2, B, T, D),
        {"reverse": True, "keep_order": True, "rngs": nnx.Rngs(3)},
        {"seq_lengths": np.stack([LENGTHS, LENGTHS[::-1]])},
    ),
    "OptimizedLSTMCell": (
        cell(nnx.OptimizedLSTMCell),
        (T, B, D),
        {"broadcast_rngs": "dropout", "state_axes": nnx.StateAxes({nnx.Param: None, ...: None})},
        {"time_major": True, "rngs": nnx.Rngs(3), "return_carry": True},
    ),
    "GRUCell": (
        cell(nnx.GRUCell),
        (B, T, D),
        {"reverse": True, "rngs": False},
        {"seq_lengths": LENGTHS, "return_carry": True, "initial_carry": lambda: random((B, H), 1)},
    ),
}


@pytest.mark.parametrize(
    "case", ["LSTMCell", "GRUCell", *map(slow, set(CASES) - {"LSTMCell", "GRUCell"})]
)
def test_results_and_gradients_are_those_of_flax(x64, case):
    make, shape, fields, call = CASES[case]
    xs = random(shape)
    outcomes = []
    for layer in (rnn_jax.nnx.RNN, nnx.RNN):
        rnn = layer(make(), **fields)
        weights = nnx.state(rnn, nnx.Param)
        nnx.update(rnn, jax.tree.map(lambda leaf: 0.5 * random(leaf.shape, 5), weights))
        variables = nnx.split(rnn, nnx.Param, ...)

        def loss(params, xs, variables=variables):
            module = nnx.merge(variables[0], params, jax.tree.map(lambda leaf: leaf, variables[2]))
            given = dict(call)
            if "rngs" in given:
                given["rngs"] = nnx.Rngs(3)
            if "initial_carry" in given:
                given["initial_carry"] = given["initial_carry"]()
            results = module(xs, **given)
            leaves = jax.tree.leaves(results)
            total = sum(jnp.sum(jnp.sin(random(leaf.shape, 6) * leaf)) for leaf in leaves)
            return total, (results, nnx.state(module, nnx.RngCount))

        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        program = str(jax.make_jaxpr(loss)(variables[1], xs))
        assert ("custom_vjp" in program) == (layer is rnn_jax.nnx.RNN)
        outcomes.append(run(variables[1], xs))
    assert_close(*outcomes, rtol=1e-10)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(outcomes[0][1]))


class Noisy(nnx.RNNCellBase):
    """A user's own cell, which draws at each step."""

    def __init__(self):
        self.dense = nnx.Linear(D, H, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, carry, x):
        new = jnp.tanh(self.dropout(self.dense(x)) + carry)
        return new, new

    def initialize_carry(self, input_shape, rngs):
        return jnp.zeros((*input_shape[:-1], H))

    @property
    def num_feature_axes(self):
        return 1


def adapted():
    gru = nnx.GRUCell(D, H, rngs=nnx.Rngs(0))
    gru.dense_i = nnx.LoRALinear(D, 3 * H, lora_rank=1, rngs=nnx.Rngs(1))
    return gru


def gru(**options):
    return nnx.GRUCell(D, H, rngs=nnx.Rngs(0), **options)


OTHERS = {
    "random numbers": (Noisy, {}),
    "other gates": (lambda: gru(gate_fn=jax.nn.hard_sigmoid), {}),
    "LoRA": (adapted, {}),
    "state_axes": (gru, {"state_axes": nnx.StateAxes({nnx.RngState: 0, ...: nnx.Carry})}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_cells_run_in_flaxs_own_scan(case):
    make, fields = OTHERS[case]
    xs = jnp.ones((B, T, D))
    programs = []
    for layer in (rnn_jax.nnx.RNN, nnx.RNN):
        graph, state = nnx.split(layer(make(), **fields))
        programs.append(
            str(
                jax.make_jaxpr(lambda state, xs, graph=graph: nnx.merge(graph, state)(xs))(
                    state, xs
                )
            )
        )
    assert programs[0] == programs[1]


# watch


class Model(nnx.Module):
    """Two recurrent layers, dropout and statistics between them."""

    def __init__(self, rnn):
        rngs = nnx.Rngs(0)
        self.below = rnn(nnx.GRUCell(D, H, rngs=rngs), reverse=True)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(H, rngs=rngs)
        self.above = rnn(nnx.GRUCell(H, H, rngs=rngs))

    def __call__(self, xs):
        return self.above(self.norm(self.dropout(self.below(xs))))


def loss_and_outputs(model, scale, xs):
    outputs = model(xs)
    return scale * jnp.sum(jnp.sin(outputs)), {"outputs": outputs, "name": "sine"}


def test_watch_is_value_and_grad_with_norms():
    """Loss, gradients of several arguments, and what the loss changes in the model."""
    xs = random((B, T, D)).astype(jnp.float32)
    argnums = (1, nnx.DiffState(0, nnx.Any(nnx.Param, nnx.BatchStat)))
    plain, watched, drop_in = (Model(rnn) for rnn in (nnx.RNN, nnx.RNN, rnn_jax.nnx.RNN))
    options = {"argnums": argnums, "has_aux": True}
    wanted = nnx.value_and_grad(loss_and_outputs, **options)(plain, 2.0, xs)
    outcomes = []
    for model in (watched, drop_in):
        value, grads, norms = rnn_jax.nnx.watch(loss_and_outputs, **options)(model, 2.0, xs)
        assert value[1].pop("name") == "sine"
        assert [norm.shape for norm in norms.values()] == [(T, B), (T, B)]
        outcomes.append((value, grads, list(norms.values())))
        assert jax.tree.structure(grads) == jax.tree.structure(wanted[1])
    wanted[0][1].pop("name")
    assert_close(outcomes[0][:2], wanted, rtol=1e-4, atol=1e-6)
    assert_close(outcomes[1], outcomes[0], rtol=1e-3, atol=1e-5)
    for model in (watched, drop_in):
        counts = nnx.state(plain, nnx.Any(nnx.RngCount, nnx.BatchStat))
        found = nnx.state(model, nnx.Any(nnx.RngCount, nnx.BatchStat))
        assert_close(found, counts, rtol=1e-5)
    assert np.any(plain.norm.mean[...])
    assert plain.dropout.rngs.count[...] == 1


def test_watch_of_one_argument_under_jit():
    xs = random((B, T, D)).astype(jnp.float32)
    model = Model(rnn_jax.nnx.RNN)

    def loss(model, *, xs):
        return loss_and_outputs(model, 1.0, xs)[0]

    _, grads, norms = nnx.jit(rnn_jax.nnx.watch(loss, select="*#2"))(model, xs=xs)
    assert model.dropout.rngs.count[...] == 1
    assert [*grads] == ["above", "below", "norm"]
    assert len(norms) == 1
    with pytest.raises(ValueError, match=r"positional arguments \[1\], but 1 were given"):
        rnn_jax.nnx.watch(loss, argnums=1)(model, xs=xs)
