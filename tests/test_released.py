"""Released weights of EquiAV and CAV-MAE: made files of their layout, and their formulas in NumPy.

The real files could not be had. The forward passes here read the tensors as torch lays them out.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unchecked
from safetensors.numpy import save_file
from test_equivariant import attention, gelu, sines

from scav_jax.base.errors import InputError
from scav_jax.export.weights import __main__ as program
from scav_jax.export.weights.released import convert
from scav_jax.objectives.equivariant import bank
from scav_jax.retrieval import model
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.train_step import bound_heads

WIDTH, HEADS, SIDE, FRAMES = 16, 2, 32, 32
LETTERS = {"visual": "v", "audio": "a"}


def linear(inputs, outputs, bias=True):
    return {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {})


def norm(width):
    return {"weight": (width,), "bias": (width,)}


def block(norms):
    layers = {
        "attn.qkv": linear(WIDTH, 3 * WIDTH),
        "attn.proj": linear(WIDTH, WIDTH),
        "mlp.fc1": linear(WIDTH, 24),
        "mlp.fc2": linear(24, WIDTH),
    }
    return layers | {f"norm{k}{m}": norm(WIDTH) for k in (1, 2) for m in norms}


def positions(rows, columns):
    places = [sines(c, WIDTH) + sines(r, WIDTH) for r in range(rows) for c in range(columns)]
    return np.array(places, np.float32)[None]


def state_of(system, seed=0):
    """Random tensors under the released names."""
    layers, norms, joint = {}, ("", "_a", "_v"), system == "cav_mae"
    for letter in "av":
        channels = 1 if joint and letter == "a" else 3
        layers[f"patch_embed_{letter}.proj"] = {"weight": (WIDTH, channels, 16, 16),
                                                "bias": (WIDTH,)}  # fmt: skip
        layers[f"norm_{letter}"] = norm(WIDTH)
        layers |= {f"blocks_{letter}.0.{n}": s for n, s in block(norms).items()}
        if joint:
            continue
        layers[f"norm_{letter}_aug"] = norm(WIDTH)
        size = {"a": 24, "v": 18}[letter]
        layers |= {
            f"aug_encoder_{letter}.{k}": linear(s, 6) for k, s in ((0, size), (2, 6), (4, 6))
        }
        cross = f"cross_attn_{letter}."
        layers[cross + "attn.to_q"] = linear(6, 512)
        layers |= {cross + f"attn.to_{n}": linear(WIDTH, 512) for n in "kv"}
        layers[cross + "attn.to_out"] = linear(512, WIDTH, bias=False)
        layers |= {cross + "norm_aug": norm(6), cross + "norm": norm(WIDTH)}
        layers |= {cross + "mlp.fc1": linear(WIDTH, 64), cross + "mlp.fc2": linear(64, WIDTH)}
        for kind in ("intra", "inter"):
            for k, (i, o) in enumerate(((WIDTH, 12), (12, 12), (12, 5)), start=1):
                layers[f"pred_{letter}_{kind}.fc{k}"] = linear(i, o)
                layers[f"pred_{letter}_{kind}.norm{k}"] = norm(o)
    if joint:
        layers |= {f"blocks_u.0.{n}": s for n, s in block(norms).items()}
        layers |= {"norm": norm(WIDTH), "decoder_embed": linear(WIDTH, 8)}
        layers |= {"decoder_blocks.0.mlp.fc1": linear(8, 8)}
    rng = np.random.default_rng(seed)
    state = {
        f"{name}.{part}": rng.normal(0, 0.4, shape).astype(np.float32)
        for name, parts in layers.items()
        for part, shape in parts.items()
    }
    for letter, grid in (("v", (2, 2)), ("a", (8, 2))):
        state[f"pos_embed_{letter}"] = positions(*grid)
        state[f"modality_{letter}"] = rng.normal(size=(1, 1, WIDTH)).astype(np.float32)
    if joint:
        state["mask_token"] = np.zeros((1, 1, 8), np.float32)
    return state


def written(tmp_path, state, prefix="module."):
    path = tmp_path / "weights.safetensors"
    save_file({prefix + name: values for name, values in state.items()}, path)
    return path


# ---- their formulas ------------------------------------------------------------------------------


class Released:
    """A forward pass in NumPy, of one clip."""

    def __init__(self, state):
        self.state = {name: values.astype(np.float64) for name, values in state.items()}

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def block(self, x, name, norms=""):
        q, k, v = np.split(
            self.linear(self.norm(x, f"{name}.norm1{norms}"), f"{name}.attn.qkv"), 3, 1
        )
        x = x + self.linear(attention(q, k, v, HEADS), f"{name}.attn.proj")
        hidden = self.linear(self.norm(x, f"{name}.norm2{norms}"), f"{name}.mlp.fc1")
        return x + self.linear(np.stack([gelu(row) for row in hidden]), f"{name}.mlp.fc2")

    def tokens(self, image, letter):
        """`[channels, rows, columns]` -> tokens before the last norm."""
        weight = self.state[f"patch_embed_{letter}.proj.weight"]
        flat = [
            image[: weight.shape[1], r : r + 16, c : c + 16].reshape(-1)
            for r in range(0, image.shape[1], 16)
            for c in range(0, image.shape[2], 16)
        ]
        x = np.stack(flat) @ weight.reshape(WIDTH, -1).T
        x = x + self.state[f"patch_embed_{letter}.proj.bias"]
        x = x + self.state[f"pos_embed_{letter}"][0] + self.state[f"modality_{letter}"][0]
        return self.block(x, f"blocks_{letter}.0")

    def equiav(self, image, letter, codes):
        h = self.norm(self.tokens(image, letter), f"norm_{letter}")
        for number in (0, 2, 4):
            codes = self.linear(codes, f"aug_encoder_{letter}.{number}")
            codes = codes / (1 + np.exp(-1.702 * codes)) if number < 4 else codes
        cross = f"cross_attn_{letter}"
        q = self.linear(self.norm(codes, f"{cross}.norm_aug"), f"{cross}.attn.to_q")
        k, v = (self.linear(h, f"{cross}.attn.to_{n}") for n in "kv")
        e = h.mean(0) + self.linear(attention(q, k, v, 8), f"{cross}.attn.to_out")
        hidden = self.linear(self.norm(e, f"{cross}.norm"), f"{cross}.mlp.fc1")
        x = (e + self.linear(np.stack([gelu(row) for row in hidden]), f"{cross}.mlp.fc2")).mean(0)
        for number in (1, 2, 3):
            name = f"pred_{letter}_inter"
            x = self.norm(self.linear(x, f"{name}.fc{number}"), f"{name}.norm{number}")
            x = np.maximum(x, 0) if number < 3 else x
        return x

    def cav_mae(self, image, letter, codes):
        x = self.block(self.tokens(image, letter), "blocks_u.0", f"_{letter}")
        return self.norm(x, f"norm_{letter}").mean(0)


@pytest.mark.parametrize("system", ["equiav", "cav_mae"])
def test_a_released_model_embeds_as_its_own_code(system, tmp_path):
    state = state_of(system)
    run, unused = convert(written(tmp_path, state), system, heads=HEADS)
    rng = np.random.default_rng(1)
    picture, frames = rng.normal(size=(3, SIDE, SIDE)), rng.normal(size=(FRAMES, 128))
    images = {"visual": picture, "audio": np.repeat(frames.T[None], 3, axis=0)}
    steps = picture.transpose(1, 2, 0).reshape(1, 1, -1), frames.reshape(1, FRAMES // 16, -1)
    shown = AudioVisual(*(sequences(jnp.asarray(x, jnp.float32)) for x in steps))

    @jax.jit
    def embeddings(params):
        latents = run.encoders.apply({"params": params["encoders"]}, shown)
        heads = bound_heads(run.encoders, run.objective, params)
        return [run.objective.embed(heads, s, getattr(latents, s))[0] for s in LETTERS]

    for (stream, letter), found in zip(LETTERS.items(), embeddings(run.params), strict=True):
        codes = None
        if system == "equiav":
            codes = np.asarray(bank(run.objective, stream), np.float64)
        expected = getattr(Released(state), system)(images[stream], letter, codes)
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=stream)
    never = 2 * 4 * 2 * WIDTH
    assert unused["norms that the code never uses"] == never
    if system == "cav_mae":
        decoder = sum(v.size for n, v in state.items() if n.startswith(("decoder", "mask")))
        assert unused["the decoder, for reconstruction"] == decoder


def test_what_is_not_the_systems_is_refused_by_name(tmp_path):
    state = state_of("equiav")
    flipped = {name.replace("norm_a_aug", "norm_aug_a"): v for name, v in state.items()}
    cases = [
        (flipped, "expected a tensor 'norm_a_aug.weight', got none"),
        (
            state | {"extra.bias": np.zeros(3, np.float32)},
            r"expected no other tensors.*extra\.bias",
        ),
        (state | {"pos_embed_v": state["pos_embed_v"] + 0.1}, "expected the fixed sine-cosine"),
        (state | {"norm_v.weight": np.zeros(7, np.float32)}, "layers, .*norm_visual.* differ"),
        (state_of("cav_mae"), "expected a tensor 'pred_v_intra.fc1.weight', got none"),
        ({n: v for n, v in state.items() if "blocks_a" not in n}, r"blocks_a\.0.*got none"),
        (state | {"modality_v": np.ones(3, np.float32)}, r"modality_v: .* shape than \[3\]"),
        (state | {"pos_embed_v": np.zeros((1, 0, 8), np.float32)}, r"than \[1, 0, 8\]"),
        (state | {"cross_attn_a.attn.to_q.weight": np.zeros((65, 6), np.float32)}, "another shape"),
        (state | {"norm_v.bias": np.full(WIDTH, np.nan, np.float32)}, "'norm_v.bias' has NaN"),
        (state | {"module.norm_v.bias": state["norm_v.bias"]}, "'norm_v.bias' under two names"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message):
            convert(written(tmp_path, wrong), "equiav", heads=HEADS)
    with pytest.raises(InputError, match=r"--heads: .* divides the width of 16, got 5"):
        convert(written(tmp_path, state), "equiav", heads=5)
    with pytest.raises(InputError, match="--from: expected one of equiav, cav_mae, got 'equi'"):
        convert(tmp_path / "x.pth", "equi")
    evil = tmp_path / "evil.pth"
    evil.write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(InputError, match=r"evil\.pth"):
        convert(evil, "equiav")
    with pytest.raises(InputError, match=r"none\.pth: expected a \.pt or \.pth file, got none"):
        convert(tmp_path / "none.pth", "equiav")


@pytest.mark.slow
def test_the_program_writes_what_loads(tmp_path, capsys):
    path = written(tmp_path, state_of("equiav"), prefix="__M__.")
    words = ["--from", "equiav", str(path), "--out", str(tmp_path / "out"), "--heads", str(HEADS)]
    with unchecked():  # sizes of exported towers are symbols
        assert program.main(words) == 0
    assert "left out 256 numbers: norms that the code never uses" in capsys.readouterr().out
    loaded = model.load(tmp_path / "out")
    assert loaded.run.objective.name == "equivariant"
    assert math.prod(loaded.run.params["heads"]["inter_visual"]["dense_3"]["bias"].shape) == 5
    assert loaded.backbone.name == "pixels"
