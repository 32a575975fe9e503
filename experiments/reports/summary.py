"""summary.txt: what an experiment found, in words."""

from pathlib import Path

from rnn_jax.io import records


def write_summary(workdir: Path, text: str) -> None:
    """Writes summary.txt, and prints the same."""
    records.write_atomically(workdir / "summary.txt", text)
    print(text, end="")
