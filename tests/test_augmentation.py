"""Flips, shifts and crops: what is drawn, what is done with it, and that the key decides all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from margin_jax.data.augmentation import Moves, apply_moves, draw_moves, make_augment
from margin_jax.devices.meshes import make_mesh, place_copies, place_rows

ALL = "flip,shift:3,crop:0.6"


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flipped(image, flip):
    return image[:, ::-1] if flip else image


def shifted(image, shift):
    height, width, _ = image.shape
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            source = np.clip([y - shift[0], x - shift[1]], 0, [height - 1, width - 1])
            result[y, x] = image[tuple(source)]
    return result


def cropped(image, window):
    """Before rounding: each pixel's centre in the window, blended from the four around it."""
    height, width, _ = image.shape
    share, top, left = np.asarray(window, np.float64)
    result = np.empty(image.shape)
    for i in range(height):
        for j in range(width):
            y = top * (1 - share) * height + (i + 0.5) * share - 0.5
            x = left * (1 - share) * width + (j + 0.5) * share - 0.5
            y, x = np.clip([y, x], 0, [height - 1, width - 1])
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            upper = image[y0, x0] * (x0 + 1 - x) + image[y0, x1] * (x - x0)
            lower = image[y1, x0] * (x0 + 1 - x) + image[y1, x1] * (x - x0)
            result[i, j] = upper * (y0 + 1 - y) + lower * (y - y0)
    return result


@pytest.mark.parametrize(
    ("shape", "flip", "shift"),
    [
        ((12, 9, 9, 3), True, 0),
        ((12, 7, 11, 1), False, 6),
        ((12, 9, 9, 1), True, 6),
        ((12, 11, 7, 3), True, 6),
    ],
)
def test_flips_and_shifts_are_those_of_a_plain_loop(shape, flip, shift):
    images = pictures(*shape)
    moves = draw_moves(len(images), jax.random.key(1), flip=flip, shift=shift, crop=1.0)
    assert [part is None for part in moves] == [not flip, not shift, True]
    moved = jax.jit(apply_moves)(images, moves)
    assert moved.dtype == jnp.uint8
    for i, image in enumerate(images):
        expected = flipped(image, flip and moves.flip[i])
        expected = shifted(expected, np.asarray(moves.shift[i]) if shift else (0, 0))
        np.testing.assert_array_equal(moved[i], expected)


@pytest.mark.parametrize("shape", [(12, 9, 9, 3), (12, 7, 11, 1)])
def test_crops_are_those_of_a_plain_loop(shape):
    images = pictures(*shape)
    moves = draw_moves(len(images), jax.random.key(2), flip=True, shift=0, crop=0.3)
    moved = np.asarray(jax.jit(apply_moves)(images, moves))
    for i, image in enumerate(images):
        expected = cropped(flipped(image, moves.flip[i]), moves.window[i])
        # Half a level of rounding; at most 1/512 of a pixel down and across, of slope up to 255.
        assert np.abs(moved[i] - expected).max() <= 0.5 + 2 * 255 / 512
        assert np.mean(moved[i] - expected) == pytest.approx(0, abs=0.1)  # to nearest, not down


def test_a_crop_of_a_shifted_image_sees_the_repeated_edge():
    images = pictures(16, 9, 9, 3)
    moves = draw_moves(16, jax.random.key(3), flip=True, shift=4, crop=0.5)
    # No pixel of this window has its centre beyond the image's own: both steps clip alike.
    inside = jnp.array([0.4, 0.5, 0.5], jnp.float32)
    moves = moves._replace(window=jnp.broadcast_to(inside, (16, 3)))
    moved = np.asarray(jax.jit(apply_moves)(images, moves))
    for i, image in enumerate(images):
        edged = shifted(flipped(image, moves.flip[i]), np.asarray(moves.shift[i]))
        assert np.abs(moved[i] - cropped(edged, inside)).max() <= 0.5 + 2 * 255 / 512


def test_a_window_is_where_it_says():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    image[0, :4, 4:] = 200  # the upper right quarter
    for top, left, level in [(0, 1, 200), (0, 0, 0), (1, 1, 0)]:
        window = jnp.array([[0.5, top, left]], jnp.float32)
        moved = np.asarray(jax.jit(apply_moves)(image, Moves(window=window)))
        assert (moved[0, 1:-1, 1:-1] == level).all()


@pytest.mark.parametrize("shape", [(3, 96, 96, 3), (3, 37, 50, 1)])
def test_what_does_not_move_keeps_every_bit(shape):
    images = pictures(*shape)
    still = Moves(
        jnp.zeros(3, bool),
        jnp.zeros((3, 2), jnp.int32),
        jnp.tile(jnp.array([1.0, 0.3, 0.9], jnp.float32), (3, 1)),
    )
    for moves in (Moves(), still, still._replace(window=None)):
        np.testing.assert_array_equal(jax.jit(apply_moves)(images, moves), images)


def test_what_moves_by_whole_pixels_is_exact_beside_a_crop():
    images = pictures(6, 20, 30, 3)
    moves = draw_moves(6, jax.random.key(4), flip=True, shift=7, crop=1.0)
    whole = moves._replace(window=jnp.tile(jnp.array([1.0, 0.5, 0.5], jnp.float32), (6, 1)))
    move = jax.jit(apply_moves)
    np.testing.assert_array_equal(move(images, whole), move(images, moves))


def test_draws_are_uniform_reach_both_ends_and_are_independent():
    n = 20_000
    moves = draw_moves(n, jax.random.key(0), flip=True, shift=3, crop=0.6)
    flip, shift, window = (np.asarray(part) for part in moves)
    assert (flip.dtype, shift.dtype, window.dtype) == (bool, np.int32, np.float32)
    assert flip.mean() == pytest.approx(0.5, abs=0.015)
    for axis in (0, 1):
        values, counts = np.unique(shift[:, axis], return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        np.testing.assert_allclose(counts / n, 1 / 7, atol=0.01)
    assert window[:, 0].min() >= np.float32(0.6)
    uniform = (window - [0.6, 0, 0]) / [0.4, 1, 1]
    assert ((uniform > -1e-6) & (uniform <= 1)).all()
    for column in uniform.T:
        np.testing.assert_allclose(np.quantile(column, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], 0.05)
        assert column.min() < 0.01
        assert column.max() > 0.99
    correlation = np.corrcoef(np.column_stack([flip, shift, window]).T)
    assert np.abs(correlation - np.eye(6)).max() < 0.03  # 4 standard deviations


def test_a_part_is_drawn_alike_whatever_the_others_are():
    alone = draw_moves(50, jax.random.key(5), flip=False, shift=3, crop=1.0)
    among = draw_moves(50, jax.random.key(5), flip=True, shift=3, crop=0.5)
    np.testing.assert_array_equal(alone.shift, among.shift)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("flip", (8, 9, 14, 1)),
        ("shift:3", (8, 14, 9, 3)),
        ("crop:0.6", (8, 9, 14, 3)),
        (ALL, (8, 12, 12, 3)),
        (ALL, (8, 9, 14, 1)),
    ],
)
def test_the_key_decides(text, shape):
    images = np.repeat(pictures(1, *shape[1:]), 8, axis=0)
    augment = make_augment(text)
    once = augment(images, jax.random.key(7))
    assert once.shape == shape
    assert once.dtype == jnp.uint8
    np.testing.assert_array_equal(augment(images, jax.random.key(7)), once)
    assert len(np.unique(once, axis=0)) >= 2  # of one image: different ones move differently
    assert (np.asarray(augment(images, jax.random.key(8))) != once).any()


def test_inside_a_jitted_step_it_compiles_once():
    images, augment, traces = pictures(8, 16, 16, 3), make_augment(ALL), []

    @jax.jit
    def step(images, key, number):
        traces.append(number)
        return augment(images, jax.random.fold_in(key, number))

    key = jax.random.key(0)
    for number in range(4):
        expected = augment(images, jax.random.fold_in(key, number))
        np.testing.assert_array_equal(step(images, key, number), expected)
    assert len(traces) == 1


@pytest.mark.parametrize("text", ["flip,shift:3", ALL])
def test_devices_that_share_a_batch_change_nothing_and_say_nothing(text):
    images, key, mesh = pictures(16, 12, 10, 3), jax.random.key(9), make_mesh(4, 16)
    augment = make_augment(text)
    arguments = place_rows(images, mesh), place_copies(key, mesh)
    moved = augment(*arguments)
    assert {shard.data.shape for shard in moved.addressable_shards} == {(4, 12, 10, 3)}
    np.testing.assert_array_equal(moved, augment(images, key))
    program = augment.lower(*arguments).compile().as_text()
    for talk in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert talk not in program


def test_one_function_for_the_same_parts():
    assert make_augment("none") is None
    assert make_augment("flip,shift:4") is make_augment(" shift:4 , flip")
    assert make_augment("flip,shift:4") is not make_augment("flip,shift:5")
    assert make_augment("crop:0.5") is make_augment("crop:.50")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "must be one of none, flip, shift, crop; got 'flop'. Did you mean 'flip'?"),
        ("", "augment must be one of"),
        ("flip,", "augment must be one of .* got ''"),
        ("shift", "must be shift:PIXELS, a whole number from 1 on, like shift:4; got 'shift'"),
        ("flip,shift:", "got 'shift:'"),
        ("shift:0", "got 'shift:0'"),
        ("shift:-2", "got 'shift:-2'"),
        ("shift:2.5", "got 'shift:2.5'"),
        ("shift:2:3", "got 'shift:2:3'"),
        ("crop", "must be crop:SHARE, a number between 0 and 1, like crop:0.8; got 'crop'"),
        ("crop:0", "got 'crop:0'"),
        ("crop:1", "got 'crop:1'"),
        ("crop:80%", "got 'crop:80%'"),
        ("crop:nan", "got 'crop:nan'"),
        ("flip:2", "must be flip, without a number; got 'flip:2'"),
        ("none:1", "must be none, without a number; got 'none:1'"),
        ("flip,shift:2,flip", "must have each part once; got 'flip,shift:2,flip'"),
        ("shift:2,shift:3", "must have each part once"),
        ("none,flip", "none or other parts, not both; got 'none,flip'"),
    ],
)
def test_bad_texts(text, message):
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        make_augment(text)


def test_bad_images():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="shift:6 needs images larger than 6 pixels; got 8 × 6"):
        make_augment("shift:6")(pictures(2, 8, 6, 3), key)
    assert make_augment("shift:5")(pictures(2, 8, 6, 3), key).shape == (2, 8, 6, 3)
    wanted = r"must be uint8\[n, height, width, channels\]; got "
    with pytest.raises(ValueError, match=wanted + r"float32\[2, 8, 8, 3\]"):
        make_augment("flip")(np.zeros((2, 8, 8, 3), np.float32), key)
    with pytest.raises(ValueError, match=wanted + r"uint8\[8, 8, 3\]"):
        make_augment("flip")(pictures(8, 8, 3), key)
