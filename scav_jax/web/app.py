"""The HTTP interface of the search page.

    GET  /                       the page; what follows "?" is for its script
    GET  /clip/TOKEN             a clip that a search has found, as MP4
    GET  /curves/TOKEN           the match over time of what a search has found
         -> {"curves": [HTML, ...], "told": HTML}
    GET  /progress/NAME          how far the search of that name is
         -> {"stage", "of", "words"}, or {}
    POST /search?name=&direction=&k=&retrieval=&where=&start=&job=     the body is the file
    POST /search?clip=ID&direction=&k=&retrieval=&where=&job=          a clip of the index asks
         -> {"direction", "streams", "query", "hits": [...], "html", "curves", "note"}, or {"error"}
         in one line

Requests, answers and the application are those of Starlette, which is imported when one is made.
Everything that computes runs in a thread, and what asks is decoded in a process of its own, so
that one file holds nobody up. A filter and all other parameters are read before the file. Requests
of other sites' pages are refused: a page that listens on loopback is reached by every site that
one's browser has open.
"""

import contextlib
import logging
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short  # of parameters, which may be of any length
from typing import Any

from scav_jax.base.errors import InputError, check_one_of
from scav_jax.base.names import shown
from scav_jax.extract.containers.opening import Unusable
from scav_jax.index import Index
from scav_jax.index.rows import checked_filter
from scav_jax.index.searching import parse_retrieval
from scav_jax.report.markup import ASKING
from scav_jax.retrieval.model import Model
from scav_jax.web import page, uploads
from scav_jax.web.delivery import delivered
from scav_jax.web.library import Library
from scav_jax.web.searcher import Busy, Searcher

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_BYTES = 256 * 2**20
MAX_K = 50
MOST_START_S = 1e7
LEAVING_S = 3  # a browser that sends a file slowly may never end
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


def serve(app: Any, bound: socket.socket) -> None:
    """Answers on a bound socket until Ctrl-C or SIGTERM, and what is asked by then for a while."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if sig != signal.SIGINT:
                super().handle_exit(sig, frame)
                return
            # Not kept to be raised again, which would be the second one (`base.interrupts`).
            self.force_exit, self.should_exit = self.should_exit, True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of what is cut off
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=LEAVING_S
    )
    Server(config).run(sockets=[bound])


def create_app(
    model: Model,
    index: Index,
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
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise InputError(
            f"the web page needs the library {error.name}, it is not installed; "
            "`pip install -c constraints.txt '.[web]'` brings it"
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
            Route("/", _in_words(_page(searcher))),
            Route("/app.js", _text(page.SCRIPT, "text/javascript")),
            Route("/app.css", _text(page.STYLE, "text/css")),
            Route("/clip/{token:str}", _in_words(_clip(library))),
            Route("/curves/{token:str}", _in_words(_curves(searcher))),
            Route("/progress/{name:str}", _progress(searcher)),
            Route("/search", _in_words(_search(searcher, max_bytes)), methods=["POST"]),
        ],
        middleware=[Middleware(_KnownHosts, hosts=frozenset(hosts))],
        exception_handlers={HTTPException: _refused},
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


def _json(content: dict, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse(content, status, {**HEADERS, **(headers or {})})


def _error(words: str, status: int, headers: Mapping[str, str] | None = None) -> Any:
    return _json({"error": words}, status, headers)


def _refused(request: Any, error: Any) -> Any:
    """What is no page of ours, or is asked in another way (`Allow` says in which)."""
    return _error(error.detail, error.status_code, error.headers)


def _in_words(answer: Callable) -> Callable:
    """The same with a line of JSON for whatever goes wrong."""

    async def worded(request: Any) -> Any:
        from starlette.requests import ClientDisconnect

        try:
            return await answer(request)
        except uploads.TooLarge as error:
            return _error(str(error), 413)
        except Busy as error:
            return _error(str(error), 503)
        except InputError as error:
            return _error(shown(error), 400)
        except ClientDisconnect:
            return _error("the file did not come whole", 400)
        except OSError:
            LOG.exception(request.url.path)
            return _error("the server could not read or store a file: its disk may be full", 507)
        except Exception:
            LOG.exception(request.url.path)
            return _error("that failed; the server's log says why", 500)

    return worded


def _clip(library: Library) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool

        token = request.path_params["token"]
        try:
            found = await run_in_threadpool(library.encoded, token)
        except Unusable as unusable:
            return _error(f"the clip cannot be played: {unusable.reason}", 410)
        if found is None:
            return _error("no such clip; search again", 404)
        return delivered(*found, token, request, HEADERS)

    return answer


def _curves(searcher: Searcher) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool

        with searcher.admitted():
            found = await run_in_threadpool(searcher.curves, request.path_params["token"])
        if found is None:
            return _error("no such search; search again", 404)
        return _json(found)

    return answer


def _progress(searcher: Searcher) -> Callable:
    async def answer(request: Any) -> Any:
        return _json(searcher.progress.of(request.path_params["name"]))

    return answer


def _search(searcher: Searcher, max_bytes: int) -> Callable:
    async def answer(request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool

        if _is_foreign(request):
            return _error("requests of other sites are refused", 403)
        wanted = _wanted(request.query_params)
        if wanted["clip"] is not None:
            with searcher.admitted():
                found = await run_in_threadpool(searcher.search_clip, wanted)
            return _json(found)
        name = Path(request.query_params.get("name", "")).name[:120] or "the file"
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise uploads.TooLarge(max_bytes)
        async with uploads.saved(request.stream(), searcher.library.folder, max_bytes) as path:
            with searcher.admitted():  # who sends slowly keeps nobody out
                found = await run_in_threadpool(searcher.search, path, name, wanted)
        return _json(found)

    return answer


def _is_foreign(request: Any) -> bool:
    """Whether a page of another site sends this."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


def _number(query, name: str, otherwise: float) -> float:
    given = query.get(name) or otherwise
    try:
        return float(given)
    except ValueError:
        raise InputError(f"{name}: expected a number, got {short(given)}") from None


def _wanted(query) -> dict:
    """The parameters of a search, checked."""
    direction = query.get("direction") or None
    if direction is not None:
        check_one_of("direction", direction, ASKING)
    k, start = _number(query, "k", 10), _number(query, "start", 0)
    if not (1 <= k <= MAX_K and k == int(k)):
        raise InputError(f"k: expected a whole number from 1 to {MAX_K}, got {k:g}")
    if not 0 <= start < MOST_START_S:
        raise InputError(f"start: expected seconds from 0 to {MOST_START_S:,.0f}, got {start:g}")
    retrieval, where = query.get("retrieval") or "exact", query.get("where") or None
    parse_retrieval(retrieval, direction or "")
    if where is not None:
        checked_filter(where)
    return {
        "direction": direction,
        "k": int(k),
        "start": start,
        "retrieval": retrieval,
        "where": where,
        "clip": query.get("clip") or None,
        "job": query.get("job") or "",
    }
