"""A config file and its overrides -> one checked, frozen document.

A config file is a Python file whose `get_config()` returns an `ml_collections.ConfigDict` of
sections; a program unpacks each section into a constructor (`unpack`) and keeps the resolved
document as JSON beside what it made. Every mistake on the way is one line that names the key.

This reads the command line itself instead of through `ml_collections.config_flags`, which loads
files by an importlib call that Python 3.15 removes, and reports an unknown key as a traceback.
"""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import json
import math
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import flax.linen
from ml_collections import ConfigDict, FrozenConfigDict

from scav_jax.errors import InputError, did_you_mean

SECTIONS = ("data", "distance", "encoders", "objective", "optimizer", "seed", "train")
# Keys that may be None, and the type of their other values.
OPTIONAL = {"encoders.pre_resample": str, "optimizer.clip_norm": float}
USAGE = """\
Any key of the config can be set with --config.SECTION.KEY=VALUE, for example
--config.train.steps=100. `--config FILE --help` lists the keys of FILE.
FILE:VARIANT chooses a variant of a config, for example configs/table1/cav.py:batch32.
"""

_T = TypeVar("_T")
Document = Mapping | ConfigDict  # a ConfigDict is no Mapping to Python


# ---- files ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _importable(file: Path) -> Iterator[None]:
    """Lets a config file say `from configs import base`, and leaves no trace of it afterwards.

    `configs` is the nearest folder of that name above the file, else the one in the working
    directory; a package of the same name elsewhere is not touched.
    """

    def of_configs(name: str) -> bool:
        return name == "configs" or name.startswith("configs.")

    above = [parent for parent in file.resolve().parents if parent.name == "configs"]
    package = types.ModuleType("configs")
    package.__path__ = [str(above[0] if above else Path("configs").resolve())]
    before = {name: module for name, module in sys.modules.items() if of_configs(name)}
    for name in before:
        del sys.modules[name]
    sys.modules["configs"] = package
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if of_configs(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _run_file(file: Path, variant: str | None) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    with _importable(file):
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise InputError(f"{file}: expected a function get_config() in a config file, got none")
        if variant is None:
            return get_config()
        if not inspect.signature(get_config).parameters:
            raise InputError(f"{file}: expected no variant, got {variant!r}; drop ':{variant}'")
        return get_config(variant)


def load_file(path: str) -> ConfigDict:
    """Runs a config file: `configs/x.py`, or `configs/x.py:variant`.

    Returns:
      What its `get_config(variant)` returns, locked: keys can be changed, none added.

    Raises:
      InputError: no such file, an error in it (with its line), no such variant, or sections other
        than `SECTIONS`.
    """
    name, _, variant = path.partition(".py:")
    file = Path(f"{name}.py" if variant else path)
    if not file.is_file():
        others = sorted(str(other) for other in file.parent.glob("*.py"))
        raise InputError(
            f"config file: expected a Python file, {str(file)!r} is none."
            + did_you_mean(str(file), others)
        )
    try:
        config = _run_file(file, variant or None)
    except InputError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if _same(f, file)]
        lines += [error.lineno] if isinstance(error, SyntaxError) else []
        if not lines:  # none of the file's lines was being run
            raise
        where = f", line {lines[-1]}"
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{file}{where}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{file}: expected get_config() to return an ml_collections.ConfigDict, "
            f"got {type(config).__name__}"
        )
    _check_keys(str(file), config.keys(), SECTIONS, required=SECTIONS)
    return config.lock()


def _same(frame: traceback.FrameSummary, file: Path) -> bool:
    return Path(frame.filename) == file


# ---- overrides -----------------------------------------------------------------------------


def flatten(config: Document, prefix: str = "") -> dict[str, Any]:
    """`{"train.steps": 300, ...}`: the values by their dotted keys.

    >>> flatten({"train": {"steps": 300}, "seed": 0})
    {'seed': 0, 'train.steps': 300}
    """
    flat = {}
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Document):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of `config` with some values replaced.

    Args:
      config: the document.
      overrides: values by dotted key, as text (`{"train.steps": "100"}`, read as the type of the
        value that is replaced) or as they are (`{"train.steps": 100}`). "none" empties a key of
        `OPTIONAL`.

    Raises:
      InputError: a key that the document does not have, or a value of another type.
    """
    result = ConfigDict(config.to_dict())
    for key, value in overrides.items():
        *sections, last = key.split(".")
        holder, path = result, ""
        for section in sections:
            _check_override(result, holder, path, section, key)
            holder, path = holder[section], f"{path}{section}."
            if not isinstance(holder, ConfigDict):
                raise InputError(f"config.{key}: {path[:-1]} is a value, it has no keys")
        _check_override(result, holder, path, last, key)
        replaced = holder[last]
        if isinstance(replaced, ConfigDict):
            raise InputError(
                f"config.{key}: expected a key of this section, as in config.{key}."
                f"{next(iter(replaced.keys()))}; it has {', '.join(replaced.keys())}"
            )
        with holder.ignore_type():
            holder[last] = _typed(key, value, replaced)
    return result.lock()


def _check_override(config, holder: ConfigDict, path: str, name: str, key: str) -> None:
    """Raises the `InputError` for an unknown `name` below `path`, with the nearest known key."""
    if name in holder:
        return
    everywhere = list(flatten(config))
    elsewhere = [known for known in everywhere if known.split(".")[-1] == key.split(".")[-1]]
    hint = (
        (f" Did you mean {elsewhere[0]!r}?" if elsewhere else "")
        or did_you_mean(name, list(holder.keys()))
        or did_you_mean(key, everywhere)
    )
    where = path[:-1] or "the config"
    raise InputError(f"config.{key}: unknown key.{hint} {where} has {', '.join(holder.keys())}")


def _typed(key: str, value: Any, replaced: Any) -> Any:
    """`value` as the type of what it replaces."""
    if key in OPTIONAL:
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return _cast(key, value, OPTIONAL[key])
    if replaced is None:
        return _literal(value)
    if isinstance(replaced, tuple):
        items = _literal(value)
        if not isinstance(items, tuple | list):
            raise InputError(f"config.{key}: expected a tuple such as {replaced!r}, got {value!r}")
        kinds = {type(item) for item in replaced}
        kind = kinds.pop() if len(kinds) == 1 else None
        return tuple(_cast(key, item, kind) if kind else item for item in items)
    return _cast(key, value, type(replaced))


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value


def _cast(key: str, value: Any, kind: type) -> Any:
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "a word",
    }
    text = value.strip() if isinstance(value, str) else None
    if kind is bool and (isinstance(value, bool) or (text and text.lower() in ("true", "false"))):
        return value if text is None else text.lower() == "true"
    if kind is int and text is not None and re.fullmatch(r"[+-]?\d[\d_]*", text):
        return int(text)
    if kind is float and (text is not None or type(value) in (int, float)):
        with contextlib.suppress(ValueError):
            if math.isfinite(float(value)):
                return float(value)
    if text is None and type(value) is kind and kind is not float:
        return value
    if kind is str and text is not None:
        return text
    raise InputError(
        f"config.{key}: expected {words.get(kind, kind.__name__)} ({kind.__name__}), got {value!r}"
    )


# ---- command line --------------------------------------------------------------------------


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `--config` in it, and one-line errors (`InputError`) instead of usage dumps."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            epilog=USAGE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--config",
            required=True,
            metavar="FILE[:VARIANT]",
            help="the config, for example configs/demo.py",
        )

    def error(self, message: str):
        raise InputError(f"{message}; --help says what there is")


def parse(
    parser: ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[FrozenConfigDict, argparse.Namespace]:
    """Reads a command line: the config with its overrides, and the program's own arguments.

    Args:
      parser: a `config.ArgumentParser` with the program's arguments added.
      argv: the words after the program's name; by default the process's own.

    Returns:
      The resolved config, frozen, and the namespace (`namespace.config` is the file as given).

    Raises:
      InputError: anything wrong with the arguments, the file or an override.
    """
    words, overrides = _split_overrides(sys.argv[1:] if argv is None else list(argv))
    if {"-h", "--help"} & set(words):
        _print_help(parser, words)
        raise SystemExit(0)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        hint = did_you_mean(unknown[0].split("=")[0], options)
        parser.error(f"unknown argument {unknown[0]!r}.{hint} There are {', '.join(options)}")
    return FrozenConfigDict(override(load_file(arguments.config), overrides)), arguments


def _split_overrides(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of a command line."""
    rest, overrides = [], {}
    queue = iter(words)
    for word in queue:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(queue, "--")
            if value.startswith("--"):
                raise InputError(f"--config.{key}: expected a value, as in --config.{key}=VALUE")
        overrides[key] = value
    return rest, overrides


def _print_help(parser: ArgumentParser, words: list[str]) -> None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(words)[0].config
    print(parser.format_help())
    if path is not None:
        print(f"{path}:")
        for key, value in flatten(load_file(path)).items():
            print(f"  --config.{key}={value}")


# ---- sections into constructors ------------------------------------------------------------


def unpack(name: str, section: Document, constructor: Callable[..., _T], /, **given: Any) -> _T:
    """`constructor(**section, **given)`; a key too many or too few is an `InputError`.

    Args:
      name: the section's, for messages.
      section: its keys and values.
      constructor: what takes them.
      given: arguments that come from elsewhere and so may not be in the section.
    """
    parameters = inspect.signature(constructor).parameters.values()
    # Flax gives every module a `name` and a `parent`, which are not settings.
    module = inspect.isclass(constructor) and issubclass(constructor, flax.linen.Module)
    taken = {*given, "name", "parent"} if module else given
    settings = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in taken
    ]
    known = [p.name for p in settings]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known += [key for key in section if key not in known and key not in taken]
    required = [p.name for p in settings if p.default is p.empty]
    _check_keys(f"config.{name}", section.keys(), known, required=required)
    return constructor(**_plain(section), **given)


def _check_keys(
    where: str, keys: Iterable[str], known: Iterable[str], required: Iterable[str]
) -> None:
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, list(known))
            raise InputError(f"{where}: unknown key {key!r}.{hint} It has {', '.join(known)}")
    for key in required:
        if key not in keys:
            raise InputError(f"{where}: expected a key {key!r}, it is missing")


# ---- the document on disk ------------------------------------------------------------------


def _plain(config: Document) -> dict:
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


def to_json(config: Document) -> str:
    """The document as text: keys sorted, the same document gives the same text."""
    return json.dumps(_plain(config), indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> dict:
    """The document again, as nested dicts (tuples come back as lists)."""
    return json.loads(text)


def difference(expected: Document, got: Document) -> str:
    """What differs between two documents, in words; "" when they are the same.

    >>> difference({"train": {"steps": 300}}, {"train": {"steps": 400}})
    'train.steps: expected 300, got 400'
    """
    old, new = (flatten(from_json(to_json(document))) for document in (expected, got))
    keys = [key for key in sorted(old | new) if old.get(key, ...) != new.get(key, ...)]

    def shown(flat: dict, key: str) -> str:
        return repr(flat[key]) if key in flat else "no such key"

    return "; ".join(f"{key}: expected {shown(old, key)}, got {shown(new, key)}" for key in keys)
