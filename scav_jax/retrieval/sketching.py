"""How a sketch is learned, in closed form, so that its cosines rank clips as their sequences do.

    directions   the principal directions of the latents of both streams together
    waves        cosines over the cells of time (DCT-II), from the mean to the quickest
    chosen       the pairs of wave and direction whose coefficients vary most over training clips
    common       a number for all, `COMMON` times as long as those usually are

Both changes of basis are rotations, so distances stay what they are, and latents that change
slowly, or whose channels go together, need few of all coefficients. Latents are computed once; the
towers do not change. Where the run has a static part, its channels count with its weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scav_jax import metrics
from scav_jax.base.errors import InputError
from scav_jax.base.files import check_may_be_written
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import Embedded, embed
from scav_jax.retrieval.model import Model
from scav_jax.retrieval.own_data import own_split
from scav_jax.retrieval.results import DIRECTIONS, aligned, few_clips, percent
from scav_jax.retrieval.sketch import (
    ABOUT,
    BESIDE,
    CLIPS_AT_ONCE,
    FOLDER,
    Sketch,
    on_grid,
    save_sketch,
    waves,
)
from scav_jax.retrieve import aggregation_similarities, queries_first, sequence_distances
from scav_jax.sequences import STREAMS
from scav_jax.training.runs import Run, load_run

LEAST, MOST = 16, 4096  # numbers of a sketch
MOST_STEPS = 64  # of its grid, where nobody says
KS = (10, 100, 1000)
# Larger ranks no better, and an index may hold sketches as bfloat16.
COMMON = 3.0


@dataclass(frozen=True)
class Fitting:
    """How a sketch is learned.

    Attributes:
      numbers: how many it has.
      steps: cells of its grid of time; 0: as many as sequences have steps, at most `MOST_STEPS`.
      clips: of the training data that are used at most.
      seed: chooses them.
    """

    numbers: int = 192
    steps: int = 0
    clips: int = 2048
    seed: int = 0

    def __post_init__(self):
        least = {"steps": 0, "clips": 2, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"--{name}: expected at least {value}, got {getattr(self, name)}")
        if not LEAST <= self.numbers <= MOST:
            raise InputError(f"--numbers: expected {LEAST} to {MOST}, got {self.numbers}")


def training_split(run: Run, fitting: Fitting) -> tuple[Split, Split]:
    """The clips that a sketch is learned of, and those of validation.

    Raises:
      InputError: the run ranks by no sequences, or its training data are not there.
    """
    if run.objective.classes or "sequence" not in run.objective.methods:
        raise InputError(
            f"{run.path}: expected a run that ranks by sequences, this one does not: its embedding "
            "is all that it has, and is the first stage"
        )
    splits = [own_split(run, role) for role in ("train", "validation")]
    chosen = np.random.default_rng(fitting.seed).permutation(len(splits[0]))[: fitting.clips]
    return splits[0].take(np.sort(chosen)), splits[1]


def sketch_run(path: Path, fitting: Fitting) -> tuple[Sketch, dict]:
    """Learns a sketch of the run at a path, and writes what it finds there.

    Returns:
      The sketch, and its figures: `clips` that it was learned of, and `validation`, see `recalls`.

    Raises:
      InputError: no finished run, or see `training_split`.
      OSError: nothing may be written there.
    """
    run = load_run(path)
    check_may_be_written(path / FOLDER / ABOUT)
    train, validation = training_split(run, fitting)
    embedded = embed(run, train, progress=True)
    checked = embed(run, validation, progress=True)
    sketch = learn(embedded, run.objective.ranks_by()[1], fitting)
    figures = {"clips": len(train), "validation": recalls(sketch, checked, run)}
    save_sketch(path, sketch, Model(run).identity, figures)
    return sketch, figures


def learn(embedded: Embedded, options: dict, fitting: Fitting) -> Sketch:
    """A sketch from latents of training clips.

    Args:
      embedded: the clips.
      options: of the distance that ranks them.
      fitting: how.

    Raises:
      InputError: sequences that have fewer coefficients than the sketch is to have numbers.
    """
    lengths = np.asarray(embedded.latents.audio.lengths)
    steps = fitting.steps or min(int(np.median(lengths)), MOST_STEPS)
    cells = np.concatenate([on_grid(one, steps) for one in embedded.latents])
    width = cells.shape[2]
    if fitting.numbers - BESIDE > steps * width:
        raise InputError(
            f"--numbers: expected at most {steps} x {width} + {BESIDE}, the steps and channels "
            f"of the run's sequences, got {fitting.numbers}"
        )
    scale = np.ones(width, np.float32)
    static = options.get("static_width", 0)
    scale[width - static :] = np.sqrt(options.get("static_weight", 1.0))
    mean = cells.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    moved = (cells - mean) * scale
    flat = moved.reshape(-1, width)
    directions = np.linalg.eigh((flat.T @ flat).astype(np.float64))[1][:, ::-1]
    directions = (scale[:, None] * directions).astype(np.float32)
    energy = sum(
        np.square(waves(steps) @ (some - mean) @ directions).sum(axis=0)
        for some in np.array_split(cells, -(-len(cells) // CLIPS_AT_ONCE))
    )
    chosen = np.argsort(-energy.ravel(), kind="stable")[: fitting.numbers - BESIDE]
    length = np.sqrt(energy.ravel()[chosen].sum() / len(cells))
    kept = np.stack([chosen // width, chosen % width])
    return Sketch(steps, mean, directions, kept, np.float32([COMMON * length]))


# ---- what it is worth ------------------------------------------------------------------------


def recalls(sketch: Sketch, embedded: Embedded, run: Run, ks: Sequence[int] = KS) -> list[dict]:
    """How often a first stage keeps what the sequences find first.

    Args:
      sketch: one of both first stages; the other is the embedding, the mean over time.
      embedded: the clips, all of which ask.
      run: which distance ranks them.
      ks: candidates that are kept; those that are fewer than the clips.

    Returns:
      A row for each `first_stage`, "embedding" and "sketch", of so many `numbers`: `n`, and for
      `a2v` and `v2a` the recall by k, a share in 0..1.
    """
    distances = sequence_distances(embedded.latents, *run.objective.ranks_by(), progress=True)
    vectors = {
        "embedding": (embedded.visual_embeddings, embedded.audio_embeddings),
        "sketch": tuple(sketch.of(getattr(embedded, s), s) for s in STREAMS),
    }
    rows = []
    for name, (visual, audio) in vectors.items():
        row: dict = {"first_stage": name, "numbers": visual.shape[1], "n": len(visual)}
        similar = aggregation_similarities(visual, audio)
        for direction in DIRECTIONS:
            first = queries_first(distances, direction).argmin(axis=1)
            ranks = metrics.ranks(-queries_first(similar, direction), first)
            kept = [k for k in ks if k < len(visual)]
            row[direction] = {str(k): metrics.recall_at_k(ranks, k) for k in kept}
        rows.append(row)
    return rows


def table(rows: Sequence[dict]) -> str:
    """The same for people."""
    ks = list(rows[0]["a2v"])
    heads = [f"{arrow} @{k}" for arrow in DIRECTIONS.values() for k in ks]
    lines = [["first stage", "numbers", *heads]]
    for row in rows:
        shares = [percent(row[direction][k]) for direction in DIRECTIONS for k in ks]
        lines.append([row["first_stage"], f"{row['numbers']}", *shares])
    note = f"N = {rows[0]['n']:,}: % of queries whose first by sequence is among so many candidates"
    return "\n".join([*aligned(lines, 1), "", note, *few_clips(rows[0]["n"], "recall")])
