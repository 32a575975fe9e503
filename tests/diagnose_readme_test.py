"""What the README shows of `diagnose` is what its code prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_the_examples_print_what_is_shown_of_them():
    fenced = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    blocks = [block for language, block in fenced if language == "python"]
    (own,) = [block for block in blocks if "W = cell.init" in block]
    (flax,) = [block for block in blocks if "nn.GRUCell(32)" in block]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        scope = {}
        exec(own, scope)
        exec("print(gradflow.diagnose(cell, W, cell.initial_state(W, (8,)), xs, loss))", scope)
        exec(flax, scope)
    shown = [block for language, block in fenced if not language and "try:" in block]
    assert len(shown) == 3
    for block in shown:
        # The first is of the flags file that it names.
        if not block.startswith("gradient:"):
            assert block in said.getvalue()
