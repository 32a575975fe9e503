"""What a user finds in the package and beside it: public names, types, version, citation."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rnn_jax
from rnn_jax import gradflow
from rnn_jax.moved import MOVED

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = sorted(path.parent for path in (ROOT / "rnn_jax").rglob("__init__.py"))


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_every_name_that_a_package_gives_is_public_and_there(folder):
    tree = ast.parse((folder / "__init__.py").read_text())
    given = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    public = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    if folder.name == "rnn_jax":
        # Those that make lazy and old names work; and what is imported when it is asked for.
        given = [name for name in given if name not in ("Any", "MOVED", "OldNames")]
        given += [name for name in public[0] if name in rnn_jax.LAZY]
    assert sorted(given) == sorted(public[0] if public else [])


def test_the_core_is_at_the_top_and_documented():
    for name in ("Cell", "elman", "lstm", "gru", "unroll", "stack", "initializers", "bridge"):
        assert name in rnn_jax.__all__
    for name in rnn_jax.__all__:
        assert getattr(rnn_jax, name).__doc__, name


def test_the_docstring_of_gradflow_holds_the_derivation_and_names_every_function():
    text = gradflow.__doc__
    assert "lambda_k = dL/ds_k = e_k + J_{k+1}^T lambda_{k+1}" in text
    assert "dL/dtheta = sum_k (ds_k/dtheta)^T lambda_k" in text
    functions = [name for name in gradflow.__all__ if name[0].islower()]
    assert [name for name in functions if not re.search(rf"\b{name}  ", text)] == []


def test_types_are_shipped():
    assert (ROOT / "rnn_jax" / "py.typed").exists()


def test_every_place_says_the_same_version_and_licence():
    citation = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == rnn_jax.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert f"## [{rnn_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


IMPORTED = """
import sys
import rnn_jax
heavy = ("flax", "optax", "orbax", "matplotlib", "rich", "absl", "rnn_jax.bridge")
print([name for name in heavy if name in sys.modules])
rnn_jax.bridge
print("flax" in sys.modules)
"""


def test_importing_the_package_imports_no_more_than_jax():
    """Flax, Orbax and matplotlib would double the time; they come when a module is asked for."""
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split("\n")[:2] == ["[]", "True"]


@pytest.mark.parametrize("old", sorted(MOVED))
def test_modules_of_the_version_before_are_found_under_their_old_names(old, monkeypatch):
    monkeypatch.delitem(sys.modules, f"rnn_jax.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"rnn_jax.{old} is now rnn_jax.{MOVED[old]};"):
        found = importlib.import_module(f"rnn_jax.{old}")
    new = importlib.import_module(f"rnn_jax.{MOVED[old]}")
    names = [name for name in vars(new) if not name.startswith("__")]
    assert names
    assert all(getattr(found, name) is getattr(new, name) for name in names)


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("rnn_jax.trian")
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = rnn_jax.trian
