"""The pages beside the README: their code compiles, and what they name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


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


def test_every_fault_names_tests_that_exist():
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if "_test`" in line]
    assert len(rows) > 10
    for row in rows:
        for module, names in re.findall(r"`(\w+_test)`(?:: ((?:`\w+`(?:, )?)+))?", row):
            tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
            tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            for name in re.findall(r"`(\w+)`", names):
                assert any(name in test for test in tests), f"{module}: {name}"
