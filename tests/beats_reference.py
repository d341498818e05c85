"""BEATs written once more, from its description: numpy in float64, and torch's own modules."""

import dataclasses
import math

import numpy as np

from scav_jax.extract.backbones import beats_weights

SMALL = dataclasses.replace(
    beats_weights.ITER3_PLUS,
    embed_dim=24,
    encoder_layers=3,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=40,
    encoder_attention_heads=4,
    conv_pos=10,
    conv_pos_groups=2,
    num_buckets=32,
    max_distance=50,
    predictor_class=5,
)


def normalised(log_mel):
    return (log_mel - 15.41663) / (2 * 6.55582)


def layer_norm(x, weight, bias):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bucket(offset, buckets, max_distance):
    """T5: half of the buckets for keys after the query; a quarter of them exact."""
    half = buckets // 2
    exact = half // 2
    base = half if offset > 0 else 0
    distance = abs(offset)
    if distance < exact:
        return base + distance
    far = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (half - exact))
    return base + min(far, half - 1)


def patch_embedding(log_mel, w):
    """`[frames, 128]` -> `[time * 8, embed]`, one patch after the other."""
    kernel = w["patch_embedding.weight"][:, 0]  # [embed, time, frequency]
    tokens = []
    for t in range(log_mel.shape[0] // 16):
        for f in range(8):
            patch = log_mel[16 * t : 16 * t + 16, 16 * f : 16 * f + 16]
            tokens.append((kernel * patch).sum(axis=(1, 2)) + w.get("patch_embedding.bias", 0))
    return np.array(tokens)


def conv_position(x, w, groups):
    """Conv1d with padding kernel // 2; with an even kernel the last step is dropped."""
    g, v = w["encoder.pos_conv.0.weight_g"], w["encoder.pos_conv.0.weight_v"]
    kernel = np.empty_like(v)
    for k in range(v.shape[2]):
        kernel[:, :, k] = g[0, 0, k] * v[:, :, k] / np.linalg.norm(v[:, :, k])
    width, inputs, taps = kernel.shape
    padded = np.pad(x, ((taps // 2, taps // 2), (0, 0)))
    outputs = width // groups
    y = np.zeros((len(padded) - taps + 1, width))
    for group in range(groups):
        source = padded[:, group * inputs : (group + 1) * inputs]
        target = slice(group * outputs, (group + 1) * outputs)
        for k in range(taps):
            y[:, target] += source[k : k + len(y)] @ kernel[target, :, k].T
    y += w["encoder.pos_conv.0.bias"]
    return y[:-1] if taps % 2 == 0 else y


def attention(x, w, name, table, config):
    def linear(x, part):
        return x @ w[f"{name}.{part}.weight"].T + w[f"{name}.{part}.bias"]

    tokens, width = x.shape
    size = width // config.encoder_attention_heads
    query, key, value = (linear(x, part) for part in ("q_proj", "k_proj", "v_proj"))
    rows = np.array(
        [
            [bucket(j - i, config.num_buckets, config.max_distance) for j in range(tokens)]
            for i in range(tokens)
        ]
    )
    heads = []
    for h in range(config.encoder_attention_heads):
        own = slice(h * size, (h + 1) * size)
        q, k, v = query[:, own], key[:, own], value[:, own]
        gates = linear(q, "grep_linear")  # [tokens, 8]
        first, second = sigmoid(gates[:, :4].sum(axis=1)), sigmoid(gates[:, 4:].sum(axis=1))
        gain = first * (second * w[f"{name}.grep_a"][0, h, 0, 0] - 1) + 2
        logits = q @ k.T / math.sqrt(size) + gain[:, None] * table[rows, h]
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    return linear(np.concatenate(heads, axis=1), "out_proj")


def tokens(log_mel, weights, config):
    """One sound's log-mel frames `[frames, 128]` -> tokens `[T * 8, width]`."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def norm(x, name):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = patch_embedding(normalised(log_mel.astype(np.float64)), w)
    x = norm(x, "layer_norm")
    if config.embed_dim != config.encoder_embed_dim:
        x = linear(x, "post_extract_proj")
    x = x + gelu(conv_position(x, w, config.conv_pos_groups))
    x = norm(x, "encoder.layer_norm")
    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    alpha = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1
    for index in range(config.encoder_layers):
        layer = f"encoder.layers.{index}"
        y = attention(x, w, f"{layer}.self_attn", table, config)
        x = norm(alpha * x + y, f"{layer}.self_attn_layer_norm")
        y = linear(gelu(linear(x, f"{layer}.fc1")), f"{layer}.fc2")
        x = norm(alpha * x + y, f"{layer}.final_layer_norm")
    return x


def torch_tokens(log_mel, weights, config):
    """The same with torch's convolutions, weight_norm, norms, GELU and softmax, in float32."""
    import warnings

    import torch
    from torch import nn
    from torch.nn import functional

    w = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    width, heads = config.encoder_embed_dim, config.encoder_attention_heads

    def linear(x, name):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    conv = nn.Conv1d(
        width, width, config.conv_pos, padding=config.conv_pos // 2, groups=config.conv_pos_groups
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm has a successor with other names
        conv = nn.utils.weight_norm(conv, dim=2)
    prefix = "encoder.pos_conv.0."
    conv.load_state_dict({k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)})

    with torch.no_grad():
        image = torch.from_numpy(normalised(log_mel).astype(np.float32))[None, None]
        x = functional.conv2d(image, w["patch_embedding.weight"], stride=16)
        x = x.flatten(2).transpose(1, 2)
        x = linear(norm(x, "layer_norm"), "post_extract_proj")
        positions = conv(x.transpose(1, 2))[:, :, : x.shape[1]]
        x = norm(x + functional.gelu(positions).transpose(1, 2), "encoder.layer_norm")
        count = x.shape[1]
        rows = [
            [bucket(j - i, config.num_buckets, config.max_distance) for j in range(count)]
            for i in range(count)
        ]
        table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
        bias = functional.embedding(torch.tensor(rows), table).permute(2, 0, 1)
        alpha = (2 * config.encoder_layers) ** 0.25
        for index in range(config.encoder_layers):
            layer = f"encoder.layers.{index}"
            a = f"{layer}.self_attn"
            q, k, v = (
                linear(x, f"{a}.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in ("q_proj", "k_proj", "v_proj")
            )
            gates = linear(q, f"{a}.grep_linear").unflatten(-1, (2, 4)).sum(-1).sigmoid()
            gate_a, gate_b = gates.chunk(2, dim=-1)
            gain = gate_a * (gate_b * w[f"{a}.grep_a"] - 1) + 2
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=gain * bias)
            y = linear(y.transpose(1, 2).flatten(2), f"{a}.out_proj")
            x = norm(alpha * x + y, f"{layer}.self_attn_layer_norm")
            y = linear(functional.gelu(linear(x, f"{layer}.fc1")), f"{layer}.fc2")
            x = norm(alpha * x + y, f"{layer}.final_layer_norm")
    return x[0].numpy()
