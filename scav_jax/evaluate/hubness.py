"""Distances corrected for hubness, as rows of the table, and what each gains.

`bank`: relative to queries of the training data (`retrieval.hubness`), what an index does too.
`Sinkhorn`: a matching of all queries of the split with all clips, by how near they are. It looks at
all queries at once, of which every one has its clip, so no search can do it: it is *transductive*,
and says how much hubness there is.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.evaluate.parts import Part
from scav_jax.evaluate.sources import EmbeddingsFile
from scav_jax.metrics import paired_gain
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.hubness import nearness, scores, training_clips
from scav_jax.retrieval.results import TRANSDUCTIVE
from scav_jax.retrieve import DIRECTIONS, sequence_distances
from scav_jax.sequences import AudioVisual
from scav_jax.training.runs import Run

ROUNDS = 50
SHARPNESS = 5.0  # of the matching: its temperature is a deviation of D by so much
ROWS = 64  # of the matching at a time: they and their products stay in the cache


def check_bank(source: Run | EmbeddingsFile) -> None:
    """Raises `InputError` for a row that has no training clips to be a bank, or too few."""
    if not isinstance(source, Run):
        raise InputError(
            "--hubness: expected runs alone, whose training clips are the bank, got "
            f"{source.path}; leave it out"
        )
    training_clips(source)


def of_bank(
    embedded: Embedded,
    distances: Float[np.ndarray, "V A"],
    bank: Embedded,
    name: str,
    options: dict,
) -> tuple[list[Part], dict[str, Float[np.ndarray, " K"]]]:
    """Both rows, and what the first is relative to.

    Args:
      embedded: all clips.
      distances: D of them.
      bank: training clips, see `retrieval.hubness.bank_of`.
      name, options: of D.

    Returns:
      The rows; r of every clip: `visual_near` to the bank's sounds, `audio_near` to its pictures.
    """
    to_visual = AudioVisual(embedded.latents.visual, bank.latents.audio)
    to_audio = AudioVisual(bank.latents.visual, embedded.latents.audio)
    near = {
        "visual_near": nearness(sequence_distances(to_visual, name, options, progress=True)),
        "audio_near": nearness(sequence_distances(to_audio, name, options, progress=True).T),
    }
    corrected = Part(
        f"hubness, bank of {len(bank)} training clips",
        scores(distances.T, near["visual_near"]).T,
        scores(distances, near["audio_near"]),
    )
    matched = matching(distances)
    return [corrected, Part(TRANSDUCTIVE, matched, matched)], near


def matching(distances: Float[np.ndarray, "V A"]) -> Float[np.ndarray, "V A"]:
    """How unlikely each pair is in the matching of all with all, `-log` of the plan.

    The plan that costs least beside its entropy, every row and column of which has the same sum.
    """
    scaled = distances.astype(np.float64)
    scaled -= scaled.mean()
    scaled *= -SHARPNESS / max(scaled.std(), 1e-12)
    for axis in (1, 0):  # the first round by logarithms: after it the plan is in range
        scaled -= _log_sums(scaled, axis)
    plan = np.exp(scaled)
    of_rows, of_columns = np.ones(len(plan)), np.ones(plan.shape[1])
    for _ in progress_bar("matching", ROUNDS - 1, "round", over=range(ROUNDS - 1)):
        sums = np.zeros(plan.shape[1])
        for begin in range(0, len(plan), ROWS):
            some = slice(begin, begin + ROWS)
            # Not by products of matrices, which round equal clips by where they stand.
            of_rows[some] = 1.0 / (plan[some] * of_columns).sum(axis=1)
            sums += (plan[some] * of_rows[some, None]).sum(axis=0)
        of_columns = 1.0 / sums
    return -(scaled + np.log(of_rows)[:, None] + np.log(of_columns))


def _log_sums(values: Float[np.ndarray, "V A"], axis: int) -> Float[np.ndarray, "..."]:
    """`log sum exp` along an axis, which stays."""
    largest = values.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(values - largest).sum(axis=axis, keepdims=True))


def gains(
    ranks: dict[str, dict[str, Int[np.ndarray, " K"]]],
    parts: Sequence[Part],
    raw: str,
    bootstrap: int,
    seed: int,
) -> list[dict]:
    """What each row finds more than the raw one does.

    Args:
      ranks: by direction and method.
      parts: the rows.
      raw: the method that they correct.
      bootstrap, seed: of the interval, over clips.

    Returns:
      For each `label`, `over`, and for each direction a `metrics.paired_gain` of R@1.
    """
    gain = partial(paired_gain, bootstrap=bootstrap, seed=seed)
    return [
        {"label": part.label, "over": raw}
        | {d: gain(ranks[d][part.label], ranks[d][raw]) for d in DIRECTIONS}
        for part in parts
    ]
