"""EquiAV's augmentations: what a vector says is what is done. Oracles: PIL, colorsys and NumPy."""

import colorsys
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from scav_jax.objectives import augment
from scav_jax.objectives.augment import PICTURE, SOUND

SIDE, FRAMES, BINS = 32, 48, 16
LEVEL = 1 / 255
do_picture = jax.jit(augment.augment_picture)
do_sound = jax.jit(augment.augment_sound, static_argnames="legacy")
DRAWS = 2048


@pytest.fixture(scope="module")
def picture():
    """Smooth, as pictures are, and colourful; whole levels of 255."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def log_mel():
    return np.random.default_rng(1).normal(size=(FRAMES, BINS)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn():
    keys = jax.random.split(jax.random.key(0), DRAWS)
    pictures = jax.jit(jax.vmap(lambda k: augment.sample_picture(k, SIDE)))(keys)
    sample = partial(augment.sample_sound, frames=1024, bins=128)
    sounds = jax.jit(jax.vmap(sample))(keys)
    return np.asarray(pictures), np.asarray(sounds)


def vector(size, **slots):
    """The vector of no augmentation with some slots set: `at_5=1.0`."""
    first = {PICTURE: 6, SOUND: 13}[size]  # of the order of jitters
    found = np.zeros(size, np.float32)
    found[first : first + 4] = np.arange(4)
    for name, value in slots.items():
        found[int(name.removeprefix("at_"))] = value
    return jnp.asarray(found)


def of_picture(picture, **slots):
    return np.asarray(do_picture(vector(PICTURE, **slots), jnp.asarray(picture / np.float32(255))))


def of_sound(log_mel, legacy=False, **slots):
    return np.asarray(do_sound(vector(SOUND, **slots), jnp.asarray(log_mel), legacy=legacy))


# ---- in NumPy: one operation each ----------------------------------------------------------------


def stretched(x, begin, size):
    """Rows begin..begin+size of x over all its rows, linear, held at the edges of the crop."""
    crop = x[begin : begin + size]
    at = (np.arange(len(x)) + 0.5) * size / len(x) - 0.5
    flat = crop.reshape(size, -1)
    columns = [np.interp(at, np.arange(size), flat[:, c]) for c in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(x.shape)


def cropped(x, i, j, h, w):
    return np.swapaxes(stretched(np.swapaxes(stretched(x, i, h), 0, 1), j, w), 0, 1)


def blurred(x, sigma, reach, mode):
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = np.pad(x, padding, mode=mode)
        x = np.apply_along_axis(lambda row: np.convolve(row, taps, "valid"), axis, padded)
    return x


def grey(x):
    return (x @ [0.299, 0.587, 0.114])[..., None]


def hue_turned(x, shift):
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
    turned = [colorsys.hsv_to_rgb((h + shift) % 1.0, s, v) for h, s, v in flat]
    return np.array(turned).reshape(x.shape)


def numpy_picture(v, x):
    """A whole vector, in the order of the layout."""
    x = x / 255.0
    if v[0]:
        x = cropped(x, *np.round(v[1:5] * SIDE).astype(int))
    if v[5]:
        for which in v[6:10]:
            x = {
                0: lambda x: np.clip(x * (1 + v[10]), 0, 1),
                1: lambda x: np.clip((1 + v[11]) * x - v[11] * grey(x).mean(), 0, 1),
                2: lambda x: np.clip((1 + v[12]) * x - v[12] * grey(x), 0, 1),
                3: lambda x: hue_turned(x, v[13]),
            }[int(which)](x)
    if v[14]:
        x = blurred(x, v[15], math.ceil(3 * v[15]), "edge")
    x = x[:, ::-1] if v[16] else x
    return np.repeat(grey(x), 3, axis=2) if v[17] else x


def numpy_sound(v, x):
    x = x.astype(float)
    if v[0]:
        x = x.copy()
        x[int(v[1]) : int(v[2])] = 0
        x[:, int(v[3]) : int(v[4])] = 0
    if v[5]:
        x = np.roll(x, round(v[6] * FRAMES), axis=0)
    if v[7]:
        units = np.array([FRAMES, BINS, FRAMES, BINS])
        x = cropped(x, *np.round(v[8:12] * units).astype(int))
    if v[12]:
        for which in v[13:17]:
            x = x * (1 + v[17]) if which == 0 else x
            x = (1 + v[18]) * x - v[18] * x.mean() if which == 1 else x
    if v[21]:
        x = blurred(x, v[22], math.ceil(v[22]), "reflect")
    return x[::-1] if v[23] else x


# ---- nothing, each alone, all together -----------------------------------------------------------


def test_the_identity_is_the_identity(picture, log_mel):
    np.testing.assert_array_equal(of_picture(picture), picture / np.float32(255))
    for legacy in (False, True):
        np.testing.assert_array_equal(of_sound(log_mel, legacy), log_mel)


def test_a_pictures_operations_are_pils(picture):
    """PIL rounds to 8 bits, and blurs by three boxes."""
    image = Image.fromarray(picture)

    def near(found, expected, levels):
        np.testing.assert_allclose(found, np.asarray(expected) * LEVEL, atol=levels * LEVEL)

    i, j, h, w = 5, 9, 20, 13
    crop = image.crop((j, i, j + w, i + h)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    slots = {"at_1": i / SIDE, "at_2": j / SIDE, "at_3": h / SIDE, "at_4": w / SIDE}
    near(of_picture(picture, at_0=1, **slots), crop, 1.1)
    enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for number, enhancer in enumerate(enhancers):
        for factor in (0.6, 1.37):
            found = of_picture(picture, at_5=1, **{f"at_{10 + number}": factor - 1})
            near(found, enhancer(image).enhance(factor), 1.6)
    for turn in (-0.1, 0.07):
        np.testing.assert_allclose(
            of_picture(picture, at_5=1, at_13=turn), hue_turned(picture / 255.0, turn), atol=1e-5
        )
    for sigma in (0.1, 0.9, 2.0):
        found = of_picture(picture, at_14=1, at_15=sigma)
        np.testing.assert_allclose(
            found, blurred(picture / 255.0, sigma, math.ceil(3 * sigma), "edge"), atol=1e-5
        )
        near(found, image.filter(ImageFilter.GaussianBlur(sigma)), 6)
    near(of_picture(picture, at_16=1), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.01)
    near(of_picture(picture, at_17=1)[..., 0], image.convert("L"), 0.6)


def test_a_sounds_operations_are_numpys(log_mel):
    alone = [
        {"at_0": 1, "at_1": 7, "at_2": 20, "at_3": 2, "at_4": 5},
        {"at_5": 1, "at_6": -13 / FRAMES},
        {"at_7": 1, "at_8": 4 / FRAMES, "at_9": 3 / BINS, "at_10": 30 / FRAMES, "at_11": 9 / BINS},
        {"at_12": 1, "at_17": 0.3},
        {"at_12": 1, "at_18": -0.4},
        {"at_12": 1, "at_19": 0.4, "at_20": 0.1},  # nothing to a spectrogram
        {"at_21": 1, "at_22": 0.7},
        {"at_21": 1, "at_22": 1.8},
        {"at_23": 1},
    ]
    for slots in alone:
        found, v = of_sound(log_mel, **slots), np.asarray(vector(SOUND, **slots))
        np.testing.assert_allclose(found, numpy_sound(v, log_mel), atol=2e-6, err_msg=str(slots))
    np.testing.assert_array_equal(of_sound(log_mel, **alone[5]), log_mel)


def test_a_whole_vector_is_done_in_its_order(drawn, picture, log_mel):
    pictures = drawn[0][:24]
    images = jnp.asarray(np.broadcast_to(picture / np.float32(255), (24, *picture.shape)))
    found = jax.jit(jax.vmap(augment.augment_picture))(jnp.asarray(pictures), images)
    for v, ours in zip(pictures, found, strict=True):
        np.testing.assert_allclose(ours, numpy_picture(v.astype(float), picture), atol=2e-4)
    assert len({tuple(v[6:10]) for v in pictures}) > 6
    keys = jax.random.split(jax.random.key(3), 24)
    sample = partial(augment.sample_sound, frames=FRAMES, bins=BINS, time_mask=9, frequency_mask=5)
    sounds = np.asarray(jax.jit(jax.vmap(sample))(keys))
    mels = jnp.asarray(np.broadcast_to(log_mel, (24, *log_mel.shape)))
    found = jax.jit(jax.vmap(augment.augment_sound))(jnp.asarray(sounds), mels)
    for v, ours in zip(sounds, found, strict=True):
        np.testing.assert_allclose(ours, numpy_sound(v.astype(float), log_mel), atol=2e-5)


# ---- what is drawn -------------------------------------------------------------------------------


def within(values, low, high):
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    assert values.max() - values.min() > 0.8 * (high - low)


def test_pictures_vectors_have_the_papers_distribution(drawn):
    v, _ = drawn
    assert (v[:, 0] == 1).all()
    whole = v[:, 1:5] * SIDE
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-4)
    i, j, h, w = whole.T
    assert (i >= 0).all() and (j >= 0).all() and (i + h <= SIDE + 1e-3).all()
    assert (j + w <= SIDE + 1e-3).all()
    for begin, size in ((i, h), (j, w)):  # at the last place too
        assert ((begin + size > SIDE - 0.5) & (size < SIDE - 0.5)).any()
    within(h * w / SIDE**2, 0.07, 1.0)
    assert np.abs(np.log(w / h)).max() < math.log(4 / 3) + 0.2  # rounded to whole pixels
    check_jitter(v[:, 5:14])
    check_blur(v[:, 14:16])
    for slot, share in ((16, 0.5), (17, 0.2)):
        assert set(np.unique(v[:, slot])) == {0, 1}
        assert v[:, slot].mean() == pytest.approx(share, abs=0.04)


def test_sounds_vectors_have_the_papers_distribution(drawn):
    _, v = drawn
    on = v[:, 0] == 1
    assert on.mean() == pytest.approx(0.8, abs=0.04)
    assert (v[~on, :7] == 0).all() and (v[on, 5] == 1).all()
    for begin, size, widest in ((1, 1024, 192), (3, 128, 48)):
        first, last = v[on, begin], v[on, begin + 1]
        np.testing.assert_array_equal(first, np.round(first))
        assert (last - first).max() < widest and (last - first).min() >= 0
        assert last.max() <= size and first.max() > 0.75 * size
    within(v[on, 6], -1.0, 1.0)
    i, j, h, w = (v[:, 8:12] * [1024, 128, 1024, 128]).T
    np.testing.assert_array_equal(h, np.round(h))
    assert (i + h <= 1024).all() and (j + w <= 128).all()
    within(h * w / (1024 * 128), 0.078, 1.0)
    assert (w / h).min() > 0.095 and (w / h).max() < 0.2
    check_jitter(v[:, 12:21])
    check_blur(v[:, 21:23])
    assert v[:, 23].mean() == pytest.approx(0.5, abs=0.04)
    # Of a log-mel with fewer frames and bins than the masks may have, masks are inside too.
    numbers = jnp.asarray(np.random.default_rng(0).random((200, 6)), jnp.float32)
    few = jax.vmap(lambda row: augment._mask_vector(row, FRAMES, BINS, 192, 48))(numbers)
    within(few[:, 1:3], 0, FRAMES)
    within(few[:, 3:5], 0, BINS)


def check_jitter(v):
    on = v[:, 0] == 1
    assert on.mean() == pytest.approx(0.8, abs=0.04)
    assert (v[~on] == [0, 0, 1, 2, 3, 0, 0, 0, 0]).all()
    orders, counts = np.unique(v[on, 1:5], axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 0.5 * counts.mean()
    for slot in (5, 6, 7):
        within(v[on, slot], -0.4, 0.4)
    within(v[on, 8], -0.1, 0.1)


def check_blur(v):
    on = v[:, 0] == 1
    assert on.mean() == pytest.approx(0.5, abs=0.04)
    assert (v[~on, 1] == 0).all()
    within(v[on, 1], 0.1, 2.0)


def test_a_crop_that_never_fits_is_the_largest_with_an_allowed_ratio():
    """Ten draws of a strip that is wider than any allowed crop is high."""
    drawn = jnp.asarray(np.random.default_rng(0).random(22), jnp.float32)
    found = np.asarray(augment._crop_vector(drawn, 4, 400, (3 / 4, 4 / 3), (4, 400)))
    np.testing.assert_allclose(found, [1, 0, 197 / 400, 1, 5 / 400], atol=1e-6)


# ---- the released code's quirks ------------------------------------------------------------------


def test_legacy_1_the_shift_is_told_and_not_done(log_mel):
    slots = {"at_5": 1, "at_6": 20 / FRAMES}
    np.testing.assert_array_equal(of_sound(log_mel, True, **slots), log_mel)
    np.testing.assert_array_equal(of_sound(log_mel, **slots), np.roll(log_mel, 20, axis=0))


def test_legacy_2_the_crop_is_told_in_units_of_the_other_axis(log_mel):
    key = jax.random.key(4)
    ours, theirs = (
        np.asarray(
            jax.jit(lambda k, legacy=legacy: augment.sample_sound(k, 1024, 128, legacy=legacy))(key)
        )
        for legacy in (False, True)
    )
    np.testing.assert_allclose(theirs[8:12], ours[8:12] * [8, 1 / 8, 8, 1 / 8], rtol=1e-6)
    np.testing.assert_array_equal(np.delete(theirs, range(8, 12)), np.delete(ours, range(8, 12)))
    units = np.array([FRAMES, BINS, FRAMES, BINS])
    crop = np.array([4, 3, 30, 9])
    told = {f"at_{8 + k}": value for k, value in enumerate(crop / units)}
    swapped = {f"at_{8 + k}": value for k, value in enumerate(crop / units[[1, 0, 3, 2]])}
    expected = of_sound(log_mel, at_7=1, **told)
    np.testing.assert_allclose(of_sound(log_mel, True, at_7=1, **swapped), expected, atol=1e-6)


def test_legacy_3_the_flip_turns_frequency_over(log_mel):
    np.testing.assert_array_equal(of_sound(log_mel, True, at_23=1), log_mel[:, ::-1])
    np.testing.assert_array_equal(of_sound(log_mel, at_23=1), log_mel[::-1])


@pytest.mark.parametrize("slot", [17, 18, 19])
def test_legacy_4_jitter_clips_what_is_no_picture(log_mel, slot):
    slots = {"at_12": 1, "at_17": 0, f"at_{slot}": 0.2}
    clipped = of_sound(log_mel, True, **slots)
    assert clipped.min() == 0.0 and clipped.max() == 1.0
    assert log_mel.min() < -2 and log_mel.max() > 2
    if slot == 17:
        np.testing.assert_allclose(clipped, np.clip(log_mel * 1.2, 0, 1), atol=1e-6)
    free = of_sound(log_mel, **slots)
    assert free.min() < -1.5
