"""Which breakages of the mathematics the tests notice: one text is replaced, the tests must fail.

./.venv/bin/python scripts/benchmarks/teeth.py --json teeth.json       all of them, about 45 minutes
./.venv/bin/python scripts/benchmarks/teeth.py --only ddof --only metrics some, by name or place
./.venv/bin/python scripts/benchmarks/teeth.py --root ../before        the tests of another checkout

Each breakage is the kind of mistake that a person makes and a glance does not see: a sign, a mask
on the wrong axis, one degree of freedom. It is made in a copy of the project, where `pytest -x`
runs the files that should notice, the tests marked `slow` left out. Only a test that fails counts;
a module that no longer imports, or a text that is not there any more, is an error of this list.
What is compiled is shared by all runs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

COPIED = ("scav_jax", "tests", "configs", "scripts", "pyproject.toml")
LIMIT_S = 900  # of one run of pytest: a loop that never ends is noticed too


class Breakage(NamedTuple):
    """One mistake.

    Attributes:
      name: what is wrong then.
      where: the beginning of the file's path below `scav_jax`.
      old, new: the text, which one file there has once, and what replaces it.
      tests: files of `tests` that should notice, the cheapest first.
    """

    name: str
    where: str
    old: str
    new: str
    tests: str


def of(where: str, tests: str, *mistakes: tuple[str, str, str]) -> list[Breakage]:
    return [Breakage(name, where, old, new, tests) for name, old, new in mistakes]


BREAKAGES = [
    *of(
        "sequences",
        "sequences",
        ("a mask that is a step too long", "+ (-1,)) < lengths", "+ (-1,)) <= lengths"),
        (
            "a mean over padding",
            "total / jnp.expand_dims(lengths, -1).astype(values.dtype)",
            "total / values.shape[-2]",
        ),
        (
            "resampling at borders, not centres",
            "* pace - jnp.asarray(0.5, dtype)",
            "* pace",
        ),
        (
            "the pace upside down",
            "source_window[1] / target_window[1]",
            "target_window[1] / source_window[1]",
        ),
        (
            "the last step is never read",
            "jnp.clip(positions, 0.0, last.astype(positions.dtype))",
            "jnp.clip(positions, 0.0, last.astype(positions.dtype) - 0.5)",
        ),
        (
            "the taps swapped",
            "lower + weight * (upper - lower)",
            "upper + weight * (lower - upper)",
        ),
        (
            "the window of the source",
            "lengths=target.lengths, windows=target.windows",
            "lengths=target.lengths, windows=source.windows",
        ),
    ),
    *of(
        "encoders/positions",
        "positions encoders",
        (
            "offsets with the other sign",
            "np.arange(steps)[None, :] - np.arange(steps)[:, None]",
            "np.arange(steps)[:, None] - np.arange(steps)[None, :]",
        ),
        ("far offsets one bucket too far", "np.floor(scale", "np.ceil(scale"),
    ),
    *of(
        "encoders/layers",
        "encoders",
        (
            "queries masked, not keys",
            "logits + masked[:, None, None, :]",
            "logits + masked[:, None, :, None]",
        ),
        (
            "a softmax's gradient without its sum",
            "weights * (of_weights - along)",
            "weights * of_weights",
        ),
        (
            "logits over the whole width",
            "logits = logits / math.sqrt(query.shape[-1])",
            "logits = logits / math.sqrt(query.shape[-1] * query.shape[-2])",
        ),
    ),
    *of(
        "encoders/products",
        "encoders",
        (
            "a norm whose gradient keeps its mean",
            "- of_normal.mean(-1, keepdims=True) - normal",
            "- normal",
        ),
        (
            "a norm that is made again without its mean",
            "result = (wide(x) - mean) * (deviation * scale",
            "result = wide(x) * (deviation * scale",
        ),
        ("the gradient of GELU", "(phi + values * density)", "(phi - values * density)"),
        ("flax's epsilon", "LAYER_NORM_EPSILON = 1e-5", "LAYER_NORM_EPSILON = 1e-3"),
    ),
    *of(
        "encoders/sequential",
        "encoders",
        ("the gate's sign", "* head_scale - 1.0) + 2.0", "* head_scale + 1.0) + 2.0"),
        (
            "a norm of the wrong branch",
            'LayerNorm(kept=False, name="feedforward_norm")(x)',
            'LayerNorm(kept=False, name="feedforward_norm")(y)',
        ),
        (
            "padding that leaves a tower",
            "features.replace(values=zero_padding(x, lengths))",
            "features.replace(values=x)",
        ),
    ),
    *of(
        "encoders/dropout",
        "encoders scaling",
        ("dropout without its scale", "(1.0 / (1.0 - rate))", "(1.0 / (1.0 - 0 * rate))"),
        (
            "dropout by the row of an array",
            "rows, place = rows.astype(jnp.uint32)",
            "rows, place = jnp.arange(len(rows), dtype=jnp.uint32)",
        ),
        (
            "one mask for all steps of a clip",
            "(row << np.uint32(COLUMN_BITS)) ^ column",
            "(0 * row) ^ column",
        ),
    ),
    *of(
        "distances/euclidean",
        "distances euclidean",
        (
            "a sum over channels",
            "(target.lengths * target.values.shape[-1]).astype",
            "target.lengths.astype",
        ),
        ("products once", "y_squares[None, :] - 2.0 * products", "y_squares[None, :] - products"),
        ("half the gradient", "weights = 2.0 * weights / (length", "weights = weights / (length"),
        (
            "a product once",
            "return squares - 2.0 * product(on_grid",
            "return squares - product(on_grid",
        ),
        ("a neighbour's gradient twice", "following = 0.5 * combine", "following = combine"),
        (
            "the gradient's sign",
            "return of_visual - read(of_grid",
            "return of_visual + read(of_grid",
        ),
        (
            "audio in sorted order",
            "squared = squared[:, jnp.argsort(order)]",
            "squared = squared[:, order]",
        ),
    ),
    *of(
        "distances/resampling",
        "distances euclidean",
        ("the right tap's neighbour", "(left == sources - 1)", "(left == sources + 1)"),
        (
            "a second diagonal once",
            "2 * jnp.sum(as_left * weight, -1)",
            "jnp.sum(as_left * weight, -1)",
        ),
        (
            "the adjoint's taps swapped",
            "jnp.stack([1 - taps.weight, taps.weight]",
            "jnp.stack([taps.weight, 1 - taps.weight]",
        ),
    ),
    *of(
        "distances/dtw",
        "distances dtw",
        (
            "no diagonal step",
            "jnp.stack([right, down, diagonal])",
            "jnp.stack([right, down, down])",
        ),
        ("half the gradient of warping", "scale = 2.0 / width", "scale = 1.0 / width"),
        (
            "the gradient's sign for columns",
            "y_rows - _product(weights.T, x_rows)",
            "y_rows + _product(weights.T, x_rows)",
        ),
    ),
    *of(
        "distances/warping",
        "distances dtw",
        (
            "a column too many",
            "(column < columns[None, :, None, :])",
            "(column <= columns[None, :, None, :])",
        ),
        ("minima that nobody pays", "down = down + minima", "down = down + 0.0 * minima"),
        ("shares that are not divided", "share = visits / total", "share = visits"),
        (
            "a path through the next problem",
            "right = jnp.where(in_last_column, UNREACHABLE, following)",
            "right = following",
        ),
    ),
    *of(
        "distances/wasserstein",
        "distances wasserstein",
        (
            "the weight of positions unsquared",
            "0.5 * self.position_weight**2",
            "0.5 * self.position_weight",
        ),
        (
            "a sum over channels in transport",
            "return 1.0 / width, self.position_weight",
            "return 1.0, self.position_weight",
        ),
        ("entropy with the other sign", "+ self.epsilon * entropy", "- self.epsilon * entropy"),
        (
            "a self-term twice",
            "value = 0.5 * self.values(reduced, f, g, mask, mask)",
            "value = self.values(reduced, f, g, mask, mask)",
        ),
        (
            "the visual self-term for both",
            "_annealed_self_cost(method, visual) - _annealed_self_cost(method, audio)",
            "_annealed_self_cost(method, visual) - _annealed_self_cost(method, visual)",
        ),
    ),
    *of(
        "distances/transport",
        "distances wasserstein",
        (
            "positions that never reach 1",
            "last = jnp.maximum(lengths - 1, 1)",
            "last = jnp.maximum(lengths, 1)",
        ),
        (
            "one plan for both gradients",
            "pull(weights * of_audio)[1]",
            "pull(weights * of_visual)[1]",
        ),
    ),
    *of(
        "distances/sinkhorn",
        "wasserstein distances",
        (
            "padding in a kernel's minimum",
            "jnp.where(columns[:, None, :], costs, highest), axis=2",
            "costs, axis=2",
        ),
    ),
    *of(
        "distances/__init__",
        "distances",
        (
            "a sequence that cannot be is compared",
            "in_range(visual)[:, None] & in_range(audio)[None, :]",
            "in_range(visual)[:, None] | in_range(audio)[None, :]",
        ),
    ),
    *of(
        "objectives",
        "objectives",
        (
            "ddof 0",
            "degrees = max(distances.shape[axis] - 1, 1)",
            "degrees = distances.shape[axis]",
        ),
        ("ddof 0 in the gradient", "along / max(len(distances) - 1, 1)", "along / len(distances)"),
        ("a floor that flattens", "VARIANCE_FLOOR = 1e-12", "VARIANCE_FLOOR = 1e-2"),
        ("the gradient of one direction", "weight = 0.5 * cotangent /", "weight = cotangent /"),
        (
            "the temperature's sign",
            "of_scale - jnp.sum(along) / scale",
            "of_scale + jnp.sum(along) / scale",
        ),
        ("similarity for distance", "log_softmax(-_z(some", "log_softmax(_z(some"),
        ("rows of another block", "* blocks + number", "+ number"),
        (
            "a clip that clips nothing",
            "jnp.clip(jnp.exp(log_temperature), MIN",
            "jnp.clip(jnp.exp(log_temperature), 0.1 * MIN",
        ),
        (
            "cosines with one norm",
            "unit_smoothed(audio_embeddings).T",
            "audio_embeddings.T",
        ),
    ),
    *of(
        "retrieve",
        "retrieve",
        (
            "ties for the query",
            "close = far <= far[each, own, None]",
            "close = far < far[each, own, None]",
        ),
        (
            "ties of the first stage",
            "np.count_nonzero(similar >= similar[each, own, None], axis=1)",
            "1 + np.count_nonzero(similar > similar[each, own, None], axis=1)",
        ),
        (
            "k is one too small",
            "np.where(first_stage <= k, within",
            "np.where(first_stage < k, within",
        ),
        (
            "as similar as the last of the first stage, all enter",
            "np.minimum(k - inside.sum(axis=1), (close & level).sum(axis=1))",
            "(close & level).sum(axis=1)",
        ),
        (
            "the last block is not reached",
            "min(begin, count - size) for begin",
            "min(begin, count - size - 1) for begin",
        ),
        ("nobody turns the matrix", "return matrix.T", "return matrix"),
        ("the least similar first", "np.argsort(-values, axis=1", "np.argsort(values, axis=1"),
    ),
    *of(
        "metrics",
        "metrics",
        (
            "ties for the right one",
            "np.count_nonzero(rows <= right, axis=1)",
            "1 + np.count_nonzero(rows < right, axis=1)",
        ),
        ("recall below k", "_checked_ranks(ranks) <= k))", "_checked_ranks(ranks) < k))"),
        ("an interval of one side", "100 * (1 + INTERVAL) / 2", "100 * INTERVAL"),
    ),
    *of("base/files", "metrics", ("ids as they lie", "for name in sorted(ids)", "for name in ids")),
    *of(
        "optimizer",
        "optimizer",
        ("scales of heads decayed", '"position_table", "head_scale", ', '"position_table", '),
        ("temperatures decayed", ' and path[0].key != "log_temperature"', ""),
        (
            "a cosine that ends too early",
            "warmup_steps, steps, final_learning_rate",
            "warmup_steps, steps - warmup_steps, final_learning_rate",
        ),
    ),
    *of(
        "gradient_cache",
        "scaling",
        (
            "the last part only",
            "jax.tree.map(jnp.add, total, *pull_back(of_outputs))",
            "jax.tree.map(lambda _, new: new, total, *pull_back(of_outputs))",
        ),
        (
            "no dropout in the second pass",
            "encode(params, some, own_rows, key)",
            "encode(params, some, own_rows, None)",
        ),
        (
            "rows of a part for rows of the batch",
            "of_params = second_pass((params, key), (batch, rows, of_outputs))",
            "of_params = second_pass((params, key), (batch, 0 * rows, of_outputs))",
        ),
    ),
    *of(
        "train_step",
        "doors",
        (
            "a bad step is remembered",
            "finite, update, lambda *same: same, *old",
            "finite, update, lambda *same: update(*same), *old",
        ),
        (
            "one key for all steps' views",
            "jax.random.key(0) if key is None else key, VIEWS",
            "jax.random.key(0), VIEWS",
        ),
    ),
    *of(
        "objectives/objective",
        "doors",
        ("views by place in the batch", "(key, numbers)", "(key, jnp.arange(len(numbers)))"),
    ),
    *of(
        "sharding",
        "scaling",
        (
            "a mean over devices for a sum",
            "jax.lax.psum(result, DATA_AXIS)",
            "jax.lax.pmean(result, DATA_AXIS)",
        ),
    ),
]


def file_of(breakage: Breakage, root: Path) -> Path | None:
    """The one file that has the text once."""
    package = root / "scav_jax"
    found = [
        path
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).as_posix().startswith(breakage.where)
        and path.read_text().count(breakage.old) == 1
    ]
    return found[0] if len(found) == 1 else None


def run(breakage: Breakage, root: Path, cache: Path) -> dict:
    """What became of one breakage, made in `root` and taken back."""
    row = {"name": breakage.name, "where": breakage.where, "outcome": "not found", "test": None}
    path, began = file_of(breakage, root), time.monotonic()
    if path is None:
        return row | {"seconds": 0.0}
    sound = path.read_text()
    path.write_text(sound.replace(breakage.old, breakage.new))
    files = [f"tests/test_{name}.py" for name in breakage.tests.split()]
    try:
        code, said = pytest(files, root, cache)
    finally:
        path.write_text(sound)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    outcome = {0: "survived", 1: "caught"}.get(code, "does not run")
    if failed and failed[0].startswith("ERROR"):
        outcome = "does not run"
    return row | {
        "outcome": outcome,
        "test": failed[1] if failed else None,
        "seconds": round(time.monotonic() - began, 1),
    }


def pytest(files: list[str], root: Path, cache: Path) -> tuple[int, str]:
    """(pytest's exit code, what it said) of some test files of a copy of the project."""
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(cache / "bytecode"),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "--tb=line"]
    words += ["-p", "no:cacheprovider", "-rfE", *files]
    try:
        done = subprocess.run(
            words, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return 1, "FAILED time"
    return done.returncode, done.stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--only", action="append", help="part of a breakage's 'place: name'")
    parser.add_argument("--cache", type=Path, help="a folder to keep what is compiled")
    parser.add_argument("--json", type=Path, help="where the results go")
    chosen = parser.parse_args(arguments)
    wanted = [
        b
        for b in BREAKAGES
        if not chosen.only or any(word in f"{b.where}: {b.name}" for word in chosen.only)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        for name in COPIED:
            source = chosen.root / name
            kept = shutil.ignore_patterns("__pycache__")
            copied = shutil.copytree if source.is_dir() else shutil.copy
            (copy / name).parent.mkdir(exist_ok=True)
            copied(source, copy / name, **({"ignore": kept} if source.is_dir() else {}))
        for breakage in wanted:
            row = run(breakage, copy, chosen.cache or Path(folder))
            rows.append(row)
            print(f"{row['outcome']:12} {row['seconds']:6.1f} s  {row['where']}: {row['name']}"
                  f"  {row['test'] or ''}", flush=True)  # fmt: skip
            if chosen.json:
                chosen.json.write_text(json.dumps(rows, indent=1) + "\n")
    caught = sum(row["outcome"] == "caught" for row in rows)
    print(f"{caught} of {len(rows)} caught, in {sum(row['seconds'] for row in rows):.0f} s")
    return 0 if caught == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
