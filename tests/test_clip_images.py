"""CLIP's preprocessing is Hugging Face's: pixel by pixel, on the host and as matrix products."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image

from scav_jax.base.errors import InputError
from scav_jax.extract.backbones import clip_images, clip_pixels
from scav_jax.extract.backbones.clip_pixels import Preprocessing, read_preprocessing

ROWS_FIRST = int(PIL.__version__.split(".")[0]) >= 13  # for tall pictures, unlike ours

# height, width: landscape, portrait, odd, upscaled, one edge or both already right, extreme
SIZES = (
    *((256, 340), (340, 255), (225, 301), (301, 225), (227, 223), (224, 224), (224, 225)),
    *((226, 224), (180, 320), (97, 113), (31, 57), (57, 31), (480, 854), (200, 201), (2, 3)),
)


def frames_of(random, height, width, count=2):
    """Noise, and the same in black and white, which over- and undershoots the most."""
    noise = random.integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    noise[1::2] = (noise[1::2] > 127) * np.uint8(255)
    return noise


def hugging_face(frames, **settings):
    """`[N, R, C, 3]` as CLIPImageProcessorPil gives it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**settings)
    images = [Image.fromarray(frame) for frame in frames]
    found = processor(images=images, return_tensors="np")["pixel_values"]
    return np.transpose(found, (0, 2, 3, 1))


def bytes_of_hugging_face(frames, size, crop):
    settings = {"size": {"shortest_edge": size}, "do_rescale": False, "do_normalize": False}
    return hugging_face(frames, crop_size={"height": crop[0], "width": crop[1]}, **settings)


def as_products(frames, preprocessing, dtype):
    rows, columns, kept = clip_images.crop_digits(preprocessing, *frames.shape[1:3], dtype)
    return np.asarray(clip_images.resize_crop(frames[:, *kept], rows, columns))


@pytest.mark.parametrize("height, width", SIZES)
def test_pixels_are_those_of_hugging_face(random, height, width):
    frames = frames_of(random, height, width)
    found = clip_pixels.resize_crop_pil(frames, Preprocessing())
    np.testing.assert_array_equal(found, bytes_of_hugging_face(frames, 224, (224, 224)))


@pytest.mark.parametrize("size, crop", [(20, (20, 20)), (21, (20, 19)), (20, (27, 24))])
def test_centre_crop_off_by_one_and_beyond_the_picture(random, size, crop):
    for height, width in ((33, 40), (33, 41), (41, 33), (42, 33), (20, 20), (20, 21)):
        frames = frames_of(random, height, width)
        found = clip_pixels.resize_crop_pil(frames, Preprocessing(size, crop))
        np.testing.assert_array_equal(found, bytes_of_hugging_face(frames, size, crop))


def test_tall_frames_are_those_of_all_pillows_before_13(random):
    """Pillow 13 rounds after the other pass first where the height loses far more pixels."""
    frames = frames_of(random, 240, 100, count=8)
    found = clip_pixels.resize_crop_pil(frames, Preprocessing(30, (30, 30)))
    theirs = bytes_of_hugging_face(frames, 30, (30, 30)).astype(int)
    assert np.any(found != theirs) == ROWS_FIRST
    assert np.mean(np.abs(found[::2] - theirs[::2])) < 0.6  # of 255
    exact = clip_pixels.resize_crop_exact(frames, Preprocessing(30, (30, 30)))
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("dtype", list(clip_images.DIGITS))
@pytest.mark.parametrize("height, width", [*SIZES, (470, 101), (101, 470)])
def test_matrix_products_give_the_same_bytes(random, height, width, dtype):
    frames = frames_of(random, height, width)
    found = as_products(frames, Preprocessing(), dtype)
    expected = clip_pixels.resize_crop_pil(frames, Preprocessing())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size, crop", [(20, (20, 19)), (20, (27, 24)), ((25, 18), (20, 20))])
def test_integers_give_the_same_bytes(random, size, crop):
    for height, width in ((33, 41), (41, 33), (9, 12), (20, 20)):
        frames, settings = frames_of(random, height, width), Preprocessing(size, crop)
        expected = clip_pixels.resize_crop_pil(frames, settings)
        found = clip_pixels.resize_crop_exact(frames, settings)
        np.testing.assert_array_equal(found, expected)
        found = as_products(frames, settings, "float32")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", list(clip_images.DIGITS))
def test_digits_are_the_weights_and_sums_are_exact(dtype):
    for source in (50, 224, 4000, 30_000):
        weights = clip_pixels.resize_weights(source, 224)
        digits = clip_images.digits(weights, dtype).astype(np.int64)
        scale = 256 ** np.arange(len(digits))[::-1]
        np.testing.assert_array_equal(np.tensordot(scale, digits, 1), weights)
        assert 255 * np.abs(digits).sum(axis=2).max() < 2**24
    if dtype == "float32":
        with pytest.raises(InputError, match="at most 30,000 pixels"):
            clip_images.digits(np.full((1, 600), 127, np.int32), dtype)


def test_normalised_pixels_are_those_of_hugging_face(random):
    frames = frames_of(random, 240, 300)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.7]}
    for keywords in ({}, settings):
        preprocessing = read_preprocessing(keywords, 224)
        crops = clip_pixels.resize_crop_pil(frames, preprocessing)
        found = np.asarray(clip_images.normalise(jnp.asarray(crops), preprocessing))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, hugging_face(frames, **keywords), rtol=0, atol=1e-6)


def test_constants_of_released_files(tmp_path):
    old = {"do_resize": True, "size": 224, "resample": 3, "crop_size": 224, "do_normalize": True}
    new = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    new["rescale_factor"] = 0.00392156862745098
    for content in (old, new):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        assert read_preprocessing(tmp_path, 336) == Preprocessing()
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_preprocessing(tmp_path, 336) == Preprocessing(336, (336, 336))
    assert read_preprocessing({"size": {"height": 20, "width": 30}}, 24).resized(9, 9) == (20, 30)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"do_center_crop": False}, "do_center_crop: expected true, got False"),
        ({"resample": 2}, r"resample: expected 3 \(bicubic\), got 2"),
        ({"size": {"longest_edge": 224}}, "size: expected a number of pixels"),
        ({"size": 0}, "size: expected a number of pixels"),
        ({"crop_size": "224"}, "crop_size: expected a number of pixels"),
        ({"image_mean": 0.5}, "image_mean: expected three numbers, got 0.5"),
        ({"image_std": [1, 2]}, "image_std: expected three numbers"),
    ],
)
def test_other_preprocessing_is_named(content, words):
    with pytest.raises(InputError, match=words):
        read_preprocessing(content, 224)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(
        InputError,
        match=r"preprocessor_config\.json: expected the constants .* as JSON: .*; download it",
    ):
        read_preprocessing(tmp_path, 224)
