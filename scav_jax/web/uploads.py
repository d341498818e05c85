"""A file that somebody sent: never larger than allowed, never on disk for longer than needed."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from scav_jax.base.errors import InputError
from scav_jax.extract.streams import Unusable, stream_kinds, stream_seconds
from scav_jax.retrieval.files import KINDS

NEEDED = {"a2v": "audio", "v2a": "visual"}  # the stream that asks
WORDS = {"audio": "sound", "visual": "picture"}


class TooLarge(InputError):
    """More bytes than are taken."""


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the file is too large: expected at most {limit / 2**20:,.0f} MiB; cut out the part that "
        "you mean"
    )


@asynccontextmanager
async def saved(chunks: AsyncIterator[bytes], folder: Path, limit: int) -> AsyncIterator[Path]:
    """A file with what comes, removed again at the end whatever happens.

    Raises:
      TooLarge: as soon as more than `limit` bytes have come.
      InputError: nothing came.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="query-") as file:
        count = 0
        async for chunk in chunks:
            count += len(chunk)
            if count > limit:
                raise too_large(limit)
            file.write(chunk)
        file.flush()
        if not count:
            raise InputError("the file is empty: choose a sound or a video")
        yield Path(file.name)


def check_media(path: Path, name: str, direction: str | None) -> tuple[str, float | None]:
    """Who asks, and how long the stream that asks is, if the file says so.

    Args:
      path: of the file.
      name: what it is called, for messages.
      direction: "a2v" by its sound, "v2a" by its picture, None by the sound if it has one.

    Raises:
      InputError: it is no media file, or lacks the stream.
    """
    try:
        kinds = stream_kinds(path)
        streams = [stream for stream, kind in KINDS.items() if kind in kinds]
        if not streams:
            raise Unusable("open", "neither picture nor sound in it")
        chosen = direction or ("a2v" if "audio" in streams else "v2a")
        needed = NEEDED[chosen]
        if needed in streams:
            return chosen, stream_seconds(path, KINDS[needed])
    except Unusable as unusable:
        raise InputError(
            f"{name}: expected a sound or a video, this cannot be read ({unusable.reason})"
        ) from None
    raise InputError(
        f"{name}: expected a file with a {WORDS[needed]}, it has none; search by its "
        f"{WORDS[streams[0]]} instead"
    )
