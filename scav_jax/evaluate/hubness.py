"""Distances corrected for hubness, as rows of the table, and what each gains.

`bank`: relative to queries of the training data (`retrieval.hubness`), what an index does too.
`Sinkhorn`: a matching of all queries of the split with all clips, by how near they are. It looks at
all queries at once, of which every one has its clip, so no search can do it: it is *transductive*,
and says how much hubness there is.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.errors import InputError
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
        "visual_near": nearness(sequence_distances(to_visual, name, options)),
        "audio_near": nearness(sequence_distances(to_audio, name, options).T),
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
    scaled = -SHARPNESS * (scaled - scaled.mean()) / max(scaled.std(), 1e-12)
    for _ in range(ROUNDS):
        for axis in (1, 0):
            largest = scaled.max(axis=axis, keepdims=True)
            total = np.exp(scaled - largest).sum(axis=axis, keepdims=True)
            scaled = scaled - largest - np.log(total)
    return -scaled


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
    found = []
    for label in (part.label for part in parts):
        row: dict = {"label": label, "over": raw}
        for direction in DIRECTIONS:
            own, other = ranks[direction][label], ranks[direction][raw]
            row[direction] = paired_gain(own, other, bootstrap=bootstrap, seed=seed)
        found.append(row)
    return found
