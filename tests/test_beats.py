"""BEATs against two transcriptions; its order, padding, files and refusals.

On several devices: `test_scaling`.
"""

import dataclasses
import json
import pickle
from functools import cache

import beats_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beats_reference import SMALL
from test_fbank import sound
from test_torch_files import write_new

from scav_jax.base.errors import InputError
from scav_jax.extract import fbank
from scav_jax.extract.backbones import beats, beats_weights

FULL_WIDTH = dataclasses.replace(beats_weights.ITER3_PLUS, encoder_layers=2)
SAMPLES = [24_000, 2_800, 2_799, 0, 15_001]  # 9, 1, 0, 0 and 5 steps


@cache
def sounds():
    return [sound(count, seed) for seed, count in enumerate(SAMPLES)]


@cache
def checkpoint(config=SMALL, seed=0):
    return beats_weights.random_checkpoint(config, seed)


@cache
def model(config=SMALL, dtype="float32"):
    return beats.Beats(checkpoint(config), dtype, devices=1)


@cache
def features(config=SMALL):
    return model(config).encode(sounds())


def log_mel(waveform):
    steps = beats.step_count(len(waveform))
    return fbank.log_mel(waveform)[: 16 * steps]


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, FULL_WIDTH], ids=["small", "full width"])
def test_equals_numpy(config):
    """Ragged lengths in one batch; the position tables differ from head to head."""
    state = checkpoint(config).state
    for waveform, ours in zip(sounds(), features(config), strict=True):
        steps = beats.step_count(len(waveform))
        assert ours.shape == (steps, 8 * config.encoder_embed_dim)
        assert ours.dtype == np.float32
        if steps:
            theirs = reference.tokens(log_mel(waveform), state, config)
            np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, FULL_WIDTH], ids=["small", "full width"])
def test_equals_torch(config):
    pytest.importorskip("torch")
    state = checkpoint(config).state
    for waveform, ours in zip(sounds(), features(config), strict=True):
        if len(ours):
            theirs = reference.torch_tokens(log_mel(waveform), state, config)
            np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-4)


def equals_numpy(config, state):
    """On the shortest sound of more than one step."""
    made = beats_weights.Checkpoint(config, state)
    ours = beats.Beats(made, devices=1).encode(sounds()[4:])[0]
    theirs = reference.tokens(log_mel(sounds()[4]), state, config)
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-4)


def test_what_other_checkpoints_may_say():
    change = {"conv_pos": 9, "embed_dim": 32, "conv_bias": True, "deep_norm": False}
    config = dataclasses.replace(SMALL, encoder_layers=1, **change)
    equals_numpy(config, beats_weights.random_weights(config, 0))


def test_epsilon_of_the_norms():
    """At weights so small that it counts."""
    config = dataclasses.replace(SMALL, encoder_layers=1)
    state = beats_weights.random_weights(config, 0)
    state["patch_embedding.weight"] *= np.float32(3e-3)
    equals_numpy(config, state)


def test_time_comes_first_then_frequency():
    """Feature `f * width + channel` of step t is channel of token `8 t + f`."""
    waveform, ours = sounds()[0], features()[0]
    tokens = reference.tokens(log_mel(waveform), checkpoint().state, SMALL)
    steps, width = len(ours), SMALL.encoder_embed_dim
    for t in range(steps):
        for f in range(8):
            token = ours[t, f * width : (f + 1) * width]
            np.testing.assert_allclose(token, tokens[8 * t + f], rtol=0, atol=1e-4)
    swapped = tokens.reshape(8, steps, width).transpose(1, 0, 2).reshape(ours.shape)
    assert np.abs(ours - swapped).max() > 0.1


def test_a_patch_is_sixteen_frames_of_sixteen_bins():
    frames, bins = np.meshgrid(np.arange(48), np.arange(128), indexing="ij")
    patches = np.asarray(beats._patches(jnp.asarray(1000 * frames + bins, jnp.float32)[None]))[0]
    assert patches.shape == (3 * 8, 256)
    t, f = 2, 5
    expected = [[1000 * (16 * t + i) + 16 * f + j for j in range(16)] for i in range(16)]
    np.testing.assert_array_equal(patches[8 * t + f], np.ravel(expected))


def test_position_bias_is_the_table_at_the_bucket_of_the_offset():
    table = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    bias = np.asarray(beats._position_bias(jnp.asarray(table), 70, 50))
    assert bias.shape == (3, 70, 70)
    for i in range(70):
        for j in range(70):
            np.testing.assert_array_equal(bias[:, i, j], table[reference.bucket(j - i, 32, 50)])


def test_buckets_are_those_of_beats_code():
    """Which computes them in float32: no offset of a minute's tokens falls on the other side."""
    torch = pytest.importorskip("torch")
    offsets = np.arange(-8 * 376, 8 * 376 + 1)
    for buckets, far in ((320, 800), (320, 1280)):
        half, exact = buckets // 2, buckets // 4
        distance = torch.from_numpy(np.abs(offsets))
        scale = torch.log(distance.float() / exact) / np.log(far / exact)
        large = (exact + (scale * (half - exact)).to(torch.long)).clamp(max=half - 1)
        expected = torch.where(distance < exact, distance, large).numpy() + half * (offsets > 0)
        np.testing.assert_array_equal(beats.offset_buckets(offsets, buckets, far), expected)


def test_bfloat16_is_near():
    rough = model(FULL_WIDTH, "bfloat16").encode(sounds()[:1])[0]
    exact = features(FULL_WIDTH)[0]
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.25
    cosine = np.sum(rough * exact) / np.linalg.norm(rough) / np.linalg.norm(exact)
    assert cosine > 0.9995


# -- size -----------------------------------------------------------------------------------------


def model_shapes(config):
    arguments = (
        jax.ShapeDtypeStruct((1, 16, 128), np.float32),
        jax.ShapeDtypeStruct((1,), "int32"),
    )
    init = beats.BeatsModel(config).init
    return jax.eval_shape(lambda x, n: init(jax.random.key(0), x, n), *arguments)


def test_the_papers_model_has_its_parameters():
    """90,717,055 in the file; the classifier and, folded, the weight norm's 128 gains are left."""
    in_file = sum(
        np.prod(shape) for shape in beats_weights.expected_shapes(beats_weights.ITER3_PLUS).values()
    )
    assert in_file == 90_717_055
    params = model_shapes(beats_weights.ITER3_PLUS)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 90_717_055 - 128 - (768 * 527 + 527)


@pytest.mark.parametrize("change", [{}, {"conv_bias": True}, {"finetuned_model": False}])
def test_every_parameter_of_the_model_comes_from_the_file(change):
    config = dataclasses.replace(SMALL, **change)
    ours = jax.tree.map(
        np.shape, beats_weights.to_params(beats_weights.random_checkpoint(config, 0))
    )
    wanted = jax.tree.map(np.shape, model_shapes(config)["params"])
    assert ours == wanted


def test_ten_seconds_are_62_steps_of_6144():
    assert beats.step_count(160_000) == 62
    shape = jax.eval_shape(
        beats.BeatsModel(beats_weights.ITER3_PLUS).apply,
        model_shapes(beats_weights.ITER3_PLUS),
        jax.ShapeDtypeStruct((2, 62 * 16, 128), np.float32),
        jax.ShapeDtypeStruct((2,), np.int32),
    )
    assert shape.shape == (2, 62, 6144)


# -- padding, batches -----------------------------------------------------------------------------


def test_a_sound_is_the_same_alone_and_beside_longer_ones():
    """Alone in a bucket of 8 steps, and in one of 16 beside a longer one."""
    short, longer = sounds()[4], sounds()[0]
    values = np.full((2, 24_000), np.nan, np.float32)
    values[0], values[1, : len(short)] = longer, short
    mels = beats.log_mel_on_device(
        jnp.asarray(np.pad(values, ((0, 0), (0, beats._samples(16) - 24_000))))
    )
    lengths = jnp.array([beats.step_count(len(longer)), beats.step_count(len(short))])
    run = jax.jit(beats.BeatsModel(SMALL).apply)
    together = np.asarray(run({"params": model()._params}, mels, lengths))
    np.testing.assert_allclose(together[1, :5], features()[4], rtol=0, atol=2e-5)
    np.testing.assert_allclose(together[0, :9], features()[0], rtol=0, atol=2e-5)
    assert (together[1, 5:] == 0).all()


def test_samples_after_the_last_step_do_not_matter():
    waveform = np.concatenate([sounds()[4], sound(500, seed=9)])
    assert beats.step_count(len(waveform)) == beats.step_count(SAMPLES[4])
    np.testing.assert_array_equal(model().encode([waveform])[0], model().encode(sounds()[4:])[0])


def test_many_sounds_come_back_in_order():
    many = [sounds()[0][:count] for count in (2_800, 24_000, 9_000, 12_000, 2_800, 300)]
    together = model().encode(many)
    for waveform, ours in zip(many, together, strict=True):
        np.testing.assert_allclose(ours, model().encode([waveform])[0], rtol=0, atol=2e-5)


def test_batches_have_few_shapes_and_every_sound_once():
    samples = [int(n) for n in np.random.default_rng(0).integers(0, 960_000, 400)]
    for devices in (1, 3):
        batches = list(beats._batches(samples, devices))
        seen = sorted(index for indices, _, _ in batches for index in indices)
        assert seen == [i for i, n in enumerate(samples) if beats.step_count(n)]
        assert len({(steps, rows) for _, steps, rows in batches}) <= 2 * len(beats.STEP_BUCKETS)
        alone = list(beats._batches(samples, devices, each=1))
        assert sorted(index for indices, _, _ in alone for index in indices) == seen
        assert {rows for _, _, rows in alone} == {devices}
        for indices, steps, rows in batches:
            assert max(beats.step_count(samples[i]) for i in indices) <= steps
            assert len(indices) <= rows
            assert rows % devices == 0
            assert rows // devices * steps * 8 <= beats.TOKENS_AT_ONCE
    full = next(beats._batches([160_000] * 100, 1))
    assert (len(full[0]), *full[1:]) == (32, 64, 32)


def test_the_last_bucket_holds_the_longest_sound():
    assert beats.step_count(beats.MAX_SECONDS * fbank.RATE_HZ) <= beats.STEP_BUCKETS[-1]
    for steps in (1, 62):
        assert beats.step_count(beats._samples(steps)) == steps
        assert beats.step_count(beats._samples(steps) - 1) == steps - 1


def test_nothing_in_is_nothing_out():
    assert model().encode([]) == []
    assert model().encode([np.zeros(2_799, np.float32)])[0].shape == (0, 256)


@pytest.mark.parametrize(
    ("waveforms", "words"),
    [
        ([np.zeros(960_001, np.float32)], r"at most 60 s.*got 60\.0 s; cut it into clips"),
        ([np.zeros(10**6, np.float32)], r"at most 60 s.*got 62\.5 s; cut it into clips"),
        ([np.zeros((2, 9), np.float32)], r"mono floats \[samples\].*shape \(2, 9\)"),
        ([np.zeros(9, np.int16)], "got shape .* of int16; divide 16-bit samples by 32768"),
        ([np.full(9, -300.0, np.float32)], r"in \[-1, 1\], got a peak of 300; divide by full"),
        ([np.ones(9, np.float32), np.full(9, np.nan, np.float32)], "sound 1: .*NaN"),
    ],
)
def test_bad_sounds_are_refused(waveforms, words):
    with pytest.raises(InputError, match=words):
        model().encode(waveforms)


def test_bad_dtype_is_refused():
    with pytest.raises(InputError, match="float32 or bfloat16, got float16"):
        beats.Beats(checkpoint(), "float16", 1)


# -- files ----------------------------------------------------------------------------------------

TRAINING_ONLY = {"dropout": 0.1, "encoder_layerdrop": 0.05, "layer_wise_gradient_decay_ratio": 0.6}


def released(state=None, **change):
    """A checkpoint as it was released: every layer has the position table."""
    state = dict(checkpoint().state) if state is None else dict(state)
    for index in range(1, SMALL.encoder_layers):
        table = beats_weights.TABLE
        state.setdefault(table.format(index), state.get(table.format(0), np.zeros((32, 4), "f")))
    return {
        "cfg": {**SMALL.checkpoint_cfg(), **TRAINING_ONLY},
        "model": state,
        "label_dict": {index: f"/m/0{index}" for index in range(5)},  # not read
        **change,
    }


def write_pt(path, content):
    """What torch.save would write, without torch: opcode by opcode."""

    def plain(value):
        return pickle.dumps(value, 2)[2:-1]

    model, storages = b"}", {}
    for number, (name, array) in enumerate(content["model"].items()):
        strides = [stride // array.itemsize for stride in array.strides]
        storages[str(number)] = array.tobytes()
        pid = f"(Vstorage\nctorch\nFloatStorage\nV{number}\nVcpu\nI{array.size}\ntQ"
        shape, strides = ("".join(f"I{n}\n" for n in numbers) for numbers in (array.shape, strides))
        tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({pid}I0\n({shape}t({strides}tI00\n}}tR"
        model += f"V{name}\n{tensor}s".encode()
    rest = {key: value for key, value in content.items() if key != "model"}
    items = b"".join(plain(key) + plain(value) + b"s" for key, value in rest.items())
    write_new(path, b"}" + items + b"Vmodel\n" + model + b"s.", **storages)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beats")
    write_pt(folder / "beats.pt", released())
    beats_weights.convert(folder / "beats.pt", folder / "beats.safetensors")
    return folder


@pytest.mark.parametrize("name", ["beats.pt", "beats.safetensors"])
def test_files_hold_the_same_model(folder, name):
    loaded = beats.load(folder / name, devices=1)
    assert loaded.config == SMALL
    assert loaded.width == 256
    assert loaded.fingerprint() == model().fingerprint()
    np.testing.assert_array_equal(loaded.encode(sounds()[:1])[0], model().encode(sounds()[:1])[0])


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_loaded(tmp_path, new):
    torch = pytest.importorskip("torch")
    content = released()
    content["model"] = {k: torch.from_numpy(v.copy()) for k, v in content["model"].items()}
    torch.save(content, tmp_path / "b.pt", _use_new_zipfile_serialization=new)
    assert beats.load(tmp_path / "b.pt", devices=1).fingerprint() == model().fingerprint()


def test_safetensors_say_what_they_are(folder):
    import safetensors

    with safetensors.safe_open(folder / "beats.safetensors", framework="numpy") as file:
        about = json.loads(file.metadata()["beats"])
        names = set(file.keys())
    assert beats_weights.BeatsConfig.from_checkpoint(about["cfg"]) == SMALL
    assert names == set(beats_weights.expected_shapes(SMALL))


def test_fingerprint_is_of_what_features_depend_on():
    def of(state=None, **change):
        made = dataclasses.replace(checkpoint(), state={**checkpoint().state, **(state or {})})
        return beats.Beats(made, **{"devices": 1, **change}).fingerprint()

    assert json.loads(json.dumps(of())) == of()
    assert of(devices=2) == of()
    assert of({"predictor.bias": np.ones(5, np.float32)})["weights"] == of()["weights"]
    assert of({"layer_norm.bias": np.ones(24, np.float32)})["weights"] != of()["weights"]
    assert of(dtype="bfloat16") != of()


def test_random_weights_are_the_same_everywhere():
    weights = beats_weights.random_weights(SMALL, 0)
    assert weights.keys() == beats_weights.expected_shapes(SMALL).keys()
    assert all(array.dtype == np.float32 for array in weights.values())
    assert weights["encoder.pos_conv.0.weight_g"].shape == (1, 1, 10)
    known = [0.07933779060840607, 0.0220684502273798, -0.04033524915575981]
    np.testing.assert_allclose(weights["encoder.layers.2.fc1.bias"][:3], known, rtol=1e-6)


def test_weight_norm_is_folded_over_the_kernels_last_axis():
    state = checkpoint().state
    kernel = beats_weights.folded_position_kernel(state)
    v, g = state["encoder.pos_conv.0.weight_v"], state["encoder.pos_conv.0.weight_g"]
    assert kernel.shape == (10, 16, 32)
    for k in range(10):
        expected = g[0, 0, k] * v[:, :, k].T / np.sqrt(np.sum(np.square(v[:, :, k])))
        np.testing.assert_allclose(kernel[k], expected, rtol=1e-5)


def without(*names):
    return {name: array for name, array in checkpoint().state.items() if name not in names}


BIAS = "layer_norm.bias"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (without(BIAS), r"the file lacks layer_norm\.bias; is it"),
        (without(*[n for n in checkpoint().state if "fc1" in n]), r"fc1.bias, .* and 2 more; is"),
        ({**checkpoint().state, "extra.weight": np.zeros(3)}, r"has also extra\.weight;"),
        (
            {**checkpoint().state, BIAS: np.zeros(23, "f")},
            r"layer_norm\.bias: expected shape \(24,\), got \(23,\)",
        ),
        ({**checkpoint().state, BIAS: "text"}, "got str"),
        ({**checkpoint().state, BIAS: np.zeros(24, int)}, "floating point numbers, got int64"),
        (
            {**checkpoint().state, beats_weights.TABLE.format(2): np.zeros((32, 4), "f")},
            r"layers\.2\.self_attn\.relative_attention_bias\.weight: expected the same table",
        ),
    ],
)
def test_wrong_tensors_are_refused(state, words):
    content = released(state)
    with pytest.raises(InputError, match=words):
        beats_weights.make_checkpoint(content["cfg"], content["model"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_norm_first": True}, "expected layer_norm_first False, got True"),
        ({"activation_fn": "relu"}, "expected activation_fn 'gelu', got 'relu'"),
        ({"gru_rel_pos": False}, "expected gru_rel_pos True, got False"),
        ({"relative_position_embedding": False}, "expected relative_position_embedding True"),
        ({"input_patch_size": 8}, "expected input_patch_size 16, got 8"),
        ({"encoder_layers": "12"}, "encoder_layers to be a number from 1 to 1,000, got '12'"),
        ({"encoder_layers": 0}, "encoder_layers to be a number from 1 to 1,000, got 0"),
        ({"deep_norm": 1}, "deep_norm to be a bool, got 1"),
        ({"encoder_attention_heads": 5}, "multiple of encoder_attention_heads, got 5"),
        ({"max_distance": 8}, "max_distance above"),
    ],
)
def test_models_that_we_do_not_have_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        beats_weights.BeatsConfig.from_checkpoint({**SMALL.checkpoint_cfg(), **change})


def test_what_a_cfg_leaves_out_has_the_defaults_of_beats_code():
    cfg = {name: expected for name, (expected, _) in beats_weights.ONLY.items()}
    config = beats_weights.BeatsConfig.from_checkpoint(cfg)
    assert (config.max_distance, config.deep_norm, config.finetuned_model) == (1280, False, False)
    with pytest.raises(InputError, match="expected gru_rel_pos True, got False"):
        beats_weights.BeatsConfig.from_checkpoint(
            {k: v for k, v in cfg.items() if k != "gru_rel_pos"}
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {}, "epoch": 1}, r"'cfg' and 'model', got \['epoch', 'model'\]"),
        (released(without(BIAS)), r"b\.pt: .*lacks layer_norm\.bias"),
    ],
)
def test_wrong_checkpoints_are_refused(tmp_path, content, words):
    write_pt(tmp_path / "b.pt", content)
    with pytest.raises(InputError, match=words) as refusal:
        beats.load(tmp_path / "b.pt")
    assert "\n" not in str(refusal.value)


def test_wrong_safetensors_are_refused(folder, tmp_path):
    import safetensors.numpy

    path = tmp_path / "b.safetensors"
    with pytest.raises(InputError, match="expected a safetensors file, got no file of that name"):
        beats.load(path)
    path.write_bytes((folder / "beats.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="got something else or a part of one") as refusal:
        beats.load(path)
    assert "\n" not in str(refusal.value)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}))
    with pytest.raises(InputError, match=r"metadata under 'beats', got none; make the file with"):
        beats.load(path)
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        beats_weights.convert(folder / "beats.pt", tmp_path / "b.pt")
