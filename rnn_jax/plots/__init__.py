"""Arrays to matplotlib figures. Nothing is saved here and pyplot's global state is not touched."""

from rnn_jax.plots.comparison import Trained, trained_side_by_side
from rnn_jax.plots.flow import (
    Flow,
    beyond_range,
    credit_heatmap,
    eigenvalue_plane,
    exponent_spectrum,
    flow_comparison,
    flow_profile,
    singular_values_by_lag,
    summand_profile,
    truncation_curve,
)
from rnn_jax.plots.learning import (
    Learned,
    foretold,
    learning_curves,
    start_and_end,
    success_table,
)
from rnn_jax.plots.series import Forecast, forecasts
from rnn_jax.plots.speed import ratio_maps, scaling, speed_ratios
from rnn_jax.plots.style import natural_log, png
from rnn_jax.plots.sweep import Curve, Panel, phase_diagram, prediction, slopes_along, success
from rnn_jax.plots.training import (
    free_run,
    gradient_heatmap,
    gradient_profiles,
    loss_curve,
    parameter_heatmaps,
)

__all__ = [
    "Curve",
    "Flow",
    "Forecast",
    "Learned",
    "Panel",
    "Trained",
    "beyond_range",
    "credit_heatmap",
    "eigenvalue_plane",
    "exponent_spectrum",
    "flow_comparison",
    "flow_profile",
    "forecasts",
    "foretold",
    "free_run",
    "gradient_heatmap",
    "gradient_profiles",
    "learning_curves",
    "loss_curve",
    "natural_log",
    "parameter_heatmaps",
    "phase_diagram",
    "png",
    "prediction",
    "ratio_maps",
    "scaling",
    "singular_values_by_lag",
    "slopes_along",
    "speed_ratios",
    "start_and_end",
    "success",
    "success_table",
    "summand_profile",
    "trained_side_by_side",
    "truncation_curve",
]
