"""Clips that a browser may play: known by tokens that the server gave out, never by paths.

A token stands for a stretch of one file that a search has found, so there is no path that a
request could bend. Where roots are given, what a source really is (links followed) has to lie below
one of them. A file that is another one than was indexed, or than was found, is not played.
"""

import hashlib
import io
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scav_jax.base.documents import content_sample
from scav_jax.base.errors import InputError
from scav_jax.extract.containers.opening import Unusable
from scav_jax.report.playable import ANOTHER, Playable, is_another, make_playable

TOKENS = 4096  # clips that can be asked for; older ones are forgotten
ENCODED = 256  # of them, kept encoded
ENCODING_AT_ONCE = 2
FILES = 65536  # of which it is known what they were like; more than those that can be asked for

OfferedClip = tuple[Path, str, float, float, tuple[str, ...]]  # with a sample of the file


def remember(kept: OrderedDict, name: Any, value: Any, most: int) -> list:
    """Keeps a value as the newest of at most so many; the names of those that are forgotten."""
    kept[name] = value
    kept.move_to_end(name)
    return [kept.popitem(last=False)[0] for _ in range(len(kept) - most)]


class Library:
    """The clips that were found, and their encoded form in a folder.

    Args:
      roots: folders that sources must lie below; none takes every source of the index.

    Attributes:
      folder: for encoded clips and for what is sent; whoever makes it removes it.
    """

    folder: Path

    def __init__(self, roots: Sequence[Path] = ()):
        self._roots = [Path(root).resolve() for root in roots]
        for root in self._roots:
            if not root.is_dir():
                raise InputError(f"--roots: expected folders, {root} is not one")
        self._secret = secrets.token_bytes(16)
        self._contents: OrderedDict[Path, str] = OrderedDict()
        self._offered: OrderedDict[str, OfferedClip] = OrderedDict()
        self._encoded: OrderedDict[str, str] = OrderedDict()  # token -> media type
        self._lock, self._encoding = threading.Lock(), threading.BoundedSemaphore(ENCODING_AT_ONCE)

    def locate(self, source: str, content: str | None = None) -> Path:
        """The file of a source of the index.

        Args:
          source: as the index has it.
          content: `content_sample` of the file that was indexed, "" where nobody looked; None is
            what was said last.

        Raises:
          Unusable: it is not there, may not be shown, or is another one now.
        """
        found = self._find(source)
        with self._lock:
            if content is not None:
                remember(self._contents, found, content, FILES)
            indexed = self._contents.get(found, "")
        if is_another(found, indexed):
            raise Unusable("list", ANOTHER)
        return found

    def _find(self, source: str) -> Path:
        path = Path(source)
        if not path.is_absolute() and not self._roots:
            raise Unusable("list", "its folder is not known: start the server with --roots")
        candidates = [path] if path.is_absolute() else [root / path for root in self._roots]
        real = [candidate.resolve() for candidate in candidates]
        allowed = real
        if self._roots:
            allowed = [file for file in real if any(map(file.is_relative_to, self._roots))]
        if not allowed:
            raise Unusable("list", "it does not lie below the allowed folders (--roots)")
        found = next((file for file in allowed if file.is_file()), None)
        if found is None:
            raise Unusable("list", "missing: no such file")
        return found

    def shown_source(self, source: str) -> str:
        """A source as strangers may see it: without the folders of this machine."""
        path = Path(source)
        for root in self._roots:
            if path.is_absolute() and path.resolve().is_relative_to(root):
                return path.resolve().relative_to(root).as_posix()
        return path.name

    def offer(self, path: Path, start: float, end: float, kinds: tuple[str, ...]) -> str:
        """A token for a clip that may be played from now on; it is encoded when it is asked for."""
        content = content_sample(path)
        words = os.fsencode("\n".join([str(path), content, repr(start), repr(end), *kinds]))
        token = hashlib.blake2b(words, key=self._secret, digest_size=16).hexdigest()
        with self._lock:
            remember(self._offered, token, (path, content, start, end, kinds), TOKENS)
        return token

    def keep(self, made: Playable) -> str:
        """A token for a clip that is encoded already: a query, whose file will be gone."""
        token = secrets.token_hex(16)
        self._put(token, made)
        return token

    def encoded(self, token: str) -> tuple[io.BufferedIOBase, str] | None:
        """An encoded clip, open, and its media type; None for a token we did not give out.

        Raises:
          Unusable: the clip cannot be decoded any more, or its file is another one now.
        """
        with self._lock:
            offered = self._offered.get(token)
        found = self._kept(token)
        if found is not None or offered is None:
            return found
        with self._encoding:
            found = self._kept(token)  # many may have asked for it at once
            if found is None:
                made = self._made(*offered)
                self._put(token, made)
                found = io.BytesIO(made.content), made.type
        return found

    def _kept(self, token: str) -> tuple[io.BufferedIOBase, str] | None:
        """What is encoded already: open, it stays readable when it is forgotten."""
        with self._lock:
            kind = self._encoded.get(token)
            if kind is None:
                return None
            self._encoded.move_to_end(token)
            return open(self.folder / token, "rb"), kind

    def _made(
        self, path: Path, content: str, start: float, end: float, kinds: tuple[str, ...]
    ) -> Playable:
        if content_sample(self.locate(str(path))) != content:
            raise Unusable("list", "it is another file now than was found; search again")
        return make_playable(path, start, end, kinds=kinds)

    def _put(self, token: str, made: Playable) -> None:
        begun = self.folder / f"{token}.{secrets.token_hex(4)}"  # who reads it already goes on
        begun.write_bytes(made.content)
        begun.replace(self.folder / token)
        with self._lock:
            for old in remember(self._encoded, token, made.type, ENCODED):
                (self.folder / old).unlink(missing_ok=True)
