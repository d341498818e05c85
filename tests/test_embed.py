"""Embedding: every clip once, alone as in any batch, and only with the right features."""

import weakref
from dataclasses import replace

import jax
import numpy as np
import pytest
from small_run import TOWERS, noise

from scav_jax.base.errors import InputError
from scav_jax.features import store
from scav_jax.features.resampled import write_resampled
from scav_jax.retrieval import embed as embedding
from scav_jax.retrieval.embed import _check_finite, embed
from scav_jax.training.config import Config, as_dict
from scav_jax.training.runs import Run, build, parameter_shapes

FINGERPRINT = {"backbone": "random", "rate_hz": 16000}
CONFIG = Config().replace(
    seed=3,
    data={"buckets": 2},
    encoders=TOWERS,
)


def random_clip(random, number, visual_steps, audio_steps):
    seconds = visual_steps / 5
    about = {"source": f"video {number // 3}", "start": float(number), "end": number + seconds}
    about |= {"visual_span": (0.0, seconds), "audio_span": (0.0, 0.96 * seconds)}
    return noise(random, number, (visual_steps, audio_steps), **about)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    random = np.random.default_rng(0)
    clips = [
        ("test", random_clip(random, number, int(random.integers(8, 15)), int(steps)))
        for number, steps in enumerate(random.integers(3, 8, 11))
    ]
    folder = tmp_path_factory.mktemp("embed") / "data"
    store.write(clips, folder, fingerprint=FINGERPRINT, videos="", rejected=[])
    return store.read(folder, "test")


@pytest.fixture(scope="module")
def run():
    encoders, objective = build(CONFIG)
    random = np.random.default_rng(3)
    shapes = parameter_shapes(encoders, objective, {"visual": 7, "audio": 6})
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32) * 0.3, shapes)
    return Run(None, as_dict(CONFIG), encoders, objective, params, FINGERPRINT)


@pytest.fixture(scope="module")
def alone(run, data):
    return embed(run, data, batch_size=1)


@pytest.mark.parametrize("batch_size", [4, 11, 64])
def test_alone_is_as_in_a_padded_batch(run, data, alone, batch_size):
    """Clips of several lengths, with a last batch of 3, and with one smaller than asked for."""
    together = embed(run, data, batch_size=batch_size)
    assert together.ids == data.ids == [f"clip {number}" for number in range(11)]
    for stream, other in zip(together.latents, alone.latents, strict=True):
        np.testing.assert_array_equal(stream.lengths, other.lengths)
        np.testing.assert_allclose(stream.windows, other.windows, rtol=1e-6)
        steps = min(stream.values.shape[1], other.values.shape[1])
        assert stream.lengths.max() <= steps
        assert stream.values.shape[0] == 11
        np.testing.assert_allclose(stream.values[:, :steps], other.values[:, :steps], atol=1e-5)
        padding = np.arange(stream.values.shape[1]) >= stream.lengths[:, None]
        assert padding.any()
        assert (stream.values[padding] == 0).all()
    for name in ("visual_embeddings", "audio_embeddings"):
        assert getattr(together, name).shape == (11, 12)
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-5)


def test_embeddings_are_means_over_real_steps(alone):
    for stream, embeddings in zip(
        alone.latents, (alone.visual_embeddings, alone.audio_embeddings), strict=True
    ):
        expected = [
            values[:length].mean(axis=0)
            for values, length in zip(stream.values, stream.lengths, strict=True)
        ]
        np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-6)
        assert len(np.unique(stream.lengths)) > 1


def test_clips_differ(alone):
    """All results in one place of the batch, or a batch repeated, would be seen here."""
    for embeddings in (alone.visual_embeddings, alone.audio_embeddings):
        assert len(np.unique(embeddings.round(4), axis=0)) == 11


def test_features_of_another_extractor_are_refused(run, data):
    other = replace(run, fingerprint=FINGERPRINT | {"rate_hz": 8000})
    with pytest.raises(InputError, match="rate_hz: expected 8000, got 16000"):
        embed(other, data)


def test_a_model_with_nan_is_an_error(run, data):
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), run.params)
    with pytest.raises(InputError, match="clip 'clip 0': expected finite visual latents"):
        embed(replace(run, params=broken), data)
    found = embed(run, data)  # embeddings may be of something else than latents
    found.audio.values[3, 0] = np.nan
    with pytest.raises(InputError, match="clip 'clip 3': expected finite audio latents"):
        _check_finite(found)


def test_a_resampled_copy_serves_as_its_original(run, data, tmp_path):
    """Latents too, where the model resamples as the copy was; other models refuse it."""
    write_resampled(data.data, tmp_path / "copy")
    copy = store.read(tmp_path / "copy", "test")
    config = CONFIG.replace(encoders={"pre_resample": "visual_to_audio"})
    resampling = replace(run, config=as_dict(config), encoders=build(config)[0])
    expected, got = (embed(resampling, split, batch_size=11) for split in (data, copy))
    for stream in ("visual", "audio"):
        wanted, found = getattr(expected, stream), getattr(got, stream)
        np.testing.assert_array_equal(found.lengths, wanted.lengths)
        np.testing.assert_allclose(found.windows, wanted.windows, atol=1e-4)
        for one, other, length in zip(found.values, wanted.values, wanted.lengths, strict=True):
            np.testing.assert_allclose(one[:length], other[:length], atol=5e-3)
    assert np.abs(expected.visual.values).max() > 0.5
    with pytest.raises(InputError, match="direction: expected 'visual_to_audio', got None"):
        embed(run, copy, batch_size=4)
    wrong = replace(resampling, config=as_dict(config.replace(data={"align": "index"})))
    with pytest.raises(InputError, match="align: expected 'time', got 'index'"):
        embed(wrong, copy, batch_size=4)


def test_latents_of_a_split_are_held_once(run, data, monkeypatch):
    batches = []

    def kept(of_every_clip):
        def parts(*args, **options):
            for part in of_every_clip(*args, **options):
                assert all(one() is None for one in batches[:-1])  # copied and gone
                batches.append(weakref.ref(part["visual"][0].values))
                yield part
                del part

        return parts

    monkeypatch.setattr(embedding, "of_every_clip", kept(embedding.of_every_clip))
    embed(run, data, batch_size=2)
    assert len(batches) > 2
