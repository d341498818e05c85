"""Checks of shapes and dtypes in signatures, at a third of what jaxtyping's own decorator takes.

The import hook of jaxtyping (`addopts` in pyproject.toml) decorates every function of the package,
those without annotations too, binds the arguments of every call twice, and builds two more
functions for each function that it decorates, also for those that are defined anew in every call.
That was a third of the time of tests that trace. The same checks need none of it: beartype looks
at what goes in and what comes out, within one memory of the sizes that names stand for.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping

of_jaxtyping = jaxtyping.jaxtyped


def jaxtyped(fn: Any = None, *, typechecker: Any = None) -> Any:
    """What the import hook calls; jaxtyping's own decorator where names are not yet known."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    plain = isinstance(fn, types.FunctionType) and not inspect.isgeneratorfunction(fn)
    if plain and not fn.__annotations__:
        return fn
    if not plain or any(map(_names_come_later, fn.__annotations__.values())):
        return of_jaxtyping(fn, typechecker=typechecker)
    return _checked(fn, typechecker)


def _names_come_later(hint: Any) -> bool:
    if isinstance(hint, str | typing.ForwardRef):
        return True
    literal = typing.get_origin(hint) is typing.Literal
    return not literal and any(map(_names_come_later, typing.get_args(hint)))


def _checked(fn: Callable, typechecker: Callable) -> Callable:
    looked_at = functools.cache(lambda: typechecker(fn))  # most functions are never called here

    @functools.wraps(fn)
    def checked(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        with of_jaxtyping("context"):
            return looked_at()(*args, **kwargs)

    return checked
