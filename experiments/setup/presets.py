"""Presets by name: each a cure of the literature, as a few settings laid over the others.

Adding one is a line here; what it switches on acts in one place of `rnn_jax`.
"""

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A named way to train.

    Attributes:
        settings: field of `experiments.setup.method.Method` -> its value.
        source: paper.
    """

    settings: dict[str, Any]
    source: str


ORTHOGONAL = {"recurrent_init": "orthogonal", "gain": 1.0}
GAUSSIAN = {"recurrent_init": "gaussian", "gain": 1.0}
TORCH = {"recurrent_init": "torch", "gain": 1.0}

PRESETS = {
    "none": Preset({}, ""),
    "clip": Preset({"clip_norm": 1.0}, "Pascanu et al. 2013, alg. 1"),
    "clip_adaptive": Preset({"adaptive_clip": 0.01}, "Brock et al. 2021"),
    "noise": Preset({"gradient_noise": 0.01, "clip_norm": 1.0}, "Neelakantan et al. 2015"),
    "soft_orthogonal": Preset({"soft_orthogonal": 1e-3, **ORTHOGONAL}, "Vorontsov et al. 2017"),
    "zoneout": Preset({"cell": "lstm", "zoneout": 0.1, **ORTHOGONAL}, "Krueger et al. 2017"),
    "h_detach": Preset({"cell": "lstm", "detach": 0.25, **ORTHOGONAL}, "Arpit et al. 2019"),
    "dilated": Preset({"cell": "gru", "dilation": 8, **ORTHOGONAL}, "Chang et al. 2017"),
    "auxiliary": Preset(
        {"auxiliary": 1.0, "auxiliary_lag": 10, "clip_norm": 1.0}, "Trinh et al. 2018"
    ),
    "clip_omega": Preset({"clip_norm": 1.0, "omega": 2.0}, "Pascanu et al. 2013, eq. 9"),
    "orthogonal": Preset(ORTHOGONAL, "Saxe et al. 2014"),
    "linear": Preset(
        {"activation": "identity", "clip_norm": 1.0, **ORTHOGONAL}, "Henaff, Szlam & LeCun 2016"
    ),
    "spectral": Preset(
        {"recurrent_init": "spectral", "gain": 0.95}, "Jaeger 2001; Pascanu et al. 2013"
    ),
    "sparse": Preset({"recurrent_init": "sparse", "gain": 0.95}, "Pascanu et al. 2013"),
    "irnn": Preset(
        {"activation": "relu", "recurrent_init": "identity", "gain": 1.0, "clip_norm": 1.0},
        "Le, Jaitly & Hinton 2015",
    ),
    "leak": Preset({"cell": "leaky", **ORTHOGONAL}, "Jaeger et al. 2007"),
    "layer_norm": Preset({"cell": "layer_norm"}, "Ba et al. 2016"),
    "gru": Preset({"cell": "gru", **ORTHOGONAL}, "Cho et al. 2014"),
    "lstm": Preset(
        {"cell": "lstm", "forget_bias": 1.0, **ORTHOGONAL},
        "Hochreiter & Schmidhuber 1997; Gers et al. 2000",
    ),
    "lstm_bias_0": Preset(
        {"cell": "lstm", "forget_bias": 0.0, **ORTHOGONAL}, "without its usual bias"
    ),
    "lstm_bias_T": Preset({"cell": "lstm", "chrono": True, **ORTHOGONAL}, "Tallec & Ollivier 2018"),
    "irnn_shift": Preset(
        {"activation": "relu", "recurrent_init": "shift", "gain": 1.0, "clip_norm": 1.0},
        "Keller et al. 2024",
    ),
    "wave_rnn": Preset({"cell": "wave_rnn", "activation": "relu"}, "Keller et al. 2024"),
    "antisymmetric": Preset(
        {"cell": "antisymmetric", "cell_args": "epsilon=0.1,gamma=0.1", **GAUSSIAN},
        "Chang et al. 2019",
    ),
    "gated_antisymmetric": Preset(
        {"cell": "gated_antisymmetric", "cell_args": "epsilon=0.1,gamma=0.1", **GAUSSIAN},
        "Chang et al. 2019",
    ),
    "cornn": Preset({"cell": "cornn", **TORCH}, "Rusch & Mishra 2021"),
    "lem": Preset({"cell": "lem", **TORCH}, "Rusch et al. 2022"),
    "exp_rnn": Preset({"cell": "exp_rnn"}, "Lezcano-Casado & Martinez-Rubio 2019"),
    "indrnn": Preset({"cell": "indrnn", "activation": "relu"}, "Li et al. 2018"),
    "lru": Preset({"cell": "lru", "cell_args": "r_min=0.9,r_max=0.999"}, "Orvieto et al. 2023"),
    "min_gru": Preset({"cell": "min_gru"}, "Feng et al. 2024"),
    "min_lstm": Preset({"cell": "min_lstm"}, "Feng et al. 2024"),
    "slstm": Preset({"cell": "slstm", "forget_bias": 1.0, **ORTHOGONAL}, "Beck et al. 2024"),
    "truncated": Preset({"window": 50, "stride": 50}, "Williams & Peng 1990"),
    "floss_before": Preset({"floss_at": "0"}, "Engelken 2023"),
    "floss_during": Preset({"floss_at": "0,100,200"}, "Engelken 2023"),
}
"""name -> preset."""
