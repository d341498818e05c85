"""What a name stands for: a thing of ours, or one of anybody's by its dotted path."""

import importlib
from collections.abc import Mapping
from typing import Any

from scav_jax.errors import InputError, did_you_mean


def find(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """`known[name]`, or what `package.module:Name` names.

    Raises:
      InputError: neither; the message begins with `what`.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(
            f"{what}: expected one of {', '.join(known)}, or package.module:Name, got {name!r}."
            f"{did_you_mean(name, list(known))}"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{what}: expected package.module:Name that can be imported, got {name!r} ({error})"
        ) from None
