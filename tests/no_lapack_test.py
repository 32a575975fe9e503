"""No program of ours calls LAPACK, of which several kernels at once can wait for each other."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import rnn_jax
from rnn_jax import gradflow, initializers
from rnn_jax.cells.registry import CELLS
from rnn_jax.decompositions import qr
from rnn_jax.training import regularizers

pytestmark = pytest.mark.survival

ROOT = Path(__file__).parents[1]
LAPACK = re.compile(
    r"(?:jnp|lax|jax\.numpy|jax\.lax)\.linalg\.(?!norm$)\w+|(?:jax|jsp)\.(?:scipy\.)?linalg.*"
    r"|(?:jax|nn)\.\S*initializers\.orthogonal|(?:jax\.)?random\.(?:orthogonal|multivariate_normal)"
    r"|jnp\.(?:polyfit|roots)"
)
"""What of JAX decomposes a matrix, or solves a system."""

H, T, D = 6, 5, 2
CELL = rnn_jax.elman(H)
KEYS = jax.random.split(jax.random.key(0), 3)


def params_of(key):
    return CELL.init(key, D)


def xs_of(key):
    return jax.random.normal(key, (T, D))


def states_of(cell, key, scale=1.0):
    params = jax.tree.map(lambda p: scale * p, cell.init(key, D))
    return rnn_jax.unroll(cell, params, cell.initial_state(params), xs_of(key))


def floss(key):
    optimizer = optax.sgd(0.1)
    state = regularizers.floss_init(optimizer, params_of(key))
    return regularizers.floss_step(
        CELL, optimizer, state, jnp.zeros((1, H)), xs_of(key)[:, None], 3, 1
    )[0].params


PROGRAMS = {
    **{
        f"init of {name}": lambda key, make=make: make(H).init(key, D)
        for name, make in CELLS.items()
    },
    "init of a stack": lambda key: rnn_jax.stack([rnn_jax.lstm(H)] * 2).init(key, D),
    "states of exp_rnn": lambda key: states_of(rnn_jax.exp_rnn(H), key),
    "gradient of exp_rnn": lambda key: jax.grad(
        lambda scale: jnp.sum(states_of(rnn_jax.exp_rnn(H), key, scale))
    )(1.0),
    "spectral radius": lambda key: initializers.spectral_radius(0.9)(key, (H, H)),
    "sparse": lambda key: initializers.sparse(3)(key, (H, H)),
    "lyapunov spectrum": lambda key: gradflow.lyapunov_spectrum(
        CELL, params_of(key), jnp.zeros(H), xs_of(key)
    ),
    "its gradient": jax.grad(
        lambda key, scale: jnp.sum(
            gradflow.lyapunov_spectrum(
                CELL, jax.tree.map(lambda p: scale * p, params_of(key)), jnp.zeros(H), xs_of(key)
            )
        ),
        argnums=1,
    ),
    "jacobian product": lambda key: gradflow.jacobian_product(
        CELL, params_of(key), jnp.zeros(H), xs_of(key)
    ),
    "flossing": floss,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_calls_lapack(name):
    program = PROGRAMS[name]
    more = (0.9,) if name == "its gradient" else ()
    text = jax.jit(jax.vmap(lambda key: program(key, *more))).lower(KEYS).as_text()
    assert "lapack" not in text
    assert "blas" not in text
    # What is looked for is what JAX's own decompositions would leave there.
    own = jax.jit(lambda m: jnp.linalg.qr(m)).lower(jnp.zeros((H, H))).as_text()
    assert "lapack" in own


def decompositions(source):
    """Names of JAX's own in a source, docstrings and comments apart."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if LAPACK.fullmatch(name)}


def test_nobody_asks_jax_for_a_decomposition():
    """In any source, notebooks included. NumPy's are no part of a program."""
    paths = [path for name in ("rnn_jax", "experiments") for path in (ROOT / name).rglob("*.py")]
    found = {path.name: decompositions(path.read_text()) for path in paths}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "jnp.linalg.svd(W)",
        "from jax.scipy.linalg import expm",
        "jax.nn.initializers.orthogonal()(key, (3, 3))",
        "jax.lax.linalg.qr(W)",
        "jax.random.orthogonal(key, 3)",
    ],
)
def test_a_decomposition_is_seen_in_any_form(source):
    assert decompositions(source)
    assert not decompositions("jnp.linalg.norm(x); np.linalg.qr(x); initializers.orthogonal()")


def test_the_decomposition_is_that_of_lapack(x64):
    """NumPy's, brought to the one whose triangle has a positive diagonal."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 4)) * np.array([1e-9, 1.0, 1e6, 1e-3])
    frame, triangle = np.linalg.qr(matrix)
    signs = np.sign(np.diagonal(triangle))
    found = qr(jnp.asarray(matrix))
    np.testing.assert_allclose(found.Q, frame * signs, atol=1e-12)
    np.testing.assert_allclose(found.R, signs[:, None] * triangle, rtol=1e-10, atol=1e-12 * 1e6)


def test_orthogonal_weights_are_the_ones_that_jax_draws():
    """Haar-distributed, and the same draws as before, to rounding."""
    key = jax.random.key(3)
    wanted = jax.nn.initializers.orthogonal(1.3)(key, (9, 9))
    np.testing.assert_allclose(initializers.orthogonal(1.3)(key, (9, 9)), wanted, atol=3e-6)


FLAX = "bridge.from_linen(nn.LSTMCell(64))"
MANY_AT_ONCE = """
import jax, jax.numpy as jnp
from flax import linen as nn
import rnn_jax
from rnn_jax import bridge
c = rnn_jax.stack([MAKE] * 2)
f = jax.jit(jax.vmap(lambda k: sum(jnp.sum(l) for l in jax.tree.leaves(c.init(k, 1)))))
for i in range(10):
    jax.block_until_ready(f(jax.random.split(jax.random.key(i), 16)))
"""


def test_of_a_flax_cell_each_network_is_drawn_by_itself():
    """Flax calls LAPACK; a kernel of one matrix waits for nobody."""
    cell = rnn_jax.bridge.from_linen(nn.LSTMCell(H))
    text = jax.jit(jax.vmap(lambda key: cell.init(key, D))).lower(KEYS).as_text()
    calls = [line for line in text.splitlines() if "@lapack_sgeqrf" in line]
    assert calls
    assert all(f"(tensor<{H}x{H}xf32>)" in line for line in calls)
    drawn = jax.jit(jax.vmap(lambda key: cell.init(key, D)))(KEYS)
    for place, key in enumerate(KEYS):
        jax.tree.map(
            lambda one, all, place=place: np.testing.assert_allclose(all[place], one, atol=1e-6),
            cell.init(key, D), drawn,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "threads"),
    [*(("rnn_jax.lstm(64)", threads) for threads in (None, "1", "2", "64")), (FLAX, "2")],
)
def test_many_orthogonal_matrices_at_once_come_to_an_end(make, threads):
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    environment |= {"XLA_FLAGS": "", **({"NPROC": threads} if threads else {})}
    program = MANY_AT_ONCE.replace("MAKE", make)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
