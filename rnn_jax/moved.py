"""Modules of version 0.1 under their old names, until the next version.

`import rnn_jax.training` still works, with a `DeprecationWarning` that names `rnn_jax.training`.
"""

import importlib
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "adjoint": "bptt",
    "checkpoint": "io.checkpoint",
    "npy": "io.npy",
    "optim": "training.optim",
    "reading": "io.reading",
    "records": "io.records",
    "regularizers": "training.regularizers",
    "tables": "io.tables",
    "traces": "training.traces",
    "train": "training",
    "truncated": "training.truncated",
}
"""Old name within the package -> new name."""


class OldNames(MetaPathFinder, Loader):
    """Finds modules by their old names; the contents are those of the new ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for the names of `MOVED`; the import system asks this last."""
        package, _, name = fullname.partition(".")
        if package != __package__ or name not in MOVED:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module with the names of the new one, and warns."""
        new = f"{__package__}.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(
            f"{module.__name__} is now {new}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        contents = vars(importlib.import_module(new))
        module.__dict__.update(
            {name: value for name, value in contents.items() if not name.startswith("__")}
        )
