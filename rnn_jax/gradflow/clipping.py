"""How often clipping fires, and what bound to choose, from the raw gradient norms of a run."""

import math
from typing import NamedTuple

import numpy as np

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


class ClippingReport(NamedTuple):
    """The raw norms of a run; `str()` of it is one line.

    Attributes:
        quantiles: share of the steps -> norm below which they lie.
        suggested: a bound that leaves ordinary steps alone and catches the rare explosions.
        share_clipped: share of the steps above `bound`; NaN where no bound was given.
        share_suggested: share of the steps above `suggested`.
        num_nonfinite: steps whose norm was NaN or inf.
    """

    quantiles: dict[float, float]
    suggested: float
    share_clipped: float
    share_suggested: float
    num_nonfinite: int

    def __str__(self) -> str:
        norms = ", ".join(f"{share:.0%}: {norm:.2g}" for share, norm in self.quantiles.items())
        fired = ""
        if not math.isnan(self.share_clipped):
            fired = f"; clipping fired in {self.share_clipped:.1%} of the steps"
        broken = f"; {self.num_nonfinite} not finite" if self.num_nonfinite else ""
        return (
            f"gradient norm by quantile ({norms}){fired}; a bound of {self.suggested:.2g} would "
            f"clip {self.share_suggested:.1%}{broken}"
        )


def clipping_report(raw_norms: np.ndarray, bound: float | None = None) -> ClippingReport:
    """Quantiles of the raw norms, and a bound: ten times the median, or the 90 % quantile if more.

    Args:
        raw_norms: `[K]`, global norms before clipping, as a training run records them.
        bound: the bound in force, or None.

    Raises:
        ValueError: no norm is finite.
    """
    norms = np.asarray(raw_norms, np.float64).reshape(-1)
    finite = norms[np.isfinite(norms)]
    if finite.size == 0:
        raise ValueError(f"none of the {norms.size} gradient norms is finite; nothing to report")
    values = np.quantile(finite, QUANTILES)
    suggested = float(max(10 * values[2], values[3]))
    above = ~(norms <= suggested)
    return ClippingReport(
        quantiles=dict(zip(QUANTILES, map(float, values), strict=True)),
        suggested=suggested,
        share_clipped=math.nan if bound is None else float(np.mean(~(norms <= bound))),
        share_suggested=float(np.mean(above)),
        num_nonfinite=int(norms.size - finite.size),
    )
