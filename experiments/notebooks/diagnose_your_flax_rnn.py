# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diagnose your Flax RNN
#
# You have an `nn.RNN` in Flax and it will not train. In ten minutes you will know why, have a
# number for it, and have a network that trains. Your model and your training loop stay in Flax;
# `rnn_jax` looks at the gradient and says what to change.
#
# ## 1. The patient
#
# Here is somebody's model: a recurrent layer, and a classifier on its last state.

# %%
# %matplotlib inline
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import rnn_jax
from rnn_jax import bridge, gradflow
from rnn_jax.plots.style import CYCLE, GREY, dress, new_figure
from rnn_jax.tasks.temporal_order import temporal_order
from rnn_jax.types import Array, Params, State

H, T, B, CLASSES = 64, 60, 50, 4


class Classifier(nn.Module):
    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, xs: Array) -> Array:
        states = nn.RNN(self.cell, time_major=True)(xs)
        return nn.Dense(CLASSES, name="readout")(states[-1])


# %% [markdown]
# And somebody's data. Each sequence has 60 symbols. Two of them, near step 10 and near step 35, are
# an A or a B; all others are distractors. The question at the end: AA, AB, BA or BB? Put your own
# data here: `xs` of shape `[T, B, D]` (time first) and labels `[B]`.

# %%
task = temporal_order(length=T, batch_size=B)
test = temporal_order(length=T, batch_size=1000).sample(jax.random.key(1))


def losses_of(logits: Array, labels: Array) -> Array:
    """One loss for each example, `[B]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


# %% [markdown]
# The training loop is the usual one: Optax, Adam, one jitted step.

# %%
optimizer = optax.adam(3e-3)


def train(model: Classifier, params: Params, num_steps: int = 700) -> tuple[Params, np.ndarray]:
    """Trained parameters and the loss of every iteration."""

    @jax.jit
    def step(params: Params, state: Any, key: Array) -> tuple[Params, Any, Array]:
        batch = task.sample(key)

        def loss_fn(params: Params) -> Array:
            logits: Any = model.apply({"params": params}, batch.inputs)
            return jnp.mean(losses_of(logits, batch.targets))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for number in range(num_steps):
        params, state, loss = step(params, state, jax.random.fold_in(jax.random.key(2), number))
        losses.append(loss)
    return params, np.array(losses)


def accuracy(model: Classifier, params: Params) -> float:
    """Share of right answers on sequences never seen."""
    logits: Any = model.apply({"params": params}, test.inputs)
    return float(jnp.mean(jnp.argmax(logits, axis=-1) == test.targets))


model = Classifier(nn.SimpleCell(H))
params = model.init(jax.random.key(0), test.inputs)["params"]
trained, loss = train(model, params)
results = {"SimpleCell": (loss, accuracy(model, trained))}
print(f"loss of the last 100 iterations: {loss[-100:].mean():.2f}")
print(f"SimpleCell: {results['SimpleCell'][1]:.0%} right")

# %% [markdown]
# One in four is what guessing gets. The loss is $\ln 4 \approx 1.39$, that of knowing nothing.
#
# ## 2. The examination
#
# Is it the learning rate, the data, the code? Look at the gradient first. The cell inside the
# `nn.RNN` becomes a `Cell` in one line, and its parameters are the ones that the model has.
# `LastStep` is the rest of the model: from the last state of each example to its loss.

# %%
xs, labels = test.inputs[:, :B], test.targets[:B]


def last_loss(cell: rnn_jax.Cell, readout: Params) -> gradflow.LastStep:
    """The model after its recurrent layer."""

    def loss(state: State) -> Array:
        logits = cell.emit(state) @ readout["kernel"] + readout["bias"]
        return losses_of(logits, labels)

    return gradflow.LastStep(loss)


def examine(cell: rnn_jax.Cell, cell_params: Params, readout: Params) -> gradflow.Diagnosis:
    """What is wrong with the gradient of a cell in this model."""
    state = cell.initial_state(cell_params, (B,))
    return gradflow.diagnose(cell, cell_params, state, xs, last_loss(cell, readout))


def profile(cell: rnn_jax.Cell, cell_params: Params, readout: Params) -> Array:
    """ln of what is left of the gradient at each step, median of the batch."""
    state = cell.initial_state(cell_params, (B,))
    logs = gradflow.state_gradients(cell, cell_params, state, xs, last_loss(cell, readout))
    return jnp.median(logs - logs[-1], axis=1)


cell = bridge.from_linen(nn.SimpleCell(H))
profiles = {
    "SimpleCell, before training": profile(cell, params["cell"], params["readout"]),
    "SimpleCell, after": profile(cell, trained["cell"], trained["readout"]),
}
print(examine(cell, params["cell"], params["readout"]))

# %% [markdown]
# The gradient vanishes: each step back keeps about three quarters of it, and after some thirty
# steps a thousandth is left. The first symbol lies fifty steps before the end: the weights never
# hear of it. Training does not change that:


# %%
def draw(profiles: dict[str, Array], title: str) -> Any:
    """Profiles of the gradient, the two symbols marked."""
    figure = new_figure()
    axes = dress(
        figure.subplots(),
        title,
        "time step t",
        r"$\ln\,|\partial L/\partial s_t| - \ln\,|\partial L/\partial s_T|$  (nats)",
    )
    for start in (T // 10, 5 * T // 10):
        axes.axvspan(start + 1, start + T // 10, color=GREY, alpha=0.15, linewidth=0)
    axes.axhline(np.log(1e-3), color=GREY, linestyle=":", linewidth=1.2)
    for number, (name, logs) in enumerate(profiles.items()):
        style = "--" if name.endswith("before training") else "-"
        axes.plot(1 + np.arange(T), logs, style, color=CYCLE[number // 2], lw=2, label=name)
    axes.legend(fontsize=11, frameon=False)
    return figure


draw(profiles, "The gradient is lost (dotted: a thousandth) before the first symbol (grey)")

# %% [markdown]
# ## 3. The prescription
#
# The report ends with what to try. A `SimpleCell` is recognised by its parameters, so the remedies
# name yours, `params['h']['kernel']`; each that changes a parameter has been tried, and the growth
# rate and the horizon that came of it stand beside it. Flax draws its recurrent weights orthogonal
# already, so that is not among them. `gradflow.apply_remedy` applies the first one:

# %%
found = examine(cell, params["cell"], params["readout"])
print(found.remedies[0].advice)
scaled = gradflow.apply_remedy(found.remedies[0], params["cell"])
print(examine(cell, scaled, params["readout"]))

# %% [markdown]
# That mends the gradient before training. What keeps it while the weights change is the other
# remedy, a gated cell. In Flax that is another cell in the same model. Look before you train.

# %%
model = Classifier(nn.OptimizedLSTMCell(H))
params = model.init(jax.random.key(0), xs)["params"]
cell = bridge.from_linen(nn.OptimizedLSTMCell(H))
found = examine(cell, params["cell"], params["readout"])
print(found)

# %% [markdown]
# An LSTM is no cure by itself. Flax starts its forget gates at bias 0: each lets through
# $\sigma(0) = 1/2$ a step. The first remedy has the number: the bias at $\ln(T-1) = 4.08$ makes
# that $1 - 1/T$.
#
# For the proof, train it both ways.

# %%
treated = params | {"cell": gradflow.apply_remedy(found.remedies[0], params["cell"])}

for name, start in (("LSTM", params), ("LSTM, forget bias 4.08", treated)):
    trained, loss = train(model, start)
    results[name] = loss, accuracy(model, trained)
    print(f"{name}: {results[name][1]:.0%} right")
    profiles[f"{name}, before training"] = profile(cell, start["cell"], start["readout"])
    profiles[f"{name}, after"] = profile(cell, trained["cell"], trained["readout"])

print(examine(cell, treated["cell"], treated["readout"]))

# %% [markdown]
# ## 4. Before and after

# %%
draw(profiles, "Only the treated LSTM has a gradient at the first symbol")

# %%
figure = new_figure()
axes = dress(
    figure.subplots(),
    "The same model, data and optimizer: one bias makes the difference",
    "training iteration",
    "loss (median of 20)",
)
for number, (name, (loss, right)) in enumerate(results.items()):
    shown = np.median(loss.reshape(-1, 20), axis=1)
    steps = 20 * (1 + np.arange(len(shown)))
    axes.plot(steps, shown, color=CYCLE[number], lw=2, label=f"{name}: {right:.0%} right")
axes.axhline(np.log(CLASSES), color="black", linestyle="--", linewidth=1.2, label="guessing")
axes.legend(fontsize=11, frameon=False)
figure

# %% [markdown]
# ## 5. The same for NNX
#
# `bridge.from_nnx` takes a function that makes the cell; the parameters are the module's own.


# %%
def make(rngs: nnx.Rngs) -> nnx.SimpleCell:
    return nnx.SimpleCell(xs.shape[-1], H, rngs=rngs)


nnx_cell = make(nnx.Rngs(0))  # the cell inside your nnx.RNN
nnx_params = nnx.to_pure_dict(nnx.state(nnx_cell, nnx.Param))
readout = params["readout"]
print(examine(bridge.from_nnx(make), nnx_params, readout))

# %% [markdown]
# ## What was done
#
# 1. `bridge.from_linen(cell)` or `bridge.from_nnx(factory)`: your cell, to be measured.
# 2. `gradflow.diagnose(...)`: the verdict, the growth rate, how far back the gradient reaches, and
#    what to try, by the names of your parameters.
# 3. `gradflow.apply_remedy(remedy, params)`: the remedy, in your parameters.
# 4. The diagnosis again. **Look before you train: it takes a second.**
#
# Why any of this is so: `why_an_rnn_forgets`.
