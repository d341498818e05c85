"""A trained model in mteb (github embeddings-benchmark/mteb), whose tasks rank by its sequences.

    pip install mteb
    python scripts/mteb_scav.py --model RUN --out results
    python scripts/mteb_scav.py --model RUN --out results --retrieval aggregation \
        --tasks VGGSoundAVV2ARetrieval

mteb takes models of one vector a clip, and models that search by themselves (`SearchProtocol`):
this is one of those. Files are decoded as they lie in the data set, by this project's decoder. A
query that cannot be used finds nothing, which counts as a miss; a clip that cannot be used stands
behind all others. Results are written as mteb's leaderboard reads them.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scav_jax.base.commands import Parser, add_model
from scav_jax.base.errors import InputError, run_program
from scav_jax.base.progress import progress_bar
from scav_jax.retrieval.embed import Embedded, join
from scav_jax.retrieval.files import nothing_usable
from scav_jax.retrieval.model import Model, load_as_asked
from scav_jax.retrieve import aggregation_similarities, queries_first, sequence_distances
from scav_jax.sequences import AudioVisual

TASKS = (
    *("VGGSoundAVV2ARetrieval", "VGGSoundAVA2VRetrieval"),
    *("AudioCapsAVV2ARetrieval", "AudioCapsAVA2VRetrieval"),
)
STREAMS = {"video": "visual", "audio": "audio"}  # mteb's words and ours
METHODS = ("sequence", "aggregation")
NOTHING = "(the query cannot be used)"  # what it finds: no clip of the gallery


class Searcher:
    """mteb's `SearchProtocol`: `index` takes the gallery, `search` the queries.

    Attributes:
      mteb_model_meta: what mteb writes about the model.
    """

    def __init__(self, model: Model, method: str = "sequence", workers: int = 0):
        self._model, self._method, self._workers = model, method, workers
        self._gallery: tuple[str, list[str], Embedded] | None = None
        self.mteb_model_meta = described(model, method)

    def index(self, corpus: Any, **_) -> None:
        """Embeds the gallery: a `datasets.Dataset` with the columns id and video or audio."""
        self._gallery = self._embedded(corpus)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: dict | None = None, **_
    ) -> dict[str, dict[str, float]]:
        """Of each query the ids of the nearest clips with their scores, larger is closer.

        Raises:
          InputError: nothing was indexed, or queries and gallery are of the same stream.
        """
        if self._gallery is None:
            raise InputError("expected a gallery (index) before a search")
        stream, clips, gallery = self._gallery
        asking, names, asked = self._embedded(queries)
        if asking == stream:
            raise InputError(
                f"expected video that finds audio or audio that finds video, got {stream} twice"
            )
        scores = self._scores(asking, asked, gallery)
        worst = float(scores.min()) - 1.0 if scores.size else -1.0
        place, row = (
            {one: at for at, one in enumerate(gallery.ids)},
            dict(zip(asked.ids, scores, strict=True)),
        )
        clips, found = list(dict.fromkeys(clips)), {}
        everywhere = np.array([place.get(clip, -1) for clip in clips], int)
        for name in progress_bar("rank", len(names), "query", over=names):
            if name not in row:
                found[name] = {NOTHING: 0.0}
                continue
            if top_ranked is None:
                wanted, at = clips, everywhere
            else:
                wanted = list(dict.fromkeys(top_ranked[name]))
                at = np.array([place.get(clip, -1) for clip in wanted], int)
            of = np.append(row[name].astype(np.float64), worst)[at]
            nearest = np.argsort(-of, kind="stable")[:top_k]
            found[name] = {wanted[one]: float(of[one]) for one in nearest.tolist()}
        return found

    def _scores(self, asking: str, asked: Embedded, gallery: Embedded) -> np.ndarray:
        """`[queries, gallery]`, larger is closer."""
        direction = "v2a" if asking == "visual" else "a2v"
        both = (asked, gallery) if direction == "v2a" else (gallery, asked)
        if self._method == "aggregation":
            similar = aggregation_similarities(both[0].visual_embeddings, both[1].audio_embeddings)
            return queries_first(similar, direction)
        name, options = self._model.distance
        latents = AudioVisual(both[0].visual, both[1].audio)
        D = sequence_distances(latents, name, options, progress=True)
        return -queries_first(D, direction)

    def _embedded(self, rows: Any) -> tuple[str, list[str], Embedded]:
        """The stream of a data set, its ids, and what could be embedded under these ids."""
        column = column_of(rows)
        names = [str(name) for name in rows["id"]]
        with tempfile.TemporaryDirectory() as folder:
            files = written(rows, column, Path(folder))
            parts = []
            with progress_bar(f"embed {column}", len(files), "clip") as bar:
                for part in self._model.stream(
                    files, streams=[STREAMS[column]], root=folder, workers=self._workers
                ):
                    parts.append(part)
                    bar.update(len(part) + len(part.rejected))
        rejected = [one for part in parts for one in part.rejected]
        if not any(map(len, parts)):
            raise InputError(nothing_usable(rejected))
        made = join([part for part in parts if len(part)])
        for one in rejected:
            print(
                f"rejected {names[int(Path(one['file']).stem)]}: {one['reason']}", file=sys.stderr
            )
        ids = [names[int(Path(one).stem)] for one in made.ids]
        return STREAMS[column], names, replace(made, ids=ids)


def column_of(rows: Any) -> str:
    """The one column of mteb's that this model can use."""
    found = [name for name in STREAMS if name in rows.column_names]
    if len(found) != 1 or "text" in rows.column_names:
        raise InputError(
            f"expected a column video or audio alone, got {', '.join(rows.column_names)}"
        )
    return found[0]


def written(rows: Any, column: str, folder: Path) -> list[Path]:
    """The files of a column as they are, undecoded, named by their place."""
    feature = type(rows.features[column])
    undecoded = rows.cast_column(column, feature(decode=False))
    files = []
    for place, row in enumerate(undecoded):
        held = row[column]
        content = held["bytes"] if held["bytes"] is not None else Path(held["path"]).read_bytes()
        files.append(folder / f"{place:08d}.{'mp4' if column == 'video' else 'wav'}")
        files[-1].write_bytes(content)
    return files


def described(model: Model, method: str) -> Any:
    """mteb's `ModelMeta`; the revision is the model's identity, and how it ranks."""
    from mteb.models import ModelMeta

    return ModelMeta.create_empty(
        overwrites={
            "name": f"scav_jax/{Path(model.run.path).resolve().name or 'model'}",
            "revision": f"{model.identity}-{method}",
            "modalities": ["video", "audio"],
            "model_type": ["late-interaction" if method == "sequence" else "dense"],
            "framework": ["JAX"],
            "similarity_fn_name": "custom" if method == "sequence" else "cosine",
        }
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="mteb_scav.py", description=__doc__)
    add_model(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="where mteb writes its results")
    add("--tasks", nargs="+", default=TASKS, metavar="TASK", help=f"default: {', '.join(TASKS)}")
    add("--retrieval", default="sequence", choices=METHODS, help="default: sequence")
    add("--workers", type=int, default=0, help="processes that decode (default 0)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        import mteb
    except ModuleNotFoundError:
        raise InputError("mteb is not installed: `pip install mteb`") from None
    searcher = Searcher(load_as_asked(arguments), arguments.retrieval, arguments.workers)
    tasks = mteb.get_tasks(tasks=list(arguments.tasks))
    evaluate(searcher, tasks, arguments.out)
    return 0


def evaluate(searcher: Searcher, tasks: Sequence[Any], out: Path) -> dict[str, dict]:
    """Runs tasks, prints and returns the scores of each."""
    import mteb

    done = mteb.evaluate(searcher, tasks, cache=mteb.ResultCache(cache_path=out), co2_tracker=False)
    scores = {}
    for result in done.task_results:
        (scores[result.task_name],) = next(iter(result.scores.values()))
        told = scores[result.task_name]
        print(
            f"{result.task_name}: R@1 {100 * told['recall_at_1']:.1f}, R@10 "
            f"{100 * told['recall_at_10']:.1f}, nDCG@10 {100 * told['ndcg_at_10']:.1f}"
        )
    return scores


if __name__ == "__main__":
    run_program(main)
