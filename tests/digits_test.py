"""The digits: a task from arrays, what judges apart from what trains, and the experiment."""

import dataclasses
import re
import sys

import jax
import numpy as np
import pytest

from experiments import digits as experiment
from experiments.cli.options import UsageError
from experiments.digits import DigitsConfig, data_of, load
from experiments.setup.digits import PERMUTATION_SEED
from rnn_jax.io import records
from rnn_jax.tasks.digits import digits, split, whole
from rnn_jax.tasks.task import is_solved

RNG = np.random.default_rng(4)
LABELS = RNG.integers(0, 3, 90).astype(np.int32)
IMAGES = RNG.integers(0, 5, (90, 7)).astype(np.float32)
IMAGES[:, 0] = np.arange(90)
SMALL = DigitsConfig(
    cures="none", hidden_size=4, batch_size=8, train_steps=4, test_every=2, seeds=2, permuted=True
)


def test_what_is_held_out_is_a_share_of_every_class_and_no_part_of_the_rest():
    for seed in range(5):
        kept, held_out = split(LABELS, 0.2, seed)
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(90))
        for name in range(3):
            members = np.flatnonzero(name == LABELS)
            assert len(np.intersect1d(members, held_out)) == round(0.2 * len(members))
    np.testing.assert_array_equal(split(LABELS, 0.2, 1)[1], split(LABELS, 0.2, 1)[1])
    assert len(np.setdiff1d(split(LABELS, 0.2, 1)[1], split(LABELS, 0.2, 2)[1])) > 0


def test_images_are_read_pixel_by_pixel_beside_their_own_class():
    """The first pixel says which image it is; all of them come, about equally often."""
    task = digits(IMAGES, LABELS, 4000)
    batch = jax.device_get(task.sample(jax.random.key(1)))
    assert batch.inputs.shape == (7, 4000, 1)
    which = batch.inputs[0, :, 0].astype(int)
    np.testing.assert_array_equal(batch.inputs[..., 0].T, IMAGES[which])
    np.testing.assert_array_equal(batch.targets, LABELS[which])
    counts = np.bincount(which, minlength=90)
    # Five standard errors.
    assert np.abs(counts - 4000 / 90).max() < 5 * np.sqrt(4000 / 90)
    everything = whole(IMAGES, LABELS)
    np.testing.assert_array_equal(everything.inputs[..., 0].T, IMAGES)
    np.testing.assert_array_equal(everything.targets, LABELS)


def test_chance_is_what_the_last_pixel_tells():
    """Loops over its values; the answer is the classes' shares where it has that value."""
    task = digits(IMAGES, LABELS, 1)
    loss, wrong = 0.0, 0
    for value in set(IMAGES[:, -1]):
        here = [label for image, label in zip(IMAGES, LABELS, strict=True) if image[-1] == value]
        for name in set(here):
            loss -= here.count(name) * np.log(here.count(name) / len(here))
        wrong += len(here) - max(here.count(name) for name in here)
    assert task.chance_loss == pytest.approx(loss / 90)
    assert task.chance_wrong == pytest.approx(wrong / 90)
    answers = 5 * np.eye(3, dtype=np.float32)[LABELS]
    assert is_solved(task, task.wrong(answers, LABELS))
    np.testing.assert_array_equal(task.wrong(answers[:, ::-1], LABELS), LABELS != 1)


@pytest.mark.parametrize(
    ("images", "labels", "size", "said"),
    [
        (IMAGES, LABELS[:-1], 3, r"shape \(90, 7\) and labels \(89,\)"),
        (IMAGES[0], LABELS[:7], 3, r"shape \(7,\)"),
        (IMAGES[:0], LABELS[:0], 3, r"shape \(0, 7\)"),
        (IMAGES, LABELS - 1, 3, "from 0"),
        (IMAGES, LABELS * 0, 3, "two classes"),
        (IMAGES, LABELS / 2, 3, "whole numbers"),
        (IMAGES, LABELS, 0, "batch_size is 0"),
    ],
)
def test_arrays_that_make_no_task(images, labels, size, said):
    with pytest.raises(ValueError, match=said):
        digits(images, labels, size)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("judge", ["test", "validation"])
def test_no_image_is_drawn_that_judges(judge, permuted):
    """Every image is different, so that it is known again in whatever order its pixels are."""
    images, labels = load()
    config = DigitsConfig(judge=judge, permuted=permuted, batch_size=20_000, shift=0.0, turn=0.0)
    data = data_of(config, images, labels)
    drawn, judges = (
        {tuple(image) for image in np.asarray(batch.inputs)[..., 0].T}
        for batch in (data.task.sample(jax.random.key(0)), data.examples(jax.random.key(0)))
    )
    size = data.examples(jax.random.key(0)).inputs.shape[1]
    assert len(judges) == size
    assert not drawn & judges
    left_alone = 1797 - len(drawn) - len(judges)
    assert left_alone == (0 if judge == "test" else 450)
    assert data.examples(jax.random.key(1)).inputs is data.examples(jax.random.key(0)).inputs
    order = next(iter(drawn)) in {tuple(image) for image in images}
    assert order == (not permuted)


def test_the_permutation_is_one_for_training_and_test():
    """Pixel k of all images moves to one place: means over the images are those before, moved."""
    images, labels = load()
    in_order, moved = (
        np.asarray(data_of(DigitsConfig(permuted=p), images, labels).examples(None).inputs)[..., 0]
        for p in (False, True)
    )
    permutation = np.random.default_rng(PERMUTATION_SEED).permutation(64)
    np.testing.assert_array_equal(moved, in_order[permutation])
    assert not np.array_equal(permutation, np.arange(64))
    training = data_of(
        DigitsConfig(permuted=True, batch_size=8, shift=0.0, turn=0.0), images, labels
    ).task
    (image, *_) = np.asarray(training.sample(jax.random.key(0)).inputs)[..., 0].T
    assert image[np.argsort(permutation)].tolist() in images.tolist()


@pytest.mark.slow
def test_the_folder_holds_what_the_help_promises(tmp_path):
    """The judges choose nothing: every network trains to the end."""
    folder = tmp_path / "run"
    rows = experiment.run(dataclasses.replace(SMALL, workdir=str(folder)))
    assert [row["steps"] for row in rows] == [4, 4]
    assert rows[0]["task"] == "digits, pixels permuted"
    wrong = records.load_array(folder, "wrong_0000")
    np.testing.assert_allclose([row["wrong"] for row in rows], wrong[:, -1])
    assert wrong.shape == (2, 2)
    # Shares of the whole test set.
    np.testing.assert_allclose(wrong * 450, np.round(wrong * 450), atol=1e-3)
    assert records.load_array(folder, "profile_end_0000").shape == (2, 64)
    for name in ("learning_curves", "gradient_profiles"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    shown = (folder / "table.md").read_text().splitlines()[2].split(" | ")
    right = 1 - wrong[:, -1]
    assert shown[:2] == ["| none", f"{right.mean():.1%} ± {right.std(ddof=1):.1%}"]
    assert shown[2] == f"{right.min():.1%}..{right.max():.1%}"
    assert str(folder) in (folder / "summary.txt").read_text()
    (group,) = experiment.groups_of(SMALL, data_of(SMALL, *load()))
    assert group.program.schedule.is_solved is None


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=re.escape('pip install -e ".[data]"')):
        load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cures": "none,prayer"}, "--cures=none,prayer: take some of none, clip"),
        ({"train_steps": 7}, "--train_steps=7 is not a multiple of --test_every=2"),
        ({"judge": "me"}, "--judge=me: take one of test, validation"),
        ({"learning_rate": 0.0}, "--learning_rate=0.0: give a number above 0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(changes, message, tmp_path):
    config = dataclasses.replace(SMALL, workdir=str(tmp_path / "run"), **changes)
    with pytest.raises(UsageError) as error:
        experiment.run(config)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
