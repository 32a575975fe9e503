"""What the default suite leaves to the evidence is marked where it stands."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """One row of a parametrization, run by `make evidence` alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but_for(quick: Iterable[str], names: Iterable[str]) -> list[Any]:
    """All names, those that are not quick as evidence."""
    quick = set(quick)
    return [name if name in quick else slow(name) for name in names]
