"""CLIP is transformers' torch model and a transcription in NumPy, and says what does not fit."""

import dataclasses
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_equal_products

from scav_jax.base.errors import InputError
from scav_jax.extract.backbones import clip_model, clip_weights, weights
from scav_jax.extract.backbones.clip_model import Batching, ClipModel
from scav_jax.extract.backbones.clip_towers import (
    ClipConfig,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    read_config,
)
from scav_jax.extract.backbones.clip_weights import random_weights

TOLERANCE = 1e-4  # of features of order one, in float32

# 3 x 3 patches and two columns of pixels that belong to none; an epsilon that matters
VISION = VisionConfig(24, 40, 10, 2, 3, 26, 8, "quick_gelu", 0.03)
TEXT = TextConfig(50, 16, 36, 10, 2, 4, 9, "gelu", 0.02, 7)
SMALL = ClipConfig(VISION, TEXT)
GOLDEN_HASH = "186c83a11e21b29796fe62ddb774f6221b3af912a4dc4eb45b6915087b282fa1"
L14 = VisionConfig(1024, 4096, 768, 24, 16, 224, 14)


@pytest.fixture(scope="module")
def tensors():
    return random_weights(SMALL, seed=3)


def one_device(frames=2, resize=None):
    return Batching(frames, jax.local_devices()[:1], resize)


def small(tensors, batching=None, **options):
    return ClipModel(SMALL, tensors, batching=batching or one_device(), **options)


def pixels_of(random, count, size):
    return random.integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def pictures_of(random, count):
    """Pictures that a tower tells apart: noise in blocks of every size."""
    noise = [
        pixels_of(random, count, 224 // k).repeat(k, axis=1).repeat(k, axis=2) for k in (1, 32)
    ]
    return noise[0] // 4 + noise[1] // 4 * 3


def normalised(crops):
    mean = np.asarray([0.48145466, 0.4578275, 0.40821073])
    std = np.asarray([0.26862954, 0.26130258, 0.27577711])
    return (crops / 255.0 - mean) / std


# ---- the transcription: float64, one picture or text at a time, from the papers' formulas --------


def layer_norm(x, weight, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * weight + bias


def activation(name, x):
    if name == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(x, t, layer, heads, causal):
    """Multi-head attention, one head and one query at a time."""

    def linear(name, y):
        return y @ t[f"{layer}.self_attn.{name}.weight"].T + t[f"{layer}.self_attn.{name}.bias"]

    q, k, v = (linear(f"{n}_proj", x) for n in "qkv")
    width = x.shape[-1] // heads
    out = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            seen = i + 1 if causal else len(x)
            logits = np.asarray([q[i, part] @ k[j, part] for j in range(seen)]) / math.sqrt(width)
            weight = np.exp(logits - logits.max())
            out[i, part] = (weight / weight.sum()) @ v[:seen, part]
    return linear("out_proj", out)


def transformer(x, t, config, causal):
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layers.{index}"

        def norm(name, y, layer=layer):
            weight, bias = t[f"{layer}.{name}.weight"], t[f"{layer}.{name}.bias"]
            return layer_norm(y, weight, bias, config.layer_norm_eps)

        x = x + attend(norm("layer_norm1", x), t, layer, config.num_attention_heads, causal)
        y = norm("layer_norm2", x) @ t[f"{layer}.mlp.fc1.weight"].T + t[f"{layer}.mlp.fc1.bias"]
        y = activation(config.hidden_act, y)
        x = x + y @ t[f"{layer}.mlp.fc2.weight"].T + t[f"{layer}.mlp.fc2.bias"]
    return x


def vision_reference(crop, tensors, config):
    """(pooled, projected) of one picture."""
    t = {n.removeprefix("vision_model."): x.astype(np.float64) for n, x in tensors.items()}
    picture, side = normalised(crop), config.patch_size
    steps = [t["embeddings.class_embedding"]]
    for row in range(config.image_size // side):
        for column in range(config.image_size // side):
            patch = picture[row * side : (row + 1) * side, column * side : (column + 1) * side]
            kernel = t["embeddings.patch_embedding.weight"]  # [out, channel, row, column]
            steps.append(np.einsum("ocyx,yxc->o", kernel, patch))
    x = np.stack(steps) + t["embeddings.position_embedding.weight"]
    x = layer_norm(x, t["pre_layrnorm.weight"], t["pre_layrnorm.bias"], config.layer_norm_eps)
    x = transformer(x, t, config, causal=False)[0]
    x = layer_norm(x, t["post_layernorm.weight"], t["post_layernorm.bias"], config.layer_norm_eps)
    return x, t["visual_projection.weight"] @ x


def text_reference(ids, position, tensors, config):
    """(pooled, projected) of one text, pooled at `position`."""
    t = {n.removeprefix("text_model."): x.astype(np.float64) for n, x in tensors.items()}
    x = t["embeddings.token_embedding.weight"][ids]
    x = x + t["embeddings.position_embedding.weight"][: len(ids)]
    x = transformer(x, t, config, causal=True)[position]
    weight, bias = t["final_layer_norm.weight"], t["final_layer_norm.bias"]
    x = layer_norm(x, weight, bias, config.layer_norm_eps)
    return x, t["text_projection.weight"] @ x


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_vision_tower_is_its_transcription(random, tensors, hidden_act):
    config = dataclasses.replace(VISION, hidden_act=hidden_act)
    crops = pixels_of(random, 3, 26)
    expected = [vision_reference(crop, tensors, config) for crop in crops]
    for output, rows in zip(clip_model.OUTPUTS, zip(*expected, strict=True), strict=True):
        model = ClipModel(ClipConfig(config, TEXT), tensors, output=output, batching=Batching(2))
        found = model.encode_crops(crops)
        assert found.dtype == np.float32 and found.shape == (3, model.visual_width)
        np.testing.assert_allclose(found, np.stack(rows), rtol=0, atol=2e-5)


# a text, where it ends under either rule
ROWS = [([1, 5, 40, 7, 7, 7], 3), ([1, 7, 3, 7, 9, 8], 1), ([2, 3, 4, 5, 6, 7], 5)]
LEGACY_ROWS = [([1, 5, 40, 7, 7, 7], 2), ([1, 2, 3, 49, 49, 8], 3)]


@pytest.mark.parametrize("eos, rows", [(7, ROWS), (2, LEGACY_ROWS)])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_text_tower_is_its_transcription(tensors, hidden_act, eos, rows):
    config = dataclasses.replace(TEXT, hidden_act=hidden_act, eos_token_id=eos)
    expected = [text_reference(np.asarray(i), end, tensors, config) for i, end in rows]
    for output, features in zip(clip_model.OUTPUTS, zip(*expected, strict=True), strict=True):
        model = ClipModel(ClipConfig(VISION, config), tensors, output=output, batching=Batching(1))
        found = model.encode_ids(np.asarray([ids for ids, _ in rows], np.int32))
        assert found.dtype == np.float32 and found.shape == (len(rows), model.text_width)
        np.testing.assert_allclose(found, np.stack(features), rtol=0, atol=2e-5)


# ---- transformers' torch model -------------------------------------------------------------------


def torch_model(kind, config, tensors, prefix=""):
    """transformers' model of that kind with our tensors, every one of its own loaded."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        fields = dataclasses.asdict(config)
        if kind.startswith("CLIPText"):
            fields |= {"bos_token_id": 0, "pad_token_id": 1}
            model = getattr(transformers, kind)(transformers.CLIPTextConfig(**fields))
        else:
            model = getattr(transformers, kind)(transformers.CLIPVisionConfig(**fields))
    state = {n.removeprefix(prefix): torch.from_numpy(x) for n, x in tensors.items()}
    model.load_state_dict({n: x for n, x in state.items() if n in model.state_dict()})
    assert set(model.state_dict()) <= set(state)
    return model.eval()


def compare_vision(config, crops, seed, outputs):
    torch = pytest.importorskip("torch")
    tensors = random_weights(ClipConfig(vision=config), seed)
    model = torch_model("CLIPVisionModelWithProjection", config, tensors)
    pixels = torch.from_numpy(normalised(crops).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = model(pixels)
    pooled = model.vision_model(pixels).pooler_output.detach().numpy()
    assert np.abs(pooled).mean() > 0.3 and pooled.std(axis=0).mean() > 0.1  # no collapse
    expected = {"pooled": pooled, "projected": found.image_embeds.numpy()}
    for output in outputs:
        ours = ClipModel(ClipConfig(vision=config), tensors, output=output, batching=one_device())
        assert np.abs(ours.encode_crops(crops) - expected[output]).max() <= TOLERANCE


def test_b32_is_torch(random):
    compare_vision(VisionConfig(), pictures_of(random, 2), seed=1, outputs=["pooled"])


def test_l14_is_torch(random):
    config = dataclasses.replace(L14, num_hidden_layers=2, hidden_act="gelu")
    compare_vision(config, pictures_of(random, 2), seed=2, outputs=clip_model.OUTPUTS)


@pytest.mark.slow
def test_l14_in_full_depth_is_torch(random):
    compare_vision(L14, pictures_of(random, 2), seed=3, outputs=clip_model.OUTPUTS)


def compare_text(config, ids):
    torch = pytest.importorskip("torch")
    tensors = random_weights(ClipConfig(text=config), seed=4)
    model = torch_model("CLIPTextModelWithProjection", config, tensors)
    with torch.no_grad():
        found = model(torch.from_numpy(ids.astype(np.int64)))
        pooled = model.text_model(torch.from_numpy(ids.astype(np.int64))).pooler_output.numpy()
    assert np.abs(pooled).mean() > 0.3 and pooled.std(axis=0).mean() > 0.1
    for output, expected in (("pooled", pooled), ("projected", found.text_embeds.numpy())):
        ours = ClipModel(ClipConfig(text=config), tensors, output=output, batching=one_device())
        assert np.abs(ours.encode_ids(ids) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("eos", [2, 49407])
def test_text_of_b32_is_torch(random, eos):
    ids = random.integers(3, 49407, (2, 20)).astype(np.int32)
    ids[0, 12:] = 49407  # which fills up, too
    ids[1, -1] = 49407
    config = TextConfig(num_hidden_layers=3, eos_token_id=eos)
    compare_text(config, ids)


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_directories_that_transformers_writes(random, tensors, tmp_path, kind):
    """Their names, their prefixes, their config.json."""
    torch = pytest.importorskip("torch")
    if kind == "CLIPModel":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
        vision, text = (dataclasses.asdict(config) for config in (VISION, TEXT))
        text |= {"bos_token_id": 0, "pad_token_id": 1}
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=10)
        model = transformers.CLIPModel(config).eval()
    else:
        model = torch_model(kind, VISION, tensors, "vision_model." * (kind == "CLIPVisionModel"))
    model.save_pretrained(tmp_path)
    ours = clip_model.load(tmp_path, batching=Batching(3))
    assert ours.config.vision == VISION
    crops = pixels_of(random, 2, 26)
    pixels = torch.from_numpy(normalised(crops).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        tower = getattr(model, "vision_model", model)
        expected = tower(pixels).pooler_output.numpy()
    np.testing.assert_allclose(ours.encode_crops(crops), expected, rtol=0, atol=2e-5)
    if kind == "CLIPModel":
        ids = np.asarray([row for row, _ in ROWS], np.int32)
        with torch.no_grad():
            expected = model.get_text_features(torch.from_numpy(ids.astype(np.int64)))
        projected = clip_model.load(tmp_path, output="projected", batching=one_device())
        expected = expected.pooler_output.numpy()
        np.testing.assert_allclose(projected.encode_ids(ids), expected, rtol=0, atol=2e-5)


# ---- tensors -------------------------------------------------------------------------------------


def test_every_tensor_is_used(random, tensors):
    """Changing any one changes the features; a key's bias shifts logits alike: softmax drops it."""
    crops = pixels_of(random, 1, 26)
    ids = np.asarray([[1, 5, 40, 6, 9, 11, 12, 13, 7]], np.int32)  # every position counts
    inputs = {"vision": (normalised(crops).astype(np.float32),), "text": (ids,)}
    kinds = {"vision": (VisionTower, VISION), "text": (TextTower, TEXT)}
    for tower, (kind, config) in kinds.items():
        apply = jax.jit(kind(config, project=True).apply)

        def features(arrays, tower=tower, config=config, apply=apply):
            chosen = clip_weights.select(arrays, SMALL, tower, True, "test")
            params = clip_weights.parameters(chosen, config)
            return params, np.asarray(apply({"params": params}, *inputs[tower]))

        params, before = features(tensors)
        for name in clip_weights.select(tensors, SMALL, tower, True, "test"):
            full = name if name in tensors else clip_weights.PREFIXES[tower] + name
            array = tensors[full].copy()
            if full.endswith("token_embedding.weight"):
                array[ids[0]] += 0.3
            array.flat[:: max(1, array.shape[-1] - 1)] += 0.3
            changed_params, after = features({**tensors, full: array})
            leaves = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, changed_params)
            assert sum(jax.tree.leaves(leaves)) == 1, name
            difference = np.abs(after - before).max()
            if name.endswith("k_proj.bias"):
                assert difference < 1e-5, name
            else:
                assert difference > 1e-4, name


def test_every_row_of_positions_and_channel_of_patches_is_read_in_its_place(random, tensors):
    """One changed pixel reads one row of the kernel: not its neighbour, mirrored or transposed."""
    chosen = clip_weights.select(tensors, SMALL, "vision", False, "test")
    kernel = clip_weights.parameters(chosen, VISION)["patch_embedding"]["kernel"]
    original = tensors["vision_model.embeddings.patch_embedding.weight"]
    for row, column, channel in ((0, 0, 0), (1, 5, 2), (7, 3, 1)):
        np.testing.assert_array_equal(
            kernel[(row * 8 + column) * 3 + channel], original[:, channel, row, column]
        )


def test_random_weights_stay_what_they_were(tensors):
    """Self-checks compare with stored numbers, so these may not change with NumPy or with us."""
    assert weights.sha256(tensors) == GOLDEN_HASH
    again = random_weights(SMALL, seed=3)
    assert all(np.array_equal(again[name], x) for name, x in tensors.items())
    alone = random_weights(ClipConfig(vision=VISION), seed=3)
    assert all(np.array_equal(tensors[name], x) for name, x in alone.items())
    other = random_weights(SMALL, seed=4)
    assert not any(np.array_equal(other[name], x) for name, x in tensors.items())
    values = random_weights(ClipConfig(vision=VisionConfig(num_hidden_layers=1)))
    spread = values["vision_model.encoder.layers.0.mlp.fc2.weight"].std()
    assert abs(spread * math.sqrt(3072) - 1) < 0.01


def test_half_precision_files_are_read(random, tensors):
    crops = pixels_of(random, 2, 26)
    expected = small(tensors).encode_crops(crops)
    for dtype in (np.float16, jnp.bfloat16):
        halves = {name: x.astype(dtype) for name, x in tensors.items()}
        found = small(halves).encode_crops(crops)
        assert 0 < np.abs(found - expected).max() < 0.1
        whole = {name: x.astype(np.float32) for name, x in halves.items()}
        np.testing.assert_array_equal(found, small(whole).encode_crops(crops))


def test_tensors_that_do_not_fit_are_named(tensors):
    lost = {name: x for name, x in tensors.items() if "layers.1.mlp.fc1" not in name}
    with pytest.raises(InputError, match=r"2 missing \(vision_model.*fc1\.weight.*0 unknown"):
        small(lost)
    with pytest.raises(InputError, match=r"0 missing \(none\) and 1 unknown \(vision_model\.q\)"):
        small({**tensors, "vision_model.q": np.ones(1)})
    name = "vision_model.post_layernorm.weight"
    with pytest.raises(InputError, match=rf"{name}: expected shape \[24\] .* got \[25\]"):
        small({**tensors, name: np.ones(25, np.float32)})
    with pytest.raises(InputError, match=r"expected numbers, got int32"):
        small({**tensors, name: np.ones(24, np.int32)})
    with pytest.raises(InputError, match=r"1 missing \(visual_projection\.weight\)"):
        projectionless = {n: x for n, x in tensors.items() if n != "visual_projection.weight"}
        small(projectionless, output="projected")
    small(projectionless)  # which pooled features do not need
    buffers = {"logit_scale": np.ones(()), "text_model.embeddings.position_ids": np.ones((1, 9))}
    small({**tensors, **buffers})


def test_a_bare_tower_may_lack_the_prefix(random, tensors):
    crops = pixels_of(random, 2, 26)
    expected = small(tensors).encode_crops(crops)
    only = {n: x for n, x in tensors.items() if n.startswith("vision_model.")}
    bare = {name.removeprefix("vision_model."): x for name, x in only.items()}
    for arrays in (only, bare):
        model = ClipModel(ClipConfig(vision=VISION), arrays, batching=one_device())
        np.testing.assert_array_equal(model.encode_crops(crops), expected)
        assert model.fingerprint() == small(tensors).fingerprint()
    with pytest.raises(InputError, match="expected a model with a text tower, got one without"):
        model.encode_texts(["a dog"])


# ---- configurations ------------------------------------------------------------------------------


def test_what_config_files_leave_out_is_transformers_default():
    assert read_config({"model_type": "clip"}) == ClipConfig(VisionConfig(), TextConfig())
    assert read_config({"model_type": "clip_vision_model"}) == ClipConfig(VisionConfig())
    assert read_config({"model_type": "clip_text_model"}) == ClipConfig(text=TextConfig())
    warnings.simplefilter("ignore")
    from transformers import CLIPTextConfig, CLIPVisionConfig

    for ours, theirs in ((VisionConfig(), CLIPVisionConfig()), (TextConfig(), CLIPTextConfig())):
        for name, value in dataclasses.asdict(ours).items():
            assert getattr(theirs, name) == value, name


def test_one_projection_width_serves_both_towers(tmp_path):
    """As in released files: the towers' own is a left-over."""
    content = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14},
        "text_config": {"projection_dim": 512, "eos_token_id": 2, "hidden_act": "gelu"},
        "vision_config_dict": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_config(tmp_path)
    assert config.vision == VisionConfig(1024, 3072, 768, 12, 16, 224, 14)
    assert config.text == TextConfig(projection_dim=768, eos_token_id=2, hidden_act="gelu")
    content["vision_config_dict"] = {"hidden_size": 1024, "num_attention_heads": 8}
    content["vision_config"]["image_size"] = 336
    assert read_config(content).vision == VisionConfig(1024, 3072, 768, 12, 8, 224, 32)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"model_type": "siglip"}, "model_type: expected clip, .* got 'siglip'"),
        ({}, "model_type: expected clip, .* got None"),
        (
            {"hidden_act": "relu"},
            r"hidden_act: expected one of \['gelu', 'quick_gelu'\], got 'relu'",
        ),
        ({"hidden_size": "768"}, "hidden_size: expected a positive number, got '768'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive number, got 0"),
        ({"patch_size": 14.5}, "patch_size: expected a positive number, got 14.5"),
        ({"image_size": [224, 336]}, r"image_size: expected one number, got \[224, 336\]"),
        ({"hidden_size": 100}, "divisible by num_attention_heads, got 100 and 12"),
        ({"num_channels": 4}, "num_channels: expected 3, got 4"),
        ({"patch_size": 300}, "patch_size up to image_size, got 300 and 224"),
    ],
)
def test_configurations_without_meaning_are_named(content, words):
    if content and "model_type" not in content:
        content = {"model_type": "clip_vision_model", **content}
    with pytest.raises(InputError, match=words):
        read_config(content)


def test_a_directory_without_config_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"config\.json: expected CLIP's configuration, got no such file"
    ):
        clip_model.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"config\.json: expected CLIP's configuration as a JSON object, got \[\]"
    ):
        clip_model.load(tmp_path)


def test_options_are_checked(tensors):
    for option, value, given in (
        ("dtype", "float16", {"dtype": "float16"}),
        ("output", "mean", {"output": "mean"}),
        ("resize", "opencv", {"batching": one_device(resize="opencv")}),
    ):
        with pytest.raises(InputError, match=f"{option}: expected one of .* got '{value}'"):
            small(tensors, **given)
    other = clip_model.clip_pixels.Preprocessing(30, (30, 30))
    with pytest.raises(InputError, match=r"crop_size .* to equal image_size 26 .* \[30, 30\]"):
        small(tensors, preprocessing=other)


# ---- frames of many clips ------------------------------------------------------------------------


def test_frames_do_not_depend_on_each_other(random, tensors):
    frames = random.integers(0, 256, (7, 31, 45, 3)).astype(np.uint8)
    model = small(tensors, one_device(3))
    together = model.encode_images(frames)
    assert together.shape == (7, 24) and np.abs(together[0] - together[1]).max() > 0.01
    for index, frame in enumerate(frames):
        alone = model.encode_images(frame[None])
        np.testing.assert_allclose(alone[0], together[index], rtol=0, atol=1e-6)
    assert model.encode_images(frames[:0]).shape == (0, 24)
    assert model.crop(frames[:0]).shape == (0, 26, 26, 3)


def test_crops_of_clips_of_many_sizes_share_a_call(random, tensors):
    model = small(tensors, one_device(4))
    clips = [
        random.integers(0, 256, (n, height, width, 3)).astype(np.uint8)
        for n, height, width in ((3, 30, 40), (5, 47, 29), (1, 26, 26))
    ]
    expected = np.concatenate([model.encode_images(frames) for frames in clips])
    crops = np.concatenate([model.crop(frames) for frames in clips])
    np.testing.assert_allclose(model.encode_crops(crops), expected, rtol=0, atol=1e-6)


def test_resizing_on_the_device_gives_the_same_features(random, tensors):
    frames = random.integers(0, 256, (5, 37, 52, 3)).astype(np.uint8)
    host, device = (small(tensors, one_device(resize=resize)) for resize in ("pil", "device"))
    np.testing.assert_array_equal(host.crop(frames), device.crop(frames))
    assert_equal_products(host.encode_images(frames), device.encode_images(frames))
    assert host.fingerprint() == device.fingerprint()


def test_eight_devices_have_the_weights_and_a_share_of_a_batch_each(tensors):
    """That they compute what one does: test_scaling."""
    eight = small(tensors, Batching(2))  # all
    assert (small(tensors).batch, eight.batch) == (2, 16)
    kernel = eight._encoder("vision").args[-1]["patch_embedding"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and kernel.sharding.is_fully_replicated


def test_bfloat16_is_near(random, tensors):
    crops = pixels_of(random, 4, 26)
    exact = small(tensors).encode_crops(crops)
    rough = small(tensors, dtype="bfloat16").encode_crops(crops)
    assert rough.dtype == np.float32
    assert 1e-4 < np.abs(rough - exact).max() < 0.05
    norms = np.linalg.norm(rough, axis=1) * np.linalg.norm(exact, axis=1)
    assert ((rough * exact).sum(axis=1) / norms).min() > 0.9995


def test_frames_of_another_kind_are_named(tensors):
    model = small(tensors)
    with pytest.raises(InputError, match=r"crops: expected uint8 \[N, 26, 26, 3\], got .*28"):
        model.encode_crops(np.zeros((1, 28, 28, 3), np.uint8))
    with pytest.raises(InputError, match=r"frames: expected uint8 RGB .* \[1, 0, 9, 3\]"):
        model.encode_images(np.zeros((1, 0, 9, 3), np.uint8))


def test_a_pillow_that_resizes_differently_is_noticed(monkeypatch, random, tensors):
    clip_model._check_pil.cache_clear()
    original = clip_model.clip_pixels.resize_crop_pil
    monkeypatch.setattr(clip_model.clip_pixels, "resize_crop_pil", lambda *a: original(*a) ^ 1)
    with pytest.raises(InputError, match="expected Pillow to resize with 22-bit weights"):
        small(tensors, one_device(resize="pil")).encode_images(np.zeros((1, 30, 30, 3), np.uint8))


# ---- texts ---------------------------------------------------------------------------------------


@pytest.fixture
def directory(tensors, tmp_path):
    """A model as it lies on the hub, with a tokenizer that knows a, b, ab and the two marks."""
    content = {
        "model_type": "clip",
        "projection_dim": 10,
        "vision_config": dataclasses.asdict(VISION),
        "text_config": dataclasses.asdict(TEXT),
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    assert vocabulary["<|endoftext|>"] == TEXT.eos_token_id
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    weights.write(tmp_path / weights.FILE, tensors)
    return tmp_path


def test_texts_are_tokenized_and_padding_changes_nothing(directory):
    model = clip_model.load(directory, batching=one_device())
    texts = ["ab a", "B", "a b c a b c a b c a b c"]
    found = model.encode_texts(texts)
    ids = [[6, 4, 2, 7], [6, 3, 7], [6, 2, 3, 5, 2, 3, 5, 2, 7]]  # the last is cut to 9
    for row, expected in zip(found, ids, strict=True):
        (alone,) = model.encode_ids(np.asarray([expected], np.int32))
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-6)
        for filling in (0, 5, 7):
            padded = np.full((1, 9), filling, np.int32)
            padded[0, : len(expected)] = expected
            assert_equal_products(model.encode_ids(padded)[0], alone)
    np.testing.assert_allclose(model.encode_texts(["b"])[0], found[1], rtol=0, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert model.encode_texts([]).shape == (0, 16)


def test_texts_that_do_not_fit_are_named(directory):
    model = clip_model.load(directory, batching=one_device())
    for ids, words in (
        ([[1] * 10], r"ids: expected \[N, 1\.\.9\], got \[1, 10\]"),
        ([[50, 7]], "ids: expected 0 to 49, got 7 to 50"),
        ([[3, 7], [3, 4]], "expected the EOS 7 in every row, got none in row 1"),
    ):
        with pytest.raises(InputError, match=words):
            model.encode_ids(np.asarray(ids, np.int32))
    (directory / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"expected tokenizer\.json, or vocab\.json and merges"):
        model.encode_texts(["a"])


# ---- what features depend on ---------------------------------------------------------------------


def test_fingerprint_is_what_features_depend_on(directory, tensors):
    model = clip_model.load(directory, batching=one_device())
    found = model.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["config"] == dataclasses.asdict(VISION)
    assert (found["output"], found["dtype"]) == ("pooled", "float32")
    assert found["preprocessing"]["crop"] == [26, 26]
    text_only = {n: x + np.float32(n.startswith("text")) for n, x in tensors.items()}
    assert small(text_only).fingerprint() == found == small(tensors).fingerprint()
    name = "vision_model.encoder.layers.1.mlp.fc2.bias"
    changed = {**tensors, name: np.nextafter(tensors[name], np.float32(9))}
    preprocessing = clip_model.clip_pixels.Preprocessing(30, (26, 26))
    different = [
        found,
        small(changed).fingerprint(),
        small(tensors, dtype="bfloat16").fingerprint(),
        small(tensors, output="projected").fingerprint(),
        small(tensors, preprocessing=preprocessing).fingerprint(),
        model.fingerprint("text"),
    ]
    assert len({json.dumps(x, sort_keys=True) for x in different}) == len(different)


def test_preprocessor_config_is_read(directory, random):
    frames = random.integers(0, 256, (2, 50, 60, 3)).astype(np.uint8)
    plain = clip_model.load(directory, batching=one_device())
    content = {"size": {"shortest_edge": 40}, "crop_size": 26, "image_mean": [0, 0, 0.5]}
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    other = clip_model.load(directory, batching=one_device())
    assert other.preprocessing.mean == (0.0, 0.0, 0.5)
    expected = clip_model.clip_pixels.resize_crop_pil(frames, other.preprocessing)
    np.testing.assert_array_equal(other.crop(frames), expected)
    assert np.abs(other.encode_images(frames) - plain.encode_images(frames)).max() > 0.01
