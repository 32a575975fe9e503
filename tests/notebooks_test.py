"""The notebooks: every formula has its code, and they run from the first cell to the last."""

import base64
import re

import pytest

from experiments import execute
from experiments.cli.options import UsageError

jupytext = pytest.importorskip("jupytext", reason="the extra [notebooks] is not installed")


def cells_of(name):
    return jupytext.read(execute.FOLDER / f"{name}.py").cells


def test_both_are_there():
    assert execute.notebook_names() == ["diagnose_your_flax_rnn", "why_an_rnn_forgets"]


def test_every_formula_of_the_tutorial_is_followed_by_its_code():
    """Several formulas may lead up to one line; none is left without."""
    cells = cells_of("why_an_rnn_forgets")
    with_formula = [number for number, cell in enumerate(cells) if "$$" in cell.source]
    assert len(with_formula) >= 7
    for number in with_formula:
        assert cells[number].cell_type == "markdown"
        assert any(cell.cell_type == "code" for cell in cells[number + 1 : number + 3])


@pytest.mark.parametrize("name", execute.notebook_names())
def test_dollars_of_every_text_come_in_pairs(name):
    for cell in cells_of(name):
        if cell.cell_type == "markdown":
            assert len(re.findall(r"\$\$", cell.source)) % 2 == 0
            assert cell.source.replace("$$", "").count("$") % 2 == 0


def test_an_unknown_notebook_is_named_beside_those_there_are(tmp_path):
    config = execute.ExecuteConfig(names=("why",), workdir=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"'why' is no notebook; take one of diagnose.*, why_an"):
        execute.main(config)
    assert not (tmp_path / "out").exists()


def outputs_of(notebook, kind):
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == kind
    ]


def texts_and_pictures(name, tmp_path):
    execute.main(execute.ExecuteConfig(names=(name,), workdir=str(tmp_path)))
    notebook = jupytext.read(tmp_path / f"{name}.ipynb")
    # Nothing but pictures and printed lines is shown, and no warning.
    assert {o.name for o in outputs_of(notebook, "stream")} == {"stdout"}
    pictures = [o.data["image/png"] for o in outputs_of(notebook, "execute_result")]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    return "".join(o.text for o in outputs_of(notebook, "stream")), len(pictures)


@pytest.mark.slow
def test_the_tutorial_runs_and_finds_what_it_says(tmp_path):
    text, pictures = texts_and_pictures("why_an_rnn_forgets", tmp_path)
    assert pictures == 11
    assert text.count("True\n") == 2
    assert "False" not in text
    assert float(re.search("largest relative difference: (.*)", text)[1]) < 1e-4
    assert float(re.search("last ten steps: (.*)%", text)[1]) > 90
    found = [float(loss) for loss in re.findall(r"loss of the last.*: ([\d.]+)", text)]
    assert found[0] > 0.6
    assert max(found[1:]) < 0.05


@pytest.mark.slow
def test_the_flax_network_is_diagnosed_and_cured(tmp_path):
    text, pictures = texts_and_pictures("diagnose_your_flax_rnn", tmp_path)
    assert pictures == 3
    verdicts = re.findall("gradient: (.*)", text)
    assert verdicts == ["vanishing", "healthy", "vanishing", "healthy", "vanishing"]
    assert "forget-gate bias: start params['hf']['bias'] at ln(T - 1) = 4.08" in text
    right = dict(re.findall(r"^(.*): (\d+)% right$", text, re.MULTILINE))
    assert int(right["SimpleCell"]) < 40
    assert int(right["LSTM"]) < 40
    assert int(right["LSTM, forget bias 4.08"]) > 95
