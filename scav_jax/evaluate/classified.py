"""Classifiers on a split with labels: accuracy or mAP, as a table and `classification.json`.

The document is that of `retrieval.results` with, for each run, `name`, `run`, `config`,
`objective`, `trained_with`, `training`, `parameters`, `measured` ("accuracy" or "mAP"), `seconds`,
and what `retrieval.classify.figures` found.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.evaluate.evaluation import EvaluationSettings, Source, head, of_run, tell_apart
from scav_jax.features.store import Split
from scav_jax.retrieval import classify, results
from scav_jax.retrieval.embed import check_features
from scav_jax.training.runs import Run
from scav_jax.training.setup import material

FILE = "classification.json"
NOT_FOR_CLASSIFIERS = (
    "distance",
    "resample",
    "hybrid",
    "save",
    "annotations",
    "gallery",
    "static_weight",
    "parts",
    "baselines",
    "hubness",
)


def classifies(source: Source) -> bool:
    """Whether a row of the table is a classifier."""
    return isinstance(source, Run) and bool(source.objective.classes)


def check_options(sources: Sequence[Source], arguments: argparse.Namespace) -> None:
    """Raises `InputError` for rows that retrieve beside some that classify, and their options."""
    others = [source for source in sources if not classifies(source)]
    if others:
        raise InputError(
            "--compare, --embeddings: expected classifiers beside a classifier, "
            f"{others[0].path} is none; evaluate them by themselves"
        )
    for name in NOT_FOR_CLASSIFIERS:
        value = getattr(arguments, name)
        if not (value is None or value is False or value in ([], "none")):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: expected a run that retrieves, this one classifies")


def evaluate(runs: Sequence[Run], splits: Sequence[Split], settings: EvaluationSettings) -> dict:
    """The document of some classifiers on the same clips.

    Args:
      runs: a row each.
      splits: the clips, in the features that each of them takes.
      settings: of which `bootstrap`, `seed` and `batch_size` are used.

    Raises:
      InputError: clips without a label, or with one that a classifier was not trained on.
    """
    for run, split in zip(runs, splits, strict=True):
        check_features(run, split)
        run.objective.check(material(split, run.config["data"]["align"]))
    rows = [_row(run, split, settings) for run, split in zip(runs, splits, strict=True)]
    tell_apart(runs, rows)
    return head(splits[0], settings) | {"runs": rows}


def _row(run: Run, split: Split, settings: EvaluationSettings) -> dict:
    begin = time.perf_counter()
    logits = classify.logits_of(run, split, settings.batch_size, progress=True)
    seconds = {"logits": time.perf_counter() - begin}
    found = classify.figures(
        run.objective, logits, split.labels, bootstrap=settings.bootstrap, seed=settings.seed
    )
    about = {key: value for key, value in of_run(run).items() if key != "own_method"}
    return about | {"measured": classify.metric_name(run.objective), "seconds": seconds, **found}


def table(document: dict) -> str:
    """The document as aligned text, a row a run; shares in percent."""
    rows = [["run", "measured", "N", "classes", "", "95 %", "prior", "top 5", "95 %", "prior"]]
    for run in document["runs"]:
        rows.append(
            [
                run["name"],
                run["measured"],
                f"{run['n']:,}",
                f"{run['classes']:,}",
                *(_cell(run, name) for name in ("figure", "figure_interval", "prior")),
                *(_cell(run, name) for name in ("top_5", "top_5_interval", "prior_top_5")),
            ]
        )
    data = document["data"]
    notes = [
        f"{data['path']}, split {data['split']}: {data['n']:,} clips, sha256 of the ids "
        f"{data['ids_sha256'][:16]}; prior: what the commonest answer(s) there would have",
        *(
            f"{run['name']}: {run['parameters']:,} parameters, has seen {run['training']}; "
            f"{run['trained_with']}"
            for run in document["runs"]
        ),
    ]
    notes += [
        f"{run['name']}: {lack:,} class{'es have' if lack > 1 else ' has'} no clip there"
        for run in document["runs"]
        if (lack := run["classes"] - run["classes_there"])
    ]
    notes += results.few_clips(data["n"], document["runs"][0]["measured"])
    if data["rendered"]:
        notes.append(results.RENDERED)
    lines = results.aligned(rows)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *notes])


def _cell(run: dict, name: str) -> str:
    """A figure in percent, or "-" where there is none."""
    value = run.get(name)
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"[{results.percent(value[0])}, {results.percent(value[1])}]"
    return results.percent(value)


def write(folder: Path, document: dict) -> Path:
    """Writes classification.json, whole or not at all; where it is."""
    write_document(folder / FILE, document)
    return folder / FILE
