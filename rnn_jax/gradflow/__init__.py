"""Gradient flow through a recurrent network: seen, measured, predicted.

The state of a recurrent network is s_t = step(theta, s_{t-1}, x_t); L_t is the loss of step t,
which depends on s_t alone, and L = sum_t L_t. The chain rule over all paths from theta to L reads

    dL/dtheta = sum_t sum_{k <= t} dL_t/ds_t (J_t J_{t-1} ... J_{k+1}) ds_k/dtheta

where J_j = ds_j/ds_{j-1}, and ds_k/dtheta is the direct dependence of one step. A product of t - k
Jacobians shrinks or grows exponentially with t - k: that is the vanishing and the exploding
gradient. Ordered by k, the sums over t collapse into the adjoints

    lambda_k = dL/ds_k = e_k + J_{k+1}^T lambda_{k+1},    e_k = dL_k/ds_k,
    dL/dtheta = sum_k (ds_k/dtheta)^T lambda_k,

one backward pass. The loss is given as L_t of every step, as a `LastStep`, or as e_t itself, an
`Immediate`. Each function here measures one piece of these lines:

    value_and_grad      L, dL/dtheta and lambda_k together, as numbers
    state_gradients     ln |lambda_k|
    leaf_gradients      the same for each leaf of the state
    credit_matrix       ln |dL_t/ds_k| = ln |(J_t ... J_{k+1})^T e_t| for every pair
    parameter_terms     ln |(ds_k/dtheta)^T lambda_k|, the summands of dL/dtheta
    jacobian_product    ln of the singular values of J_T ... J_1
    lyapunov_spectrum   their growth per step over a long trajectory
    truncation_bias     what is left of dL/dtheta if sums stop at t - k < window
    parameter_sensitivity   |ds_t/dtheta|, which explodes near the edge though lambda does not
    diagnose            a verdict on all of it, and what to try
    apply_remedy        parameters with one of its remedies applied
    origin_of_nonfinite     where a NaN or inf began
    clipping_report     how often clipping fires, and what bound to choose

`theory` and `mean_field` say what these should be, before anything is measured.

All logarithms are natural, all norms L2 over the state and per example; a batch never changes what
an example's row says. Logarithms are exact far outside the range of floats: a gradient of 1e-4000
is -9210.3, and -inf means exactly zero. Functions are pure and work under `jit`, `vmap` and `grad`.

Under `jit` arguments cannot be looked at; outside it a NaN or inf is a `ValueError` that says
where.
"""

from rnn_jax.gradflow.clipping import ClippingReport, clipping_report
from rnn_jax.gradflow.credit import credit_matrix
from rnn_jax.gradflow.diagnose import Diagnosis, diagnose
from rnn_jax.gradflow.jacobians import jacobian_product, lyapunov_spectrum
from rnn_jax.gradflow.losses import Immediate, LastStep
from rnn_jax.gradflow.origin import Origin, origin_of_nonfinite
from rnn_jax.gradflow.outcome import Outcome
from rnn_jax.gradflow.params import parameter_terms
from rnn_jax.gradflow.remedies import apply_remedy
from rnn_jax.gradflow.remedy import Remedy
from rnn_jax.gradflow.sensitivity import parameter_sensitivity
from rnn_jax.gradflow.states import leaf_gradients, state_gradients, value_and_grad
from rnn_jax.gradflow.truncation import TruncationBias, truncation_bias

__all__ = [
    "ClippingReport",
    "Diagnosis",
    "Immediate",
    "LastStep",
    "Origin",
    "Outcome",
    "Remedy",
    "TruncationBias",
    "apply_remedy",
    "clipping_report",
    "credit_matrix",
    "diagnose",
    "jacobian_product",
    "leaf_gradients",
    "lyapunov_spectrum",
    "origin_of_nonfinite",
    "parameter_sensitivity",
    "parameter_terms",
    "state_gradients",
    "truncation_bias",
    "value_and_grad",
]
