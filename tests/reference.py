"""The formulas again, in plain numpy float64 loops: what every test of the mathematics compares to.

Written from the papers, not from the code: nothing here imports `scav_jax` or JAX. Slow and
obvious on purpose. One sequence is `[T, C]` without padding, so there are no masks to get wrong.
"""

import math

import numpy as np

# -- sequences ------------------------------------------------------------------------------------


def resample(source, source_window, target_steps, target_window):
    """Linear interpolation in time: step s lies at its centre, both windows span the same time.

    `np.interp` holds the first and the last value outside of the steps, as
    `torch.nn.functional.interpolate(mode="linear", align_corners=False)` does.
    """
    source = np.asarray(source, np.float64)
    (source_begin, source_extent), (target_begin, target_extent) = source_window, target_window
    source_times = [(s + 0.5 - source_begin) / source_extent for s in range(len(source))]
    target_times = [(t + 0.5 - target_begin) / target_extent for t in range(target_steps)]
    channels = range(source.shape[1])
    return np.stack([np.interp(target_times, source_times, source[:, c]) for c in channels], axis=1)


# -- distances: one pair, visual [N, C] and audio [M, C] ------------------------------------------


def interpolated_euclidean(visual, audio, visual_window, audio_window, direction):
    """Paper section III-C: one is brought to the steps of the other; mean squared error."""
    if direction == "visual_to_audio":
        visual = resample(visual, visual_window, len(audio), audio_window)
    elif direction == "audio_to_visual":
        audio = resample(audio, audio_window, len(visual), visual_window)
    else:
        raise ValueError(direction)
    total = 0.0
    for v, a in zip(np.asarray(visual, float), np.asarray(audio, float), strict=True):
        for v_c, a_c in zip(v, a, strict=True):
            total += (v_c - a_c) ** 2
    return total / (len(visual) * visual.shape[1])


def step_costs(visual, audio):
    """`[N, M]` squared differences of steps, averaged over channels."""
    visual, audio = np.asarray(visual, np.float64), np.asarray(audio, np.float64)
    costs = np.zeros((len(visual), len(audio)))
    for n, v in enumerate(visual):
        for m, a in enumerate(audio):
            costs[n, m] = np.mean((v - a) ** 2)
    return costs


def _soft_minimum(values, gamma):
    """`-gamma log sum exp(-x / gamma)`, and the ordinary minimum for gamma 0."""
    lowest = min(values)
    if gamma == 0 or not math.isfinite(lowest):
        return lowest
    return lowest - gamma * math.log(sum(math.exp((lowest - x) / gamma) for x in values))


def soft_dtw_of_costs(costs, gamma):
    """`R[n, m] = cost + softmin(R[n-1, m-1], R[n-1, m], R[n, m-1])` (Cuturi & Blondel 2017).

    gamma 0 is dynamic time warping itself (Sakoe & Chiba 1978).
    """
    steps_n, steps_m = costs.shape
    table = np.full((steps_n + 1, steps_m + 1), math.inf)
    table[0, 0] = 0.0
    for n in range(1, steps_n + 1):
        for m in range(1, steps_m + 1):
            before = (table[n - 1, m - 1], table[n - 1, m], table[n, m - 1])
            table[n, m] = costs[n - 1, m - 1] + _soft_minimum(before, gamma)
    return table[steps_n, steps_m]


def soft_dtw(visual, audio, gamma):
    """Soft dynamic time warping of channel-averaged squared differences."""
    return soft_dtw_of_costs(step_costs(visual, audio), gamma)


def dtw(visual, audio):
    """Dynamic time warping of channel-averaged squared differences."""
    return soft_dtw(visual, audio, 0)


def soft_dtw_alignment(costs, gamma):
    """The expected alignment `d soft_dtw / d costs`, by summing over every monotone path."""
    paths = list(monotone_paths(*costs.shape))
    energies = np.array([sum(costs[step] for step in path) for path in paths])
    weights = np.exp(-(energies - energies.min()) / gamma)
    weights /= weights.sum()
    alignment = np.zeros_like(costs)
    for weight, path in zip(weights, paths, strict=True):
        for step in path:
            alignment[step] += weight
    return alignment


def monotone_paths(steps_n, steps_m):
    """Every warping path from (0, 0) to (n-1, m-1) with steps down, right and diagonal."""

    def extend(path):
        n, m = path[-1]
        if (n, m) == (steps_n - 1, steps_m - 1):
            yield path
        for down, right in ((1, 1), (1, 0), (0, 1)):
            if n + down < steps_n and m + right < steps_m:
                yield from extend([*path, (n + down, m + right)])

    return extend([(0, 0)])


def transport_points(steps, position_weight):
    """The steps of one sequence with their position as one more coordinate (ZeroSwot)."""
    steps = np.asarray(steps, np.float64)
    last = max(len(steps) - 1, 1)
    rows = [[*row, position_weight * s / last] for s, row in enumerate(steps)]
    return np.array(rows)


def transport_costs(points, others):
    """`[N, M]` half squared distances, summed over coordinates (geomloss with p=2)."""
    costs = np.zeros((len(points), len(others)))
    for n, point in enumerate(points):
        for m, other in enumerate(others):
            costs[n, m] = 0.5 * np.sum((point - other) ** 2)
    return costs


def _soft_c_transform(costs, potential, epsilon):
    """`f_i = -eps log mean_j exp((g_j - C_ij) / eps)`: the uniform weights are the mean."""
    values = (potential[None, :] - costs) / epsilon
    highest = values.max(axis=1, keepdims=True)
    return -epsilon * (np.log(np.mean(np.exp(values - highest), axis=1)) + highest[:, 0])


def sinkhorn_potentials(costs, epsilon, tolerance=1e-11, iterations=100_000):
    """Both dual potentials of entropic transport between uniform marginals, fully converged."""
    f, g = np.zeros(costs.shape[0]), np.zeros(costs.shape[1])
    for _ in range(iterations):
        g = _soft_c_transform(costs.T, f, epsilon)
        new = _soft_c_transform(costs, g, epsilon)
        change, f = np.max(np.abs(new - f)), 0.5 * (f + new)
        if change < tolerance * max(1.0, np.max(np.abs(f))):
            return f, _soft_c_transform(costs.T, f, epsilon)
    raise RuntimeError("Sinkhorn did not converge; take a larger epsilon")


def transport_plan(costs, epsilon):
    """`[N, M]` entropic transport plan between uniform marginals."""
    f, g = sinkhorn_potentials(costs, epsilon)
    return np.exp((f[:, None] + g[None, :] - costs) / epsilon) / costs.size


def entropic_transport(costs, epsilon):
    """`min_P <P, C> + eps KL(P | a b')` between uniform marginals, at convergence."""
    f, g = sinkhorn_potentials(costs, epsilon)
    return float(np.mean(f) + np.mean(g))


def entropic_self_transport(costs, epsilon, tolerance=1e-13):
    """The same of a set to itself: one potential, so the symmetric averaged update converges."""
    f, change = np.zeros(len(costs)), np.inf
    while change > tolerance * max(1.0, np.max(np.abs(f))):
        new = _soft_c_transform(costs, f, epsilon)
        change, f = np.max(np.abs(new - f)), 0.5 * (f + new)
    return float(2 * np.mean(f))


def wasserstein(visual, audio, blur, position_weight):
    """The debiased Sinkhorn divergence of ZeroSwot at eps = blur^2, fully converged."""
    v, a = (transport_points(x, position_weight) for x in (visual, audio))
    epsilon = blur**2
    return (
        entropic_transport(transport_costs(v, a), epsilon)
        - 0.5 * entropic_self_transport(transport_costs(v, v), epsilon)
        - 0.5 * entropic_self_transport(transport_costs(a, a), epsilon)
    )


def sinkhorn(visual, audio, epsilon, position_weight, debiased=True):
    """Entropic transport of channel-averaged squared differences and positions in [0, 1].

    Less half of what either sequence has to itself, if `debiased`.
    """

    def costs(x, y):
        total = step_costs(x, y)
        for n in range(len(x)):
            for m in range(len(y)):
                apart = n / max(len(x) - 1, 1) - m / max(len(y) - 1, 1)
                total[n, m] += position_weight * apart**2
        return total

    value = entropic_transport(costs(visual, audio), epsilon)
    if debiased:
        for x in (visual, audio):
            value -= 0.5 * entropic_self_transport(costs(x, x), epsilon)
    return value


def geomloss_schedule(diameter, blur, scaling):
    """geomloss 0.2.5's `epsilon_schedule` with p=2; `arange` begins with the first one again."""
    exponents = np.arange(2 * np.log(diameter), 2 * np.log(blur), 2 * np.log(scaling))
    return [diameter**2, *np.exp(exponents), blur**2]


def geomloss_wasserstein(visual, audio, blur, position_weight, scaling=0.5, diameter=None):
    """The value of `geomloss_with_gradients`."""
    return geomloss_with_gradients(visual, audio, blur, position_weight, scaling, diameter)[0]


def geomloss_with_gradients(visual, audio, blur, position_weight, scaling=0.5, diameter=None):
    """`SamplesLoss("sinkhorn", p=2)` of geomloss 0.2.5 on one pair, and what autograd finds.

    Line by line from `sinkhorn_tensorized` and `sinkhorn_loop`: a start at the first epsilon, one
    averaged, simultaneous update an epsilon, one further step, through which alone gradients flow,
    to the points of its own rows. Equal to geomloss itself, run in float64, to 1e-12.
    """
    v, a = (transport_points(x, position_weight) for x in (visual, audio))
    if diameter is None:
        both = np.concatenate([v, a])
        diameter = np.linalg.norm(both.max(axis=0) - both.min(axis=0))
    epsilons = geomloss_schedule(diameter, blur, scaling)
    points = {"va": (v, a), "av": (a, v), "vv": (v, v), "aa": (a, a)}
    costs = {key: transport_costs(*pair) for key, pair in points.items()}

    def updated(potentials, epsilon):
        of = {"va": "av", "av": "va", "vv": "vv", "aa": "aa"}
        return {
            key: _soft_c_transform(costs[key], potentials[of[key]], epsilon) for key in potentials
        }

    zeros = {"va": np.zeros(len(v)), "av": np.zeros(len(a))}
    zeros |= {"vv": zeros["va"], "aa": zeros["av"]}
    potentials = updated(zeros, epsilons[0])
    for epsilon in epsilons:
        new = updated(potentials, epsilon)
        potentials = {key: 0.5 * (potentials[key] + new[key]) for key in new}
    last = updated(potentials, epsilons[-1])
    value = np.mean(last["va"] - last["vv"]) + np.mean(last["av"] - last["aa"])

    def moved_by(key, dual):  # the gradient of the mean of one softmin for its own points
        x, y = points[key]
        exponents = (potentials[dual][None] - costs[key]) / epsilons[-1]
        shares = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return ((x - shares @ y) / len(x))[:, :-1]

    of_visual = moved_by("va", "av") - moved_by("vv", "vv")
    return float(value), of_visual, moved_by("av", "va") - moved_by("aa", "aa")


# -- encoders -------------------------------------------------------------------------------------


def position_bucket(offset, buckets, max_distance):
    """T5's bidirectional bucket of `offset = key - query` (Raffel et al. 2020, as in BEATs)."""
    half = buckets // 2
    base = half if offset > 0 else 0
    distance = abs(offset)
    exact = half // 2
    if distance < exact:
        return base + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return base + min(half - 1, exact + math.floor(share * (half - exact)))


def layer_norm(x, scale, bias, epsilon):
    """Over the last axis, with the biased variance."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * scale + bias


def gelu(x):
    """The exact one: `x Phi(x)`."""
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def sigmoid(x):
    """`1 / (1 + exp(-x))`."""
    return 1.0 / (1.0 + np.exp(-x))


def gated_attention(x, weights, table, buckets, max_distance):
    """Multi-head attention with BEATs' gated relative position bias, over one `[T, C]`.

    `weights`: query, key, value, out as (matrix [C, C], bias [C]), heads side by side in C;
    gate as (matrix [d_head, 8], bias [8]) shared by the heads; gate_scale `[H]` (BEATs' grep_a).
    """
    heads = table.shape[1]
    steps, width = x.shape
    size = width // heads
    query, key, value = (x @ weights[n][0] + weights[n][1] for n in ("query", "key", "value"))
    mixed = np.zeros_like(x)
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        for i in range(steps):
            gates = query[i, own] @ weights["gate"][0] + weights["gate"][1]
            gate_a, gate_b = sigmoid(gates[:4].sum()), sigmoid(gates[4:].sum())
            gate = gate_a * (gate_b * weights["gate_scale"][h] - 1.0) + 2.0
            scores = np.zeros(steps)
            for j in range(steps):
                bias = table[position_bucket(j - i, buckets, max_distance), h]
                scores[j] = query[i, own] @ key[j, own] / math.sqrt(size) + gate * bias
            attention = np.exp(scores - scores.max())
            attention /= attention.sum()
            mixed[i, own] = sum(attention[j] * value[j, own] for j in range(steps))
    return mixed @ weights["out"][0] + weights["out"][1]


def transformer_block(x, block, table, buckets, max_distance, epsilon):
    """Pre-LN: `x += attention(norm(x)); x += feedforward(norm(x))`, without dropout."""
    normed = layer_norm(x, *block["attention_norm"], epsilon)
    x = x + gated_attention(normed, block["attention"], table, buckets, max_distance)
    normed = layer_norm(x, *block["feedforward_norm"], epsilon)
    (into, into_bias), (out, out_bias) = block["feedforward"]
    return x + gelu(normed @ into + into_bias) @ out + out_bias


def tower(features, weights, buckets, max_distance, epsilon):
    """MLP, blocks, final LayerNorm: features `[T, D]` -> latents `[T, C]`."""
    (into, into_bias), (out, out_bias) = weights["projection"]
    x = gelu(np.asarray(features, np.float64) @ into + into_bias) @ out + out_bias
    for block in weights["blocks"]:
        x = transformer_block(x, block, weights["table"], buckets, max_distance, epsilon)
    return layer_norm(x, *weights["final_norm"], epsilon)


# -- objectives -----------------------------------------------------------------------------------


def normalize_each_row(distances):
    """Each row less its mean, over its standard deviation with ddof 1 (paper equation 4)."""
    rows = []
    for row in np.asarray(distances, np.float64):
        mean = sum(row) / len(row)
        variance = sum((x - mean) ** 2 for x in row) / (len(row) - 1)
        rows.append([(x - mean) / math.sqrt(variance) for x in row])
    return np.array(rows)


def cross_entropy_of_rows(logits):
    """The mean over i of `-log softmax(logits[i])[i]`."""
    losses = []
    for i, row in enumerate(logits):
        highest = max(row)
        log_total = highest + math.log(sum(math.exp(x - highest) for x in row))
        losses.append(log_total - row[i])
    return sum(losses) / len(losses)


def sequence_loss(distances, temperature, normalize=True):
    """L_seq: v->a over rows of D, a->v over its columns, the mean of both directions."""
    distances = np.asarray(distances, np.float64)
    rows, columns = distances, distances.T
    if normalize:
        rows, columns = normalize_each_row(rows), normalize_each_row(columns)
    directions = [cross_entropy_of_rows(-x / temperature) for x in (rows, columns)]
    return sum(directions) / 2


def aggregation_loss(visual, audio, temperature):
    """L_agg: cosine similarities of pooled embeddings, both directions."""
    similarities = np.zeros((len(visual), len(audio)))
    for i, v in enumerate(np.asarray(visual, np.float64)):
        for j, a in enumerate(np.asarray(audio, np.float64)):
            similarities[i, j] = v @ a / math.sqrt((v @ v) * (a @ a))
    logits = similarities / temperature
    return (cross_entropy_of_rows(logits) + cross_entropy_of_rows(logits.T)) / 2


# -- optimizer ------------------------------------------------------------------------------------


def learning_rate(step, *, peak, warmup_steps, steps):
    """Linear from 0 to the peak over the warm-up, then half a cosine to 0 at the last step."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    share = min((step - warmup_steps) / (steps - warmup_steps), 1.0)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, for one parameter; decay 0 for what is not decayed."""

    def __init__(self, b1=0.95, b2=0.98, epsilon=1e-8, decay=0.0):
        self.b1, self.b2, self.epsilon, self.decay = b1, b2, epsilon, decay
        self.count, self.first, self.second = 0, 0.0, 0.0

    def step(self, parameter, gradient, rate):
        """The parameter after one update."""
        self.count += 1
        self.first = self.b1 * self.first + (1 - self.b1) * gradient
        self.second = self.b2 * self.second + (1 - self.b2) * gradient**2
        first = self.first / (1 - self.b1**self.count)
        second = self.second / (1 - self.b2**self.count)
        direction = first / (np.sqrt(second) + self.epsilon)
        return parameter - rate * (direction + self.decay * parameter)
