"""Tasks: targets worked out from the inputs in NumPy, places of what must be remembered, chance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnn_jax.tasks import sine
from rnn_jax.tasks.adding import adding
from rnn_jax.tasks.copy_memory import copy_memory
from rnn_jax.tasks.delayed_xor import delayed_xor
from rnn_jax.tasks.task import is_solved
from rnn_jax.tasks.temporal_order import temporal_order

B = 1000
MANY = 10_000


@functools.cache
def compiled(task):
    return jax.jit(task.sample)


def drawn(task, seed=0):
    with jax.enable_x64(False):
        return jax.device_get(compiled(task)(jax.random.key(seed)))


def lengths_of(batch):
    steps, size = batch.inputs.shape[:2]
    return np.full(size, steps) if batch.lengths is None else batch.lengths


# What is asked


@pytest.mark.parametrize("shortest", [None, 23])
@pytest.mark.parametrize("marks", ["halves", "early"])
def test_adding_asks_for_the_sum_of_the_two_marked_numbers(shortest, marks):
    batch = drawn(adding(57, B, shortest=shortest, marks=marks))
    numbers, marked = np.moveaxis(batch.inputs, -1, 0)
    firsts, seconds = [], []
    for b, length in enumerate(lengths_of(batch)):
        first, second = np.flatnonzero(marked[:, b])
        assert marked[first, b] == marked[second, b] == 1
        split, end = (length // 2, length) if marks == "halves" else (length // 10, length // 2)
        assert 0 <= first < split <= second < end
        wanted = numbers[first, b] + numbers[second, b]
        np.testing.assert_allclose(batch.targets[b], [wanted], rtol=1e-6)
        firsts.append(first / split)
        seconds.append((second - split) / (end - split))
        assert not batch.inputs[length:, b].any()
    # Uniform in k equal steps: mean (k - 1) / 2k, so between 1/4 (k = 2) and 1/2, and all seen.
    for places in (firsts, seconds):
        assert min(places) == 0
        assert 0.24 < np.mean(places) < 0.52
    assert (numbers >= 0).all()
    assert (numbers < 1).all()


@pytest.mark.parametrize("shortest", [None, 13])
@pytest.mark.parametrize("symbols", [2, 3])
def test_temporal_order_asks_which_symbols_came_when(symbols, shortest):
    batch = drawn(temporal_order(40, B, symbols=symbols, shortest=shortest))
    starts = {2: (0.1, 0.5), 3: (0.1, 0.3, 0.6)}[symbols]
    for b, length in enumerate(lengths_of(batch)):
        one_hot = batch.inputs[:length, b]
        np.testing.assert_array_equal(one_hot.sum(axis=1), 1)
        seen = one_hot.argmax(axis=1)
        places = np.flatnonzero(seen < 2)
        assert len(places) == symbols
        for place, start in zip(places, starts, strict=True):
            assert int(start * length + 1e-9) <= place < (start + 0.1) * length
        # The last symbol is the highest binary digit.
        assert batch.targets[b] == int("".join(str(s) for s in seen[places][::-1]), 2)
        assert not batch.inputs[length:, b].any()
    counts = np.bincount(batch.targets, minlength=2**symbols)
    # Five standard errors of a fair draw.
    assert np.abs(counts - B / 2**symbols).max() < 5 * np.sqrt(B / 2**symbols)
    shares = batch.inputs.sum(axis=(0, 1))[2:] / batch.inputs[..., 2:].sum()
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_copy_memory_asks_for_the_first_symbols_after_the_delimiter():
    delay = 7
    batch = drawn(copy_memory(delay, B))
    assert batch.inputs.shape == (delay + 20, B, 10)
    np.testing.assert_array_equal(batch.inputs.sum(axis=-1), 1)
    heard = batch.inputs.argmax(axis=-1)
    assert set(np.unique(heard[:10])) == set(range(8))
    np.testing.assert_array_equal(heard[10 : 10 + delay - 1], 8)
    np.testing.assert_array_equal(heard[10 + delay - 1], 9)
    np.testing.assert_array_equal(heard[10 + delay :], 8)
    np.testing.assert_array_equal(batch.targets[: delay + 10], 8)
    np.testing.assert_array_equal(batch.targets[delay + 10 :], heard[:10])


def test_delayed_xor_asks_whether_two_past_bits_differed():
    delay, length = 3, 11
    task = delayed_xor(delay, length, B)
    batch = drawn(task)
    bits = batch.inputs[..., 0]
    assert set(np.unique(bits)) == {0, 1}
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert task.first_loss_step == 6
    for t in range(2 * delay, length):
        wanted = np.abs(bits[t - delay] - bits[t - 2 * delay])
        np.testing.assert_array_equal(batch.targets[t, :, 0], wanted)


@pytest.mark.parametrize("factory", [adding, temporal_order])
def test_lengths_are_uniform_from_shortest_to_longest(factory):
    lengths = drawn(factory(15, MANY, shortest=12)).lengths
    counts = np.bincount(lengths, minlength=16)
    assert counts[:12].sum() == 0
    assert np.abs(counts[12:] - MANY / 4).max() < 5 * np.sqrt(MANY * 3 / 16)


TASKS = {
    "adding": adding(30, MANY),
    "adding, early marks": adding(30, MANY, marks="early"),
    "adding, lengths": adding(30, MANY, shortest=10),
    "copy": copy_memory(5, MANY, symbols=3, recalled=2),
    "order of 2": temporal_order(20, MANY),
    "order of 3": temporal_order(20, MANY, symbols=3),
    "xor": delayed_xor(2, 8, MANY),
    "sine": sine.task(MANY),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_same_key_gives_the_same_batch_and_another_key_another(name):
    task = TASKS[name]
    first, again, other = (drawn(task, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (np.asarray(first.inputs) != np.asarray(other.inputs)).mean() > 0.01
    assert first.inputs.shape[1:] == (MANY, task.input_size)
    assert first.inputs.dtype == jnp.float32


# Chance


def memoryless(name, batch):
    """The best answer that remembers nothing; where it must guess, a guess of equal worth too."""
    guess = np.random.default_rng(3)
    steps, size = batch.inputs.shape[:2]
    if name.startswith("adding"):
        return np.ones((size, 1)), None
    if name.startswith("order"):
        classes = 2 ** int(name[-1])
        return np.zeros((size, classes)), np.eye(classes)[guess.integers(0, classes, size)]
    if name == "xor":
        return np.zeros((steps, size, 1)), guess.choice([-1.0, 1.0], (steps, size, 1))
    if name == "sine":
        return np.cos(10 / 49) * batch.inputs, None
    # Logits of -40 say "never", exactly enough.
    logits = np.full((steps, size, 4), -40.0)
    logits[:-2, :, 3] = 0
    logits[-2:, :, :3] = 0
    guessed = logits.copy()
    guessed[-2:] += np.eye(4)[guess.integers(0, 3, (2, size))]
    return logits, guessed


@pytest.mark.parametrize("name", TASKS)
def test_chance_is_what_an_answer_without_memory_reaches(x64, name):
    """Four standard errors of a Monte-Carlo mean over 10,000 sequences."""
    task, batch = TASKS[name], drawn(TASKS[name], seed=5)
    outputs, guesses = memoryless(name, batch)
    losses = np.asarray(task.loss(jnp.asarray(outputs), jnp.asarray(batch.targets)))
    if not task.last_only:
        assert losses.shape == batch.inputs.shape[:2]
        losses = losses[task.first_loss_step :].mean(axis=0)
    assert losses.shape == (MANY,)
    wrong = task.wrong(jnp.asarray(outputs if guesses is None else guesses), batch.targets)
    assert wrong.shape == (MANY,)
    for values, chance in ((losses, task.chance_loss), (np.asarray(wrong), task.chance_wrong)):
        error = values.std() / np.sqrt(MANY)
        assert abs(values.mean() - chance) <= 4 * error + 1e-12


def test_chance_of_copy_memory_is_as_published():
    """Arjovsky, Shah & Bengio (2016), baseline at delays 100 to 500."""
    for delay, published in ((100, 0.1733), (200, 0.0945), (300, 0.0650), (500, 0.0400)):
        assert abs(copy_memory(delay, 1).chance_loss - published) < 5e-5


# Right and wrong


def perfect(task, batch):
    if task.output_size == 1:
        return 8 * batch.targets - 4 if task.name.startswith("delayed") else batch.targets
    return 5.0 * np.eye(task.output_size)[batch.targets]


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_is_not_wrong_and_solves(name):
    task, batch = TASKS[name], drawn(TASKS[name])
    answer = jnp.asarray(perfect(task, batch), jnp.float32)
    np.testing.assert_array_equal(task.wrong(answer, batch.targets), 0)
    assert is_solved(task, task.wrong(answer, batch.targets))


def test_solved_is_one_percent_wrong():
    task = TASKS["adding"]
    wrong = np.zeros((3, 200))
    wrong[1, :2], wrong[2, :3] = 1, 1
    np.testing.assert_array_equal(is_solved(task, wrong), [True, True, False])


def test_adding_is_wrong_from_a_squared_error_of_four_hundredths():
    wrong = TASKS["adding"].wrong(jnp.array([[1.19], [1.21], [0.79]]), jnp.ones((3, 1)))
    np.testing.assert_array_equal(wrong, [0, 1, 1])


def test_one_wrong_symbol_makes_a_copy_wrong_and_one_wrong_blank_does_not():
    task = copy_memory(4, 3)
    batch = drawn(task)
    answer = np.array(perfect(task, batch))
    answer[-1, 1] = np.roll(answer[-1, 1], 1)
    answer[0, 2] = np.roll(answer[0, 2], 1)
    np.testing.assert_array_equal(task.wrong(jnp.asarray(answer), batch.targets), [0, 1, 0])


def test_xor_counts_wrong_bits_after_the_first_answers_only():
    task = delayed_xor(2, 8, 2)
    batch = drawn(task)
    answer = 2 * batch.targets - 1
    answer[:4] = 1 - answer[:4]
    answer[5, 1] = -answer[5, 1]
    np.testing.assert_array_equal(task.wrong(jnp.asarray(answer), batch.targets), [0, 0.25])


# Arguments


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (functools.partial(adding, 1, 3), "length is 1; .*at least 2"),
        (functools.partial(adding, 9, 3, marks="early"), "length is 9; .*at least 10"),
        (functools.partial(adding, 20, 0), "batch_size is 0"),
        (functools.partial(adding, 20, 3, marks="late"), "marks is 'late'; .*halves, early"),
        (functools.partial(adding, 20, 3, shortest=21), r"shortest is 21, .*2\.\.20"),
        (functools.partial(adding, 20, 3, shortest=1), "shortest is 1; "),
        (functools.partial(temporal_order, 9, 3), "length is 9; .*at least 10"),
        (functools.partial(temporal_order, 20.0, 3), "length is 20.0"),
        (functools.partial(temporal_order, 20, 3, symbols=4), "symbols is 4; take 2 or 3"),
        (functools.partial(temporal_order, 20, 3, shortest=9), "shortest is 9; "),
        (functools.partial(copy_memory, 0, 3), "delay is 0"),
        (functools.partial(copy_memory, 5, 3, symbols=1), "symbols is 1; .*at least 2"),
        (functools.partial(copy_memory, 5, 3, recalled=0), "recalled is 0"),
        (functools.partial(delayed_xor, 3, 6, 2), "length is 6, .* at least 7"),
        (functools.partial(delayed_xor, 0, 6, 2), "delay is 0"),
        (functools.partial(delayed_xor, 2, 6, True), "batch_size is True"),
        (functools.partial(sine.task, 2, 1), "num_points is 1"),
    ],
)
def test_arguments_that_make_no_task(make, said):
    with pytest.raises(ValueError, match=said):
        make()
