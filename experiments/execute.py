"""Run the notebooks of experiments/notebooks, which are kept as text, and keep them with pictures.

Each NAME.py (the percent format of Jupytext) is run from its first cell to its last in a fresh
kernel; an error in any cell ends the command. Name some of them, or none for all.

Written to --workdir: NAME.ipynb.

Examples:
  python -m experiments.execute
  python -m experiments.execute why_an_rnn_forgets --workdir=runs/notebooks
"""

import dataclasses
from pathlib import Path

from experiments.cli.options import UsageError, check, launch, option
from rnn_jax.io import records

FOLDER = Path(__file__).parent / "notebooks"


@dataclasses.dataclass(frozen=True)
class ExecuteConfig:
    """Settings; see `--help`."""

    names: tuple[str, ...] = option((), "notebooks, named without a flag; none for all")
    timeout: int = option(600, "seconds that a cell may take", minimum=1)
    workdir: str = option("runs/notebooks", "folder for the executed notebooks")


def notebook_names() -> list[str]:
    """All notebooks there are."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def execute(name: str, timeout: int) -> str:
    """A notebook with the outputs of its cells, as the text of an .ipynb file.

    Raises:
        UsageError: the extra [notebooks] is not installed.
        nbclient.exceptions.CellExecutionError: a cell raised; the message has its traceback.
    """
    try:
        import jupytext
        from nbclient import NotebookClient
    except ImportError as error:
        raise UsageError(
            f'notebooks need Jupytext and nbclient ({error}); pip install -e ".[notebooks]" '
            "brings them"
        ) from error
    notebook = jupytext.read(FOLDER / f"{name}.py")
    # Run where `python -m experiments...` is run, so that the package found is this one.
    where = {"metadata": {"path": str(FOLDER.parents[1])}}
    # A kernel warns of its sockets, which are on this machine alone.
    quiet = ["--log-level=40"]
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources=where, extra_arguments=quiet
    )
    return jupytext.writes(client.execute(), fmt="ipynb")


def main(config: ExecuteConfig) -> None:
    """Executes the notebooks and says where they are."""
    check(config)
    known = notebook_names()
    for name in config.names:
        if name not in known:
            raise UsageError(f"{name!r} is no notebook; take one of {', '.join(known)}")
    workdir = records.make_folder(config.workdir)
    for name in config.names or known:
        notebook = execute(name, config.timeout)
        try:
            records.write_atomically(workdir / f"{name}.ipynb", notebook)
        except OSError as error:
            raise ValueError(records.cannot_write(workdir, error)) from error
        print(f"{workdir / name}.ipynb")


if __name__ == "__main__":
    launch(main, ExecuteConfig)
