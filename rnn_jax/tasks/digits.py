"""Digits, pixel by pixel: which class is an image that was read one number at a time?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from rnn_jax.losses import accuracy, cross_entropy
from rnn_jax.tasks.task import Task, check_count
from rnn_jax.types import Array, Batch, Key


def digits(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    order: np.ndarray | None = None,
    vary: Callable[[Key, Array], Array] | None = None,
) -> Task:
    """Images are read pixel by pixel; at the last step their class is asked.

    Args:
        images: `[N, T]`, each a row of T pixels.
        labels: `[N]`, whole numbers from 0.
        batch_size: B, images drawn with replacement.
        order: `[T]`, the pixel that is read at each step; from the first to the last unless given.
        vary: `(key, images [B, T]) -> [B, T]`, what becomes of the images drawn before they are
            read, such as `moved`.

    Returns:
        A `Task` answered at the last step. Inputs `[T, B, 1]`, targets `[B]`. It draws from these
        images and no others: what is held out (`split`) is never seen.

    Raises:
        ValueError: images and labels that do not go together, fewer than two classes, or an
            empty batch.

    An answer without memory sees the last pixel alone: its loss is the entropy of the class where
    that pixel is known, counted over the images. Pixels that hardly ever repeat tell too much
    there; round them first.

    Source: Le, Jaitly & Hinton (2015), who read MNIST so, in order and permuted.

    >>> import jax, numpy as np
    >>> from rnn_jax.tasks.digits import digits
    >>> task = digits(np.eye(4), np.array([0, 1, 2, 1]), batch_size=8)
    >>> batch = task.sample(jax.random.key(0))
    >>> batch.inputs.shape, batch.targets.shape, task.output_size
    ((4, 8, 1), (8,), 3)
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if images.ndim != 2 or labels.shape != images.shape[:1] or not images.size:
        raise ValueError(
            f"images have shape {images.shape} and labels {labels.shape}; give [N, T] and [N]"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() < 1:
        raise ValueError("labels must be whole numbers from 0, of two classes or more")
    check_count("batch_size", batch_size, 1)
    steps = np.arange(images.shape[1]) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(steps), np.arange(images.shape[1])):
        raise ValueError(f"order must hold each of 0..{images.shape[1] - 1} once, a pixel a step")
    chance_loss, chance_wrong = _without_memory(images[:, steps[-1]], labels)

    def sample(key: Key) -> Batch:
        image_key, vary_key = jax.random.split(key)
        chosen = jax.random.randint(image_key, (batch_size,), 0, len(labels))
        drawn = jnp.asarray(images)[chosen]
        if vary is not None:
            drawn = vary(vary_key, drawn)
        return Batch(drawn[:, steps].T[..., None], jnp.asarray(labels, jnp.int32)[chosen])

    def wrong(outputs: Array, targets: Array) -> Array:
        return 1 - accuracy(outputs, targets)

    return Task(
        name="digits",
        sample=sample,
        input_size=1,
        output_size=int(labels.max()) + 1,
        loss=cross_entropy,
        wrong=wrong,
        last_only=True,
        chance_loss=chance_loss,
        chance_wrong=chance_wrong,
    )


def whole(images: np.ndarray, labels: np.ndarray, order: np.ndarray | None = None) -> Batch:
    """All images as one batch, one after the other: inputs `[T, N, 1]`, targets `[N]`."""
    pixels = np.asarray(images, np.float32).T
    inputs = pixels if order is None else pixels[order]
    return Batch(jnp.asarray(inputs[..., None]), jnp.asarray(labels, jnp.int32))


def moved(key: Key, images: Array, shift: float, turn: float) -> Array:
    """Square images, each shifted and turned a little at random; 0 comes in at the edges.

    Args:
        key: of the draw.
        images: `[B, T]`, T a square number, row by row.
        shift: largest shift along either axis, in pixels.
        turn: largest angle, in degrees.

    A pixel is interpolated linearly between the four it comes from.

    >>> import jax, jax.numpy as jnp
    >>> from rnn_jax.tasks.digits import moved
    >>> moved(jax.random.key(0), jnp.arange(9.0)[None], shift=0.0, turn=0.0)
    Array([[0., 1., 2., 3., 4., 5., 6., 7., 8.]], dtype=float32)
    """
    side = round(images.shape[1] ** 0.5)
    if side**2 != images.shape[1]:
        raise ValueError(f"images have {images.shape[1]} pixels, which make no square")
    shift_key, turn_key = jax.random.split(key)
    shifts = jax.random.uniform(shift_key, (len(images), 2), minval=-shift, maxval=shift)
    angles = jnp.deg2rad(jax.random.uniform(turn_key, (len(images),), minval=-turn, maxval=turn))
    middle = (side - 1) / 2
    rows, columns = jnp.mgrid[:side, :side] - middle

    def one(image: Array, by: Array, angle: Array) -> Array:
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        comes_from = [
            middle + by[0] + cos * rows - sin * columns,
            middle + by[1] + sin * rows + cos * columns,
        ]
        return map_coordinates(image.reshape(side, side), comes_from, order=1).reshape(-1)

    return jax.vmap(one)(images, shifts, angles)


def split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of what is kept and of what is held out, the same share of every class.

    Args:
        labels: `[N]`.
        share: of each class, 0..1, that is held out; rounded to whole images.
        seed: the same split wherever the same seed.

    >>> import numpy as np
    >>> from rnn_jax.tasks.digits import split
    >>> kept, held_out = split(np.repeat([0, 1], [40, 8]), share=0.25, seed=0)
    >>> len(kept), int(np.sum(held_out < 40)), int(np.sum(held_out >= 40))
    (36, 10, 2)
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    held_out = np.concatenate(
        [
            rng.permutation(members)[: round(share * len(members))]
            for members in (np.flatnonzero(labels == name) for name in np.unique(labels))
        ]
    )
    return np.setdiff1d(np.arange(len(labels)), held_out), np.sort(held_out)


def _without_memory(last: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Loss, and share of wrong answers, of the best answer to the last pixel, over all images."""
    values, which = np.unique(last, return_inverse=True)
    counts: np.ndarray = np.zeros((len(values), labels.max() + 1))
    np.add.at(counts, (which, labels), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    total = float(np.sum(counts))
    return float(-np.sum(counts * logs) / total), float(1 - np.max(counts, axis=1).sum() / total)
