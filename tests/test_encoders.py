"""The towers against float64 loops, and what padding, order and shift may and may not change."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import assert_equal_products
from pairs import padded

from scav_jax import encoders
from scav_jax.encoders import Encoders, layers, products, sequential
from scav_jax.encoders.dropout import Draws, draws_of, dropout
from scav_jax.sequences import AudioVisual, sequences

VISUAL_WIDTH, AUDIO_WIDTH = 5, 9
SMALL = {
    "width": 16,
    "heads": 2,
    "feedforward": 12,
    "visual_blocks": 2,
    "audio_blocks": 1,
    "visual_hidden": 7,
    "audio_hidden": 6,
    "position_buckets": 8,
    "position_max_distance": 12,
    "dropout": 0.3,
}
VISUAL_LENGTHS, VISUAL_STEPS = [9, 1, 6], 10
AUDIO_LENGTHS, AUDIO_STEPS = [4, 2, 5], 6


def clips(seed=0):
    rng = np.random.default_rng(seed)
    visual = [rng.normal(size=(n, VISUAL_WIDTH)).astype(np.float32) for n in VISUAL_LENGTHS]
    audio = [rng.normal(size=(n, AUDIO_WIDTH)).astype(np.float32) for n in AUDIO_LENGTHS]
    return visual, audio


def batch(fill=0.0, extra=0):
    visual, audio = clips()
    return AudioVisual(
        padded(visual, VISUAL_STEPS + extra, fill=fill),
        padded(audio, AUDIO_STEPS + extra, fill=fill),
    )


@cache
def small(**fields):
    """An encoder and parameters that are all random, so that no zero or one hides a mistake."""
    encoders = Encoders(**{**SMALL, **fields})
    shapes = jax.eval_shape(encoders.init, jax.random.key(0), batch())["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
    return encoders, params


@cache
def compiled(**fields):
    encoders, _ = small(**fields)
    return jax.jit(lambda params, features: encoders.apply({"params": params}, features))


def encode(features, **fields):
    return compiled(**fields)(small(**fields)[1], features)


# -- against loops --------------------------------------------------------------------------------


def dense(params, inputs=1):
    """(matrix, bias) of a flax layer, heads flattened side by side."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    rows = int(np.prod(kernel.shape[:inputs]))
    return kernel.reshape(rows, -1), bias.reshape(-1)


def norm(params):
    return np.asarray(params["scale"], np.float64), np.asarray(params["bias"], np.float64)


def as_reference(params, blocks):
    """One tower's parameters in the form that the loops take."""

    def block(p):
        attention = p["attention"]
        return {
            "attention_norm": norm(p["attention_norm"]),
            "attention": {
                **{name: dense(attention[name]) for name in ("query", "key", "value", "gate")},
                "out": dense(attention["out"], inputs=2),
                "gate_scale": np.asarray(attention["head_scale"], np.float64).reshape(-1),
            },
            "feedforward_norm": norm(p["feedforward_norm"]),
            "feedforward": (dense(p["feedforward_in"]), dense(p["feedforward_out"])),
        }

    return {
        "projection": (dense(params["projection_in"]), dense(params["projection_out"])),
        "blocks": [
            block(jax.tree.map(lambda leaf, n=number: leaf[n], params["blocks"]))
            for number in range(blocks)
        ],
        "table": np.asarray(params["position_table"], np.float64),
        "final_norm": norm(params["final_norm"]),
    }


def loops(tower, clip, params, blocks):
    return reference.tower(
        clip,
        as_reference(params[tower], blocks),
        SMALL["position_buckets"],
        SMALL["position_max_distance"],
        epsilon=1e-5,  # torch's
    )


def test_latents_are_those_of_the_loops_for_every_clip():
    _, params = small()
    result = encode(batch(np.nan))
    for (name, blocks), stream, own in zip(
        (("visual", 2), ("audio", 1)), result, clips(), strict=True
    ):
        for i, clip in enumerate(own):
            expected = loops(name, clip, params, blocks)
            np.testing.assert_allclose(stream.values[i, : len(clip)], expected, atol=2e-5)


def test_small_activations_meet_the_layer_norms_epsilon():
    """Block inputs of variance 1e-6: torch's epsilon of 1e-5 and flax's of 1e-6 differ by half."""
    _, params = small()
    out = jax.tree.map(lambda x: 3e-4 * x, params["audio"]["projection_out"])
    params = {**params, "audio": {**params["audio"], "projection_out": out}}
    result = compiled()(params, batch()).audio.values[2]
    expected = loops("audio", clips()[1][2], params, blocks=1)
    np.testing.assert_allclose(result[: len(expected)], expected, atol=5e-5)


def test_latents_keep_lengths_and_windows():
    features = batch()
    result = encode(features)
    for before, after in zip(features, result, strict=True):
        np.testing.assert_array_equal(before.lengths, after.lengths)
        np.testing.assert_array_equal(before.windows, after.windows)
        assert after.values.shape == (*before.values.shape[:2], SMALL["width"])


# -- size -----------------------------------------------------------------------------------------


def count(**fields):
    example = AudioVisual(sequences(jnp.zeros((1, 2, 768))), sequences(jnp.zeros((1, 2, 6144))))
    shapes = jax.eval_shape(Encoders(**fields).init, jax.random.key(0), example)["params"]
    return sum(x.size for x in jax.tree.leaves(shapes)), shapes


def test_size_of_the_papers_towers():
    """The arithmetic of the paper's widths, written out; 39.27 M in all."""
    layer = 4 * (512 * 512 + 512) + 2 * 2 * 512 + (512 * 2048 + 2048) + (2048 * 512 + 512)
    gate = 64 * 8 + 8 + 8
    video = 768 * 2048 + 2048 + 2048 * 512 + 512
    audio = 6144 * 768 + 768 + 768 * 512 + 512
    table_and_norm = 320 * 8 + 2 * 512
    expected = video + audio + 10 * (layer + gate) + 2 * table_and_norm
    total, shapes = count()
    assert total == expected
    assert round(total / 1e6, 2) == 39.27
    for tower in ("visual", "audio"):
        tables = [
            path
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes[tower])
            if leaf.shape[0] == 320
        ]
        assert len(tables) == 1  # one position table a tower, shared by its blocks
    for tower, blocks in (("visual", 8), ("audio", 2)):
        stacked = jax.tree.leaves(shapes[tower]["blocks"])
        assert {leaf.shape[0] for leaf in stacked} == {blocks}


def test_size_of_the_preset_with_beats_own_position():
    total, _ = count(feedforward=1536, conv_position=True)
    assert round(total / 1e6, 1) == 38.2


# -- padding --------------------------------------------------------------------------------------


def test_beats_own_position_reads_from_64_steps_before_to_63_after(random):
    """128 taps and padding of 64, of which BEATs drops the last step."""
    x = random.normal(size=(1, 100, 16)).astype(np.float32)
    kernel = np.zeros((128, 1, 16), np.float32)
    kernel[0], kernel[127] = 1.0, 2.0
    params = {"conv": {"kernel": kernel, "bias": np.zeros(16, np.float32)}}
    found = sequential.ConvPosition("float32").apply(
        {"params": params}, jnp.asarray(x), jnp.array([100])
    )
    around = np.pad(x, ((0, 0), (64, 63), (0, 0)))
    read = around[:, :100] + 2 * around[:, 127:]
    np.testing.assert_allclose(found, x + nn.gelu(read, approximate=False), rtol=1e-5, atol=1e-5)


def test_a_clip_alone_is_the_clip_in_a_padded_batch():
    fields = {"conv_position": True, "visual_blocks": 1}
    together = encode(batch(np.nan), **fields)
    visual, audio = clips()
    for i in (0, 2):
        alone = encode(
            AudioVisual(
                sequences(jnp.asarray(visual[i])[None]), sequences(jnp.asarray(audio[i])[None])
            ),
            **fields,
        )
        for one, all_ in zip(alone, together, strict=True):
            length = one.values.shape[1]
            np.testing.assert_allclose(one.values[0], all_.values[i, :length], atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{}, {"conv_position": True, "pre_resample": "visual_to_audio"}],
    ids=["plain", "conv_position-pre_resample"],
)
def test_padding_reaches_neither_latents_nor_gradients(fields):
    fields = {**fields, "visual_blocks": 1}
    encoders, params = small(**fields)

    def loss(params, visual_values, audio_values, features):
        moved = AudioVisual(
            features.visual.replace(values=visual_values),
            features.audio.replace(values=audio_values),
        )
        latents = encoders.apply({"params": params}, moved)
        total = sum(jnp.sum(jnp.sin(stream.values)) for stream in latents)
        return total, latents

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    results = []
    for fill in (0.0, np.nan, np.inf):
        features = batch(fill)
        gradients, latents = gradient(
            params, features.visual.values, features.audio.values, features
        )
        results.append((gradients, latents))
        for stream in latents:
            for row, length in zip(stream.values, stream.lengths, strict=True):
                assert not np.any(row[length:])
        for row, length in zip(gradients[1], VISUAL_LENGTHS, strict=True):
            assert not np.any(row[length:])
        for row, length in zip(gradients[2], AUDIO_LENGTHS, strict=True):
            assert not np.any(row[length:])
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_clips_do_not_see_each_other():
    features = batch()
    changed = features.visual.values.at[0].add(3.0)
    other = encode(AudioVisual(features.visual.replace(values=changed), features.audio))
    base = encode(features)
    np.testing.assert_allclose(other.visual.values[1:], base.visual.values[1:], atol=1e-6)
    np.testing.assert_array_equal(other.audio.values, base.audio.values)
    assert np.abs(other.visual.values[0] - base.visual.values[0]).max() > 1e-2


# -- position -------------------------------------------------------------------------------------


def visual_latents(clip, params):
    """The latents of one visual clip, alone."""
    audio = sequences(jnp.ones((1, 2, AUDIO_WIDTH)))
    features = AudioVisual(sequences(jnp.asarray(clip, jnp.float32)[None]), audio)
    return np.asarray(compiled()(params, features).visual.values[0])


def test_order_matters_through_the_position_table_only():
    """Reversed steps give reversed latents without the table, and other latents with it."""
    _, params = small()
    clip = clips()[0][0]
    flat = jax.tree.map(lambda x: x, params)
    flat["visual"] = {**params["visual"], "position_table": jnp.ones((8, 2))}
    np.testing.assert_allclose(
        visual_latents(clip[::-1], flat)[::-1], visual_latents(clip, flat), atol=1e-5
    )
    change = visual_latents(clip[::-1], params)[::-1] - visual_latents(clip, params)
    assert np.abs(change).max() > 0.05


def test_what_lies_before_and_after_differs():
    """With the same buckets for both sides the tower cannot tell a clip from its mirror image."""
    _, params = small()
    table = params["visual"]["position_table"]
    half = len(table) // 2
    both_sides = jnp.concatenate([table[:half], table[:half]])
    mirrored = {**params, "visual": {**params["visual"], "position_table": both_sides}}
    clip = clips()[0][0]
    np.testing.assert_allclose(
        visual_latents(clip[::-1], mirrored)[::-1], visual_latents(clip, mirrored), atol=1e-5
    )


def test_position_is_relative():
    """Three steps and their repetition out of reach: only offsets count, not where a step lies.

    Buckets beyond the reach are masked by a table of -1e4 there, so each half sees itself only.
    """
    _, params = small()
    buckets, reach = SMALL["position_buckets"], 1
    table = np.array(params["visual"]["position_table"])
    near = [reference.position_bucket(d, buckets, 12) for d in range(-reach, reach + 1)]
    far = [bucket for bucket in range(buckets) if bucket not in near]
    table[far] = -1e4
    local = {**params, "visual": {**params["visual"], "position_table": jnp.asarray(table)}}
    rng = np.random.default_rng(2)
    pattern, start, end = (rng.normal(size=(n, VISUAL_WIDTH)) for n in (7, 1, 1))
    early = visual_latents(np.concatenate([pattern, start, end]), local)
    late = visual_latents(np.concatenate([start, end, pattern]), local)
    # two blocks with a reach of one step: the middle of the pattern sees nothing else
    np.testing.assert_allclose(early[2:5], late[4:7], atol=1e-5)
    assert np.abs(early[0] - late[2]).max() > 1e-3


def test_the_table_of_one_tower_is_not_the_others():
    _, params = small()
    changed = dict(params)
    table = params["audio"]["position_table"]
    changed["audio"] = {**params["audio"], "position_table": table + jnp.arange(8.0)[:, None]}
    base, other = compiled()(params, batch()), compiled()(changed, batch())
    np.testing.assert_array_equal(base.visual.values, other.visual.values)
    assert np.abs(base.audio.values - other.audio.values).max() > 1e-2


# -- dropout --------------------------------------------------------------------------------------


def test_dropout_is_off_unless_asked_for_and_then_needs_a_key():
    encoders, params = small(visual_blocks=1)
    features = batch()
    base = encode(features, visual_blocks=1)

    @jax.jit
    def dropped(key):
        rngs = {"dropout": key}
        return encoders.apply({"params": params}, features, deterministic=False, rngs=rngs)

    one, same, other = (dropped(jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    for stream, base_stream, other_stream in zip(one, base, other, strict=True):
        assert np.abs(stream.values - base_stream.values).max() > 0.05
        assert np.abs(stream.values - other_stream.values).max() > 0.05
        for row, length in zip(stream.values, stream.lengths, strict=True):
            assert not np.any(row[length:])
    with pytest.raises(Exception, match="dropout"):
        jax.eval_shape(lambda: encoders.apply({"params": params}, features, deterministic=False))


def test_each_place_drops_by_words_of_its_own(monkeypatch):
    """Features behind the first layer and the second, then three places of a block."""
    taken, at = [], Draws.at
    monkeypatch.setattr(Draws, "at", lambda d, n: taken.extend(np.ravel(n)) or at(d, n))
    for module in (sequential, layers):
        monkeypatch.setattr(module, "dropout", lambda x, *_, **__: x)
    towers, params = small(visual_blocks=1)
    key = {"dropout": jax.random.key(0)}
    towers.apply({"params": params}, batch(), deterministic=False, rngs=key)
    assert taken == [*range(2 + 3), *range(2 + 3)]


# -- pre-resampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["visual_to_audio", "audio_to_visual"])
def test_pre_resampling_is_resampling_the_features_first(direction):
    fields = {"pre_resample": direction, "visual_blocks": 1}
    features = batch(np.nan)
    result = encode(features, **fields)
    params = small(**fields)[1]
    kept = "audio" if direction == "visual_to_audio" else "visual"
    lengths = AUDIO_LENGTHS if kept == "audio" else VISUAL_LENGTHS
    for name, stream, own in zip(("visual", "audio"), result, clips(), strict=True):
        steps = getattr(features, kept).values.shape[1]
        assert stream.values.shape == (len(own), steps, SMALL["width"])
        np.testing.assert_array_equal(stream.lengths, lengths)
        np.testing.assert_array_equal(stream.windows, getattr(features, kept).windows)
        for i, (clip, length) in enumerate(zip(own, lengths, strict=True)):
            moved = clip
            if name != kept:
                moved = reference.resample(clip, (0, len(clip)), length, (0, length))
            expected = loops(name, moved, params, blocks=1)
            np.testing.assert_allclose(stream.values[i, :length], expected, atol=5e-5)


# -- what a person gets wrong ---------------------------------------------------------------------


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="heads"):
        jax.eval_shape(Encoders(**{**SMALL, "heads": 3}).init, jax.random.key(0), batch())
    with pytest.raises(ValueError, match="a2v"):
        jax.eval_shape(
            Encoders(**{**SMALL, "pre_resample": "a2v"}).init, jax.random.key(0), batch()
        )


def test_gelu_and_its_gradient_are_flax_own_and_keep_the_input_only():
    x = jnp.asarray(np.linspace(-8, 8, 4001), jnp.float32)
    assert_equal_products(encoders.gelu(x), nn.gelu(x, approximate=False))
    ours = jax.vmap(jax.grad(encoders.gelu))(x)
    theirs = jax.vmap(jax.grad(lambda x: nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(ours, theirs, atol=3e-7)
    kept = jax.tree.leaves(jax.vjp(encoders.gelu, x)[1])
    assert [leaf.shape for leaf in kept] == [x.shape]
    assert jax.grad(encoders.gelu)(jnp.bfloat16(0.5)).dtype == jnp.bfloat16


def test_gradients_by_hand_are_those_of_the_definitions(random):
    """Norm, attention, products of what is made again: autodiff of the formulas says the same."""

    def normalized(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * scale[None, None] + bias[None, None]

    def attended(query, key, value, gain, bias, factor=1.0):
        logits = jnp.einsum("bhqd,bhkd->bhqk", query, key) / 3.0**0.5
        logits += jnp.einsum("bhq,hqk->bhqk", gain, bias)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], logits, -jnp.inf), axis=-1)
        return jnp.einsum("bhqk,bhkd->bqhd", weights * factor, value)

    def ours(precision, query, key, value, gain, bias, **dropped):
        if precision == "float32":  # steps first
            query, key, value, gain = (x.swapaxes(1, 2) for x in (query, key, value, gain))
        of = (x.astype(precision) for x in (query, key, value))
        how = {"precision": precision, "position": (gain, bias)} | dropped
        return layers.attend(*of, mask, **how).astype("float32")

    def product(cheap, *given):
        *given, kernel = given
        unkept = products.Unkept(cheap, tuple(given))
        return products.affine(unkept, [kernel], [jnp.zeros(7)], "float32")

    mask = jnp.arange(5)[None] < jnp.array([5, 3])[:, None]
    shapes = [(2, 4, 5, 3)] * 3 + [(2, 4, 5), (4, 5, 5)]
    norm = [3.0 + random.normal(size=shape) for shape in ((2, 5, 7), (7,), (7,))]
    dropped = {"rate": 0.4, "draws": draws_of(jax.random.key(0), jnp.arange(2))}
    factor = dropout(jnp.ones((2, 4, 5, 5)), **dropped)
    random_like = lambda shapes: [random.normal(size=shape) for shape in shapes]  # noqa: E731
    pairs = [
        (products._NORM, normalized, norm),
        (
            partial(product, products._NORM),
            lambda *given: normalized(*given[:3]) @ given[3],
            [*norm, random.normal(size=(7, 7))],
        ),
        (
            partial(product, products.gelu),
            lambda x, kernel: nn.gelu(x, approximate=False) @ kernel,
            [norm[0], random.normal(size=(7, 7))],
        ),
        *(
            (partial(ours, precision, **given), partial(attended, factor=by), random_like(shapes))
            for given, by in (({}, 1.0), (dropped, factor))
            for precision in ("float32", "bfloat16")
        ),
    ]
    for one, other, given in pairs:
        half = isinstance(one, partial) and "bfloat16" in one.args
        near = {"rtol": 0.04, "atol": 0.04} if half else {"rtol": 1e-5, "atol": 3e-5}
        given = [jnp.asarray(x, jnp.float32) for x in given]
        shape = jax.eval_shape(other, *given).shape
        cotangent = jnp.asarray(random.normal(size=shape), jnp.float32)

        @partial(jax.jit, static_argnums=0)
        def both(function, given, cotangent=cotangent):
            value, back = jax.vjp(function, *given)
            return value, back(cotangent)

        (found, ours_back), (expected, theirs_back) = both(one, given), both(other, given)
        np.testing.assert_allclose(found, expected, **near)
        for gradient, theirs in zip(ours_back, theirs_back, strict=True):
            np.testing.assert_allclose(gradient, theirs, **near)
