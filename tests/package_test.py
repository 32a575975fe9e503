"""What a user finds in the package and beside it: public names, types, version, citation."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import rnn_jax
from rnn_jax import gradflow

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
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
