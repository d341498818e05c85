"""Doors: a name is an entry of ours, or a dotted path to something that a user wrote."""

import importlib
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from scav_jax.base.errors import InputError, did_you_mean

T = TypeVar("T")
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class MissingCode(InputError):
    """What a dotted path names cannot be imported here."""


def find(what: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or what a dotted path names.

    Args:
      what: what is looked for, as messages call it: `"distance"`.
      name: a key of `known`, or `"package.module:Name"` of a module that can be imported (it is
        installed, or its folder is on PYTHONPATH).
      known: the entries of this project.

    Raises:
      InputError: neither; no such module, or nothing of that name in it.
    """
    if isinstance(name, str) and name in known:
        return known[name]
    if not isinstance(name, str) or not PATH.fullmatch(name):
        raise InputError(
            f"{what}: expected one of {', '.join(known)}, or package.module:Name, got {name!r}."
            + did_you_mean(str(name), list(known))
        )
    path, _, wanted = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or path
        if path != missing and not path.startswith(f"{missing}."):
            raise  # the user's module is there; what it imports is not
        raise MissingCode(
            f"{what}: expected package.module:Name of a module that can be imported, got {name!r}: "
            f"there is no module {missing!r}; install it or put its folder on PYTHONPATH"
        ) from None
    if not hasattr(module, wanted):
        names = [public for public in vars(module) if not public.startswith("_")]
        raise MissingCode(
            f"{what}: expected a name in {path}, got {wanted!r}.{did_you_mean(wanted, names)}"
        )
    return getattr(module, wanted)


def check_trusted(named: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raises `InputError` for code that only a model names: models come from anywhere.

    Args:
      named: what the model names, by what it has it for: `{"objective": "package.module:Name"}`.
      allowed: entries of ours, and what the user trusts.
    """
    strange = {what: name for what, name in named.items() if name not in allowed}
    if strange:
        said = " and ".join(f"its {what} {name}" for what, name in strange.items())
        names = list(dict.fromkeys(strange.values()))
        raise InputError(
            f"{said}: code that is not part of this package; if it is yours or you trust it, say "
            f"so with {' '.join(f'--trust {name}' for name in names)} (in Python: load(..., "
            f"trust={names}))"
        )
