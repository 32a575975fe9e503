"""The cures by name: what each sets, where it acts, and whose it is.

A cure is a few settings of `experiments.memory`, laid over those of the command line; each acts in
one place of the library, which any training of one's own can use alike.
"""

from typing import Any, NamedTuple


class Cure(NamedTuple):
    """A named way to train.

    Attributes:
        settings: field of `experiments.setup.method.Method` -> its value.
        place: the function of `rnn_jax` that does it, by its path there; empty where none does.
        source: paper.
    """

    settings: dict[str, Any]
    place: str
    source: str


ORTHOGONAL = {"recurrent_init": "orthogonal", "gain": 1.0}

CURES = {
    "none": Cure({}, "", ""),
    "clip": Cure({"clip_norm": 1.0}, "optim.recorded", "Pascanu et al. 2013, alg. 1"),
    "clip_omega": Cure(
        {"clip_norm": 1.0, "omega": 2.0}, "regularizers.pascanu", "Pascanu et al. 2013, eq. 9"
    ),
    "orthogonal": Cure(ORTHOGONAL, "initializers.orthogonal", "Saxe et al. 2014"),
    "linear": Cure(
        {"activation": "identity", "clip_norm": 1.0, **ORTHOGONAL},
        "cells.elman",
        "Henaff, Szlam & LeCun 2016",
    ),
    "spectral": Cure(
        {"recurrent_init": "spectral", "gain": 0.95},
        "initializers.spectral_radius",
        "Jaeger 2001; Pascanu et al. 2013",
    ),
    "sparse": Cure(
        {"recurrent_init": "sparse", "gain": 0.95}, "initializers.sparse", "Pascanu et al. 2013"
    ),
    "irnn": Cure(
        {"activation": "relu", "recurrent_init": "identity", "gain": 1.0, "clip_norm": 1.0},
        "initializers.identity",
        "Le, Jaitly & Hinton 2015",
    ),
    "leak": Cure({"cell": "leaky", **ORTHOGONAL}, "cells.leaky", "Jaeger et al. 2007"),
    "layer_norm": Cure({"cell": "layer_norm"}, "cells.layer_norm_elman", "Ba et al. 2016"),
    "gru": Cure({"cell": "gru", **ORTHOGONAL}, "cells.gru", "Cho et al. 2014"),
    "lstm": Cure(
        {"cell": "lstm", "forget_bias": 1.0, **ORTHOGONAL},
        "cells.lstm",
        "Hochreiter & Schmidhuber 1997; Gers et al. 2000",
    ),
    "lstm_bias_0": Cure(
        {"cell": "lstm", "forget_bias": 0.0, **ORTHOGONAL}, "cells.lstm", "without its usual bias"
    ),
    "lstm_bias_T": Cure(
        {"cell": "lstm", "chrono": True, **ORTHOGONAL},
        "gradflow.theory.forget_bias_for",
        "Tallec & Ollivier 2018",
    ),
    "truncated": Cure(
        {"window": 50, "stride": 50},
        "truncated.truncated_objective",
        "Williams & Peng 1990",
    ),
    "floss_before": Cure({"floss_at": "0"}, "regularizers.floss_step", "Engelken 2023"),
    "floss_during": Cure({"floss_at": "0,100,200"}, "regularizers.floss_step", "Engelken 2023"),
}
"""name -> cure."""
