"""Names of files are bytes; what is stored and shown is text.

Python holds bytes that are no UTF-8 as lone surrogates (`os.fsdecode`): such a name opens its file,
but no table, record or page can hold it.
"""

import os
import unicodedata
from pathlib import Path

_NOT_SHOWN = {"Cc", "Cs", "Zl", "Zp"}  # control, surrogates, separators of lines and paragraphs
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # show the end first


def is_text(name: str) -> bool:
    """Whether a name can be stored: whether its bytes are UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def from_here(path: str) -> str:
    """A path as people give it: below the working directory without that directory."""
    return os.path.normpath(path).removeprefix(os.path.join(os.getcwd(), ""))


def last_parts(folder: Path) -> str:
    """What a folder is called on any machine: the last two parts of its path as it was given.

    >>> last_parts(Path("/home/me/data/mine")), last_parts(Path("data")), last_parts(Path("/data"))
    ('data/mine', 'data', 'data')
    """
    return "/".join(folder.parts[-2:]).lstrip("/")


def shown(name: object) -> str:
    r"""A name, or a message with names, on one line and in letters that can be printed.

    >>> print(shown("caf\udce9 1\n2.mp4"))
    caf\xe9 1\n2.mp4
    """
    text = str(name)
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that is no text
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter in _TURNS or unicodedata.category(letter) in _NOT_SHOWN:
        return letter.encode("unicode_escape").decode()
    return letter
