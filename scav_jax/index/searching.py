"""One search over a snapshot: which method, which rows, what comes back."""

import re
import time
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from scav_jax.embed import Embedded
from scav_jax.errors import InputError
from scav_jax.index import any_distance, cosine, second_stage
from scav_jax.index.cosine import ranked
from scav_jax.index.grids import Queries, queries_of, query_streams
from scav_jax.index.layout import Header
from scav_jax.index.pruned import ExactSearch, Pruning
from scav_jax.index.running import Running
from scav_jax.index.scan import Scan, numbers_of
from scav_jax.index.segments import Segment

METHODS = ("aggregation", "sequence", "exact", "hybrid:K")
QUERIES_AT_ONCE = 1024
FEW = 8  # queries; with fewer, reading the candidates is what a product costs
FEW_SHARE = 0.035
# What bounds cost, in numbers of sequences that a product multiplies in that time; measured on two
# cores with many queries: the sketches of a query and its first limits, and the bound of one pair.
SKETCHING, BOUNDING = 18e6, 900


@dataclass(frozen=True)
class Found:
    """The nearest of each query: places in the index and scores, by query and rank."""

    query: Int[np.ndarray, " p"]
    segment: Int[np.ndarray, " p"]
    row: Int[np.ndarray, " p"]
    score: Float[np.ndarray, " p"]


@dataclass
class Report:
    """How a search went.

    Attributes:
      retrieval: what was asked for.
      method: what was done: hybrid and exact search compare all where that is faster.
      seconds: how long it took.
      candidates: how many clips were searched.
      pruning: of exact search.
    """

    retrieval: str
    method: str = ""
    seconds: float = 0.0
    candidates: int = 0
    pruning: Pruning = field(default_factory=Pruning)


def parse_retrieval(text: str) -> tuple[str, int]:
    """(method, K) of `aggregation`, `sequence`, `exact` or `hybrid:K`.

    >>> parse_retrieval("hybrid:100")
    ('hybrid', 100)
    """
    match = re.fullmatch(r"(aggregation|sequence|exact)|hybrid:([1-9][0-9]*)", text)
    if not match:
        raise InputError(
            f"retrieval: expected one of {', '.join(METHODS)} (K from 1), got {text!r}"
        )
    return (match[1], 0) if match[1] else ("hybrid", int(match[2]))


def search(
    header: Header,
    segments: dict[int, Segment],
    live: dict[int, Bool[np.ndarray, " rows"]],
    queries: Embedded,
    direction: str,
    k: int,
    retrieval: str,
) -> tuple[Found, Report]:
    """The k nearest live rows of each query, fewer where there are fewer.

    Args:
      header: of the index.
      segments: those with live rows.
      live: which rows count, by segment.
      queries: embedded by the model of the index.
      direction: "a2v" or "v2a".
      k: how many.
      retrieval: see `METHODS`.
    """
    if k < 1:
        raise InputError(f"k: expected at least 1, got {k}")
    method, chosen = parse_retrieval(retrieval)
    begin = time.perf_counter()
    asking, asked = query_streams(direction)
    sequences = queries_of(queries, direction, header)
    embeddings = np.asarray(getattr(queries, f"{asking}_embeddings"))
    report = Report(retrieval, candidates=sum(int(one.sum()) for one in live.values()))
    report.method = _switched(
        *(method, chosen, k, report.candidates, len(sequences), header),
        numbers_of(segments, asked),
    )
    parts = []
    for first in range(0, len(sequences) if report.candidates else 0, QUERIES_AT_ONCE):
        rows = slice(first, first + QUERIES_AT_ONCE)
        batch = Batch(header, segments, live, sequences.part(rows), embeddings[rows], asked, k)
        found = batch.find(report, max(chosen, k))
        parts.append((found[0] + first, *found[1:]))
    report.seconds = time.perf_counter() - begin
    if not parts:
        none = np.zeros(0, np.int64)
        return Found(none, none, none, np.zeros(0, np.float32)), report
    return Found(*(np.concatenate(column) for column in zip(*parts, strict=True))), report


def _switched(
    method: str,
    chosen: int,
    k: int,
    candidates: int,
    queries: int,
    header: Header,
    numbers: int,
) -> str:
    """What is done for what was asked."""
    if method == "exact" and not header.one_grid:
        raise InputError(
            f"retrieval exact: expected an index with the Euclidean distance, whose bounds are "
            f"known, this one has {header.distance!r}; use sequence, which compares all"
        )
    if method == "exact":
        return "exact" if _bounds_pay(numbers, candidates, queries) else "sequence"
    if method != "hybrid":
        return method
    share = _worth(numbers, queries) if header.one_grid else 0.9
    return "sequence" if max(chosen, k) >= share * candidates else "hybrid"


def _bounds_pay(numbers: int, candidates: int, queries: int) -> bool:
    """Whether ruling out is faster than comparing all, for one query of many."""
    return queries < FEW or candidates * (numbers - BOUNDING) > SKETCHING


def _worth(numbers: int, queries: int) -> float:
    """From which share of the clips on comparing all is faster than choosing; measured.

    A pair that is chosen costs something whatever its length, and little more for its numbers,
    since bounds rule out most; a pair of a product costs its numbers.
    """
    share = numbers / (330_000 + 3.3 * numbers)
    return max(share, FEW_SHARE * FEW / max(queries, 1)) if queries < FEW else share


@dataclass
class Batch:
    """Some queries against the live rows."""

    header: Header
    segments: dict[int, Segment]
    live: dict[int, np.ndarray]
    queries: Queries
    embeddings: np.ndarray
    asked: str
    k: int

    def find(self, report: Report, chosen: int):
        """(query, segment, row, score) by query and rank."""
        method = report.method
        if method == "aggregation":
            *places, far = cosine.nearest(
                self.embeddings, self.asked, self.segments, self.live, self.k
            )
            return *places, -far
        if not self.header.one_grid:
            return self._any_distance(method, chosen)
        scan = Scan(self.queries, self.asked, self.segments, self.live)
        order = second_stage.order_of(self.embeddings)
        if method == "exact":
            search = ExactSearch(scan, self.k, order)
            running = search.run()
            for name in ("pairs", "after_coarse", "after_fine"):
                sums = getattr(report.pruning, name) + getattr(search.pruning, name)
                setattr(report.pruning, name, sums)
        elif method == "sequence":
            running = Running(len(self.queries), self.k)
            scan.every(running)
        else:
            return second_stage.nearest_of(scan, *self._first_stage(chosen), self.k, order)
        query, segment, row = running.candidates()
        scores = scan.scores(query, segment, row, order)
        return ranked(query, segment, row, scores, self.segments, self.k)

    def _first_stage(self, count: int):
        return cosine.chosen(self.embeddings, self.asked, self.segments, self.live, count)

    def _any_distance(self, method: str, chosen: int):
        running = Running(len(self.queries), self.k)
        everything = np.arange(len(self.queries))
        give = (self.queries, self.asked, self.segments)
        if method == "sequence":
            rows = {number: np.flatnonzero(live) for number, live in self.live.items()}
            any_distance.evaluate(*give, rows, self.header, running, everything)
        else:
            query, segment, row = self._first_stage(chosen)
            for number in everything:
                own = query == number
                rows = {
                    int(one): np.sort(row[own][segment[own] == one])
                    for one in np.unique(segment[own])
                }
                asking = everything[number : number + 1]
                any_distance.evaluate(*give, rows, self.header, running, asking)
        return ranked(*any_distance.scored(running), self.segments, self.k)
