"""What this machine has: each part as (name, what is there, "ok" or what is wrong) lines."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata

from scav_jax.base.errors import InputError, first_line

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
FOR_DEVELOPERS = {"dev", "docs", "test"}  # extras
GIB = 2**30
OK, MISSING = "ok", "MISSING"


def machine() -> list[tuple[str, str, str]]:
    """The system and what of it may be used: (name, what is there, "ok" or what is wrong)."""
    import scav_jax
    from scav_jax.extract.pool import cores

    lines = [
        ("scav_jax", scav_jax.__version__, OK),
        ("Python", f"{platform.python_version()} {sys.executable}", OK),
        ("system", platform.platform(), OK),
        ("cores", f"{cores()} of {os.cpu_count()}", OK),
    ]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        lines.append(("memory", f"{memory / GIB:.1f} GiB", OK))
    told = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    lines += [(name, value, OK) for name, value in sorted(told.items())]
    return lines


def packages() -> list[tuple[str, str, str]]:
    """What is required, of the core and of every extra that is there in part, beside what is."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires("scav_jax") or []]
    extras = metadata.metadata("scav_jax").get_all("Provides-Extra") or []
    core = {one.name: one for one in required if not one.marker or one.marker.evaluate()}
    lines = [_package(one) for one in core.values()]
    for extra in sorted({*extras} - FOR_DEVELOPERS):
        of_extra = [
            one
            for one in required
            if one.marker and one.marker.evaluate({"extra": extra})
            if one.name not in core and one.name.replace("-", "_") != "scav_jax"
        ]
        found = [_package(one) for one in of_extra]
        absent = [name for name, _, state in found if state.startswith(MISSING)]
        if len(absent) < len(found):
            lines += found
        elif found:
            lines.append((f"[{extra}]", f"not installed: {', '.join(absent)}", OK))
    return lines


def _package(required) -> tuple[str, str, str]:
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return required.name, "", f"{MISSING}: {required.name}{required.specifier}"
    good = required.specifier.contains(version, prereleases=True)
    return required.name, version, OK if good else f"EXPECTED {required.specifier}"


def devices() -> list[tuple[str, str, str]]:
    """What JAX computes on; where a driver cannot be used, its own words."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:
        return [("jax", first_line(error), "NO DEVICE")]
    lines = []
    for device in found:
        stats = device.memory_stats() or {}
        memory = stats.get("bytes_limit")
        room = f", {memory / GIB:.1f} GiB" if memory else ""
        lines.append((f"{device.platform} {device.id}", f"{device.device_kind}{room}", OK))
    return lines


def decoders() -> list[tuple[str, str, str]]:
    """FFmpeg's libraries, and the usual codecs that they can read."""
    import av

    from scav_jax.extract.decoding.measured import libraries

    readable = [name for name in CODECS if name in av.codecs_available]
    absent = sorted(set(CODECS) - set(readable))
    state = OK if not absent else f"{MISSING}: {', '.join(absent)}"
    return [*((name, version, OK) for name, version in libraries().items()),
            ("decodes", ", ".join(readable), state)]  # fmt: skip


def weights(given: list[str]) -> list[tuple[str, str, str]]:
    """Models that were downloaded before, and whether those that are given open."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from scav_jax.extract import backbones
    from scav_jax.extract.backbones.weights import read

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, RuntimeError):  # the latter of a user whose home nothing says
        repositories = ()
    lines = [
        (one.repo_id, f"downloaded, {one.size_on_disk / GIB:.2f} GiB", OK)
        for one in sorted(repositories, key=lambda one: one.repo_id)
        if one.repo_type == "model"
    ]
    for name, place in backbones.parse_weights(given).items():
        try:
            lines.append((name, f"{place}: {len(read(place))} tensors", OK))
        except InputError as error:
            lines.append((name, str(error), "NOT READ"))
    return lines or [("none", "none is needed by --backbone plain", OK)]


def disk() -> list[tuple[str, str, str]]:
    """Room where work is kept: here, where temporary files go, at home."""
    places = {"here": os.getcwd, "temporary": tempfile.gettempdir, "home": home}
    return [(name, *_room(place)) for name, place in places.items()]


def home() -> str:
    """The user's home, or "" where nothing says which it is: a container's user without a name."""
    place = os.path.expanduser("~")
    return "" if place == "~" else place


def _room(place: Callable[[], str]) -> tuple[str, str]:
    """What is free there, or why nothing is: (what is there, "ok" or what is wrong)."""
    try:
        where = place()
        used = shutil.disk_usage(where)
    except OSError as error:
        return f"{error.filename or 'none'}: {error.strerror}", MISSING
    room = f"{used.free / GIB:.1f} of {used.total / GIB:.1f} GiB free"
    return f"{room} in {where}", OK if os.access(where, os.W_OK) else "NOT WRITABLE"
