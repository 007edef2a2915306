"""Random changes to training images: flips, shifts and crops, a pure function of a key.

All three are one map of coordinates for each axis, which says where in the image every row and
every column of the result comes from. What is drawn and how it is applied are apart.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from margin_jax.choices import check_choice

Augment = Callable[[Array, Array], Array]

_FORMS = {
    "none": "none, without a number",
    "flip": "flip, without a number",
    "shift": "shift:PIXELS, a whole number from 1 on, like shift:4",
    "crop": "crop:SHARE, a number between 0 and 1, like crop:0.8",
}


class Moves(NamedTuple):
    """How each of n images moves. None stands for a part that is left out.

    Attributes:
        flip: bool[n], whether left and right change places.
        shift: int32[n, 2], pixels down and pixels to the right.
        window: float32[n, 3], a window's side as a share of the image's, above 0 and up to 1, and
            where its top and its left are in the room it has, from 0 to 1.
    """

    flip: Array | None = None
    shift: Array | None = None
    window: Array | None = None


def make_augment(text: str) -> Augment | None:
    """``augment(images uint8[n, h, w, c], key) -> uint8[n, h, w, c]``, jitted, or None for "none".

    Each image has its own random draws. They are independent between parts, and do not depend on
    which other parts are given or on how the batch is sharded. An image that no part changes stays
    bit for bit the same. The order of the parts does not matter: an image is flipped, then shifted,
    then cropped.

    Args:
        text: "none", or parts separated by commas, each at most once:

            - ``flip``: flip left and right with probability 1/2;
            - ``shift:PIXELS``: shift down and right by whole pixels, each uniform in [−PIXELS,
              PIXELS]; edge pixels are repeated. PIXELS ≥ 1;
            - ``crop:SHARE``: crop to a share of height and width, uniform in [SHARE, 1], at a
              uniform position, and resize to the full size (bilinear). 0 < SHARE < 1.

    Raises:
        ValueError: an unknown or repeated part, a number that is missing, out of range or not
            allowed, or "none" together with other parts. The function raises it when it is traced,
            for images that are not uint8[n, h, w, c] or whose smaller side is not above PIXELS.

    Example:
        >>> import jax, jax.numpy as jnp, margin_jax as mj
        >>> augment = mj.make_augment("flip,shift:4,crop:0.8")
        >>> augment(jnp.zeros((8, 32, 32, 3), jnp.uint8), jax.random.key(0)).shape
        (8, 32, 32, 3)
    """
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, number = _parse(part.strip())
        if name in numbers:
            raise ValueError(f"augment must have each part once; got {text!r}")
        numbers[name] = number
    if "none" not in numbers:
        return _augment("flip" in numbers, int(numbers.get("shift", 0)), numbers.get("crop", 1.0))
    if len(numbers) > 1:
        raise ValueError(f"augment must be none or other parts, not both; got {text!r}")
    return None


def draw_moves(n: int, key: Array, *, flip: bool, shift: int, crop: float) -> Moves:
    """Draws for n images; `shift` 0 and `crop` 1 leave their parts out."""
    flip_key, shift_key, side_key, place_key = jax.random.split(key, 4)
    moves = Moves()
    if flip:
        moves = moves._replace(flip=jax.random.bernoulli(flip_key, shape=(n,)))
    if shift > 0:
        shifts = jax.random.randint(shift_key, (n, 2), -shift, shift + 1, jnp.int32)
        moves = moves._replace(shift=shifts)
    if crop < 1:
        side = jax.random.uniform(side_key, (n, 1), jnp.float32, minval=crop)
        place = jax.random.uniform(place_key, (n, 2), jnp.float32)
        moves = moves._replace(window=jnp.concatenate([side, place], axis=1))
    return moves


def apply_moves(images: Array, moves: Moves) -> Array:
    """The moved images, uint8[n, h, w, c] like `images`, rounded to nearest."""
    n, height, width, _ = images.shape
    y, x = _sources(moves, 0, n, height), _sources(moves, 1, n, width)
    top, left = y.astype(jnp.int32), x.astype(jnp.int32)
    if moves.window is None:
        return _pixels(images, top, left)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = (y - top)[:, :, None, None], (x - left)[:, None, :, None]

    def blend_columns(rows: Array) -> Array:
        start, end = (_pixels(images, rows, c).astype(jnp.float32) for c in (left, right))
        return start + across * (end - start)

    start, end = blend_columns(top), blend_columns(bottom)
    return jnp.round(start + down * (end - start)).astype(jnp.uint8)


def _pixels(images: Array, rows: Array, columns: Array) -> Array:
    """``images[i, rows[i, y], columns[i, x]]`` at [i, y, x]; each image stays on its device."""

    def pick(image: Array, y: Array, x: Array) -> Array:
        return image[y[:, None], x]

    return jax.vmap(pick)(images, rows, columns)


def _sources(moves: Moves, axis: int, n: int, side: int) -> Array:
    """float32[n, side]: where each row (axis 0) or column (axis 1) of the result comes from.

    Pixel i has its centre at i. To 1/256 of a pixel, so that the 24 bits of a float hold a blend
    of four pixels exactly, in whatever order it is compiled to add up.
    """
    at = jnp.broadcast_to(jnp.arange(side, dtype=jnp.float32), (n, side))
    if moves.window is not None:
        share, place = moves.window[:, :1], moves.window[:, axis + 1, None]
        at = (at + 0.5) * share - 0.5 + place * (1 - share) * side
    if moves.shift is not None:
        at = at - moves.shift[:, axis, None]
    at = jnp.clip(at, 0, side - 1)
    if axis == 1 and moves.flip is not None:
        at = jnp.where(moves.flip[:, None], side - 1 - at, at)
    return jnp.round(at * 256) / 256


@functools.cache
def _augment(flip: bool, shift: int, crop: float) -> Augment:
    @jax.jit
    def augment(images: Array, key: Array) -> Array:
        if images.ndim != 4 or images.dtype != jnp.uint8:
            raise ValueError(
                "images to augment must be uint8[n, height, width, channels]; "
                f"got {images.dtype}{list(images.shape)}"
            )
        n, height, width, _ = images.shape
        if shift >= min(height, width):
            raise ValueError(
                f"shift:{shift} needs images larger than {shift} pixels; got {height} × {width}"
            )
        return apply_moves(images, draw_moves(n, key, flip=flip, shift=shift, crop=crop))

    return augment


def _parse(part: str) -> tuple[str, float]:
    """The name and the number of a part, 0 if it has none."""
    name, colon, text = part.partition(":")
    form = _FORMS[check_choice("augment", name, _FORMS)]
    number: float = 0
    try:
        if name == "shift":
            number = int(text)
            valid = number >= 1
        elif name == "crop":
            number = float(text)
            valid = 0 < number < 1
        else:
            valid = not colon
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"augment must be {form}; got {part!r}")
    return name, number
