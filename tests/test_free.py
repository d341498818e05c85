"""Changes of features that say nothing new: which there are, and that each is one of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import write_data

from scav_jax.extract.backbones.pixels import PixelsAudio, PixelsVisual
from scav_jax.extract.backbones.plain import ColoursVisual, PlainAudio, PlainVisual
from scav_jax.features import store
from scav_jax.features.sides import declared, free, pixels, playable
from scav_jax.objectives.free import Free, changed
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.training.setup import material

CLIPS, GRID, MEL = 24, (2, 3, 2, 3), (2, 14)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    streams = [
        sequences(jnp.asarray(rng.normal(size=(CLIPS, steps, np.prod(layout))), jnp.float16))
        for steps, layout in ((4, GRID), (3, MEL))
    ]
    return jax.device_get(as_batch(AudioVisual(*streams)))


change = jax.jit(changed, static_argnums=0)


def pictures(clip):
    """Every picture that a clip's may become."""
    clip = clip.reshape(-1, *GRID)
    for colours in itertools.permutations(range(3)):
        for rows, columns in itertools.product((1, -1), repeat=2):
            yield clip[:, :, ::rows, ::columns, list(colours)].reshape(len(clip), -1)


def sounds(clip):
    clip, bins = clip.reshape(-1, *MEL), np.arange(MEL[1])
    for shift in range(-10, 11):
        yield clip[:, :, np.clip(bins - shift, 0, MEL[1] - 1)].reshape(len(clip), -1)


def which(results, clips, possible):
    """The change that each clip went through."""
    found = []
    for result, clip in zip(np.asarray(results), clips, strict=True):
        fits = [n for n, one in enumerate(possible(clip)) if np.array_equal(one, result)]
        assert len(fits) == 1
        found += fits
    return found


def test_each_clip_goes_through_a_change_of_its_own(batch):
    features = change(Free(1.0, GRID, MEL), batch, jax.random.key(1)).features
    seen = which(features.visual.values, batch.features.visual.values, pictures)
    heard = which(features.audio.values, batch.features.audio.values, sounds)
    assert len(set(seen)) > 8 and len(set(heard)) > 8
    assert features.visual.values.dtype == np.float16
    some = change(Free(0.5, GRID), batch, jax.random.key(1)).features
    seen = which(some.visual.values, batch.features.visual.values, pictures)
    assert 4 < seen.count(0) < 20
    np.testing.assert_array_equal(some.audio.values, batch.features.audio.values)


def test_what_is_drawn_follows_from_step_and_number(batch):
    parts = jax.tree.map(lambda leaf: leaf[5:9] if len(leaf) else leaf, batch)
    free, key = Free(1.0, GRID, MEL), jax.random.key(1)
    whole = change(free, batch, key).features.visual.values
    np.testing.assert_array_equal(change(free, parts, key).features.visual.values, whole[5:9])
    again = change(free, batch, jax.random.key(2)).features.visual.values
    assert not np.array_equal(again, whole)


def test_a_backbone_says_what_is_free():
    def of(visual, audio):
        return free({"backbone": {"visual": {"name": visual}, "audio": audio}})

    assert of("plain", {"name": "plain"}) == {"grid": (2, 8, 8, 3), "mel": (16, 128)}
    assert of("colours", {"name": "beats"}) == {"grid": (1, 8, 8, 3)}
    assert of("clip", {"name": "mine:Mine", "free": [4, 64]}) == {"mel": (4, 64)}
    assert free({"backbone": "random"}) == {}


def test_a_side_of_ones_own_declares_what_ours_do():
    def told(**visual):
        return {"backbone": {"visual": visual, "audio": {"name": "plain"}}}

    mine = "mine:Mine"
    assert pixels(told(name="pixels")) == {"visual": True, "audio": False}
    assert pixels(told(name=mine)) == {"visual": None, "audio": False}  # it need not say
    assert pixels(told(name=mine, pixels=True))["visual"] is True
    assert pixels(told(name=mine, pixels=224))["visual"] is None  # a key of its own
    assert pixels({"backbone": "random"}) == {"visual": False, "audio": False}
    assert set(pixels({"backbone": {"name": "theirs", "imported": {}}}).values()) == {None}
    words = playable(told(name=mine, playable="it has seen the whole clip"))["visual"]
    assert words.startswith("it has seen the whole clip; extract with")
    assert declared(told(name="plain"), "visual")["momentary"] == PlainVisual.width // 2
    assert declared(told(name=mine, momentary=4), "visual")["momentary"] == 4


def test_what_ours_declare_is_no_part_of_their_fingerprints():
    """Else features that were extracted before would be another extractor's."""
    keys = {"playable", "free", "momentary", "pixels"}
    for side in (PlainVisual(), PlainAudio(), ColoursVisual(), PixelsVisual(), PixelsAudio()):
        assert not keys & side.fingerprint().keys()


def test_an_objective_is_told_which_features_are_pixels(tmp_path):
    sides = {"visual": {"name": "pixels"}, "audio": {"name": "mine:Mine"}}
    data = write_data(tmp_path / "data", fingerprint={"backbone": sides})
    told = material(store.read(data, "train"), "time")
    assert told.pixels == {"visual": True, "audio": None}
