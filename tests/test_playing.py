"""EquiAV's losses with playing as the augmentation: what is told is what was played.

The losses are those of test_equivariant; devices, microbatches and rows are in `test_scaling` and
`test_doors`.
"""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_equivariant import (
    norm,
    numpy_code,
    numpy_info_nce,
    numpy_nt_xent,
    numpy_predictor,
    numpy_projector,
)
from test_temporal import WITHOUT_BLOCKS, batch

from scav_jax.base.errors import InputError
from scav_jax.objectives import EquivariantPlaying, Place, find
from scav_jax.objectives.objective import OURS, Material
from scav_jax.objectives.playing import excerpt_of
from scav_jax.sequences import AudioVisual
from scav_jax.train_step import of_clips

PLAYING = EquivariantPlaying(
    visual_tokens=4, audio_tokens=4, audio_frames=2, speeds=3, hidden=9, intra_width=6,
    inter_width=5, code_width=7, centroid=3, window_s=0.48,
)  # fmt: skip
PLACE = Place(2**20)
CLIPS, FRAMES, STEPS = 40, 48, 12  # a clip of 2 s


def ramps():
    """Clips whose pictures, and whose frames of sound, are their own numbers."""
    clips = batch(clips=CLIPS)
    visual = np.broadcast_to(np.arange(FRAMES, dtype=np.float32)[None, :, None], (CLIPS, FRAMES, 1))
    sound = np.arange(2 * STEPS, dtype=np.float32).reshape(1, STEPS, 2)
    streams = []
    for stream, values in zip(clips.features, (visual, sound), strict=True):
        count = values.shape[1]
        windows = np.tile(np.float32([0, count]), (CLIPS, 1))
        lengths = np.full(CLIPS, count, np.int32)
        values = np.broadcast_to(values, (CLIPS, *values.shape[1:]))
        streams.append(stream.replace(values=values, lengths=lengths, windows=windows))
    return jax.tree.map(jnp.asarray, clips._replace(features=AudioVisual(*streams)))


@pytest.fixture(scope="module")
def views():
    return jax.device_get(jax.jit(PLAYING.views)(ramps(), jax.random.key(4)))


def test_what_is_told_is_what_was_played(views):
    """Read off the numbers of the steps that a view has."""
    told = {name: views.about[name]["vector"] for name in ("visual", "audio")}
    seen = {
        "visual": views.features["augmented"].visual.values[..., 0] / FRAMES,
        "audio": views.features["augmented"].audio.values.reshape(CLIPS, -1) / (2 * STEPS),
    }
    # As the towers see it: four pictures of two frames' pace, eight frames of sound.
    for stream, one in (("visual", 1 / FRAMES), ("audio", 0.5 / STEPS)):
        for vector, shares in zip(told[stream], seen[stream], strict=True):
            speed, direction, begin, extent = vector
            assert extent == pytest.approx(0.24 * 2.0**speed)
            assert (shares[-1] < shares[0]) == (direction == 1)
            low, high = shares.min(), shares.max() + one
            part = extent / len(shares)  # each is read in the middle of its part
            assert abs(low - begin) <= one + 0.5 * part
            assert abs(high - begin - extent) <= one + 0.5 * part
            paces = np.abs(np.diff(shares)) / part
            assert np.all(np.abs(paces - 1) <= one / part + 1e-4)
    assert {0.0, 1.0} == set(told["visual"][:, 1]) and {0.0, 1.0, 2.0} == set(told["audio"][:, 0])
    apart = np.abs(told["visual"] - told["audio"]).max(axis=1)
    assert np.median(apart) > 0.5, "a draw for each stream"


def test_the_identity_vector_is_the_clip_played_plainly(views):
    excerpt = excerpt_of(jnp.asarray([0.0, 0.0, 0.0, 1.0]), jnp.asarray([0.5, 2.5]))
    assert (excerpt.span.tolist(), int(excerpt.speed)) == ([0.5, 2.5], 0)
    assert int(excerpt.direction) == 0
    clip = views.features["clip"]
    # 0.12 s a token: 24 frames of 1/24 s a second are 2.88 a token, whole frames, forward.
    length = int(clip.visual.lengths[0])
    assert length == int(2.0 / 0.12)
    expected = np.floor((np.arange(length) + 0.5) * 0.12 * 24 + 1e-3)
    np.testing.assert_array_equal(clip.visual.values[0, :length, 0], expected)
    shown = jax.device_get(PLAYING.shown(ramps()))
    jax.tree.map(np.testing.assert_array_equal, shown, clip)


@pytest.mark.parametrize(("duration", "fit"), [(2.0, 3), (1.0, 2), (0.5, 1), (0.2, 1)])
def test_speeds_directions_and_begins_are_uniform_over_what_fits(duration, fit):
    drawn = jax.random.uniform(jax.random.key(1), (6_000, 3))
    found = np.asarray(PLAYING.vectors(drawn, jnp.float32(duration)))
    speeds, directions, begins, extents = found.T
    counts = np.bincount(speeds.astype(int), minlength=3)
    assert np.abs(counts[:fit] / 6_000 - 1 / fit).max() < 0.03 and counts[fit:].sum() == 0
    assert abs(directions.mean() - 0.5) < 0.03 and set(directions) == {0.0, 1.0}
    np.testing.assert_allclose(extents, np.minimum(0.48 * 2.0**speeds / duration, 1), rtol=1e-6)
    assert (begins >= 0).all() and (begins + extents <= 1 + 1e-6).all()
    room = extents < 1
    if room.any():
        places = begins[room] / (1 - extents[room])
        assert abs(places.mean() - 0.5) < 0.03 and abs(places.var() - 1 / 12) < 0.01


@pytest.fixture(scope="module")
def model():
    clips = batch(clips=4)
    return clips, drawn.params(WITHOUT_BLOCKS, PLAYING, clips, seed=5)


def test_outputs_embedding_and_loss_are_the_transcription(model):
    """Heads and losses by NumPy, from the towers' latents; the embedding from its codes."""
    clips, params = model
    key = jax.random.key(6)

    @jax.jit
    def everything(params):
        outputs = of_clips(WITHOUT_BLOCKS, PLAYING, params, clips, None, key)
        views = PLAYING.views(clips, jax.random.fold_in(key, 1))
        towers = {"params": params["encoders"]}
        latents = {
            name: WITHOUT_BLOCKS.apply(towers, view) for name, view in views.features.items()
        }
        heads = PLAYING.heads(12).bind({"params": params["heads"]})
        used = {}
        for stream in ("visual", "audio"):
            own = getattr(latents["clip"], stream)
            used[stream] = PLAYING.codes(stream, own), PLAYING.embed(heads, stream, own)
        return outputs, views, latents, used, PLAYING.loss({}, outputs, {}, PLACE)[0]

    outputs, views, latents, used, loss = jax.device_get(everything(params))
    p = jax.tree.map(np.float64, jax.device_get(params["heads"]))
    found = {}
    for stream in ("visual", "audio"):
        rows = {name: [] for name in ("predicted", "augmented", "centroid")}
        for row in range(4):
            plain, played = (
                [norm(np.float64(t), p[f"norm_{stream}{suffix}"])
                 for t in s.values[row, : s.lengths[row]]]
                for s, suffix in ((getattr(latents["clip"], stream), ""),
                                  (getattr(latents["augmented"], stream), "_augmented"))
            )  # fmt: skip

            def predicted(codes, plain=plain, stream=stream):
                codes = [numpy_code(np.float64(code), p[f"code_{stream}"]) for code in codes]
                return numpy_predictor(np.stack(plain), codes, p[f"predictor_{stream}"])

            told = {name: views.about[stream][name][row] for name in ("vector", "vectors")}
            intra, inter = p[f"intra_{stream}"], p[f"inter_{stream}"]
            rows["predicted"].append(numpy_projector(predicted([told["vector"]]), intra))
            rows["augmented"].append(numpy_projector(np.mean(played, axis=0), intra))
            rows["centroid"].append(numpy_projector(predicted(told["vectors"]), inter))
            codes, embedding = (x[row] for x in used[stream])
            np.testing.assert_allclose(
                embedding, numpy_projector(predicted(codes), inter), atol=2e-4
            )
        found[stream] = {name: np.stack(each) for name, each in rows.items()}
        for name, each in found[stream].items():
            np.testing.assert_allclose(outputs.values[stream][name], each, atol=2e-4, err_msg=name)
    intra = [numpy_nt_xent(f["predicted"], f["augmented"], 0.07) for f in found.values()]
    inter = numpy_info_nce(found["visual"]["centroid"], found["audio"]["centroid"], 0.07)
    assert float(loss) == pytest.approx((sum(intra) + inter) / 3, rel=1e-3)


def test_codes_of_an_embedding_are_drawn_in_the_clip_s_own_length(model):
    clips, _ = model
    latents = jax.tree.map(jnp.asarray, PLAYING.shown(clips).visual)
    short = latents.replace(lengths=latents.lengths // 2)
    whole, half = PLAYING.codes("visual", latents), PLAYING.codes("visual", short)
    assert whole.shape == (4, 3, 4)
    speeds = np.asarray(whole[0, :, 0])
    seconds = float(latents.lengths[0]) * 0.12
    np.testing.assert_allclose(whole[0, :, 3], 0.48 * 2.0**speeds / seconds, rtol=1e-5)
    assert np.abs(np.asarray(whole - half)).max() > 0.1
    np.testing.assert_array_equal(whole, PLAYING.codes("visual", latents))


def test_features_that_cannot_be_played_are_refused():
    def told(playable, seconds=2.0, rates=(24.0, 24.0), align="time"):
        spans = np.tile([0.0, seconds], (3, 1))
        return Material(
            {}, align, "data (train)", ["a", "b", "c"], spans, np.tile(rates, (3, 1)), playable
        )

    good = {"visual": 1, "audio": 2}
    PLAYING.check(told(good))
    for material, message in (
        (told(good | {"audio": "it has heard the whole clip"}), "cannot be played: it has heard"),
        (told({"visual": 1, "audio": 16}), "expected 2 frames in a step of audio features"),
        (told(good, align="index"), "the equivariant_playing objective plays"),
        (told(good, seconds=0.4), "3 of 3 clips last less than an excerpt of 0.48 s"),
        (told(good, seconds=1.0), r"clip of at least 1.92 s for 4 times, the longest has 1 s"),
        (told(good, rates=(5.0, 24.0)), "fewer visual steps than one in 0.12 s"),
    ):
        with pytest.raises(InputError, match=message):
            PLAYING.check(material)
    # In a sum, options have the names that the sum gives them.
    own = {
        f"equivariant_playing_{key}": value
        for key, value in vars(PLAYING).items()
        if key not in OURS
    }
    both = find("sequence+equivariant_playing")(name="sequence+equivariant_playing", **own)
    with pytest.raises(InputError, match=r"lower objective\.equivariant_playing_visual_tokens$"):
        both.check(told(good, rates=(5.0, 24.0)))
    with pytest.raises(InputError, match=r"_speeds: .* objective\.equivariant_playing_window_s$"):
        both.check(told(good, seconds=1.0))
    for change, message in (({"window_s": 0.0}, "window_s"), ({"speeds": 0}, "speeds"),
                            ({"centroid": -1}, "centroid")):  # fmt: skip
        with pytest.raises(InputError, match=f"objective.{message}: expected"):
            EquivariantPlaying(**change)
