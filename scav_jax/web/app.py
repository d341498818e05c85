"""The HTTP interface of the search page.

    GET  /                       the page
    GET  /clip/TOKEN             a clip that a search has found, as MP4
    POST /search?name=&direction=&k=&retrieval=&where=&start=     the body is the file
         -> {"direction", "query", "hits": [...], "html", "note"}, or {"error"} in one line

Requests, answers and the application are those of Starlette, which is imported when one is made.
Everything that computes runs in a thread, and what is sent is decoded in a process of its own, so
that one file holds nobody up. A filter and all other parameters are read before the file. Requests
of other sites' pages are refused: a page that listens on loopback is reached by every site that
one's browser has open.
"""

import contextlib
import logging
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scav_jax.base.errors import InputError
from scav_jax.base.names import shown
from scav_jax.extract.streams import Unusable
from scav_jax.index import Hit
from scav_jax.index.catalog import checked_filter
from scav_jax.index.searching import parse_retrieval
from scav_jax.report import search_page
from scav_jax.report.match import latents_of
from scav_jax.report.playable import Playable
from scav_jax.retrieval.embed import Embedded
from scav_jax.retrieval.model import Model
from scav_jax.sequences import Sequences
from scav_jax.web import page, uploads
from scav_jax.web.library import Library
from scav_jax.web.uploads import NEEDED, Decoded, Upload, decode

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_BYTES = 256 * 2**20
MAX_K = 50
QUERY_SECONDS = 30.0  # of a longer file this much is used, from its start or from `start`
DECODING_AT_ONCE = 2  # files; others wait
ASKING_AT_ONCE = 12  # searches; others are told so
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LOG = logging.getLogger(__name__)


@runtime_checkable
class Searchable(Protocol):
    """What is needed of an index (see `scav_jax.index`)."""

    def search(
        self, queries: Embedded, direction: str, k: int, retrieval: str, where: str | None
    ) -> list[list[Hit]]: ...

    def follow(self) -> bool: ...

    def __len__(self) -> int: ...


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

    def __init__(self, model: Model, index: Searchable, library: Library, workers: int):
        self.model, self.index, self.library = model, index, library
        self._workers, self._lock = workers, threading.Lock()
        self._decoding = threading.BoundedSemaphore(DECODING_AT_ONCE)
        self._asking = threading.BoundedSemaphore(ASKING_AT_ONCE)

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
        """What is found for one file; see the module for the result."""
        upload = Upload(path, name, wanted["direction"], wanted["start"], QUERY_SECONDS)
        with self._decoding:
            decoded = decode(upload, self.model.backbone.preparer, apart=self._workers > 0)
        direction, k, retrieval = decoded.direction, wanted["k"], wanted["retrieval"]
        query = self.model.embed_outcome(decoded.outcome, Path("/"), [NEEDED[direction]])
        if query.rejected:
            raise InputError(f"{shown(name)}: cannot be used: {query.rejected[0]['reason']}")
        query = replace(query, ids=[name])
        with self._lock:
            self.index.follow()  # what was added or deleted since
            (hits,) = self.index.search(query, direction, k, retrieval, wanted["where"])
            measure = self.index.report.measure
        with self._decoding:
            found = self._shown(query, hits, decoded, measure, name)
        return {
            "direction": direction,
            "query": {"name": name, "start": float(query.starts[0]), "end": float(query.ends[0])},
            "hits": [
                {**asdict(hit), "source": result.clip.source, "clip": result.clip.address}
                for hit, result in zip(hits, found.results, strict=True)
            ],
            "html": search_page.search_html(found),
            "note": decoded.note,
        }

    def _shown(
        self, query: Embedded, hits: Sequence[Hit], decoded: Decoded, measure: str, name: str
    ) -> search_page.Search:
        direction = decoded.direction
        placed, latents = self._placed(hits, "visual" if direction == "a2v" else "audio")
        search = search_page.make_search(
            query,
            placed,
            direction=direction,
            model=self.model,
            latents=latents,
            score_name=measure,
            address=partial(self._address, query.sources[0], decoded.played),
            query_name=name,
        )
        results = [
            replace(r, clip=replace(r.clip, source=self.library.shown_source(r.clip.source)))
            for r in search.results
        ]
        return replace(search, results=results)

    def _placed(self, hits: Sequence[Hit], stream: str) -> tuple[list[Hit], list[Sequences | None]]:
        """Hits with the files that they are in, and the latents of those that can be read."""
        placed, readable = [], []
        for hit in hits:
            with contextlib.suppress(Unusable):
                hit = replace(hit, source=str(self.library.locate(hit.source)))
                readable.append(len(placed))
            placed.append(hit)
        clips = [placed[number] for number in readable]
        found = latents_of(self.model, clips, stream, self._workers)
        latents: list[Sequences | None] = [None] * len(hits)
        for number, one in zip(readable, found, strict=True):
            latents[number] = one
        return placed, latents

    def _address(
        self,
        query: str,
        played: Playable | str,
        source: str,
        start: float,
        end: float,
        kinds: tuple[str, ...],
    ) -> tuple[str, str]:
        if source == query:  # its file will be gone
            if isinstance(played, str):
                return "", played
            return played.kind, f"/clip/{self.library.keep(played)}"
        try:
            path = self.library.locate(source)
        except Unusable as unusable:
            return "", unusable.reason
        kind = "video" if "video" in kinds else "audio"
        return kind, f"/clip/{self.library.offer(path, start, end, kinds)}"


def serve(app: Any, bound: socket.socket) -> None:
    """Answers on a bound socket until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", server_header=False)
    with contextlib.suppress(KeyboardInterrupt):  # it has answered what it was asked by then
        uvicorn.Server(config).run(sockets=[bound])


def create_app(
    model: Model,
    index: Searchable,
    *,
    roots: Sequence[Path] = (),
    hosts: Sequence[str] = LOOPBACK_NAMES,
    max_bytes: int = MAX_BYTES,
    workers: int = 1,
) -> Any:
    """The application, an ASGI one.

    Args:
      model: embeds what is sent.
      index: of the same model.
      roots: folders that clips are played from; none: every source of the index.
      hosts: names that it answers to, "*" for any; another name is an attack by DNS.
      max_bytes: of a file that is sent.
      workers: 1 decodes what is sent in a process of its own, 0 here.

    Raises:
      InputError: the toolkit is missing, or a root is no folder.
    """
    try:
        import uvicorn  # noqa: F401
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise InputError(
            f"the web page needs the library {error.name}, it is not installed; "
            "`pip install 'scav_jax[web]'` brings it"
        ) from error

    library = Library(roots)
    searcher = Searcher(model, index, library, workers)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="scav_jax-web-") as kept:
            app.state.folder = library.folder = Path(kept).resolve()
            yield

    return Starlette(
        routes=[
            Route("/", _page(searcher)),
            Route("/app.js", _text(page.SCRIPT, "text/javascript")),
            Route("/app.css", _text(page.STYLE, "text/css")),
            Route("/clip/{token:str}", _clip(library)),
            Route("/search", _search(searcher, max_bytes), methods=["POST"]),
        ],
        middleware=[Middleware(_KnownHosts, hosts=frozenset(hosts))],
        lifespan=lifespan,
    )


class _KnownHosts:
    """Answers requests that are made to one of its names, "*" for any."""

    def __init__(self, app: Callable, hosts: frozenset[str]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and "*" not in self._hosts:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if name not in self._hosts:
                await _error(f"this server has no name {name!r}", 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _page(searcher: Searcher) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import HTMLResponse

        count = await run_in_threadpool(searcher.count)
        return HTMLResponse(page.html(count, searcher.model.identity), headers=HEADERS)

    return answer


def _text(content: str, kind: str) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.responses import Response

        return Response(content, media_type=kind, headers=HEADERS)

    return answer


def _error(words: str, status: int) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": words}, status, HEADERS)


def _clip(library: Library) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import FileResponse

        try:
            found = await run_in_threadpool(library.encoded, request.path_params["token"])
        except Unusable as unusable:
            return _error(f"the clip cannot be played: {unusable.reason}", 410)
        if found is None:
            return _error("no such clip; search again", 404)
        return FileResponse(found[0], media_type=found[1], headers=HEADERS)

    return answer


def _search(searcher: Searcher, max_bytes: int) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse

        if _is_foreign(request):
            return _error("requests of other sites are refused", 403)
        try:
            wanted = _wanted(request.query_params)
            name = Path(request.query_params.get("name", "") or "the file").name[:120]
            declared = request.headers.get("content-length", "")
            if declared.isdecimal() and int(declared) > max_bytes:
                raise uploads.too_large(max_bytes)
            async with uploads.saved(request.stream(), searcher.library.folder, max_bytes) as path:
                with searcher.admitted():  # who sends slowly keeps nobody out
                    found = await run_in_threadpool(searcher.search, path, name, wanted)
            return JSONResponse(found, headers=HEADERS)
        except uploads.TooLarge as error:
            return _error(str(error), 413)
        except Busy as error:
            return _error(str(error), 503)
        except InputError as error:
            return _error(shown(error), 400)
        except ClientDisconnect:
            return _error("the file did not come whole", 400)
        except OSError:
            LOG.exception("search")
            return _error("the server could not store the file: its disk may be full", 507)
        except Exception:
            LOG.exception("search")
            return _error("the search failed; the server's log says why", 500)

    return answer


def _is_foreign(request: Any) -> bool:
    """Whether a page of another site sends this."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


def _wanted(query) -> dict:
    """The parameters of a search, checked."""
    direction = query.get("direction") or None
    if direction not in (None, *uploads.NEEDED):
        raise InputError(f"direction: expected a2v or v2a, got {direction!r}")
    try:
        k, start = int(query.get("k") or 10), float(query.get("start") or 0.0)
    except ValueError:
        raise InputError("k, start: expected numbers") from None
    if not 1 <= k <= MAX_K:
        raise InputError(f"k: expected 1 to {MAX_K}, got {k}")
    if not 0 <= start < 1e7:
        raise InputError(f"start: expected seconds (0 or more), got {start:g}")
    retrieval, where = query.get("retrieval") or "exact", query.get("where") or None
    parse_retrieval(retrieval)
    if where is not None:
        checked_filter(where)
    return {
        "direction": direction,
        "k": k,
        "start": start,
        "retrieval": retrieval,
        "where": where,
    }
