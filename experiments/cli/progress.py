"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 1.0

Report = Callable[[int, str], None]
"""`(steps done, text beside it)`."""


@contextlib.contextmanager
def progress(total: int, unit: str = "iteration", shown: bool = True) -> Iterator[Report]:
    """Yields a function to call with the number of steps done and a few words of news."""
    if not shown:
        yield lambda done, news: None
        return
    if sys.stderr.isatty():
        columns = (
            TextColumn(f"{unit} {{task.completed:,}}/{{task.total:,}}"),
            BarColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total, news="")
            yield lambda done, news: bar.update(task, completed=done, news=news)
        return

    start = time.monotonic()
    written = [-math.inf]

    def report(done: int, news: str) -> None:
        now = time.monotonic()
        if now - written[0] < SECONDS_BETWEEN_LINES and done < total:
            return
        written[0] = now
        # Nothing is known of the time left before the first is done.
        left = f"  {(now - start) / done * (total - done):.0f} s left" if done else ""
        sys.stderr.write(f"{unit} {done}/{total}  {news}{left}\n")
        sys.stderr.flush()

    yield report
