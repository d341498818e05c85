"""How many digits of geomloss' values and gradients does `wasserstein` keep in float32?

    python scripts/benchmarks/wasserstein_digits.py [--pairs 64] [--out FILE.json]

Ragged pairs of 20 to 48 and 10 to 31 steps at blur 0.05, noise of several widths and random walks:
the largest relative error of each pair's value, and of its gradients relative to their largest
number, beside the algorithm of geomloss 0.2.5 in float64 (`tests/reference.py`). `geomloss` itself
in float32 is put beside it where it is installed. Two minutes on one core.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scav_jax.distances.wasserstein import wasserstein
from scav_jax.sequences import sequences

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import reference

STEPS = (48, 31)
KINDS = {"noise, width 8": 8, "noise, width 64": 64, "noise, width 512": 512, "walks": 512}
SETTINGS = {"blur": 0.05, "position_weight": 10.0, "diameter": 256.0}
ValueWithGradients = tuple[float, np.ndarray, np.ndarray]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64, help="of each kind; default 64")
    parser.add_argument("--out", type=Path, help="JSON of the table")
    options = parser.parse_args()
    contestants = {"ours": ours} | ({"geomloss": geomloss} if installed() else {})
    table = {}
    print(f"{'float32':<28}{'values: median, 90 %, most':>32}{'gradients':>30}")
    for kind, width in KINDS.items():
        errors = {name: [] for name in contestants}
        for visual, audio in pairs(kind, width, options.pairs):
            right = reference.geomloss_with_gradients(visual, audio, **SETTINGS)
            for name, contestant in contestants.items():
                errors[name].append(errors_of(contestant(visual, audio), right))
        for name, found in errors.items():
            spread = np.quantile(np.array(found), [0.5, 0.9, 1.0], axis=0).T
            table[f"{kind}, {name}"] = spread.tolist()
            cells = [" ".join(f"{x:8.1e}" for x in row) for row in spread]
            print(f"{kind + ', ' + name:<28}{cells[0]:>32}{cells[1]:>30}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1))


def pairs(kind: str, width: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ragged pairs of float32 sequences."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        pair = [rng.normal(size=(rng.integers(2 * n // 5, n + 1), width)) for n in STEPS]
        if kind == "walks":
            pair = [np.cumsum(x, 0) / np.sqrt(np.arange(1, len(x) + 1))[:, None] for x in pair]
        yield pair[0].astype(np.float32), pair[1].astype(np.float32)


def errors_of(found: ValueWithGradients, right: ValueWithGradients) -> tuple[float, float]:
    """Relative errors of the value and of the worse gradient."""
    of_gradients = (
        np.abs(f - r).max() / np.abs(r).max() for f, r in zip(found[1:], right[1:], strict=True)
    )
    return abs(found[0] / right[0] - 1.0), max(of_gradients)


def ours(visual: np.ndarray, audio: np.ndarray) -> ValueWithGradients:
    """The definition; lengths are padded, so that it is compiled once."""
    padded = [
        np.pad(x, ((0, n - len(x)), (0, 0))) for x, n in zip((visual, audio), STEPS, strict=True)
    ]
    lengths = [jnp.int32(len(x)) for x in (visual, audio)]
    value, (of_visual, of_audio) = _value_and_gradients(*padded, *lengths)
    return float(value), np.asarray(of_visual)[: len(visual)], np.asarray(of_audio)[: len(audio)]


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1))
def _value_and_gradients(v, a, n, m):
    return wasserstein(sequences(v, n), sequences(a, m), **SETTINGS)


def installed() -> bool:
    """Whether geomloss and torch are."""
    try:
        import geomloss  # noqa: F401
    except ImportError:
        return False
    return True


def geomloss(visual: np.ndarray, audio: np.ndarray) -> ValueWithGradients:
    """`SamplesLoss` itself, in float32."""
    import torch
    from geomloss import SamplesLoss

    steps = [torch.tensor(x, requires_grad=True) for x in (visual, audio)]
    at = partial(torch.linspace, 0.0, SETTINGS["position_weight"])
    points = [torch.cat([x, at(len(x))[:, None]], dim=1) for x in steps]
    options = {"p": 2, "blur": SETTINGS["blur"], "diameter": SETTINGS["diameter"]}
    value = SamplesLoss("sinkhorn", backend="tensorized", **options)(*points)
    value.backward()
    return value.item(), steps[0].grad.numpy(), steps[1].grad.numpy()


if __name__ == "__main__":
    main()
