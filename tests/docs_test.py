"""The pages beside the README: their code compiles, and what they name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for place in (".", "upstream") for path in (ROOT / "docs" / place).glob("*.md"))


def test_there_are_pages():
    assert {path.stem for path in PAGES} >= {"faults", "results", "speed", "sweeps"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    for name in set(re.findall(r"experiments/flags/([a-z0-9_]+)\.flags", text)):
        assert (ROOT / "experiments" / "flags" / f"{name}.flags").exists(), name
    for name in set(re.findall(r"python -m ([a-z_.]+)", text)):
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
    for name in set(re.findall(r"\]\(([\w/.-]+)\)", text)):
        assert (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_compiles_and_imports_what_there_is(page):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S))
    compile(code, page.name, "exec")
    exec("\n".join(line for line in code.splitlines() if re.match("(from|import) ", line)), {})


def named_by_faults():
    """(module, part of a test's name) for each that the table of faults names; "" for a module."""
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if "_test`" in line]
    assert len(rows) > 10
    for row in rows:
        for module, names in re.findall(r"`(\w+_test)`(?:: ((?:`\w+`(?:, )?)+))?", row):
            yield from ((module, name) for name in re.findall(r"`(\w+)`", names) or [""])


def marks(module, part):
    """Source of the marks of each test whose name has this part, those of its module included."""
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    of_module = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return {
        node.name: [*of_module, *map(ast.unparse, node.decorator_list)]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and part in node.name
    }


def test_every_fault_names_tests_and_ci_runs_the_slow_ones():
    """By a mark, so that no list of files and names has to be kept."""
    for module, part in set(named_by_faults()):
        found = marks(module, part)
        assert found, f"{module}: {part}"
        for name, those in found.items():
            assert "pytest.mark.survival" in those, f"{module}: mark {name} with survival"
    assert '-m "slow and survival"' in (ROOT / "Makefile").read_text()
    assert "\nmake survival" in (ROOT / ".ci/run").read_text()


def test_what_survival_runs_is_in_the_table_of_faults():
    named = set(named_by_faults())
    for path in (ROOT / "tests").glob("*_test.py"):
        for name, those in marks(path.stem, "").items():
            if "pytest.mark.survival" in those:
                assert any(module == path.stem and part in name for module, part in named), name
