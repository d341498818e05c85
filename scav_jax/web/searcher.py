"""One search of the page: what asks is decoded and embedded, the index answers, and it is shown.

Curves are made when the page asks for them, after what was found plays: they take most of the time.
"""

import contextlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from scav_jax.base.errors import InputError
from scav_jax.base.names import shown
from scav_jax.extract.containers.opening import Unusable
from scav_jax.index import Hit, Index
from scav_jax.report import search_page
from scav_jax.report.markup import ASKING
from scav_jax.report.match import latents_from_files
from scav_jax.report.playable import Playable, still_picture
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.model import Model
from scav_jax.sequences import Sequences
from scav_jax.web.library import Library, remember
from scav_jax.web.progress import Progress
from scav_jax.web.uploads import Decoded, Upload, decode

QUERY_SECONDS = 30.0  # of a longer file this much is used, from its start or from `start`
DECODING_AT_ONCE = 2  # files; others wait
ASKING_AT_ONCE = 12  # searches; others are told so
KEPT = 64  # searches whose curves can be asked for
QUERY = "\0query"  # in the place of its file, which no clip of an index can have


@dataclass(frozen=True)
class RememberedSearch:
    """A search whose curves can be asked for: `hits` with their files, `search` as it is shown."""

    query: Embedded
    hits: list[Hit]
    search: search_page.Search


class Busy(InputError):
    """More is asked for than is done at a time."""


class Searcher:
    """A model and an index; only the index is behind a lock, which no file is decoded under.

    Args:
      model: embeds what is sent.
      index: of the same model.
      library: of what may be played.
      workers: 1 decodes them in a process of their own, which may crash or hang; 0 here.
    """

    def __init__(self, model: Model, index: Index, library: Library, workers: int):
        self.model, self.index, self.library = model, index, library
        self.progress = Progress()
        self._workers, self._lock = workers, threading.Lock()
        self._decoding = threading.BoundedSemaphore(DECODING_AT_ONCE)
        self._asking = threading.BoundedSemaphore(ASKING_AT_ONCE)
        self._remembered: OrderedDict[str, RememberedSearch] = OrderedDict()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """For as long as a search takes; `Busy` where too many wait already."""
        if not self._asking.acquire(blocking=False):
            raise Busy("too many searches are under way; try again in a minute")
        try:
            yield
        finally:
            self._asking.release()

    def count(self) -> int:
        """Clips that are there now."""
        with self._lock:
            self.index.follow()
            return len(self.index)

    def search(self, path: Path, name: str, wanted: dict) -> dict:
        """What is found for one file; see `web.app` for the result."""
        upload = Upload(path, name, wanted["direction"], wanted["start"], QUERY_SECONDS)
        return self._search(upload, wanted)

    def search_clip(self, wanted: dict) -> dict:
        """The same for a clip of the index.

        Raises:
          InputError: there is none of that id, or its file is not there or may not be shown.
        """
        name = wanted["clip"]
        with self._lock:
            self.index.follow()
            clip = self.index.clip(name)
        if clip is None:
            raise InputError(f"clip {name[:200]!r}: expected the id of a clip of the index")
        try:
            path = self.library.locate(clip["source"], clip.get("content"))
        except Unusable as unusable:
            raise InputError(f"{shown(name)}: cannot be used: {unusable.reason}") from None
        start, end = float(clip["start"]), float(clip["end"])
        return self._search(
            Upload(path, name, wanted["direction"], start, end - start, end), wanted
        )

    def _search(self, upload: Upload, wanted: dict) -> dict:
        tell = self.progress.teller(wanted["job"])
        try:
            tell(0)
            with self._decoding:
                tell(1)
                decoded = decode(
                    upload,
                    self.model.backbone.preparer,
                    apart=self._workers > 0,
                    told=partial(tell, 2),
                )
            tell(2)
            query = self._embedded(upload, decoded)
            tell(3)
            hits, measure = self._hits(query, decoded.asking.direction, wanted)
            tell(4)
            return self._answer(query, hits, decoded, measure)
        finally:
            tell(None)

    def _embedded(self, upload: Upload, decoded: Decoded) -> Embedded:
        streams = ASKING[decoded.asking.direction]
        query = self.model.embed_outcome(decoded.outcome, Path("/"), streams)
        if query.rejected:
            reason = query.rejected[0]["reason"]
            raise InputError(f"{shown(upload.name)}: cannot be used: {reason}")
        return replace(query, ids=[upload.name], sources=[QUERY])

    def _hits(self, query: Embedded, direction: str, wanted: dict) -> tuple[list[Hit], str]:
        """What is found, each with the file that it is in, and what its score is."""
        with self._lock:
            self.index.follow()  # what was added or deleted since
            (hits,) = self.index.search(
                query, direction, wanted["k"], wanted["retrieval"], wanted["where"]
            )
            measure = self.index.report.measure
            contents = self.index.contents([hit.id for hit in hits])
        placed = []
        for hit in hits:
            with contextlib.suppress(Unusable):
                path = self.library.locate(hit.source, contents.get(hit.id))
                hit = replace(hit, source=str(path))
            placed.append(hit)
        return placed, measure

    def _answer(self, query: Embedded, hits: Sequence[Hit], decoded: Decoded, measure: str) -> dict:
        direction, name = decoded.asking.direction, query.ids[0]
        search = search_page.make_search(
            query,
            hits,
            direction=direction,
            model=self.model,
            score_name=measure,
            address=partial(self._address, decoded.played),
            query_name=name,
        )
        results = [
            replace(r, clip=replace(r.clip, source=self.library.shown_source(r.clip.source)))
            for r in search.results
        ]
        search = replace(search, results=results)
        return {
            "direction": direction,
            "streams": list(decoded.asking.streams),
            "query": {"name": name, "start": float(query.starts[0]), "end": float(query.ends[0])},
            "hits": [
                {**asdict(hit), "source": result.clip.source, "clip": result.clip.address}
                for hit, result in zip(hits, results, strict=True)
            ],
            "html": search_page.search_html(search),
            "curves": f"/curves/{self._remember(RememberedSearch(query, list(hits), search))}",
            "note": decoded.note,
        }

    def _remember(self, found: RememberedSearch) -> str:
        token = secrets.token_hex(16)
        with self._lock:
            remember(self._remembered, token, found, KEPT)
        return token

    def curves(self, token: str) -> dict | None:
        """The match over time of what a search has found; None for a token we did not give out."""
        with self._lock:
            found = self._remembered.get(token)
        if found is None:
            return None
        direction = found.search.direction
        with self._decoding:
            latents = self._latents(found.hits, "audio" if direction == "v2a" else "visual")
        curves = search_page.curves_of(found.query, found.hits, latents, direction, self.model)
        results = [
            replace(result, curve=curve)
            for result, curve in zip(found.search.results, curves, strict=True)
        ]
        pictures, told = search_page.curves_html(replace(found.search, results=results))
        return {"curves": pictures, "told": told}

    def _latents(self, hits: Sequence[Hit], stream: str) -> list[Sequences | None]:
        """The latents of those hits whose files can be read."""
        readable = []
        for number, hit in enumerate(hits):
            with contextlib.suppress(Unusable):
                self.library.locate(hit.source)
                readable.append(number)
        clips = [hits[number] for number in readable]
        found = latents_from_files(self.model, clips, stream, self._workers)
        latents: list[Sequences | None] = [None] * len(hits)
        for number, one in zip(readable, found, strict=True):
            latents[number] = one
        return latents

    def _address(
        self,
        played: Playable | str,
        source: str,
        start: float,
        end: float,
        kinds: tuple[str, ...],
    ) -> tuple[str, str, str]:
        if source == QUERY:  # its file will be gone
            if isinstance(played, str):
                return "", played, ""
            return played.kind, f"/clip/{self.library.keep(played)}", played.still
        try:
            path = self.library.locate(source)
        except Unusable as unusable:
            return "", unusable.reason, ""
        there = still_picture(path, start, end)
        kind = "video" if there else "audio"
        return kind, f"/clip/{self.library.offer(path, start, end, kinds)}", there
