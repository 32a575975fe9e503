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
# # Why an RNN forgets
#
# A recurrent network reads a sequence one step at a time. It can remember, in principle, for ever.
# In practice it forgets after a dozen steps, and no amount of training helps.
#
# This notebook follows the reason from the equations to the cure. Each formula is followed by the
# line of code that computes it, and by a picture of what comes out. It runs in about a minute.

# %%
# %matplotlib inline
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import rnn_jax
from rnn_jax import gradflow, initializers, objectives, plots, training
from rnn_jax.gradflow import theory
from rnn_jax.gradflow.mean_field import mean_field_slope
from rnn_jax.losses import accuracy, cross_entropy
from rnn_jax.plots.style import CYCLE, GREY, dress, new_figure
from rnn_jax.tasks.task import Task
from rnn_jax.training import optim
from rnn_jax.types import Array, Batch, Key

T, B, H = 100, 16, 64  # time steps, sequences, hidden units


def curves(
    lines: Mapping[str, Array], title: str, ylabel: str, xlabel: str = "time step t"
) -> tuple:
    """A figure of lines over the time step, and its axes."""
    figure = new_figure()
    axes = dress(figure.subplots(), title, xlabel, ylabel)
    for (name, values), colour in zip(lines.items(), CYCLE, strict=False):
        axes.plot(1 + np.arange(len(values)), values, color=colour, linewidth=2, label=name)
    axes.legend(fontsize=11, frameon=False)
    return figure, axes


# %% [markdown]
# ## 1. The network
#
# The state $s_t$ is a vector of $H$ numbers. Each step mixes it with the input $x_t$:
#
# $$ s_t = \tanh(x_t U + s_{t-1} W + b). $$
#
# $U$, $W$ and $b$ are the same at every step. In code that is one line, and `lax.scan` repeats it.

# %%
cell = rnn_jax.elman(H, recurrent_init=initializers.gaussian(0.7))
params = cell.init(jax.random.key(0), 1)
U, W, b = params


def step(s: Array, x: Array) -> Array:
    return jnp.tanh(x @ U + s @ W + b)


def forward(xs: Array) -> Array:
    return lax.scan(lambda s, x: (step(s, x), step(s, x)), jnp.zeros(H), xs)[1]


xs = 0.1 * jax.random.normal(jax.random.key(1), (T, 1))
states = forward(xs)
# The package's own `unroll` gives the same states.
print(jnp.allclose(states, rnn_jax.unroll(cell, params, jnp.zeros(H), xs), atol=1e-6))

# %% [markdown]
# Does the state remember the first input? Change $x_1$, keep all others, and watch how far apart
# the two runs are, $|s_t - s_t'|$.

# %%
changed = forward(xs.at[0].add(1.0))
distance = jnp.linalg.norm(changed - states, axis=-1)
figure, axes = curves(
    {"distance of the two runs": distance},
    "A different first input leaves no trace after some fifty steps",
    r"$|s_t - s_t'|$",
)
axes.set_yscale("log")
figure

# %% [markdown]
# A straight line on a logarithmic axis: each step multiplies what is left by the same factor. It
# ends where float32 has no more digits: from there on the two runs differ by rounding alone.
#
# ## 2. The gradient goes the same way back
#
# To learn from the past, a network needs the gradient of a loss at the end with respect to states
# long before. The loss $L$ here reads the last state alone, in a random direction $v$:
#
# $$ L = v \cdot s_T. $$
#
# One step back is one Jacobian,
#
# $$ J_t = \frac{\partial s_t}{\partial s_{t-1}}
#        = \operatorname{diag}\bigl(1 - s_t^2\bigr)\, W^{\mathsf T}, $$
#
# since $\tanh' = 1 - \tanh^2$. Many steps back are a product of them:
#
# $$ \lambda_k = \frac{\partial L}{\partial s_k}
#              = J_{k+1}^{\mathsf T} J_{k+2}^{\mathsf T} \cdots J_T^{\mathsf T}\, v,
#    \qquad\text{that is}\qquad
#    \lambda_{t-1} = J_t^{\mathsf T} \lambda_t,\quad \lambda_T = v. $$
#
# $\lambda_t$ is called the adjoint. Two lines: the Jacobians, and the recursion run backward.

# %%
v = jax.random.normal(jax.random.key(2), (H,)) / jnp.sqrt(H)
slopes = 1 - states**2  # tanh' at every step, [T, H]
jacobians = slopes[:, :, None] * W.T  # J_t, [T, H, H]
_, before = lax.scan(lambda later, J: (J.T @ later, J.T @ later), v, jacobians[1:], reverse=True)
adjoints = jnp.concatenate([before, v[None]])  # lambda_1 .. lambda_T

# %% [markdown]
# Automatic differentiation agrees: `gradflow.value_and_grad` returns every adjoint beside the
# gradient.

# %%
value_and_grad = gradflow.value_and_grad(cell, lambda states: states[-1] @ v)
loss, grads, found = value_and_grad(params, jnp.zeros(H), xs)
error = jnp.linalg.norm(adjoints - found, axis=-1) / jnp.linalg.norm(found, axis=-1)
print(f"largest relative difference: {error.max():.0e}")

figure, axes = curves(
    {r"$|\lambda_t|$": jnp.linalg.norm(adjoints, axis=-1)},
    "The gradient vanishes on its way back, step by step",
    r"$|\partial L / \partial s_t|$",
)
axes.set_yscale("log")
figure

# %% [markdown]
# ## 3. What the weights get to see
#
# $W$ acts at every step, so its gradient is a sum over all steps $k$: what step $k$ does to the
# state, times what the state does to the loss. With $\delta_k = \tanh'_k \odot \lambda_k$,
#
# $$ \frac{\partial L}{\partial W}
#    = \sum_{k=1}^{T} \Bigl(\frac{\partial s_k}{\partial W}\Bigr)^{\mathsf T}
#      J_{k+1}^{\mathsf T} \cdots J_T^{\mathsf T}\, v
#    = \sum_{k=1}^{T} s_{k-1}^{\mathsf T}\, \delta_k. $$
#
# This is back-propagation through time, as one line:

# %%
previous = jnp.concatenate([jnp.zeros((1, H)), states[:-1]])
summands = jnp.einsum("ki,kj->kij", previous, slopes * adjoints)
print(jnp.allclose(summands.sum(axis=0), grads.W, rtol=1e-4, atol=1e-7))

norms = jnp.linalg.norm(summands, axis=(1, 2))
print(f"share of the last ten steps: {norms[-10:].sum() / norms.sum():.1%}")
plots.summand_profile(
    {"W": plots.natural_log(norms)}, "The weights learn from the last few steps and from no others"
)

# %% [markdown]
# The sum is dominated by the newest steps. A weight that would help to remember step 1 gets no
# word of it: **this is why an RNN forgets, and why it does not learn to stop forgetting.**
#
# ## 4. Vanish, survive or explode
#
# The product has one factor for each step. So $\ln|\lambda_k|$ is, but for noise, a straight line
#
# $$ \ln|\lambda_k| \approx \ln|\lambda_T| + \kappa\,(T - k), $$
#
# and everything hangs on the sign of its slope $\kappa$. For a wide network with random weights of
# standard deviation $g/\sqrt H$ the slope can be told beforehand: each step multiplies
# $|\lambda|^2$ by
#
# $$ \chi = g^2\, \mathbb E\bigl[\tanh'(z)^2\bigr], \qquad \kappa = \tfrac12 \ln \chi, $$
#
# with $z$ the (Gaussian) pre-activation of a unit. `mean_field_slope` is this line. Dotted below is
# what it says; it never saw the network.

# %%
last = gradflow.LastStep(lambda state: state @ v)
batch = 0.1 * jax.random.normal(jax.random.key(3), (T, B, 1))


def flow(gain: float) -> plots.Flow:
    """One network, its gradient measured and predicted."""
    cell = rnn_jax.elman(H, recurrent_init=initializers.gaussian(gain))
    params = cell.init(jax.random.key(4), 1)
    arguments = cell, params, jnp.zeros((B, H)), batch
    return plots.Flow(
        name=f"g = {gain:g}",
        log_norms=np.asarray(gradflow.state_gradients(*arguments, last)),
        exponent=float(gradflow.lyapunov_spectrum(*arguments, num_exponents=1, burn_in=20)[0]),
        predicted=float(mean_field_slope("tanh", gain, input_std=0.1).slope),
        verdict=gradflow.diagnose(*arguments, last).verdict,
    )


plots.flow_comparison([flow(gain) for gain in (0.7, 1.05, 2.0)], "One number decides: the gain g")

# %% [markdown]
# ## 5. The two suspects
#
# A Jacobian has two parts, $\operatorname{diag}(\tanh')$ and $W^{\mathsf T}$. Its effect on a
# vector is bounded by the largest singular value of $W$:
#
# $$ |J_t^{\mathsf T} \lambda| \;\le\; \sigma_{\max}(W)\, \max_i \tanh'_i\, |\lambda|,
#    \qquad \tanh' \le 1. $$
#
# **The first suspect is $W$.** If $\sigma_{\max}(W) < 1$ the gradient must vanish. And even a
# Gaussian $W$ whose largest singular value is 2 has many that are small. An orthogonal matrix has
# none: all of its singular values are 1.

# %%
draws = {
    "Gaussian, g = 1": initializers.gaussian(1.0),
    "uniform, as torch.nn.RNN has it": initializers.uniform_torch,
    "orthogonal": initializers.orthogonal(),
}
spectra = {
    name: jnp.asarray(np.linalg.svd(draw(jax.random.key(0), (H, H), jnp.float32), compute_uv=False))
    for name, draw in draws.items()
}
figure, axes = curves(
    spectra,
    "Most directions shrink under a random W; none does under an orthogonal one",
    r"singular value $\sigma_i(W)$",
    "index i",
)
axes.axhline(1, color=GREY, linewidth=0.8)
figure

# %% [markdown]
# **The second suspect is $\tanh'$.** It is 1 at rest and falls as soon as a unit is driven. With an
# orthogonal $W$ the second suspect is alone, and its slope is
#
# $$ \kappa = \tfrac12 \ln \mathbb E\bigl[\tanh'(z)^2\bigr] \;\le\; 0. $$

# %%
stds = np.linspace(0.03, 1.5, 12)
orthogonal = rnn_jax.elman(H, recurrent_init=initializers.orthogonal())
orthogonal_params = orthogonal.init(jax.random.key(4), H)
noise = jax.random.normal(jax.random.key(3), (T, B, H))  # an input for each unit


def measured_slope(std: Array) -> Array:
    logs = gradflow.state_gradients(
        orthogonal, orthogonal_params, jnp.zeros((B, H)), std * noise, last
    )
    return jnp.mean(logs[10] - logs[-10]) / (T - 20)


measured = jax.vmap(measured_slope)(jnp.array(stds))
predicted = mean_field_slope("tanh", 1.0, input_std=stds).slope
figure = new_figure()
axes = dress(
    figure.subplots(),
    "Every bit of input costs memory: tanh' alone makes the gradient vanish",
    "standard deviation of the input",
    r"slope $\kappa$ (nats per step back)",
)
axes.plot(stds, predicted, ":", color="black", linewidth=2, label="theory")
axes.plot(stds, measured, "o", color=CYCLE[0], markersize=7, label="measured")
axes.axhline(0, color=GREY, linewidth=0.8)
axes.legend(fontsize=11, frameon=False)
figure

# %% [markdown]
# ## 6. The horizon
#
# How far back does a network see? Say that a gradient is lost when a thousandth is left. On a line
# of slope $\kappa < 0$ that takes
#
# $$ n = \frac{\ln 0.001}{\kappa} \quad\text{steps}. $$
#
# This is the number to compare with the length of your sequences.

# %%
gains = np.linspace(0.3, 1.0, 36)
horizons = np.log(0.001) / mean_field_slope("tanh", gains, input_std=0.1).slope
figure = new_figure()
axes = dress(
    figure.subplots(),
    "A network that is to remember 100 steps has little room",
    "gain g of a Gaussian W",
    "steps until a thousandth is left",
)
axes.semilogy(gains, horizons, color=CYCLE[0], linewidth=2)
axes.axhline(T, color=CYCLE[1], linestyle="--", linewidth=1.5)
axes.annotate("T = 100", (0.3, T), xytext=(2, 4), textcoords="offset points", color=CYCLE[1])
axes.axvline(3**-0.5, color=GREY, linestyle=":", linewidth=1.5)
axes.annotate("torch.nn.RNN starts here", (3**-0.5, 5), xytext=(5, 0), textcoords="offset points")
figure

# %% [markdown]
# ## 7. The other side: a wall
#
# Where gradients explode, the loss has walls. The smallest network that has one is Pascanu's: one
# unit, no input, and here a dozen steps,
#
# $$ s_t = w\, \sigma(s_{t-1}) - 3, \qquad L(w) = \bigl(\sigma(s_{12}) - 0.7\bigr)^2, $$
#
# with $\sigma$ the logistic function and $s_0 = 1/2$. Near one value of $w$ the state tips over
# from one resting point to another, and the loss jumps. A step down the gradient of the wall lands
# anywhere. *Clipping* keeps its direction and bounds its length:
#
# $$ g \;\leftarrow\; g \cdot \min\Bigl(1, \frac{c}{|g|}\Bigr). $$


# %%
def wall(w: Array) -> Array:
    state = lax.fori_loop(0, 12, lambda _, s: w * jax.nn.sigmoid(s) - 3.0, 0.5)
    return (jax.nn.sigmoid(state) - 0.7) ** 2


weights = jnp.linspace(5.2, 6.2, 2001)
heights, gradients = jax.vmap(jax.value_and_grad(wall))(weights)
clip = optax.clip_by_global_norm(1.0)
clipped = jax.vmap(lambda g: clip.update(g, clip.init(g))[0])(gradients)

figure = new_figure(11, 4.5)
left, right = figure.subplots(1, 2)
dress(left, "The loss has a wall", "w", "L(w)").plot(weights, heights, color=CYCLE[0], lw=2)
dress(right, "Clipping bounds the step, not its direction", "w", r"$|\partial L / \partial w|$")
right.semilogy(weights, jnp.abs(gradients), color=CYCLE[1], lw=2, label="as it is")
right.semilogy(weights, jnp.abs(clipped), color=CYCLE[0], lw=2, label="clipped at 1")
right.legend(fontsize=11, frameon=False)
figure

# %% [markdown]
# Clipping cures what explodes. It cures nothing that vanishes: there is nothing to clip.
#
# ## 8. Cures for what vanishes
#
# Each makes the factor of a step nearly 1:
#
# - **Orthogonal** $W$: all $\sigma_i(W) = 1$, so $\tanh'$ alone is left,
#   $\kappa = \tfrac12 \ln \mathbb E[\tanh'(z)^2]$.
# - **IRNN**: ReLU instead of $\tanh$, $W = I$. A unit that stays on multiplies by 1, $\kappa = 0$.
# - **LSTM**: $c_t = f_t \odot c_{t-1} + i_t \odot \tilde c_t$. Along $c$ a step multiplies by the
#   forget gate $f_t = \sigma(\dots + b_f)$, so $\kappa \approx \ln \sigma(b_f)$.
#
# For an LSTM that is to remember $T$ steps, $f = 1 - 1/T$ wants the bias $b_f = \ln(T - 1)$.

# %%
cells = {
    "tanh": rnn_jax.elman(H, recurrent_init=initializers.gaussian(0.7)),
    "orthogonal tanh": rnn_jax.elman(H, recurrent_init=initializers.orthogonal()),
    "IRNN": rnn_jax.elman(H, "relu", recurrent_init=initializers.identity()),
    "LSTM": rnn_jax.lstm(H, forget_bias=float(theory.forget_bias_for(T))),
}


def profile(cell: rnn_jax.Cell) -> Array:
    """ln of what is left of the gradient at each step, median of the batch."""
    params = cell.init(jax.random.key(5), 1)
    loss = gradflow.LastStep(lambda state: cell.emit(state) @ v)
    xs = batch.at[0].set(1.0)  # a first input to remember
    logs = gradflow.state_gradients(cell, params, cell.initial_state(params, (B,)), xs, loss)
    return jnp.median(logs - logs[-1], axis=1)


figure, axes = curves(
    {name: profile(cell) for name, cell in cells.items()},
    "Before any training: what is left of the gradient at step t",
    r"$\ln\,|\partial L/\partial s_t| - \ln\,|\partial L/\partial s_T|$  (nats)",
)
axes.axhline(np.log(1e-3), color=GREY, linestyle=":", linewidth=1.2)
axes.annotate("lost: a thousandth", (25, np.log(1e-3)), va="top", color=GREY)
figure

# %% [markdown]
# ## 9. The proof: training
#
# A task that needs memory and nothing else. The first input is $+1$ or $-1$, then come 99 steps of
# noise, and at the end the network is asked which it was. Guessing has a loss of
# $\ln 2 \approx 0.693$. Every batch is drawn anew, so each loss below is that of sequences never
# seen before.


# %%
def sample(key: Key) -> Batch:
    sign_key, noise_key = jax.random.split(key)
    labels = jax.random.bernoulli(sign_key, shape=(32,)).astype(jnp.int32)
    noise = 0.1 * jax.random.normal(noise_key, (T, 32, 1))
    return Batch(noise.at[0, :, 0].set(2.0 * labels - 1), labels)


first_sign = Task(
    name="first sign",
    sample=sample,
    input_size=1,
    output_size=2,
    loss=cross_entropy,
    wrong=lambda outputs, labels: 1 - accuracy(outputs, labels),
    last_only=True,
    chance_loss=float(np.log(2)),
    chance_wrong=0.5,
)
NUM_STEPS, CHUNK = 500, 20


def learn(cell: rnn_jax.Cell) -> plots.Learned:
    """Trains a cell on the task; the gradient's profile before and after."""
    model = rnn_jax.last_only(cell, 2)
    objective = objectives.task_objective(model, first_sign)
    optimizer = optim.recorded(optax.adam(1e-3), clip_norm=1.0)
    state = training.init_state(model, optimizer, jax.random.key(6), 1, 32)
    state, metrics = training.train_chunk(
        objective, optimizer, sample, state, jax.random.key(7), NUM_STEPS
    )
    loss = np.asarray(metrics.loss).reshape(-1, CHUNK).mean(axis=1)
    traces = plots.natural_log(metrics.trace)
    start, end = traces[:CHUNK].mean(axis=0), traces[-CHUNK:].mean(axis=0)
    drawn = np.maximum(loss, 1e-3)  # what is lower is solved as well
    return plots.Learned(drawn[None], loss[-1:] < 0.1, start[None], end[None])


learned = {name: learn(cell) for name, cell in cells.items()}
for name, what in learned.items():
    print(f"{name:16} loss of the last {CHUNK} iterations: {what.curves[0, -1]:.4f} or less")

# %%
plots.learning_curves(
    {"Remember one bit for 100 steps": learned},
    CHUNK,
    {"Remember one bit for 100 steps": first_sign.chance_loss},
    "The tanh network never leaves the loss of guessing",
)

# %%
plots.start_and_end(learned, "Who had a gradient at step 1 learned; who had none did not")

# %% [markdown]
# ## What to take home
#
# - A gradient goes back through a **product of Jacobians**, one a step; it vanishes or explodes
#   exponentially with the number of steps.
# - The **slope** $\kappa$ says it all, and it can be told before training: $\ln 0.001 / \kappa$ is
#   how far the network sees.
# - Two things make it: the **singular values of $W$** and **$\tanh'$**.
# - **Clipping** cures what explodes. What vanishes wants a step that multiplies by 1: an
#   **orthogonal** $W$, an **IRNN**, an **LSTM** whose forget gate stays open.
#
# Where to go from here: `rnn_jax/bptt.py` is sections 2 and 3 for every cell;
# `diagnose_your_flax_rnn` does all this for a network of yours;
# `python -m experiments.memory --flagfile=experiments/flags/cures.flags` sets all the cures side
# by side.
