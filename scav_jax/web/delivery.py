"""A clip as HTTP gives it out: whole, a stretch of it, or that the browser has it already.

By RFC 9110: a range that is malformed, of another unit, of several stretches or of other content
than the browser knows is not there, and everything is sent.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

AT_ONCE = 2**16  # bytes
RANGE = re.compile(r"bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*", re.IGNORECASE)
MOST_DIGITS = 18


def stretch(asked: str | None, size: int) -> tuple[int, int] | None:
    """From which byte to which one (not in it) a `Range` asks; empty where there is none there.

    >>> stretch("bytes=2-5", 100), stretch("bytes=-7", 100), stretch("bytes=7-", 5)
    ((2, 6), (93, 100), (5, 5))

    None is everything, which is also what a range stands for that is malformed.
    """
    found = RANGE.fullmatch(asked or "")
    if found is None or not any(found.groups()) or max(map(len, found.groups())) > MOST_DIGITS:
        return None
    first, last = (int(one) if one else None for one in found.groups())
    if first is None:
        return max(size - (last or 0), 0), size
    if last is not None and last < first:
        return None
    return min(first, size), size if last is None else min(last + 1, size)


def delivered(
    file: io.BufferedIOBase, kind: str, name: str, request: Any, headers: Mapping[str, str]
) -> Any:
    """The answer to a request for a clip.

    Args:
      file: the clip, open; it is closed when the answer was sent.
      kind: its media type.
      name: of its content, its ETag: what has this name has these bytes.
      request: of Starlette.
      headers: of every answer.
    """
    from starlette.responses import JSONResponse, Response, StreamingResponse

    asked, size, tag = request.headers, file.seek(0, os.SEEK_END), f'"{name}"'
    headers = {**headers, "Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private"}
    if _has(asked.get("if-none-match", ""), tag):
        file.close()
        return Response(status_code=304, headers=headers)
    wanted = stretch(asked.get("range"), size)
    if request.method != "GET" or asked.get("if-range", tag) != tag:
        wanted = None
    first, last = wanted or (0, size)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
    if wanted is not None and first >= last:
        file.close()
        headers["Content-Range"] = f"bytes */{size}"
        return JSONResponse({"error": f"expected a range of {size} bytes"}, 416, headers)
    headers["Content-Length"] = str(last - first)
    status = 200 if wanted is None else 206
    if request.method != "GET":
        file.close()
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(file, first, last), status, headers, kind)


def _has(named: str, tag: str) -> bool:
    """Whether `If-None-Match` names a tag."""
    return any(one.strip().removeprefix("W/") in ("*", tag) for one in named.split(","))


def _pieces(file: io.BufferedIOBase, first: int, last: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while first < last:
            piece = file.read(min(AT_ONCE, last - first))
            first += len(piece)
            yield piece
