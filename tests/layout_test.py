"""Who imports whom: a table, and the imports of every file, read without running it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, EXPERIMENTS, TESTS = (ROOT / name for name in ("rnn_jax", "experiments", "tests"))

FOUNDATION = {
    "types",
    "placement",
    "decompositions",
    "spectra",
    "initializers",
    "cells",
    "bptt",
    "checks",
    "unroll",
    "model",
    "losses",
    "norms",
}

ALLOWED = {
    "types": set(),
    "placement": {"types"},
    "decompositions": {"types"},
    "matrix_exponential": {"types"},
    "spectra": {"types"},
    "initializers": {"decompositions", "spectra", "types"},
    "losses": {"placement", "types"},
    "norms": {"placement", "types"},
    "tap": {"types"},
    "scans": {"tap", "types"},
    "traced_loss": {"scans"},
    "watch": {"norms", "scans", "tap", "traced_loss", "types"},
    "found_cells": {"cells", "scans", "types"},
    "direct_gradients": {"scans", "tap", "traced_loss", "types"},
    "inspect": {
        "cells",
        "direct_gradients",
        "found_cells",
        "gradflow",
        "scans",
        "traced_loss",
        "types",
    },
    "tasks": {"losses", "types"},
    "cells": {"types", "placement", "initializers", "matrix_exponential"},
    "bridge": {"cells", "types"},
    "bptt": {"cells", "tap", "types"},
    "checks": {"cells", "types"},
    "unroll": {"bptt", "cells", "checks", "placement", "tap", "types"},
    "drop_in": {"bridge", "placement", "types", "unroll"},
    "equinox": {"bridge", "types", "watch"},
    "linen": {"bridge", "drop_in", "types"},
    "nnx": {"bridge", "drop_in", "types", "watch"},
    "bidirectional": {"cells", "checks", "unroll", "placement", "types"},
    "model": {"cells", "unroll", "initializers", "types"},
    "gradflow": FOUNDATION,
    "objectives": FOUNDATION | {"tasks"},
    "training": FOUNDATION | {"gradflow", "objectives", "tasks"},
    "sweep": {"sharding", "types"},
    "plots": set(),
    "io": {"plots"},
    "sharding": set(),
    "moved": set(),
}
"""What each module or package of rnn_jax may import of rnn_jax, itself apart."""

ONLY_IN = {
    "absl": "experiments",
    "matplotlib": "rnn_jax.plots",
    "orbax": "rnn_jax.io.checkpoint",
    "tensorboard": "experiments.training.tensorboard_events",
    "torch": "experiments.benchmarks.pytorch",
}
"""Packages that one module or package alone may import."""

FLOORS = ("cli", "data", "setup", "analysis", "training", "reports", "benchmarks", "entry point")
"""Folders of experiments, lowest first: each imports from those before it, and nobody imports an
entry point, which is a file of experiments itself."""

LONGEST = 350
"""Lines of a file; a longer one is perhaps two ideas."""

VAGUE = {"util", "utils", "helper", "helpers", "common", "misc"}
CALLBACKS = {
    "jax.debug",
    "jax.experimental.io_callback",
    "jax.experimental.host_callback",
    "jax.pure_callback",
    "callback",
    "debug_callback",
    "host_callback",
    "io_callback",
    "pure_callback",
}


def files_of(*folders):
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def dotted_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(source, file):
    """Dotted names that a file imports, at its top or inside functions, relative ones resolved.

    `from a import b` counts as `a.b`: b may be a module.
    """
    package = Path(file).parent.parts
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, node.module) if node.module else base
            names |= {".".join((*base, alias.name)) for alias in node.names}
    return names


def module_of(dotted):
    """The part of rnn_jax that an import names: "types" for rnn_jax.types.Array, else None.

    A name that the package itself gives, such as rnn_jax.Cell, comes out as "__init__".
    """
    parts = dotted.split(".")
    if parts[0] != "rnn_jax":
        return None
    there = len(parts) > 1 and (
        (LIBRARY / f"{parts[1]}.py").exists() or (LIBRARY / parts[1]).is_dir()
    )
    return parts[1] if there else "__init__"


def owner_of(path):
    """The entry of the table that a file of rnn_jax belongs to."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def wrong_imports(source, file):
    """What a file of rnn_jax imports against the table; a sentence for each."""
    owner = owner_of(ROOT / file)
    if owner == "__init__":
        return []
    if owner not in ALLOWED:
        return [f"rnn_jax.{owner} is not in the table ALLOWED of tests/layout_test.py: add it"]
    used = {module_of(name) for name in imports(source, file)} - {None, owner}
    return [
        f"{file} imports rnn_jax.{module}, but may import {sorted(ALLOWED[owner])} of rnn_jax"
        for module in sorted(used - ALLOWED[owner])
    ]


def floor_of(file):
    """The floor that a file of experiments is on; None for what is only read or run."""
    folder = Path(file).parts[1]
    if folder.endswith(".py"):
        return None if folder == "__init__.py" else "entry point"
    return folder if folder in FLOORS else None


def imports_up(source, file):
    """What a file of experiments imports from its own height in another folder, or from above."""
    own = FLOORS.index(floor_of(file))
    wrong = []
    for name in sorted(imports(source, file)):
        if name.split(".")[0] != "experiments":
            continue
        path = "/".join(name.split(".")[:2])
        used = floor_of(path if (ROOT / path).is_dir() else f"{path}.py")
        if used is not None and FLOORS.index(used) >= own and used != FLOORS[own]:
            wrong.append(name)
        if used == "entry point":
            wrong.append(name)
    return wrong


@pytest.mark.parametrize(
    "path", [p for p in files_of(EXPERIMENTS) if floor_of(name_of(p))], ids=name_of
)
def test_experiments_import_from_the_floors_below_them(path):
    assert imports_up(path.read_text(), name_of(path)) == []


def test_an_import_from_above_is_seen():
    source = "from experiments.reports import sine\nfrom experiments.cli import axes"
    assert imports_up(source, "experiments/training/loop.py") == ["experiments.reports.sine"]
    assert imports_up("import experiments.sine", "experiments/memory.py") == ["experiments.sine"]
    assert imports_up("from experiments import sine", "experiments/reports/sine.py")
    assert not imports_up("from experiments.training import loop", "experiments/training/store.py")


def test_no_file_is_two_ideas_long():
    notebooks = EXPERIMENTS / "notebooks"
    long = {
        name_of(path): lines
        for path in files_of(LIBRARY, EXPERIMENTS)
        if notebooks not in path.parents and (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}


def callbacks(source):
    """Names by which a source reaches from a compiled program back to the host."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found |= {node.attr, ast.unparse(node)}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & CALLBACKS


@pytest.mark.parametrize("path", files_of(LIBRARY), ids=name_of)
def test_modules_import_only_what_the_table_allows(path):
    wrong = wrong_imports(path.read_text(), name_of(path))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", files_of(LIBRARY), ids=name_of)
def test_the_library_never_imports_an_experiment_or_a_test(path):
    roots = {name.split(".")[0] for name in imports(path.read_text(), name_of(path))}
    assert not roots & {"experiments", "tests", "reference"}


@pytest.mark.parametrize("path", files_of(LIBRARY, EXPERIMENTS), ids=name_of)
def test_packages_with_a_place_of_their_own_are_imported_only_there(path):
    roots = {name.split(".")[0] for name in imports(path.read_text(), name_of(path))}
    for package in roots & ONLY_IN.keys():
        place, here = ONLY_IN[package], dotted_name(path)
        assert f"{here}.".startswith(f"{place}."), f"only {place} may import {package}"


@pytest.mark.parametrize("path", files_of(LIBRARY), ids=name_of)
def test_no_callbacks_to_the_host(path):
    assert not callbacks(path.read_text())


@pytest.mark.parametrize("path", files_of(LIBRARY, EXPERIMENTS, TESTS), ids=name_of)
def test_no_file_or_folder_has_a_name_that_says_nothing(path):
    words = {word for part in path.relative_to(ROOT).parts for word in Path(part).stem.split("_")}
    assert not words & VAGUE


def test_the_reference_uses_no_jax():
    names = imports((TESTS / "reference.py").read_text(), "tests/reference.py")
    assert {name.split(".")[0] for name in names} == {"collections", "typing", "numpy"}


# The reader itself: each rule above must be able to fail.


@pytest.mark.parametrize(
    "source",
    [
        "import rnn_jax.training",
        "from rnn_jax import training",
        "from rnn_jax.training.step import train_step",
        "from . import training",
        "from .training import TrainState as S",
        "def f():\n    from rnn_jax import training",
        "import numpy, rnn_jax.training as t",
        "from rnn_jax import elman",
        "import rnn_jax",
    ],
)
def test_a_forbidden_import_is_seen_in_any_form(source):
    assert len(wrong_imports(source, "rnn_jax/unroll.py")) == 1


def test_relative_imports_of_packages_are_resolved():
    assert imports("from .. import training", "rnn_jax/cells/elman.py") == {"rnn_jax.training"}
    assert wrong_imports("from ..training import x", "rnn_jax/cells/elman.py")
    assert not wrong_imports("from .cell import Cell", "rnn_jax/cells/elman.py")
    assert not wrong_imports("from rnn_jax.types import Array", "rnn_jax/cells/elman.py")


def test_an_unknown_module_must_be_added_to_the_table():
    (message,) = wrong_imports("import numpy", "rnn_jax/surprise.py")
    assert "rnn_jax.surprise is not in the table" in message
    assert message.endswith("add it")


@pytest.mark.parametrize(
    "source",
    [
        "jax.debug.callback(print, x)",
        "jax.debug.print('{}', x)",
        "from jax import debug\ndebug.callback(print, x)",
        "from jax.experimental import io_callback",
        "jax.experimental.io_callback(f, None, x)",
        "jax.pure_callback(f, x, x)",
        "import jax.experimental.host_callback as hc",
    ],
)
def test_a_callback_is_seen_in_any_form(source):
    assert callbacks(source)
    assert not callbacks("jax.jit(f)(x)")
