"""Config files and the command line: `--config FILE[:VARIANT] --config.SECTION.KEY=VALUE`."""

import argparse
import contextlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scav_jax
from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.training.config import Config, as_dict, flatten, override


def installed() -> Path:
    """The folder of the configs that came with scav_jax: in its wheel, or beside its sources."""
    package = Path(scav_jax.__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """What `--config` calls the configs that came with scav_jax: `demo`, `table1/cav`, ..."""
    files = (file.relative_to(installed()) for file in installed().rglob("*.py"))
    return sorted(file.with_suffix("").as_posix() for file in files if file.name != "base.py")


def find(name: str) -> tuple[Path, str | None]:
    """The file and the variant that `--config` names.

    Args:
      name: `demo` or `vggsound:38m`, a config that came with scav_jax; or a path that ends in
        `.py`, `mine.py` or `configs/mine.py:small`.

    Raises:
      InputError: there is no such file.
    """
    is_path = re.fullmatch(r"(.*\.py)(?::(.*))?", name, re.DOTALL)
    if is_path:
        path, variant = is_path[1].removesuffix(".py"), is_path[2]
        file = Path(is_path[1])
        near = sorted(str(other) for other in file.parent.glob("*.py")) if file.parent.name else []
    else:
        path, _, variant = name.partition(":")
        file, near = installed() / f"{path}.py", []
    if not file.is_file():
        known = ", ".join(names())
        word = path.removeprefix("configs/")
        hint = did_you_mean(str(file), near) or did_you_mean(word, names())
        asked = f"file {str(file)!r}" if is_path else f"config {path!r}"
        raise InputError(
            f"--config: there is no {asked}.{hint} Expected the path of a Python file, or one of "
            f"{known}"
        )
    return file, variant or None


@contextlib.contextmanager
def _importable(file: Path) -> Iterator[None]:
    """Lets a config file say `from configs import base`, and leaves no trace of it afterwards.

    `configs` is the nearest folder of that name above the file, else the one in the working
    directory, and for what is not there the one that came with scav_jax; a package of the same name
    elsewhere is not touched.
    """

    def of_configs(name: str) -> bool:
        return name == "configs" or name.startswith("configs.")

    above = [parent for parent in file.resolve().parents if parent.name == "configs"]
    package = types.ModuleType("configs")
    package.__path__ = [str(above[0] if above else Path("configs").resolve()), str(installed())]
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


def load_file(path: str) -> Config:
    """Runs a config file, named as `find` takes it.

    Returns:
      What its `get_config(variant)` returns.

    Raises:
      InputError: no such file, an error in it (with its line), no such variant, or no `Config`.
    """
    file, variant = find(path)
    try:
        config = _run_file(file, variant)
    except Exception as error:
        raise _in_its_line(file, error) or error from None
    if not isinstance(config, Config):
        raise InputError(
            f"{file}: expected get_config() to return a scav_jax.training.config.Config, "
            f"got {type(config).__name__}"
        )
    return config


def _in_its_line(file: Path, error: Exception) -> InputError | None:
    """An error while a config file ran, with the file's line; None where none of them was run."""
    frames = traceback.extract_tb(error.__traceback__)
    where = os.path.abspath(file)  # as the import system names it, also where `file` is relative
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == where]
    if isinstance(error, SyntaxError):
        return InputError(f"{file}, line {error.lineno}: SyntaxError: {error.msg}")
    if not lines:
        return None
    if isinstance(error, InputError):
        return InputError(f"{file}, line {lines[-1]}: {error}")
    return InputError(f"{file}, line {lines[-1]}: {type(error).__name__}: {error}")


# ---- command line --------------------------------------------------------------------------


def load(arguments: argparse.Namespace) -> Config:
    """The config of a command line that a `commands.ConfigParser` read.

    Where it asks for the keys of a file (`--config FILE --help`) they are printed and it ends.

    Raises:
      InputError: anything wrong with the file or an override.
    """
    config = override(load_file(arguments.config), arguments.overrides)
    if arguments.keys_wanted:
        print(f"\n{arguments.config}:")
        for key, value in flatten(as_dict(config)).items():
            print(f"  --config.{key}={value}")
        raise SystemExit(0)
    return config
