"""EquiAV: losses, predictor, heads and the whole small model against NumPy, written from formulas.

The transcription loops over clips and tokens in float64 and shares nothing with the code.
"""

import dataclasses
import math
from functools import partial

import drawn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from scav_jax import objectives
from scav_jax.base.errors import InputError
from scav_jax.encoders import PatchEncoders, PatchTower
from scav_jax.features.sides import pixels as pixels_of
from scav_jax.objectives import Place, Separate, Sequential, augment
from scav_jax.objectives.equivariant import (
    CodeEncoder,
    Equivariant,
    Heads,
    Predictor,
    Projector,
    info_nce,
    nt_xent,
)
from scav_jax.objectives.objective import Material
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.train_step import init_params

TAU = 0.07
SMALL = Equivariant(
    centroid=3, audio_frames=48, time_mask=8, frequency_mask=4, hidden=10, intra_width=6,
    inter_width=5, code_width=7,
)  # fmt: skip
TOWERS = PatchEncoders(
    width=8, heads=2, feedforward=12, visual_blocks=2, audio_blocks=1, side=32
)  # fmt: skip
PLACE = Place(2**20)


# ---- the formulas --------------------------------------------------------------------------------


def unit(x):
    return np.stack([row / math.sqrt(sum(row * row)) for row in x])


def numpy_nt_xent(predicted, augmented, tau):
    """SimCLR's: both sides of every pair, over all others."""
    a, b = unit(predicted), unit(augmented)
    total, n = 0.0, len(a)
    for one, other in ((a, b), (b, a)):
        for i in range(n):
            terms = [math.exp(one[i] @ other[j] / tau) for j in range(n)]
            terms += [math.exp(one[i] @ one[j] / tau) for j in range(n) if j != i]
            total -= math.log(math.exp(one[i] @ other[i] / tau) / sum(terms))
    return total / (2 * n)


def numpy_info_nce(visual, audio, tau):
    v, a = unit(visual), unit(audio)
    total, n = 0.0, len(a)
    for one, other in ((v, a), (a, v)):
        for i in range(n):
            terms = [math.exp(one[i] @ other[j] / tau) for j in range(n)]
            total -= math.log(terms[i] / sum(terms))
    return total / (2 * n)


def norm(x, p):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    kernel = p["kernel"].reshape(len(x), -1)
    return x @ kernel + p.get("bias", np.zeros(1)).reshape(-1)


def gelu(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def attention(queries, keys, values, heads):
    """Each `[n, heads * d]` -> the mix for every query."""
    width = queries.shape[1] // heads
    mixed = np.zeros_like(queries)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i, query in enumerate(queries[:, part]):
            weights = np.exp([query @ key / math.sqrt(width) for key in keys[:, part]])
            mixed[i, part] = weights @ values[:, part] / weights.sum()
    return mixed


def numpy_block(x, p, heads):
    y = np.stack([norm(row, p["attention_norm"]) for row in x])
    streams = [
        np.stack([dense(row, p["attention"][name]) for row in y])
        for name in ("query", "key", "value")
    ]
    mixed = attention(*streams, heads)
    out = p["attention"]["out"]
    flat = {"kernel": out["kernel"].reshape(-1, x.shape[1]), "bias": out["bias"]}
    x = x + np.stack([dense(row, flat) for row in mixed])
    rows = []
    for row in x:
        hidden = gelu(dense(norm(row, p["feedforward_norm"]), p["feedforward_in"]))
        rows.append(row + dense(hidden, p["feedforward_out"]))
    return np.stack(rows)


def sines(place, width):
    """`[sin, cos]` of one coordinate: MAE's table."""
    omega = [10_000.0 ** (-k / (width // 4)) for k in range(width // 4)]
    return [math.sin(place * w) for w in omega] + [math.cos(place * w) for w in omega]


def numpy_tower(image, p, heads):
    """`[rows, columns, 3]`, a picture or three equal log-mels of bins x frames -> tokens."""
    tokens, width = [], len(p["modality"])
    for r in range(image.shape[0] // 16):
        for c in range(image.shape[1] // 16):
            patch = image[16 * r : 16 * r + 16, 16 * c : 16 * c + 16].reshape(-1)
            place = np.array(sines(c, width) + sines(r, width))
            tokens.append(dense(patch, p["patches"]) + place + p["modality"])
    x = np.stack(tokens)
    for number in range(len(p["blocks"]["attention_norm"]["scale"])):
        x = numpy_block(x, jax.tree.map(lambda leaf, n=number: leaf[n], p["blocks"]), heads)
    return x


def numpy_predictor(tokens, codes, p, heads=8):
    asking = np.stack([norm(code, p["norm_codes"]) for code in codes])
    query = np.stack([dense(row, p["query"]) for row in asking])
    key, value = (np.stack([dense(row, p[n]) for row in tokens]) for n in ("key", "value"))
    out = {"kernel": p["out"]["kernel"].reshape(query.shape[1], -1)}
    found = []
    for row in attention(query, key, value, heads):
        e = tokens.mean(axis=0) + dense(row, out)
        e = e + dense(gelu(dense(norm(e, p["norm"]), p["mlp_in"])), p["mlp_out"])
        found.append(e)
    return np.mean(found, axis=0)


def numpy_projector(x, p):
    x = np.maximum(norm(dense(x, p["dense_1"]), p["norm_1"]), 0.0)
    x = np.maximum(norm(dense(x, p["dense_2"]), p["norm_2"]), 0.0)
    return norm(dense(x, p["dense_3"]), p["norm_3"])


def numpy_code(code, p):
    x = code
    for name in ("dense_1", "dense_2"):
        x = dense(x, p[name])
        x = x / (1 + np.exp(-1.702 * x))
    return dense(x, p["dense_3"])


def numpy_embeddings(stream, image, augmented, vectors, params):
    """One clip's predicted, augmented and centroid."""
    tower, p = params["encoders"][stream], params["heads"]
    h = np.stack([norm(t, p[f"norm_{stream}"]) for t in numpy_tower(image, tower, 2)])
    seen = numpy_tower(augmented, tower, 2)
    seen = np.stack([norm(t, p[f"norm_{stream}_augmented"]) for t in seen])

    def predicted(some):
        codes = [numpy_code(code, p[f"code_{stream}"]) for code in some]
        return numpy_predictor(h, codes, p[f"predictor_{stream}"])

    return {
        "predicted": numpy_projector(predicted([vectors["vector"]]), p[f"intra_{stream}"]),
        "augmented": numpy_projector(seen.mean(axis=0), p[f"intra_{stream}"]),
        "centroid": numpy_projector(predicted(vectors["vectors"]), p[f"inter_{stream}"]),
    }


# ---- losses --------------------------------------------------------------------------------------


def embeddings(clips=5, width=7, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(clips, width)) for _ in range(2)]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_losses_are_the_formulas(scale):
    a, b = embeddings(scale=scale)
    with jax.enable_x64(True):
        compiled, both = jax.jit(nt_xent), jax.jit(info_nce)
        ours = float(compiled(jnp.asarray(a), jnp.asarray(b), TAU))
        turned = float(compiled(jnp.asarray(b), jnp.asarray(a), TAU))
        across, cosines = both(jnp.asarray(a), jnp.asarray(b), TAU)
    assert ours == pytest.approx(numpy_nt_xent(a, b, TAU), abs=1e-10)
    assert turned == pytest.approx(ours, abs=1e-12)
    assert float(across) == pytest.approx(numpy_info_nce(a, b, TAU), abs=1e-10)
    np.testing.assert_allclose(cosines, unit(a) @ unit(b).T, atol=1e-12)
    single = compiled(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), TAU)
    assert float(single) == pytest.approx(ours, rel=1e-5)


def test_gradients_are_finite_differences_and_detached_keys_change_them_only():
    a, b = embeddings()
    with jax.enable_x64(True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        for loss in (partial(nt_xent, tau=TAU), lambda a, b: info_nce(a, b, TAU)[0]):
            of_arrays = lambda *pair, loss=loss: loss(*map(jnp.asarray, pair))  # noqa: E731
            check_grads(jax.jit(of_arrays), (a, b), order=1, modes=("rev",))

        def across(a, b, detach):
            return info_nce(a, b, TAU, detach_keys=detach)[0]

        of_both = jax.jit(jax.value_and_grad(across), static_argnums=2)
        whole, cut = (of_both(a, b, detach) for detach in (False, True))
        # Detached, the gradient of a visual is that of its own row alone.
        keys = jnp.asarray(unit(np.asarray(b)))

        def of_rows(a):
            logits = (a / jnp.linalg.norm(a, axis=1, keepdims=True)) @ keys.T / TAU
            return -0.5 * jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))

        np.testing.assert_allclose(cut[1], jax.jit(jax.grad(of_rows))(a), atol=1e-12)
    assert float(whole[0]) == pytest.approx(float(cut[0]), abs=1e-12)
    assert np.abs(whole[1] - cut[1]).max() > 0.1 * np.abs(whole[1]).max()
    of_zero = jax.jit(jax.grad(lambda a: nt_xent(a, jnp.ones((3, 2)), TAU)))
    zero = of_zero(jnp.zeros((3, 2)))
    assert np.isfinite(zero).all()


# ---- the model -----------------------------------------------------------------------------------


def counted(module, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_parameter_counts_are_the_papers():
    tokens = sequences(jnp.zeros((1, 2, 768)))
    assert counted(Predictor(768), tokens, jnp.zeros((1, 1, 256))) == 6_036_736
    assert counted(CodeEncoder(256), jnp.zeros((1, 1, 24))) == 137_984
    assert counted(CodeEncoder(256), jnp.zeros((1, 1, 18))) == 136_448
    assert counted(Projector(2048, 512), jnp.zeros((1, 768))) == 6_829_568
    # ViT-B/16 without class token, position table and last norm: 12 blocks, patches, modality.
    tower = PatchEncoders().tower("visual")
    pictures = sequences(jnp.zeros((1, 1, 224 * 224 * 3)))
    expected = 12 * 7_087_872 + 768 * 768 + 768 + 768
    assert counted(tower, pictures) == expected


def pixels(clips=4, side=32, frames=3, steps=4, bins=32, seed=1):
    """A batch as `extract --backbone pixels` stores it: uint8 pictures, float16 log-mel."""
    rng = np.random.default_rng(seed)
    visual = rng.integers(0, 256, (clips, frames, side * side * 3)).astype(np.uint8)
    audio = rng.normal(-4, 4, (clips, steps, 16 * bins)).astype(np.float16)
    lengths = rng.integers(2, steps + 1, clips).astype(np.int32)
    lengths[0] = steps
    audio[np.arange(steps)[None] >= lengths[:, None]] = np.nan
    streams = sequences(jnp.asarray(visual)), sequences(jnp.asarray(audio), jnp.asarray(lengths))
    return as_batch(AudioVisual(*streams))


@pytest.fixture(scope="module")
def small():
    """Parameters, with every bias and scale drawn too, so that none is at a special value."""
    return drawn.params(TOWERS, SMALL, pixels(), seed=5)


def as_images(stream, values):
    """A view's steps as a picture of rows and columns."""
    if stream == "visual":
        return np.asarray(values, np.float64).reshape(32, 32, 3)
    frames = np.asarray(values, np.float64).reshape(48, 32)
    return np.repeat(frames.T[..., None], 3, axis=2)


def test_the_small_model_is_the_transcription(small):
    batch = pixels()

    @jax.jit
    def everything(params):  # as `train_step.of_clips` does it
        views = SMALL.views(batch, jax.random.key(2))
        towers = {"params": params["encoders"]}
        latents = {name: TOWERS.apply(towers, view) for name, view in views.features.items()}
        heads = SMALL.heads(8).bind({"params": params["heads"]})
        return views, SMALL.of_clips(heads, latents, views.about).values

    views, found = everything(small)
    doubled = jax.tree.map(lambda x: np.asarray(x, np.float64), small)
    for stream in ("visual", "audio"):
        seen = {name: np.asarray(getattr(v, stream).values) for name, v in views.features.items()}
        for clip in range(2):
            vectors = jax.tree.map(lambda x, c=clip: np.asarray(x[c], np.float64), views.about)
            images = [as_images(stream, seen[name][clip]) for name in ("clip", "augmented")]
            expected = numpy_embeddings(stream, *images, vectors[stream], doubled)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    found[stream][name][clip], value, atol=3e-5, err_msg=f"{stream} {name}"
                )


def test_in_double_precision_the_model_is_the_transcription_to_the_digit(small):
    """Towers, norms, code encoder, predictor and heads of the sound, without the views."""
    rng = np.random.default_rng(3)
    plain, changed = rng.normal(size=(2, 1, 3, 16 * 32))
    vectors = {"vector": rng.normal(size=(1, 24)), "vectors": rng.normal(size=(1, 3, 24))}
    doubled = jax.tree.map(lambda x: np.asarray(x, np.float64), small)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):

        @jax.jit
        def of_sound(params, vectors, *steps):
            heads = SMALL.heads(8).bind({"params": params["heads"]})
            tower = TOWERS.tower("audio")
            own = {"params": params["encoders"]["audio"]}
            clip, augmented = (tower.apply(own, sequences(x)) for x in steps)
            latents = {"clip": AudioVisual(None, clip), "augmented": AudioVisual(None, augmented)}
            return heads._of_stream("audio", latents, vectors)

        found = jax.device_get(of_sound(doubled, vectors, plain, changed))
    images = [as_images("audio", x[0]) for x in (plain, changed)]
    alone = jax.tree.map(lambda x: x[0], vectors)
    expected = numpy_embeddings("audio", *images, alone, doubled)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][0], value, atol=1e-10, err_msg=name)


def test_equal_codes_are_one_and_their_order_is_nothing(small):
    heads = SMALL.heads(8).bind({"params": small["heads"]})
    rng = np.random.default_rng(0)
    latents = sequences(jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32))
    codes = jnp.asarray(rng.normal(size=(2, 4, 18)), jnp.float32)
    of = jax.jit(partial(heads.centroid, "visual"))
    one = of(latents, codes[:, :1])
    np.testing.assert_allclose(of(latents, jnp.repeat(codes[:, :1], 6, 1)), one, atol=1e-5)
    whole = of(latents, codes)
    np.testing.assert_allclose(of(latents, codes[:, ::-1]), whole, atol=1e-5)
    turned = latents.replace(values=latents.values[:, ::-1])
    np.testing.assert_allclose(of(turned, codes), whole, atol=1e-5)
    assert np.abs(whole - one).max() > 1e-3
    # What is padding is not read.
    cut = latents.replace(lengths=jnp.asarray([5, 3], jnp.int32))
    poisoned = cut.replace(values=cut.values.at[1, 3:].set(jnp.nan))
    np.testing.assert_array_equal(of(poisoned, codes), of(cut, codes))
    # The embedding is a centroid over vectors that are always the same.
    embed = jax.jit(partial(SMALL.embed, heads, "visual"))
    first, again = (embed(latents) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_each_loss_reaches_its_own_layers(small):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(2, 2, 4, 3, 8)), jnp.float32)  # view, stream, clip, token
    vectors = {
        stream: {
            "vector": jnp.asarray(rng.normal(size=(4, size)), jnp.float32),
            "vectors": jnp.asarray(rng.normal(size=(4, 3, size)), jnp.float32),
        }
        for stream, size in (("visual", 18), ("audio", 24))
    }

    @jax.jit
    def gradients(heads, values):
        def losses(heads, values):
            bound = SMALL.heads(8).bind({"params": heads})
            latents = {
                name: AudioVisual(*map(sequences, view))
                for name, view in zip(("clip", "augmented"), values, strict=True)
            }
            _, aux = SMALL.loss({}, SMALL.of_clips(bound, latents, vectors), {}, PLACE)
            return aux["losses"]

        return jax.jacrev(losses, argnums=(0, 1))(heads, values)

    found = jax.device_get(gradients(small["heads"], values))

    def reached(loss):
        heads, tokens = found[loss]
        names = {
            name
            for name, of_layer in heads.items()
            if any(np.abs(leaf).max() > 1e-9 for leaf in jax.tree.leaves(of_layer))
        }
        return names, (np.abs(tokens).max(axis=(2, 3, 4)) > 1e-9).tolist()

    for number, stream in enumerate(("visual", "audio")):
        names = {f"{n}_{stream}" for n in ("norm", "code", "predictor", "intra")}
        own = [number == 0, number == 1]
        assert reached(f"intra_{stream}") == (names | {f"norm_{stream}_augmented"}, [own, own])
    layers = ("norm", "code", "predictor", "inter")
    names = {f"{n}_{s}" for n in layers for s in ("visual", "audio")}
    assert reached("inter") == (names, [[True, True], [False, False]])


def test_without_a_centroid_means_are_compared_and_the_middle_frame_is_shown(small):
    plain = dataclasses.replace(SMALL, centroid=0)
    batch = pixels()
    heads = plain.heads(8).bind({"params": small["heads"]})
    tokens = sequences(jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32))
    normed = nn.LayerNorm(1e-5).apply({"params": small["heads"]["norm_visual"]}, tokens.values)
    head = {"params": small["heads"]["inter_visual"]}
    expected = Projector(10, 5).apply(head, jnp.mean(normed, axis=1))
    np.testing.assert_allclose(plain.embed(heads, "visual", tokens), expected, atol=1e-5)
    middle = np.asarray(batch.features.visual.values[:, 1]).reshape(4, 32, 32, 3) / 255.0
    np.testing.assert_allclose(
        plain.shown(batch).visual.values.reshape(4, 32, 32, 3),
        (middle - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]),
        atol=1e-5,
    )


def test_a_temperature_may_be_learned():
    learned = objectives.make(
        {"name": "equivariant", "learn_temperature": True}, {"name": "euclidean"}
    )
    assert learned.temperatures() == {"inter": 0.07, "intra": 0.07}
    a, b = (jnp.asarray(x, jnp.float32) for x in embeddings())
    values = {"predicted": a, "augmented": b, "plain": b, "centroid": a}
    outputs = objectives.Outputs({"visual": values, "audio": values | {"centroid": b}})
    logs = {name: jnp.log(jnp.float32(0.07)) for name in ("inter", "intra")}
    fixed, _ = jax.jit(lambda: Equivariant().loss({}, outputs, {}, PLACE))()
    (same, aux), slope = jax.jit(
        jax.value_and_grad(lambda logs: learned.loss(logs, outputs, {}, PLACE), has_aux=True)
    )(logs)
    assert float(fixed) == pytest.approx(float(same), rel=1e-6)
    assert all(abs(float(g)) > 1e-3 for g in slope.values())
    assert {"temperature_inter", "equivariance_gain"} <= set(learned.health(aux))
    predicted, augmented = unit(np.asarray(a, float)), unit(np.asarray(b, float))
    gain = np.mean(np.sum(predicted * augmented, axis=1)) - 1.0
    assert float(aux["gain"]["visual"]) == pytest.approx(gain, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_frames": 100}, "audio_frames: expected a multiple of 16, got 100"),
        ({"centroid": -1}, "centroid: expected at least 0, got -1"),
        ({"audio_frames": 64}, "time_mask: expected at most the 64 frames"),
    ],
)
def test_options_that_cannot_be_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Equivariant(**change)


def material(backbone):
    none = np.zeros((0, 2))
    made_by = {"backbone": backbone}
    return Material(made_by, "time", "none", [], none, none, {}, pixels=pixels_of(made_by))


def test_other_features_and_other_sizes_are_refused():
    for about in ("random", {"visual": {"name": "plain"}, "audio": {"name": "plain"}}):
        with pytest.raises(InputError, match="expected visual features of the backbone 'pixels'"):
            SMALL.check(material(about))
    sides = {"visual": {"name": "pixels"}, "audio": {"name": "pixels"}}
    SMALL.check(material(sides))
    for other in (Sequential(), Separate()):
        with pytest.raises(InputError, match="'pixels', which the towers do not take as they are"):
            other.check(material(sides))
    with pytest.raises(InputError, match=r"expected pictures of 48 pixels a side, got 32"):
        init_params(TOWERS.clone(side=48), SMALL, pixels(), seed=0)
    with pytest.raises(InputError, match="got none: 10 numbers a step"):
        TOWERS.init(jax.random.key(0), AudioVisual(*[sequences(jnp.zeros((1, 1, 10)))] * 2))


def test_a_clip_is_filled_up_with_silence_and_augmented_in_a_frame_of_its_own(monkeypatch):
    """Zeros come before the log-mel is normalised, as in the released code; so does the frame."""
    monkeypatch.setattr(augment, "augment_picture", lambda _, picture: picture)
    monkeypatch.setattr(augment, "augment_sound", lambda _, log_mel, **__: log_mel)
    batch = pixels(steps=2)
    heard = np.nan_to_num(np.asarray(batch.features.audio.values, np.float32)).reshape(4, 32, 32)
    filled = np.pad(heard, ((0, 0), (0, 16), (0, 0)))
    shown = SMALL.shown(batch).audio.values.reshape(filled.shape)
    np.testing.assert_allclose(shown, (filled + 4.346) / 4.332, rtol=1e-5, atol=1e-5)
    for same in (True, False):
        objective = dataclasses.replace(SMALL, same_frame=same)
        views = objective.views(batch, jax.random.key(2))
        clip, augmented = views.features.values()
        alike = np.all(clip.visual.values == augmented.visual.values, axis=(1, 2))
        assert alike.all() if same else not alike.all()
    for vectors in views.about.values():  # what is averaged over tells of nothing that was done
        assert (vectors["vector"][:, None] != vectors["vectors"]).any(axis=-1).all()


def test_the_bank_is_of_vectors_of_the_layout():
    for stream, size in (("visual", 18), ("audio", 24)):
        codes = objectives.equivariant.bank(SMALL, stream)
        assert codes.shape == (3, size)
        assert len({row.tobytes() for row in np.asarray(codes)}) == 3
    assert issubclass(PatchTower, nn.Module) and Heads is not None
