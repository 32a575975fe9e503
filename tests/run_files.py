"""The files of a run's folder: compared with those of another, and each of them whole."""

import json

import numpy as np

from rnn_jax.io import records


def contents(folder):
    """Every file but checkpoints; the lines of metrics.jsonl without their times."""
    files = {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and "checkpoints" not in path.parts
    }
    if records.METRICS in files:
        rows = [json.loads(line) for line in files[records.METRICS].splitlines()]
        files[records.METRICS] = [{**row, "seconds": 0} for row in rows]
    return files


def check_whole(folder):
    """Every file that a reader would open can be read."""
    for path in folder.glob("arrays/*.np[yz]"):
        np.load(path, allow_pickle=False)
    for path in (*folder.glob("*.json"), *folder.glob("*.jsonl"), *folder.glob("parts/*.jsonl")):
        text = path.read_text()
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(line)
    for path in folder.glob("*.png"):
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
