"""One writer for all files: each is whole or absent, even if the process is killed in between."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from rnn_jax.io import records, writing

ROOT = Path(__file__).parents[1]
NOT_FILES = {
    "rnn_jax/plots/style.py": {"savefig"},
    "rnn_jax/io/records.py": {"save", "savez", "open"},
}
"""Calls that fill memory, and the lock, which holds nothing."""
WRITERS = {
    "dump",
    "fdopen",
    "imsave",
    "memmap",
    "mkstemp",
    "NamedTemporaryFile",
    "savefig",
    "savetxt",
    "savez",
    "savez_compressed",
    "tofile",
    "write_bytes",
    "write_text",
}
NUMPY = {"np", "numpy", "jnp"}


def writers(source):
    """Names of the calls by which a source may write a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        if (owner and name in WRITERS) or (name == "save" and owner in NUMPY):
            found.add(name)
        if name == "open":
            by_name = {word.arg: word.value for word in node.keywords}
            # The mode stands first in `path.open`, second in what takes the path too.
            place = 1 if owner in ("", "io", "gzip") else 0
            mode = by_name.get("mode", node.args[place] if len(node.args) > place else None)
            text = getattr(mode, "value", None)
            if owner != "os" and isinstance(text, str) and set(text) & set("wax+"):
                found.add(name)
    return found


def test_nobody_else_opens_a_file_for_writing():
    paths = [path for name in ("rnn_jax", "experiments") for path in (ROOT / name).rglob("*.py")]
    for path in paths:
        name = str(path.relative_to(ROOT))
        extra = writers(path.read_text()) - NOT_FILES.get(name, set())
        if name != "rnn_jax/io/writing.py":
            assert not extra, f"{name} calls {extra}; use what rnn_jax.io.records writes files with"


@pytest.mark.parametrize(
    "source",
    [
        'open(path, "w")',
        'open(path, mode="ab")',
        'path.open("xb")',
        'gzip.open(path, "wt")',
        'figure.savefig(workdir / "a.png")',
        "np.save(path, array)",
        'path.write_text("")',
        "json.dump(value, file)",
    ],
)
def test_a_writer_is_seen_in_any_form(source):
    assert writers(source)
    assert writers((ROOT / "rnn_jax" / "io" / "writing.py").read_text())
    assert not writers('open(path, "rb"); path.open(); open(path); records.save_array(a, "w", b)')


KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("writing", sys.argv[1])
writing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writing)
owner, name = sys.argv[2].split(".")
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
setattr({"os": os, "Path": pathlib.Path}[owner], name, kill)
writing.write_atomically(pathlib.Path(sys.argv[3]), sys.stdin.buffer.read())
"""


@pytest.mark.survival
@pytest.mark.parametrize("point", ["Path.open", "os.fsync", "Path.replace"])
@pytest.mark.parametrize("before", [None, b"what was there before"])
def test_a_process_killed_while_it_writes_leaves_the_old_file_or_none(point, before, tmp_path):
    """Killed before the file is opened, with its bytes written, and with all but its name right."""
    path = tmp_path / "a.png"
    if before is not None:
        path.write_bytes(before)
    command = (sys.executable, "-IS", "-c", KILLED, writing.__file__, point, str(path))
    ended = subprocess.run(command, input=b"new" * 10_000, stderr=subprocess.PIPE)
    assert ended.returncode == -9, ended.stderr.decode()
    assert path.exists() == (before is not None)
    assert before is None or path.read_bytes() == before
    left = [each for each in tmp_path.iterdir() if each != path]
    assert len(left) == (point != "Path.open")
    with records.held(tmp_path):
        assert {each.name for each in tmp_path.iterdir()} <= {"a.png", records.LOCK}


def test_a_figure_is_written_whole_by_the_same_writer(tmp_path, monkeypatch):
    written = []
    write = records.write_atomically
    monkeypatch.setattr(
        records, "write_atomically", lambda path, data: written.append(path) or write(path, data)
    )
    records.save_figure(tmp_path, "loss", Figure())
    assert written == [tmp_path / "loss.png"]
    assert written[0].read_bytes().endswith(b"IEND\xaeB`\x82")
    for name in ("../loss", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="no name"):
            records.save_figure(tmp_path, name, Figure())
