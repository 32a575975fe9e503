"""How every figure looks: size, colours, axes."""

import io
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by the colour-blind too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
CYCLE = (BLUE, RED, GREEN, ORANGE, "#CC79A7", "#56B4E9")
TITLE_LETTERS_PER_INCH = 8.5
ORDERED = "viridis"
DIVERGING = "RdBu_r"


def new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
    """An empty figure of this project's size; its text is legible at half of it."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    """Title, labels, and no more lines than needed."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = int(TITLE_LETTERS_PER_INCH * figure.get_figwidth())
    axes.set_title(textwrap.fill(title, width), loc="left", fontsize=13)
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def png(figure: Figure) -> bytes:
    """A figure as the content of a .png file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def natural_log(values: np.ndarray) -> np.ndarray:
    """ln of norms, as float64; -inf for an exact zero, without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(values, np.float64))
