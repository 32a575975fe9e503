"""The README's code runs, and what is shown of `diagnose` is what it prints."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_print_what_is_shown_of_them():
    fenced = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    blocks = [block for language, block in fenced if language == "python"]
    (own,) = [block for block in blocks if "W = cell.init" in block]
    (flax,) = [block for block in blocks if "nn.GRUCell(32)" in block]
    (watched,) = [block for block in blocks if "rnn_jax.watch" in block]
    assert len(blocks) == 3
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        scope = {}
        exec(own, scope)
        exec("print(gradflow.diagnose(cell, W, cell.initial_state(W, (8,)), xs, loss))", scope)
        exec(flax, scope)
        exec(watched, {})
    printed = said.getvalue()
    assert "{'Classifier/RNN_0': (30, 4)}" in printed
    assert "start params['params']['LSTMCell_0']['hf']['bias'] at" in printed
    shown = [block for language, block in fenced if not language and "try:" in block]
    assert len(shown) == 3
    for block in shown:
        # The first is of the flags file that it names.
        if not block.startswith("gradient:"):
            assert block in printed
