"""An algorithm's functions as programs: of one network, or of many side by side."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.training.algorithm import Algorithm, Arrays, FirstNonFinite
from rnn_jax import sweep, training
from rnn_jax.types import Array, Key


class Layout(NamedTuple):
    """How networks are spread over devices; none of it changes a result.

    Attributes:
        width: networks side by side in a block.
        batch: networks in a batch, which is what a killed process repeats at most.
        mesh: the devices.
    """

    width: int
    batch: int
    mesh: jax.sharding.Mesh


class Programs(NamedTuple):
    """What the loop runs. `which` are indices `[M]` of networks; states have all N of them.

    Attributes:
        num_networks: N.
        side_by_side: whether each call returns arrays on the host, leaves `[M, ...]`, so that the
            loop may let go of networks between two chunks. Of one network alone the state stays on
            the device without a network axis, and is donated.
        init: `() -> state`.
        train_chunk: `(state, which, num_steps) -> (state of which, results, FirstNonFinite)`,
            results those of `Algorithm.train_chunk` and `Algorithm.evaluate` together.
        measure: `(state, which) -> name -> array`.
        intervene: `(state, which) -> state of which`.
        fetch: results of `train_chunk` as host arrays with a network axis.
        shapes: `() -> ` shapes of a state and of what `measure` returns of all networks.
    """

    num_networks: int
    side_by_side: bool
    init: Callable[[], Any]
    train_chunk: Callable[[Any, np.ndarray, int], tuple[Any, Arrays, FirstNonFinite]]
    measure: Callable[[Any, np.ndarray], Arrays]
    intervene: Callable[[Any, np.ndarray], Any]
    fetch: Callable[[Any], Any]
    shapes: Callable[[], tuple[Any, Arrays]]


@functools.lru_cache(maxsize=32)
def network_functions(algorithm: Algorithm) -> tuple[Callable[..., Any], ...]:
    """init, train_chunk of so many steps, measure, intervene as `(rows, key) -> results`.

    Rows are `(hparams, state)`, for init hparams alone. A function is made once for an algorithm,
    so that a program compiled for it is found again.
    """

    @functools.cache
    def train_chunk(num_steps: int) -> Callable[..., Any]:
        def train_and_evaluate(rows: Any, key: Key) -> Any:
            hparams, state = rows
            state, metrics, bad = algorithm.train_chunk(hparams, state, key, num_steps)
            tested = jax.tree.map(lambda value: value[None], algorithm.evaluate(state, key))
            return state, {**metrics, **tested}, bad

        return train_and_evaluate

    def measure(rows: Any, key: Key) -> Arrays:
        return algorithm.measure(rows[1], key)

    def intervene(rows: Any, key: Key) -> Any:
        return rows[1] if algorithm.intervene is None else algorithm.intervene(rows[1], key)

    return algorithm.init, train_chunk, measure, intervene


def of_one_network(
    algorithm: Algorithm, hparams: Mapping[str, float | Array], key: Key
) -> Programs:
    """The programs of a single network; its training state is donated from chunk to chunk."""
    init, train_chunk, measure, intervene = _jitted(algorithm)
    values = {name: np.float32(value) for name, value in hparams.items()}

    def with_axis(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], jax.device_get(tree))

    def shapes() -> tuple[Any, Arrays]:
        state = jax.eval_shape(init, values, key)
        return state, jax.eval_shape(lambda s: algorithm.measure(s, key), state)

    return Programs(
        num_networks=1,
        side_by_side=False,
        init=lambda: init(values, key),
        train_chunk=lambda state, which, num_steps: train_chunk(num_steps)(values, state, key),
        measure=lambda state, which: with_axis(measure((values, state), key)),
        intervene=lambda state, which: intervene((values, state), key),
        fetch=with_axis,
        shapes=shapes,
    )


@functools.lru_cache(maxsize=32)
def _jitted(algorithm: Algorithm) -> tuple[Callable[..., Any], ...]:
    init, train_chunk, measure, intervene = network_functions(algorithm)

    @functools.cache
    def jitted_chunk(num_steps: int) -> Callable[..., Any]:
        function = train_chunk(num_steps)

        @functools.partial(jax.jit, donate_argnames="state")
        def chunk(hparams: Any, state: training.TrainState, key: Key) -> Any:
            return function((hparams, state), key)

        return chunk

    return jax.jit(init), jitted_chunk, jax.jit(measure), jax.jit(intervene)


def of_many_networks(
    algorithm: Algorithm, hparams: Mapping[str, np.ndarray], keys: Key, layout: Layout
) -> Programs:
    """The programs of N networks in blocks of a fixed width, spread over the devices of a mesh.

    Args:
        algorithm: how each of them learns.
        hparams: name -> `[N]`.
        keys: `[N]`.
        layout: how they are spread.
    """
    init, train_chunk, measure, intervene = network_functions(algorithm)
    values = {name: np.asarray(value, np.float32) for name, value in hparams.items()}
    count = len(keys)

    def run(function: Callable[..., Any], rows: Any, which: np.ndarray) -> Any:
        return sweep.sweep(
            function,
            jax.tree.map(lambda leaf: leaf[which], rows),
            keys[which],
            width=layout.width,
            lanes=layout.batch,
            mesh=layout.mesh,
        )

    def shapes() -> tuple[Any, Arrays]:
        state = jax.eval_shape(jax.vmap(init), values, keys)
        return state, jax.eval_shape(jax.vmap(measure), (values, state), keys)

    return Programs(
        num_networks=count,
        side_by_side=True,
        init=lambda: run(init, values, np.arange(count)),
        train_chunk=lambda state, which, num_steps: run(
            train_chunk(num_steps), (values, state), which
        ),
        measure=lambda state, which: run(measure, (values, state), which),
        intervene=lambda state, which: run(intervene, (values, state), which),
        fetch=lambda results: results,
        shapes=shapes,
    )
