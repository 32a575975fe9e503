"""The README, taken by its word: its code compiles and its files exist; in a fresh clone all of it
runs.

The second part clones the repository, makes virtual environments and installs from a package
index, which takes some fifteen minutes:

    RNN_JAX_NEWCOMER=1 python -m pytest -m slow tests/newcomer_test.py
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ASKED = "RNN_JAX_NEWCOMER"
newcomer = pytest.mark.skipif(
    os.environ.get(ASKED) != "1",
    reason=f"installs from a package index; {ASKED}=1 runs it",
)

WITH_MAKE = {"make sine", "make test"}
"""Commands that a fresh clone is enough for."""
STAND_INS = {
    # make test has run them all.
    "python -m pytest -n 2": "python -m pytest -n 2 tests/layout_test.py",
    # make sine has run it in full.
    "--flagfile=experiments/flags/sine.flags": "--flagfile=experiments/flags/sine.flags "
    "--train_steps=100",
}
"""Parts of commands that would repeat minutes of work, and what is run instead."""
ELSEWHERE = {
    "srun": "needs a SLURM cluster",
    "gcloud": "needs a TPU pod",
}
"""Commands that no single machine can run, and why."""
MINUTES = 30


class Block(NamedTuple):
    """A block of code of the README: its language and its text."""

    language: str
    code: str


def blocks(text):
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def python_code():
    """All Python of the README, as one reader types it: block after block."""
    return "\n".join(block.code for block in blocks(README) if block.language == "python")


def commands():
    """The shell lines of the README, each with its block's number, comments left out."""
    return [
        (number, line.split("  #")[0].strip())
        for number, block in enumerate(blocks(README))
        if block.language in ("bash", "console", "sh")
        for line in block.code.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def plain_commands():
    """What is to be typed into one shell without make; stand-ins for what repeats minutes."""
    lines = []
    for _, line in commands():
        if line in WITH_MAKE or line.split()[0] in ELSEWHERE:
            continue
        for part, instead in STAND_INS.items():
            line = line.replace(part, instead)
        lines.append(line)
    return lines


def test_blocks_of_code_are_found_whole():
    text = "a\n```python\nx = 1\n\ny = 2\n```\nb\n```\nplain\n```\n"
    assert blocks(text) == [Block("python", "x = 1\n\ny = 2\n"), Block("", "plain\n")]
    assert len(blocks(README)) == README.count("\n```") // 2


def test_the_python_of_the_readme_compiles_and_imports_what_there_is():
    compile(python_code(), "README.md", "exec")
    imports = [line for line in python_code().splitlines() if re.match("(from|import) ", line)]
    assert imports
    exec("\n".join(imports), {})


def test_every_command_of_the_readme_is_one_that_the_newcomer_runs():
    """A new command, or a new language, is a decision: run, stand-in, or a reason why not."""
    assert {block.language for block in blocks(README)} <= {"bash", "console", "sh", "python", ""}
    first = {shlex.split(line)[0] for _, line in commands()}
    assert first <= {"make", "python", "pip", *ELSEWHERE}
    assert {line for _, line in commands() if line.startswith("make ")} == WITH_MAKE
    for part in STAND_INS:
        assert any(part in line for _, line in commands()), f"{part} is no longer in the README"


def test_every_file_and_module_that_the_readme_names_exists():
    # A name in angle brackets, in capitals or with an ellipsis stands for others.
    for name in set(re.findall(r"experiments/flags/([a-z0-9_]+)\.flags", README)):
        assert (ROOT / "experiments" / "flags" / f"{name}.flags").exists(), name
    for name in set(re.findall(r"`([a-z0-9_]+)\.flags`", README)):
        assert (ROOT / "experiments" / "flags" / f"{name}.flags").exists(), name
    for name in set(re.findall(r"python -m ([a-z_.]+)", README)) - {"venv", "pytest"}:
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
    for name in set(re.findall(r"\]\(([\w/.-]+)\)", README)):
        assert (ROOT / name).exists(), name
    assert len(re.findall(r"experiments/flags/[a-z]", README)) > 3


# The newcomer.


def shell(script, folder, home):
    """Runs a script as a login shell of nobody in particular would; the output, if all went well.

    Nothing of this process's environment that could help: no virtual environment, no path to the
    package, no setting of JAX. `home` is an empty folder for caches.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX", "XLA", "VIRTUAL_ENV", "PYTHONPATH", "PYTEST_CURRENT", ASKED))
    }
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=kept | {"XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
    )
    assert ended.returncode == 0, f"{script}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def cloned(folder):
    """A fresh clone of the repository as it was committed last."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    assert not (folder / ".venv").exists()
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return cloned(tmp_path_factory.mktemp("with_make") / "rnn_jax")


@pytest.fixture(scope="module")
def other_clone(tmp_path_factory):
    return cloned(tmp_path_factory.mktemp("without_make") / "rnn_jax")


@pytest.mark.slow
@newcomer
def test_make_sine_in_a_fresh_clone(clone, home):
    said = shell(f"make sine PYTHON={shlex.quote(sys.executable)}", clone, home)
    assert "runs/sine/free_run.png" in said
    for name in ("free_run", "loss", "gradient_heatmap", "gradient_profile"):
        assert (clone / "runs" / "sine" / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
@newcomer
def test_make_test_in_a_fresh_clone(clone, home):
    said = shell(f"make test PYTHON={shlex.quote(sys.executable)}", clone, home)
    assert re.search(r"\d+ passed", said)
    assert not re.search(r"\d+ failed", said)


@pytest.mark.slow
@newcomer
def test_the_plain_commands_and_the_python_in_a_fresh_clone(other_clone, home, tmp_path):
    lines = plain_commands()
    assert lines[0].startswith("python -m venv")
    (tmp_path / "python").symlink_to(sys._base_executable)
    (tmp_path / "readme.py").write_text(python_code())
    # A list of commands joined by && that fails in its middle does not end a shell by itself.
    script = [
        f"export PATH={shlex.quote(str(tmp_path))}:$PATH",
        *(f"{{ {line}; }} || exit 1" for line in lines),
        f"python {shlex.quote(str(tmp_path / 'readme.py'))}",
    ]
    said = shell("\n".join(script), other_clone, home)
    assert (other_clone / "runs" / "sine" / "free_run.png").exists()
    assert re.search(r"\d+ passed", said)
    assert "gradient: " in said  # what the README's diagnosis prints
