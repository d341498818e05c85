"""One search over a snapshot: which method, which rows, what comes back.

The first stage of hybrid search is cosines of embeddings, which are also the whole of
`aggregation`, or of sketches: a product of matrices over mapped files. Distances that are no
product of matrices are computed by `pairwise`, some pairs at a time.
"""

import re
import time
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scav_jax.base.errors import InputError
from scav_jax.index import products
from scav_jax.index.catalog import Header
from scav_jax.index.nearest import Hubness, NearestSoFar, k_smallest
from scav_jax.index.products import widen
from scav_jax.index.pruned import ExactSearch, Pruning, nearest_of_chosen
from scav_jax.index.rows import numbered
from scav_jax.index.scan import Queries, Scan, numbers_of
from scav_jax.index.segments import Segment
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieve import pairwise_of
from scav_jax.sequences import Sequences, sequences, unit

METHODS = ("aggregation", "sequence", "exact", "hybrid:K")
COMPARING = ("exact", "sequence")  # those with the result of comparing all
QUERIES_AT_ONCE = 1024
BOTH_PAIRS = 2**22  # of queries and clips, whose distances are held at a time
FEW = 8  # queries; with fewer, reading the candidates is what a product costs
FEW_SHARE = 0.035
# What bounds cost, in numbers of sequences that a product multiplies in that time; measured on two
# cores with many queries: the sketches of a query and its first limits, and the bound of one pair.
SKETCHING, BOUNDING = 18e6, 900
COSINE_ROWS = 16384  # candidates at a time
COSINE_PAIRS = 2**22  # with few queries, more
UnitQueries = tuple[str, Float[np.ndarray, "Q _"]]  # the column that is asked, and unit vectors
PAIRWISE_ROWS, PAIRWISE_QUERIES = 256, 32  # at a time


@dataclass(frozen=True)
class Found:
    """The nearest of each query: places in the index and scores, by query and rank.

    With a static part, `static` is its cosine. `distance` is that of the sequences, where they were
    compared; a score that is relative to a bank was made of it.
    """

    query: Int[np.ndarray, " p"]
    segment: Int[np.ndarray, " p"]
    row: Int[np.ndarray, " p"]
    score: Float[np.ndarray, " p"]
    static: Float[np.ndarray, " p"] | None = None
    distance: Float[np.ndarray, " p"] | None = None


@dataclass
class Report:
    """How a search went.

    Attributes:
      retrieval: what was asked for.
      method: what was done: hybrid and exact search compare all where that is faster.
      seconds: how long it took.
      candidates: how many clips were searched.
      measure: what scores are: a "cosine", a "distance", or a "score" relative to a bank.
      pruning: of exact search.
    """

    retrieval: str
    method: str = ""
    seconds: float = 0.0
    candidates: int = 0
    measure: str = "distance"
    pruning: Pruning = field(default_factory=Pruning)


def parse_retrieval(text: str, direction: str = "") -> tuple[str, int]:
    """(method, K) of `aggregation`, `sequence`, `exact` or `hybrid:K`; "both" compares all.

    >>> parse_retrieval("hybrid:100")
    ('hybrid', 100)
    """
    match = re.fullmatch(r"(aggregation|sequence|exact)|hybrid:([1-9][0-9]{0,17})", text)
    if not match:
        raise InputError(
            f"retrieval: expected one of {', '.join(METHODS)} (K from 1), got {text!r}"
        )
    if direction == "both" and match[1] not in COMPARING:
        raise InputError(
            f"retrieval: expected {' or '.join(COMPARING)} where both streams ask, got {text!r}"
        )
    return (match[1], 0) if match[1] else ("hybrid", int(match[2]))


def search(
    snapshot: Snapshot, queries: Embedded, direction: str, k: int, retrieval: str, on_devices=None
) -> tuple[Found, Report]:
    """The k nearest live rows of each query, fewer where there are fewer.

    Args:
      snapshot: what is searched.
      queries: embedded by the model of the index.
      direction: "a2v" or "v2a".
      k: how many.
      retrieval: see `METHODS`.
      on_devices: a `mesh.OnMesh` of the snapshot, which then compares all.
    """
    if k < 1:
        raise InputError(f"k: expected at least 1, got {k}")
    method, chosen = parse_retrieval(retrieval)
    begin = time.perf_counter()
    asking = Queries.of(queries, direction, snapshot.header)
    snapshot = snapshot.with_stream(asking.asked)
    report = Report(retrieval, candidates=len(snapshot))
    numbers = numbers_of(snapshot, asking.asked)
    most = max(chosen, k)
    report.method = switched(method, most, report.candidates, len(asking), snapshot.header, numbers)
    if on_devices is not None and report.method == "exact":
        report.method = "sequence"
    if report.method == "aggregation":
        report.measure = "cosine"
    elif snapshot.header.bank:
        report.measure = "score"
    parts = []
    for first in range(0, len(asking) if report.candidates else 0, QUERIES_AT_ONCE):
        batch = asking.part(slice(first, first + QUERIES_AT_ONCE))
        find = _nearest if snapshot.header.one_grid else _nearest_by_any_distance
        if report.method == "aggregation":
            find = _nearest_by_cosine
        if on_devices is not None and report.method == "sequence":
            query, *places = on_devices.nearest(batch, k)
        else:
            query, *places = find(snapshot, batch, k, most, report)
        parts.append((query + first, *places))
    report.seconds = time.perf_counter() - begin
    found = _joined(parts)
    if not parts:
        return found, report
    return found if report.measure == "cosine" else _explained(found, asking, snapshot), report


def search_both(
    snapshot: Snapshot, queries: Embedded, k: int, retrieval: str
) -> tuple[Found, Report]:
    """The k clips nearest to picture and sound of each query together, all compared.

    The score is the sum of both directions, each on its own scale: how many deviations the
    distance, or the score relative to the bank of the index, is above its mean over the clips that
    are searched, those that have both streams. `distance` is the mean of both distances.
    """
    if k < 1:
        raise InputError(f"k: expected at least 1, got {k}")
    parse_retrieval(retrieval, "both")
    snapshot = snapshot.with_stream("visual").with_stream("audio")
    begin, count = time.perf_counter(), len(snapshot)
    report = Report(retrieval, "sequence", candidates=count, measure="score")
    at_once, parts = max(BOTH_PAIRS // max(count, 1), 1), []
    for first in range(0, len(queries) if count else 0, at_once):
        some = queries.take(range(first, min(first + at_once, len(queries))))
        segment, row, scores, distances = _of_all(snapshot, some)
        for number, (total, mean) in enumerate(zip(scores, distances, strict=True)):
            everywhere = np.full(count, first + number)
            *places, total = k_smallest(everywhere, segment, row, total, snapshot, k)
            at = np.searchsorted(numbered(segment, row), numbered(*places[1:]))
            parts.append((*places, total.astype(np.float32), None, mean[at].astype(np.float32)))
    report.seconds = time.perf_counter() - begin
    return _joined(parts), report


def _joined(parts: list[tuple]) -> Found:
    """Columns of some queries after each other; what is None in them stays so."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Found(none, none, none, np.zeros(0, np.float32))
    columns = zip(*parts, strict=True)
    return Found(*(None if one[0] is None else np.concatenate(one) for one in columns))


def _of_all(snapshot: Snapshot, queries: Embedded):
    """(segment, row) of all clips in order, and `[Q, n]` sums of scores and means of distances."""
    scores, distances = 0.0, 0.0
    for direction in ("a2v", "v2a"):
        found = search(snapshot, queries, direction, len(snapshot), "sequence")[0]
        order = np.lexsort((found.row, found.segment, found.query))
        score, distance = (
            one[order].astype(np.float64).reshape(len(queries), -1)
            for one in (found.score, found.distance)
        )
        spread = score.std(axis=1, keepdims=True)
        score = (score - score.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
        scores, distances = scores + score, distances + distance / 2
    first = order[: len(snapshot)]
    return found.segment[first], found.row[first], scores, distances


def _explained(found: Found, asking: Queries, snapshot: Snapshot) -> Found:
    """What was found, with what its scores were made of."""
    hubness, header = Hubness.of(snapshot, asking.asked), snapshot.header
    distances = found.score
    if hubness is not None:
        near = hubness.at(found.segment, found.row)
        if header.one_grid:
            near = replace(header, bank="").score_of(near)
        distances = found.score + np.float32(0.5) * near
    found = replace(found, distance=distances)
    if header.static_width:
        places = found.query, found.segment, found.row
        own = "embeddings", unit(asking.embeddings)
        found = replace(found, static=_cosines(own, asking.asked, snapshot, *places))
    return found


def switched(
    method: str, most: int, candidates: int, queries: int, header: Header, numbers: int
) -> str:
    """What is done for what was asked: comparing all may be faster.

    A pair that is chosen costs something whatever its length, and little more for its numbers,
    since bounds rule out most; a pair of a product costs its numbers. All shares are measured.

    Args:
      method: what was asked.
      most: candidates of each query that the first stage chooses.
      candidates, queries: how many there are.
      header: of the index.
      numbers: of a sequence.
    """
    if method == "exact" and not header.one_grid:
        return "sequence"  # the same result; there are no bounds for this distance
    if method == "exact":
        pays = queries < FEW or candidates * (numbers - BOUNDING) > SKETCHING
        return "exact" if pays else "sequence"
    if method != "hybrid":
        return method
    share = 0.9
    if header.one_grid:
        share = numbers / (330_000 + 3.3 * numbers)
        if queries < FEW:
            share = max(share, FEW_SHARE * FEW / max(queries, 1))
    return "sequence" if most >= share * candidates else "hybrid"


def _nearest(snapshot: Snapshot, queries: Queries, k: int, most: int, report: Report):
    """(query, segment, row, score) by query and rank, under the Euclidean distance."""
    scan = Scan(queries, snapshot)
    if report.method == "hybrid":
        chosen = most_similar(queries, snapshot, most)
        *places, squares = nearest_of_chosen(scan, *chosen, k)
        return *places, snapshot.header.score_of(squares)
    if report.method == "exact":
        nearest = ExactSearch(scan, k, report.pruning).run()
    else:
        nearest = scan.nearest(k)
        scan.compare_all(nearest)
    *places, squares = scan.best(nearest)
    return *places, snapshot.header.score_of(squares)


# Cosines of embeddings


def _nearest_by_cosine(snapshot: Snapshot, queries: Queries, k: int, most: int, report: Report):
    """The same by cosine, the largest first; equal ones are in the order of keys."""
    unit_queries = "embeddings", unit(queries.embeddings)
    places = _possible(unit_queries, queries.asked, snapshot, k)
    cosines = _cosines(unit_queries, queries.asked, snapshot, *places)
    *places, far = k_smallest(*places, -cosines, snapshot, k)
    return *places, -far


def most_similar(
    queries: Queries, snapshot: Snapshot, k: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """query, segment and row of the k largest cosines, by query but in no order of ranks.

    Cosines of sketches where the index has them, else of embeddings. Where rounding leaves no doubt
    about which k they are, no cosine is computed again.
    """
    unit_queries = _first_stage(queries, snapshot.header)
    places = _possible(unit_queries, queries.asked, snapshot, k)
    doubtful = np.bincount(places[0], minlength=len(queries))[places[0]] > k
    unsure = [column[doubtful] for column in places]
    cosines = _cosines(unit_queries, queries.asked, snapshot, *unsure)
    found = k_smallest(*unsure, -cosines, snapshot, k)[:3]
    together = [
        np.concatenate([column[~doubtful], more])
        for column, more in zip(places, found, strict=True)
    ]
    order = np.argsort(together[0], kind="stable")
    query, segment, row = (column[order] for column in together)
    return query, segment, row


def _first_stage(queries: Queries, header: Header) -> UnitQueries:
    """What the first stage of a hybrid search asks with."""
    if not header.sketch:
        return "embeddings", unit(queries.embeddings)
    if queries.sketches is None:
        raise InputError(
            f"hybrid: expected queries with the sketch {header.sketch} of the index, got none of "
            "that name; ask with the run as it was, or build the index again"
        )
    return "sketches", unit(queries.sketches)


def _possible(
    unit_queries: UnitQueries, asked: str, snapshot: Snapshot, k: int
) -> tuple[Int[np.ndarray, " p"], ...]:
    """(query, segment, row) of all that can be among the k nearest, whatever products round."""
    column, embeddings = unit_queries
    nearest, numbers = NearestSoFar(len(embeddings), k), np.arange(len(embeddings))
    width = embeddings.shape[1]
    errors = np.full(len(embeddings), products.rounding(width) * 2)
    size = max(COSINE_ROWS, COSINE_PAIRS // max(len(embeddings), 1))
    for number, segment in snapshot.segments.items():
        alive, stream = snapshot.live[number], segment.streams[asked]
        for begin in range(0, len(segment), size):
            rows = slice(begin, min(begin + size, len(segment)))
            if not alive[rows].any():
                continue
            similar = products.inner(embeddings, stream.read(column, rows))
            similar /= stream.rows[f"{column}_length"][rows]
            distances = np.negative(similar, out=similar)
            distances[:, ~alive[rows]] = np.inf
            nearest.offer(numbers, distances, errors, number, np.arange(rows.start, rows.stop))
    return nearest.candidates()


def _cosines(
    unit_queries: UnitQueries, asked: str, snapshot: Snapshot, query, segment, row
) -> Float[np.ndarray, " p"]:
    """Cosines, each by its own sum: the same whatever tile found the pair."""
    column, embeddings = unit_queries
    result = np.empty(len(query), np.float32)
    for number in np.unique(segment):
        here = np.flatnonzero(segment == number)
        here = here[np.argsort(row[here], kind="stable")]
        stream = snapshot.segments[int(number)].streams[asked]
        for begin in range(0, len(here), COSINE_ROWS):
            part = here[begin : begin + COSINE_ROWS]
            stored = stream.gather(column, slice(0, len(stream.rows)), row[part])
            lengths = stream.rows[f"{column}_length"][row[part]]
            result[part] = np.vecdot(widen(stored), embeddings[query[part]]) / lengths
    return result


# Any distance


def _nearest_by_any_distance(
    snapshot: Snapshot, queries: Queries, k: int, most: int, report: Report
):
    """The same by a distance that is no product of matrices."""
    nearest = NearestSoFar(len(queries), k, Hubness.of(snapshot, queries.asked))
    everyone = np.arange(len(queries))
    if report.method == "sequence":
        rows = {number: np.flatnonzero(live) for number, live in snapshot.live.items()}
        compare(queries, snapshot, rows, nearest, everyone)
    else:
        query, segment, row = most_similar(queries, snapshot, most)
        for number in everyone:
            own = query == number
            rows = {
                int(one): np.sort(row[own][segment[own] == one]) for one in np.unique(segment[own])
            }
            compare(queries, snapshot, rows, nearest, everyone[number : number + 1])
    places = nearest.candidates()
    return k_smallest(*places, nearest.distances().astype(np.float32), snapshot, k)


def compare(
    queries: Queries,
    snapshot: Snapshot,
    chosen: dict[int, Int[np.ndarray, " n"]],
    nearest: NearestSoFar,
    numbers: Int[np.ndarray, " Q"],
) -> None:
    """Offers chosen rows of each segment to the queries of some numbers.

    All are padded to one shape, so there is one program, and a pair's distance does not depend on
    how many others are asked for; but for the last digits where the distance centres latents by
    those beside them, as DTW does.
    """
    header, v2a = snapshot.header, queries.stream == "visual"
    distances_of = pairwise_of(header.distance, header.options)
    streams = [one.streams[queries.asked] for one in snapshot.segments.values()]
    steps = max(int(stream.rows["steps"].max()) for stream in streams)
    for number, rows in chosen.items():
        for begin in range(0, len(rows), PAIRWISE_ROWS):
            part = rows[begin : begin + PAIRWISE_ROWS]
            candidates = _stored(snapshot.segments[number], queries.asked, part, steps)
            for first in range(0, len(numbers), PAIRWISE_QUERIES):
                asking = numbers[first : first + PAIRWISE_QUERIES]
                filled = np.resize(asking, PAIRWISE_QUERIES)
                filled[len(asking) :] = asking[-1]
                values = queries.sequences.values[filled].astype(np.float32)
                lengths = queries.sequences.lengths[filled]
                asked = sequences(jnp.asarray(values), jnp.asarray(lengths))
                distances = distances_of(*((asked, candidates)[:: 1 if v2a else -1]))
                distances = np.asarray(distances if v2a else distances.T)
                distances = np.ascontiguousarray(distances[: len(asking), : len(part)])
                nearest.offer(asking, distances, np.zeros(len(asking)), number, part)


def _stored(segment: Segment, asked: str, rows: Int[np.ndarray, " r"], steps: int) -> Sequences:
    """Stored sequences, padded to `steps` steps and all rows (with the last one again)."""
    stream, width = segment.streams[asked], segment.width
    lengths = np.full(PAIRWISE_ROWS, stream.rows["steps"][rows[-1]], np.int32)
    lengths[: len(rows)] = stream.rows["steps"][rows]
    values = np.zeros((PAIRWISE_ROWS, steps, width), np.float32)
    for place, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=False)):
        values[place, :length] = segment.sequence(asked, row)
    values[len(rows) :] = values[len(rows) - 1]
    return sequences(jnp.asarray(values), jnp.asarray(lengths))
