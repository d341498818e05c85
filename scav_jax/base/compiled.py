"""Where programs keep what XLA has compiled, so that a second start does not compile again.

JAX's persistent compilation cache, in the user's cache directory: a folder for each kind of
processor, since what is compiled for one may not run on another that shares the home directory.
`--no-compilation-cache` of every program and `JAX_ENABLE_COMPILATION_CACHE=false` turn it off,
`JAX_COMPILATION_CACHE_DIR` moves it.
"""

import os
import platform
import sys
import zlib
from pathlib import Path

MAX_BYTES = 2 * 2**30  # the longest unused go first
MIN_SECONDS = 0.2  # of compiling: what takes less is not kept
# Of JAX; read when it is imported, here and in processes that a program starts.
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
DEFAULTS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(MAX_BYTES),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(MIN_SECONDS),
}
OFF = ("0", "false", "off", "no", "n", "f")


def keep_compiled() -> None:
    """Sets the environment so that JAX, not imported yet, keeps what it compiles.

    Does nothing where the user has said where to or not to, or where nothing can be written.
    """
    said = os.environ.get(ENABLED, "").lower()
    if DIRECTORY in os.environ or said in OFF or "jax" in sys.modules:
        return
    folder = _user_cache() / "scav_jax" / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError):  # no home, read-only, full
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    os.environ[DIRECTORY] = str(folder)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def keep_nothing() -> None:
    """Sets the environment so that JAX, not imported yet, neither reads nor writes the cache."""
    os.environ[ENABLED] = "false"


def _user_cache() -> Path:
    """The user's cache directory as the platform has it; XDG_CACHE_HOME is heard on all."""
    said = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(said):  # others are to be ignored, says the specification
        return Path(said)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local"))
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches"))
    return Path(os.path.expanduser("~/.cache"))


def _processor() -> str:
    """A name of the kind of processor: its architecture and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        able = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        able = platform.processor()
    return f"{platform.machine()}-{zlib.crc32(able.encode()):08x}"
