"""What a report shows of one run: a few clips' distances, one alignment, some searches."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.progress import progress_bar
from scav_jax.distances import alignment
from scav_jax.distances.dtw import hard_path
from scav_jax.features.store import Split
from scav_jax.objectives import normalize_distances
from scav_jax.report import figures, page
from scav_jax.report.in_sync import embedded_media
from scav_jax.report.match import one
from scav_jax.retrieve import DIRECTIONS, queries_first
from scav_jax.sequences import RESAMPLINGS, AudioVisual, resample_like

MATRIX_CLIPS, MATRIX_CLIPS_A_SOURCE = 48, 8
SEARCHES, FOUND = 3, 5  # shown for each direction
CHANNELS = 24  # of the latents, in the picture of a resampled pair
# Programs: op by op, a report would be hundreds of them.
_normalized = jax.jit(normalize_distances, static_argnums=1)
_path, _moved = jax.jit(hard_path), jax.jit(resample_like)


def is_rendered(split: Split) -> bool:
    """Whether the videos are `chimes`, which this project renders."""
    return bool(split.videos) and (Path(split.videos) / "chimes.json").is_file()


# ---- matrices -------------------------------------------------------------------------------


def matrix_clips(
    sources: Sequence[str], clips: int = MATRIX_CLIPS, a_source: int = MATRIX_CLIPS_A_SOURCE
) -> list[int]:
    """Clips to show side by side: some of each of a few sources, those with most clips first.

    >>> matrix_clips(["a", "b", "a", "c", "b", "a"], clips=4, a_source=2)
    [0, 2, 1, 4]
    """
    groups: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        groups.setdefault(source, []).append(number)
    # Sorting is stable: among sources that have enough clips, the first ones are taken.
    largest = sorted(groups.values(), key=lambda group: -min(len(group), a_source))
    return [number for group in largest for number in group[:a_source]][:clips]


def make_matrices(distances: Float[np.ndarray, "K K"], split: Split) -> figures.Matrices | None:
    """D of a few clips, and its z-scores as if they were one batch."""
    chosen = matrix_clips(split.sources)
    if len(chosen) < 2:
        return None
    block = np.ascontiguousarray(distances[np.ix_(chosen, chosen)])
    rows, columns = (np.asarray(_normalized(jnp.asarray(block), axis)) for axis in (1, 0))
    return figures.Matrices(block, rows, columns, [split.sources[number] for number in chosen])


# ---- alignments -----------------------------------------------------------------------------


def make_alignments(
    latents: AudioVisual,
    distances: Float[np.ndarray, "K K"],
    name: str,
    options: dict,
    clip: int,
) -> list[figures.Alignment]:
    """A clip's video with its own audio, and with the closest audio of another clip."""
    return [
        _align(latents, name, options, clip, audio, f"{what}, d = {distances[clip, audio]:.4g}")
        for audio, what in _partners(distances, clip)
    ]


def _partners(distances: Float[np.ndarray, "K K"], clip: int) -> list[tuple[int, str]]:
    """A clip's own audio, and the closest audio of another clip if there is one."""
    others = np.where(np.arange(len(distances)) == clip, np.inf, distances[clip])
    wrong = int(np.argmin(others))
    return [(clip, "its own audio")] + ([(wrong, "closest other audio")] if wrong != clip else [])


def _align(
    latents: AudioVisual, name: str, options: dict, visual: int, audio: int, title: str
) -> figures.Alignment:
    seen, heard = one(latents.visual, visual), one(latents.audio, audio)
    weights = np.asarray(alignment(name, seen, heard, **options))
    steps = int(seen.lengths), int(heard.lengths)
    h_visual, h_audio = np.asarray(seen.values)[: steps[0]], np.asarray(heard.values)[: steps[1]]
    costs = np.mean((h_visual[:, None] - h_audio[None]) ** 2, axis=-1)
    return figures.Alignment(title, costs, weights[: steps[0], : steps[1]])


def make_comparison(latents: AudioVisual, clip: int, resample: str) -> list[figures.Alignment]:
    """A clip's video with its own audio, as each kind of distance aligns them."""
    made = [
        _align(latents, name, options, clip, clip, title)
        for name, options, title in (
            ("euclidean", {"resample": resample}, "Euclidean: interpolation"),
            ("soft_dtw", {}, "soft-DTW, and DTW's path"),
            ("wasserstein", {}, "Wasserstein: transport plan"),
        )
    ]
    pair = [one(stream, clip) for stream in latents]
    path, cells = _path(*pair)
    made[1] = dataclasses.replace(made[1], path=np.asarray(path)[: int(cells)])
    return made


def make_resampled(
    latents: AudioVisual, distances: Float[np.ndarray, "K K"], clip: int, resample: str
) -> figures.Resampled:
    """A clip's video on one grid with its own audio, and with the closest other one.

    Args:
      latents: of all clips.
      distances: D of them.
      clip: which one.
      resample: which stream is brought to the steps of which, as the distance has it.
    """
    visual, to_audio = one(latents.visual, clip), resample == RESAMPLINGS[0]
    differences = {}
    for audio, what in _partners(distances, clip):
        pair = (visual, one(latents.audio, audio))
        source, target = pair if to_audio else pair[::-1]
        steps = int(target.lengths)
        moved, fixed = (np.asarray(x.values)[:steps] for x in (_moved(source, target), target))
        differences[what] = np.mean((moved - fixed) ** 2, axis=-1)
        if audio == clip:
            own = (moved, fixed) if to_audio else (fixed, moved)
    varied = np.argsort(-own[1].var(axis=0), kind="stable")[:CHANNELS]
    shown = (stream[:, varied] for stream in own)
    return figures.Resampled(*shown, differences, "visual" if to_audio else "audio")


# ---- searches -------------------------------------------------------------------------------


def closest(distances: Float[np.ndarray, " K"], right: int, count: int) -> list[int]:
    """The closest candidates, closest first; the right one is the last of equally close ones."""
    is_right = np.arange(len(distances)) == right
    return np.lexsort((is_right, distances))[:count].tolist()


def make_searches(
    distances: Float[np.ndarray, "K K"],
    ranks: dict[str, Int[np.ndarray, " K"]],
    split: Split,
    seed: int,
    by_part: Mapping[str, dict[str, Int[np.ndarray, " K"]]],
) -> tuple[list[page.ExampleSearch], str]:
    """Searches drawn at random, and why they have no thumbnails ("" if they have).

    Args:
      distances: D of all clips.
      ranks: of every query's own clip, by direction.
      split: the clips.
      seed: of the draw.
      by_part: ranks by each part alone, by its name.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for direction in DIRECTIONS:
        by_query = queries_first(distances, direction)
        for query in random.permutation(len(split))[:SEARCHES].tolist():
            drawn.append((direction, query, closest(by_query[query], query, FOUND)))
    shown = sorted({clip for _, query, found in drawn for clip in (query, *found)})
    clips, missing = _clip_views(split, shown)
    searches = [
        page.ExampleSearch(
            direction=direction,
            query=clips[query],
            rank=int(ranks[direction][query]),
            found=[
                (
                    clips[clip],
                    _verdict(split, query, clip),
                    float(queries_first(distances, direction)[query, clip]),
                )
                for clip in found
            ],
            by_part={name: int(of_part[direction][query]) for name, of_part in by_part.items()},
        )
        for direction, query, found in drawn
    ]
    return searches, missing


def _verdict(split: Split, query: int, found: int) -> str:
    if found == query:
        return "right"
    return "same source" if split.sources[found] == split.sources[query] else "other"


def _clip_views(split: Split, numbers: Sequence[int]) -> tuple[dict[int, page.ClipView], str]:
    folder = Path(split.videos) if split.videos else None
    reasons = []
    if folder is None:
        reasons.append("the data set does not say where its videos are")
    elif not folder.is_dir():
        reasons.append(f"the folder of the videos is not there any more ({folder})")
    there, views = not reasons, {}
    for number in progress_bar("thumbnails", len(numbers), "clip", shown=there, over=numbers):
        span = float(split.starts[number]), float(split.ends[number])
        thumbnail, sound = None, ""
        if there:
            source = folder / split.sources[number]
            made = figures.thumbnail(source, *span)
            if isinstance(made, str):
                reasons.append(made)
            else:
                kind, address, _ = embedded_media(str(source), *span, ("audio",))
                thumbnail, sound = made, address if kind else ""
        views[number] = page.ClipView(
            split.ids[number],
            split.sources[number],
            *span,
            split.labels[number],
            thumbnail,
            sound,
        )
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return views, reasons[0] + more if reasons else ""
