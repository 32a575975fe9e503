"""A recurrence inside any JAX function, as what every function of `gradflow` takes."""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from rnn_jax.cells import Cell
from rnn_jax.direct_gradients import direct_gradients, on_valid_steps
from rnn_jax.found_cells import (
    LayerParams,
    batch_axes_of,
    cell_of_scan,
    own_params,
    with_user_params,
)
from rnn_jax.scans import (
    Recurrence,
    Select,
    body_of,
    differentiable,
    equation_at,
    find_recurrences,
    kind_of,
    levels_of,
    nothing_found,
    number_slots,
    origin_of,
    read_scan,
    selected,
    varied_operands,
    whole_state,
)
from rnn_jax.traced_loss import TracedLoss, trace_loss
from rnn_jax.types import Array, State

if TYPE_CHECKING:
    from rnn_jax.gradflow import Immediate


class Layer(NamedTuple):
    """A recurrence as every function of `gradflow` takes it: `gradflow.diagnose(*layer)`.

    Attributes:
        cell: its step; nothing but the model's own, written as a `Cell`.
        params: what the step reads at every t: `own`, the user's parameters without those that it
            does not read, and `constants`, computed from them before the scan.
        state: s_0, leaves `[B, H]`.
        xs: `[T, B, D]`, or a tuple of arrays `[T, ...]`, in the order in which the scan reads them.
        step_losses: the direct gradient e_t of the loss, everything after this recurrence included.
    """

    cell: Cell
    params: Any
    state: State
    xs: Any
    step_losses: "Immediate"


def inspect(
    loss_fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    select: Select | None = None,
    **kwargs: Any,
) -> dict[str, Layer]:
    """Every recurrence in a loss, as all of `gradflow` takes it: credit, exponents, a verdict.

    Args:
        loss_fn: any JAX function `(params, *args, **kwargs) -> loss`, as of `rnn_jax.watch`, which
            says what counts as a recurrence and what its name is.
        *args: the loss's arguments.
        argnums, has_aux, select: as of `rnn_jax.watch`.
        **kwargs: the loss's keyword arguments.

    Returns:
        Names to layers, `(cell, params, state, xs, step_losses)` each.

        - Heads, layers above, masks and other losses are all in e_t, the part of dL/ds_t that does
          not go through the next state; so lambda_t of `gradflow` is that of the whole model.
        - Units are those of the loss: of a mean over B examples 1/B is in e_t. Growth rates,
          credit's shape, bias and verdict know no units; `parameter_terms` divides by B once more.
        - lambda_t of a leaf does not go through other leaves of the same step: of an LSTM's c
          without the way through h_t, which `watch` counts.
        - A layer runs in the order of its scan: of one that reads backward t = 1 is the last of
          the sequence.
        - A scan within a scan is a layer for each step of the outer one, "name[0]", "name[1]".
        - Paths of parameters are the user's own. So `gradflow.apply_remedy(remedy, params)` applies
          a layer's remedy to all parameters of the model.
        - The batch is the first axes of the state along which no example reads another. Where
          they do, as with a normalization over the batch, all states together are one example.
        - Of a step that keeps its old state by a mask, `where(valid, new, old)`, the loss should
          read `new` where it is valid alone, as a masked loss does: read elsewhere, it counts as
          if it had been kept.
        - Under a `cond` that took another branch there is no layer.

    Raises:
        ValueError: as of `rnn_jax.watch`; a recurrence within a shard_map.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> import rnn_jax
    >>> from rnn_jax import gradflow
    >>> class Classifier(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, xs):
    ...         return nn.Dense(3)(nn.RNN(nn.SimpleCell(8))(xs)[:, -1])
    >>> model, xs = Classifier(), jnp.ones((4, 20, 2))
    >>> params = model.init(jax.random.key(0), xs)
    >>> def loss_fn(params, xs):
    ...     return jnp.mean(model.apply(params, xs) ** 2)
    >>> layers = rnn_jax.inspect(loss_fn, params, xs)
    >>> {name: gradflow.credit_matrix(*layer).shape for name, layer in layers.items()}
    {'Classifier/RNN_0': (20, 20)}
    """
    traced = trace_loss(loss_fn, argnums, has_aux, args, kwargs)
    found = find_recurrences(traced.program.jaxpr)
    if not found.recurrences:
        raise ValueError(nothing_found(found))
    layers: dict[str, Layer] = {}
    for recurrence in selected(found.recurrences, select):
        layers |= _layers_of(traced, recurrence)
    return layers


def _layers_of(traced: TracedLoss, recurrence: Recurrence) -> dict[str, Layer]:
    jaxpr = traced.program.jaxpr
    around = [eqn for _, eqn in levels_of(jaxpr, recurrence.path)[:-1]]
    if any(kind_of(eqn) == "shard_map" for eqn in around):
        raise ValueError(
            f"{recurrence.name} is within a shard_map or pmap, where each device has a part of the "
            "batch; inspect the function of one part, or leave it out by select"
        )
    _, eqn = equation_at(jaxpr, recurrence.path)
    build = _of_scan if kind_of(eqn) == "scan" else _of_unroll
    sizes = [outer.size for outer in recurrence.outer]
    (taken, values), gradients, finish = build(traced, recurrence, eqn)
    layers = {}
    for index in itertools.product(*map(range, sizes)):
        if not isinstance(taken, jax.core.Tracer) and not taken[index]:
            continue
        label = f"[{', '.join(map(str, index))}]" if index else ""
        here = jax.tree.map(lambda a, i=index: a[i], (values, gradients))
        layers[recurrence.name + label] = finish(*here)
    return layers


def _of_scan(traced: TracedLoss, recurrence: Recurrence, eqn: Any) -> Any:
    body = body_of(eqn, [leaf.position for leaf in recurrence.leaves])
    (slots,) = number_slots([whole_state(recurrence, eqn, body)])
    jaxpr = traced.program.jaxpr
    varied = varied_operands(jaxpr, recurrence.path)
    origins = {}
    for n in varied & set(body.constants):
        if (origin := origin_of(jaxpr, recurrence.path, n)) is not None:
            origins[n] = origin
    captured, gradients = direct_gradients(
        traced, slots, lambda eqn, values: read_scan(eqn, values, body)._asdict()
    )
    types = [leaf.aval for leaf in slots.recurrence.leaves]
    batch_ndim = batch_axes_of(body, types)
    if eqn.params["reverse"]:
        time = len(recurrence.outer)
        gradients = [jnp.flip(g, time) for g in gradients]
    kept = {origin.argument for origin in origins.values()}
    own = own_params(traced.arguments, traced.leaves, kept)

    def finish(values: dict[str, list[Any]], gradients: list[Array]) -> Layer:
        constants = dict(zip(body.constants, values["constants"], strict=True))
        fixed = {n: c for n, c in constants.items() if n not in varied or not differentiable(c)}
        others = tuple(c for n, c in constants.items() if n not in fixed and n not in origins)
        cell = cell_of_scan(body, origins, fixed, types, batch_ndim)
        state = values["state"][0] if len(types) == 1 else tuple(values["state"])
        e = gradients[0] if len(types) == 1 else tuple(gradients)
        batch_shape = types[0].shape[:batch_ndim]
        xs = _inputs(values["inputs"], recurrence.num_steps, batch_shape, types[0].dtype)
        return Layer(cell, LayerParams(own, others), state, xs, _immediate(e))

    return captured, gradients, finish


def _inputs(inputs: list[Any], num_steps: int, batch_shape: tuple[int, ...], dtype: Any) -> Any:
    """One array `[T, B, D]` where that is all; else a tuple."""
    if not inputs:
        return jnp.zeros((num_steps, *batch_shape, 0), dtype)
    (first, *rest) = inputs
    is_usual = differentiable(first) and first.shape[1:-1] == batch_shape and first.ndim >= 2
    return first if is_usual and not rest else tuple(inputs)


def _of_unroll(traced: TracedLoss, recurrence: Recurrence, eqn: Any) -> Any:
    """The library's own `unroll`: the cell is known."""
    source, num_states = eqn.params["source"], eqn.params["num_states"]
    _check_not_mapped(recurrence, eqn)
    (slots,) = number_slots([recurrence])
    captured, gradients = direct_gradients(
        traced,
        slots,
        lambda _, values: jax.tree.unflatten(source.depends_on, values[num_states:]),
    )
    # The operands are s_0 for the sites, then (s_0, params, xs, valid).
    places = jax.tree.unflatten(source.depends_on, range(num_states, len(eqn.invars)))[1]
    numbers, cell_tree = jax.tree.flatten(places)
    origins = [origin_of(traced.program.jaxpr, recurrence.path, n) for n in numbers]
    arguments = [o.argument for o in origins if o is not None and not o.layout]

    def finish(values: Any, gradients: list[Array]) -> Layer:
        state, params, xs, valid = values
        cell = source.cell
        if len(arguments) == len(numbers):
            order = {n: place for place, n in enumerate(sorted(set(arguments)))}

            def restore(given: LayerParams) -> Any:
                leaves = jax.tree.leaves(given.own)
                return jax.tree.unflatten(cell_tree, [leaves[order[n]] for n in arguments])

            cell = with_user_params(cell, restore)
            own = own_params(traced.arguments, traced.leaves, set(arguments))
            params = LayerParams(own, ())
        e = [on_valid_steps(g, valid) for g in gradients]
        return Layer(cell, params, state, xs, _immediate(jax.tree.unflatten(source.state, e)))

    return captured, gradients, finish


def _immediate(gradients: State) -> "Immediate":
    """Imported when it is first wanted: `import rnn_jax` alone takes half the time without."""
    from rnn_jax.gradflow import Immediate

    return Immediate(gradients)


def _check_not_mapped(recurrence: Recurrence, eqn: Any) -> None:
    """`ValueError` for an `unroll` under vmap, whose operands no longer fit its cell."""
    source, num_states = eqn.params["source"], eqn.params["num_states"]
    operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    state, params, xs, _ = jax.tree.unflatten(source.depends_on, operands[num_states:])
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    try:
        new = jax.eval_shape(source.cell.step, params, state, x)
        fits = jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    except (TypeError, ValueError):
        fits = False
    if not fits or [v.aval.shape for v in eqn.invars[:num_states]] != [
        s.shape for s in jax.tree.leaves(state)
    ]:
        raise ValueError(
            f"{recurrence.name} is rnn_jax.unroll under jax.vmap; give it the batch itself, xs "
            "[T, B, D], or inspect the function that is mapped"
        )
