"""Evaluation: `scav evaluate --run RUN --data DATA --split test`.

A row of the table is a run, or a file of anyone's embeddings (see `sources`). Embeds a split, ranks
it by aggregation, sequence and hybrid(k) retrieval, prints the table, and writes `metrics.json` and
`report.html` to `RUN/evaluation/<data>-<split>/`. Any distance can rank, whatever the training
used; by default it is the training's own. Where a clip is one vector, aggregation alone ranks.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from scav_jax import metrics
from scav_jax.base.documents import write_arrays, write_document
from scav_jax.base.errors import InputError
from scav_jax.base.files import ids_sha256, write_atomically
from scav_jax.base.names import last_parts
from scav_jax.base.progress import progress_bar
from scav_jax.distances import find, option_names
from scav_jax.distances.static import SUFFIX, dynamic_part
from scav_jax.evaluate import baselines, galleries, hubness
from scav_jax.evaluate.parts import check_euclidean, labels, of_both, of_euclidean
from scav_jax.evaluate.sources import (
    EmbeddingsFile,
    about_file,
    embedded_from,
    parameters_of,
    trained_on,
)
from scav_jax.features import store
from scav_jax.report import page, pictures, probed
from scav_jax.retrieval import results
from scav_jax.retrieval.embed import Embedded, all_against_all, check_features, embed
from scav_jax.retrieval.hubness import bank_of
from scav_jax.retrieve import DIRECTIONS, check_ks, hybrid_ranks, queries_first, seconds_per_query
from scav_jax.sequences import RESAMPLINGS, AudioVisual
from scav_jax.training.records import read_metrics
from scav_jax.training.runs import Run


@dataclass(frozen=True)
class EvaluationSettings:
    """How to rank and what to report.

    Attributes:
      distance: ranks sequences; None is the training's, in its retrieval form.
      resample: overrides that option of the Euclidean distance.
      ks: of hybrid retrieval; None is 1, 10, 100, ... and all.
      bootstrap: how many resamples.
      seed: of the resampling, and of which queries are shown.
      batch_size: clips embedded at a time.
      divisions: further ways to divide the queries: the part that each clip is in, or "".
      parts: also ranks by the static and the dynamic part of the Euclidean distance.
      static_weight: of the static part, where it was learned apart; None is the run's.
      baselines: adds rows of what costs nothing, fitted on the clips that the first run learned of.
      galleries: sizes of smaller galleries to report recall in too; 0 is all clips.
      hubness: also ranks by distances that are corrected for it, by a bank of training clips.
    """

    distance: str | None = None
    resample: str | None = None
    ks: tuple[int, ...] | None = None
    bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64
    divisions: tuple[tuple[str, ...], ...] = ()
    parts: bool = False
    static_weight: float | None = None
    baselines: bool = False
    galleries: tuple[int, ...] = ()
    hubness: bool = False

    def __post_init__(self):
        for name, least in (("bootstrap", 0), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option}: expected at least {least}, got {getattr(self, name)}")


Source = Run | EmbeddingsFile


@dataclass(frozen=True)
class Ranked:
    """What one source makes of a split: its part of the results, and what pictures are made of.

    `part_ranks` are ranks by a part of the distance alone, by its name and direction; `near`
    what `hubness.of_bank` has of every clip, where it was asked for.
    """

    name: str
    options: dict
    embedded: Embedded
    distances: Float[np.ndarray, "K K"]
    sequence_ranks: dict[str, Int[np.ndarray, " K"]]
    document: dict
    part_ranks: dict[str, dict[str, Int[np.ndarray, " K"]]]
    near: dict[str, Float[np.ndarray, " K"]]


# ---- what is measured -----------------------------------------------------------------------


def retrieval_distance(source: Source, settings: EvaluationSettings) -> tuple[str, dict]:
    """The distance that ranks sequences of a source, and all its options.

    By default the one that the objective ranks by: the training's, DTW for soft-DTW.

    Raises:
      InputError: an unknown distance, one that does not resample, or one without a static part.
    """
    resample, weight = settings.resample, settings.static_weight
    if isinstance(source, EmbeddingsFile):
        own, trained = source.distance
    else:
        own, by = source.objective.ranks_by()
        trained = source.objective.distance_options | by
    name = own if settings.distance is None else settings.distance
    if own.endswith(SUFFIX) and not name.endswith(SUFFIX):
        name += SUFFIX  # what does not change over a clip lies beside what does
    find(name, {})
    options = {key: trained[key] for key in option_names(name) if key in trained}
    if "resample" in option_names(name):
        options.setdefault("resample", RESAMPLINGS[0])
        options["resample"] = resample or options["resample"]
        if options["resample"] not in RESAMPLINGS:
            raise InputError(f"--resample: expected one of {RESAMPLINGS}, got {resample!r}")
    elif resample is not None:
        raise InputError(
            f"--resample: expected a distance that resamples, {name!r} does not; leave it out"
        )
    if weight is None:
        return name, options
    if not options.get("static_width") or not 0 <= weight < float("inf"):
        raise InputError(
            "--static-weight: expected 0 or more, and a model that learned the static part apart, "
            f"got {weight:g} with {name}"
        )
    return name, options | {"static_weight": weight}


def hybrid_ks(ks: Sequence[int] | None, candidates: int) -> list[int]:
    """Ascending numbers of pre-selected candidates; by default 1, 10, 100, ... and all.

    Of the powers of ten, those up to half of all candidates: more save nothing.

    >>> hybrid_ks(None, 1020)
    [1, 10, 100, 1020]
    """
    if ks is not None:
        check_ks(ks, candidates)
        return sorted(set(ks))
    powers = [10**power for power in range(len(str(candidates)))]
    return sorted({power for power in powers if 2 * power <= candidates} | {candidates})


def evaluate_source(source: Source, split: store.Split, settings: EvaluationSettings) -> Ranked:
    """Every figure of one run, or of one file of embeddings, on one split.

    Args:
      source: the run, or the file.
      split: the clips.
      settings: how to rank.
    """
    bank = None
    if isinstance(source, EmbeddingsFile):
        embedded, methods, about = embedded_from(source, split), source.methods, about_file(source)
    else:
        bank = bank_of(source, settings.batch_size, progress=True) if settings.hubness else None
        embedded = embed(source, split, settings.batch_size, progress=True)
        methods, about = source.objective.methods, of_run(source)
    distance = retrieval_distance(source, settings)
    return ranked(embedded, methods, about, distance, split, settings, bank)


def of_run(run: Run) -> dict:
    """A run's part of the document that says what it is."""
    return {
        "name": run.objective.title,
        "run": str(run.path),
        "objective": run.objective.name,
        "own_method": run.objective.methods[0],
        "trained_with": trained_with(run),
        "training": trained_on(run),
        "parameters": parameters_of(run),
        "config": run.config,
    }


def _of_baselines(
    source: Run, fitted_on: tuple, split: store.Split, settings: EvaluationSettings
) -> list[Ranked]:
    """Rows of the baselines, see `baselines`."""
    found = []
    for one in baselines.baselines(*fitted_on, split, source.config["data"]["align"]):
        about = {
            "name": one.name,
            "run": "",
            "objective": results.BASELINE,
            "own_method": one.methods[0],
            "trained_with": "in closed form",
            "training": trained_on(source),
            "parameters": one.parameters,
            "config": {},
        }
        alone = replace(settings, parts=False)
        found.append(ranked(one.embedded, one.methods, about, one.distance, split, alone))
    return found


def ranked(
    embedded: Embedded,
    methods: Sequence[str],
    about: dict,
    distance: tuple[str, dict],
    split: store.Split,
    settings: EvaluationSettings,
    bank: Embedded | None = None,
) -> Ranked:
    """Every figure of embedded clips.

    Args:
      embedded: all clips of the split.
      methods: "aggregation", and "sequence" where that makes sense; then hybrid does too.
      about: what the document says of where they are from.
      distance: (name, options) that ranks sequences.
      split: the clips.
      settings: how to rank.
      bank: training clips, by which distances are corrected too.
    """
    name, options = distance
    sequences = "sequence" in methods
    raw = "sequence" if sequences else "aggregation"
    ks = hybrid_ks(settings.ks, len(split)) if sequences else [1]
    begin = time.perf_counter()
    similarities, distances = all_against_all(embedded, name, options, progress=True)
    parts = of_both(embedded, name, options) if sequences else []
    if settings.parts:
        parts += of_euclidean(embedded, distances, options)
    corrected, near = (
        hubness.of_bank(embedded, distances, bank, name, options) if bank else ([], {})
    )
    parts += corrected
    taken, begin = time.perf_counter() - begin, time.perf_counter()
    ranks = {
        direction: rank_by_method(similarities, distances if sequences else None, ks, direction)
        for direction in progress_bar("rank", len(DIRECTIONS), "direction", over=DIRECTIONS)
    }
    for direction in DIRECTIONS:
        ranks[direction] |= {part.label: part.ranks(direction) for part in parts}
    ranking = time.perf_counter() - begin
    times = _times(embedded, distance, ks)
    times |= {part.label: times["sequence"] for part in parts}
    document = about | {
        "distance": {"name": name, "options": options},
        "seconds": {"embedding": embedded.seconds, "distances": taken, "ranking": ranking},
        **_figures_of(ranks, ks, split, settings, times),
    }
    if bank:
        found = hubness.gains(ranks, corrected, raw, settings.bootstrap, settings.seed)
        document["hubness"] = {"bank": len(bank), "rows": found}
    alone = {part.label: part.label for part in parts[: len(parts) - len(corrected)]}
    for method in document["methods"]:
        if label := labels(name, options).get(method["method"]):
            method["label"] = label
            alone |= {label: "aggregation"} if method["method"] == "aggregation" else {}
    own = {direction: ranks[direction][raw] for direction in DIRECTIONS}
    part_ranks = {label: {d: ranks[d][key] for d in DIRECTIONS} for label, key in alone.items()}
    return Ranked(name, options, embedded, distances, own, document, part_ranks, near)


def _times(embedded: Embedded, distance: tuple[str, dict], ks: Sequence[int]) -> dict[str, float]:
    """Seconds a query of each method."""
    between = [k for k in ks if 1 < k < len(embedded)]
    embeddings = embedded.visual_embeddings, embedded.audio_embeddings
    times = seconds_per_query(embedded.latents, *embeddings, *distance, between)
    # The extremes need no second, or no first, stage.
    return times | {
        "hybrid 1": times["aggregation"],
        f"hybrid {len(embedded)}": times["sequence"],
    }


def rank_by_method(
    similarities: Float[np.ndarray, "K K"],
    distances: Float[np.ndarray, "K K"] | None,
    ks: Sequence[int],
    direction: str,
) -> dict[str, Int[np.ndarray, " K"]]:
    """Ranks of every query under "aggregation", "hybrid <k>" and "sequence".

    Without distances, of one vector a clip, under "aggregation" alone.
    """
    ranks = {"aggregation": metrics.ranks(-queries_first(similarities, direction))}
    if distances is None:
        return ranks
    hybrid = hybrid_ranks(similarities, distances, ks, direction)
    ranks |= {f"hybrid {k}": row for k, row in zip(ks, hybrid, strict=True)}
    ranks["sequence"] = metrics.ranks(queries_first(distances, direction))
    return ranks


def _figures_of(
    ranks: dict[str, dict[str, np.ndarray]],
    ks: Sequence[int],
    split: store.Split,
    settings: EvaluationSettings,
    times: dict[str, float],
) -> dict:
    """The parts of a run's document that come from ranks."""
    count = len(split)
    methods = [("aggregation", 1), *((f"hybrid {k}", k) for k in ks), ("sequence", count)]
    methods = [(key, k) for key, k in methods if key in ranks[DIRECTIONS[0]]]
    known = {key for key, _ in methods}
    methods += [(key, count) for key in ranks[DIRECTIONS[0]] if key not in known]
    documents = []
    for key, k in progress_bar("intervals", len(methods), "method", over=methods):
        document = {"method": key.split()[0], "k": k, "seconds_per_query": times[key]}
        if key not in known:
            document |= {"method": "part", "label": key}
        for direction in DIRECTIONS:
            assert ranks[direction][key].shape == (count,), "every clip is a query, once"
            document[direction] = metrics.summary(
                ranks[direction][key], bootstrap=settings.bootstrap, seed=settings.seed
            )
        documents.append(document)
    first_stage = {d: ranks[d]["aggregation"] for d in DIRECTIONS}
    subsets = [_divided(ranks, parts) for parts in settings.divisions]
    return {
        "methods": documents,
        "first_stage": [
            {"k": k} | {d: metrics.recall_at_k(r, k) for d, r in first_stage.items()} for k in ks
        ],
        "galleries": galleries.recalls(ranks, count, settings.galleries),
        "per_class": _divided(ranks, split.labels),
        "per_subset": {
            method: {part: row for found in subsets for part, row in found[method].items()}
            for method in (subsets[0] if subsets else ())
        },
    }


def _divided(ranks: dict[str, dict[str, np.ndarray]], labels: Sequence[str]) -> dict:
    """Method -> label -> direction -> the summary of the queries with that label."""
    by_class = {
        method: {d: metrics.per_class(ranks[d][method], labels) for d in DIRECTIONS}
        for method in ("aggregation", "sequence")
        if method in ranks[DIRECTIONS[0]]
    }
    return {
        method: {label: {d: found[d][label] for d in DIRECTIONS} for label in found["a2v"]}
        for method, found in by_class.items()
    }


def trained_with(run: Run) -> str:
    """What distinguishes one run from another, in words."""
    objective, config = run.objective, run.config
    distance = {"name": objective.distance, "options": objective.distance_options}
    parts = [f"{objective.name} objective"]
    parts += objective.in_words(results.distance_name(distance))
    parts += run.encoders.in_words
    parts += [f"batch {config['data']['batch_size']}", f"{config['train']['steps']} steps"]
    parts += [f"seed {config['seed']}", f"average of steps {', '.join(map(str, run.steps))}"]
    return ", ".join(parts)


def evaluate(
    sources: Sequence[Source],
    splits: Sequence[store.Split],
    settings: EvaluationSettings,
) -> tuple[dict, page.Pictures, Ranked]:
    """Evaluates runs and files of embeddings on the same clips.

    Args:
      sources: one row each.
      splits: the clips as each of them takes them: features differ, ids and their order do not.
      settings: how to rank.

    Returns:
      The results document (see `results`), the `page.Pictures` of the first source, and that.
    """
    galleries.check(settings.galleries, len(splits[0]))
    fitted_on = baselines.fitted_on(sources[0]) if settings.baselines else ()
    for source, split in zip(sources, splits, strict=True):
        # What can be wrong is said before the first hour of work.
        if isinstance(source, EmbeddingsFile):
            embedded_from(source, split)
            methods = source.methods
        else:
            check_features(source, split)
            methods = source.objective.methods
        if "sequence" in methods:
            hybrid_ks(settings.ks, len(split))
        name, _ = retrieval_distance(source, settings)
        if settings.parts:
            check_euclidean(name)
        if settings.hubness:
            hubness.check_bank(source)
    rows = [
        evaluate_source(source, split, settings)
        for source, split in zip(sources, splits, strict=True)
    ]
    tell_apart(sources, [one.document for one in rows])
    split = splits[0]
    costs_nothing = _of_baselines(sources[0], fitted_on, split, settings) if fitted_on else []
    document = head(split, settings) | {"runs": [one.document for one in (*rows, *costs_nothing)]}
    return document, _pictures(sources, rows, split, settings.seed), rows[0]


def head(split: store.Split, settings: EvaluationSettings) -> dict:
    """What a document says of clips, resampling and machine, whatever is measured."""
    device, ids = jax.devices()[0], ids_sha256(split.ids)
    return {
        "format_version": results.FORMAT_VERSION,
        "data": {
            "path": str(split.data),
            "split": split.split,
            "n": len(split),
            "sources": len(set(split.sources)),
            "ids_sha256": ids,
            "gallery": galleries.PUBLISHED.get(ids, ""),
            "fingerprint": split.fingerprint,
            "fingerprint_id": split.fingerprint_id,
            "rendered": pictures.is_rendered(split),
        },
        "bootstrap": settings.bootstrap,
        "seed": settings.seed,
        "tie_rule": metrics.TIE_RULE,
        "machine": f"{len(jax.devices())} x {device.device_kind} ({device.platform}), "
        f"{os.cpu_count()} CPU cores, JAX {jax.__version__}",
    }


def tell_apart(sources: Sequence[Source], documents: Sequence[dict]) -> None:
    """Adds to names that several have which run, or file, is meant."""
    titles = [document["name"] for document in documents]
    for called in (lambda path: path.name.removesuffix(".npz"), last_parts):
        names = [document["name"] for document in documents]
        for source, document, title in zip(sources, documents, titles, strict=True):
            if names.count(document["name"]) > 1:
                document["name"] = f"{title} ({called(source.path)})"


def _pictures(
    sources: Sequence[Source], rows: Sequence[Ranked], split: store.Split, seed: int
) -> page.Pictures:
    """The training curves of every run, and what else is shown of the first one."""
    first = rows[0]
    searches, missing = pictures.make_searches(
        first.distances, first.sequence_ranks, split, seed, first.part_ranks
    )
    own = split.ids.index(searches[0].query.id)
    ids = ids_sha256(split.ids)
    runs = [source for source in sources if isinstance(source, Run)]
    probes = [probed.read(run.path, split.data, split.split, ids) for run in runs]
    pairs = {}
    if len(first.document["per_class"]) > 1:  # there is a sequence to show
        compared = dynamic_part(first.name, first.options, first.embedded.latents)
        latents = AudioVisual(*compared[2])
        resample = compared[1].get("resample", RESAMPLINGS[0])
        pairs = {
            "alignments": pictures.make_alignments(latents, first.distances, *compared[:2], own),
            "comparison": pictures.make_comparison(latents, own, resample),
            "resampled": pictures.make_resampled(latents, first.distances, own, resample),
        }
    return page.Pictures(
        histories=[
            (one.document["name"], read_metrics(source.path))
            for source, one in zip(sources, rows, strict=True)
            if isinstance(source, Run)
        ],
        matrices=pictures.make_matrices(first.distances, split),
        **pairs,
        searches=searches,
        probes=[document for document in probes if document is not None],
        no_thumbnails=missing,
    )


def write(folder: Path, document: dict, shown: page.Pictures, first: Ranked) -> None:
    """Writes metrics.json, report.html and hubness.npz (if any), each whole or not at all."""
    write_document(folder / "metrics.json", document)
    write_atomically(folder / "report.html", page.html(document, shown))
    if first.near:
        ids = {"ids": np.array(first.embedded.ids)}
        write_arrays(folder / "hubness.npz", ids | first.near)
