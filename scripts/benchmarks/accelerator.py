"""Everything that is claimed of an accelerator, in one run of at most eight minutes.

    python scripts/benchmarks/accelerator.py [--minutes 8] [--only NAME ...] [--data DATA]
                                             [--quick] [--together] [--out accelerator.json]

What a bar names first: the training step of the paper's model beside the same towers in PyTorch,
soft-DTW beside ott, ragged Euclidean distances, search through an index, large cached batches
within 32 GB, a run from disk; then extraction's encoders, evaluation's distances, and variants.
Rows of one name of `beside` share a process, every other one has its own, so that none has
another's memory. A row that hangs, dies or fails costs its own figures only. Each compiles what it
needs (nothing is taken from a cache; the time stands apart, and so does tracing), and its figures
are printed and written as it ends. What is not installed is named and left out.

`--quick` has small shapes: it shows on any machine that every row runs. `--together` has all rows
in one process, so that small ones need not start anew. Without `--data`, the row from disk trains
on random features that it writes.

The rows are in accelerator_steps.py, accelerator_distances.py, accelerator_search.py,
accelerator_disk.py and accelerator_encoders.py, the peers in accelerator_torch.py.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIMITED_BYTES = 32e9  # what "a V100's memory" is
LIMIT = " in 32 GB"  # in the names of rows that are limited to that
LEAST_S = 5.0  # with less time no row begins
POLL_S = 0.1
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "ott-jax")


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      what: "module:function", called with whether it is quick, and `given` -> figures.
      most_s: seconds after which it is given up, compiling included.
      given: what is measured.
      beside: rows that follow each other and have this in common share a process.
    """

    what: str
    most_s: float
    given: dict = {}  # noqa: RUF012  nobody changes it
    beside: str = ""


STEP, TORCH_STEP = "accelerator_steps:step", "accelerator_torch:step"
SOFT_DTW, OTT = "accelerator_distances:soft_dtw", "accelerator_distances:by_ott"
RAGGED, EVALUATION = "accelerator_distances:ragged", "accelerator_distances:evaluation"
CLIP, BEATS = "accelerator_encoders:clip", "accelerator_encoders:beats"
IN_CUDA = "accelerator_torch:soft_dtw"
BEST = {"precision": "bfloat16"}
UNROLLED = {"remat": "unrolled"}
SMALL = {"batch": 256, "steps": (62, 62)}
LARGE = {"batch": 1024, "steps": (62, 62)}
# The towers of configs/vggsound.py as plain numbers: PyTorch's process needs none of the project.
TOWERS = {
    **{"width": 512, "heads": 8, "feedforward": 2048, "dropout": 0.1, "position_buckets": 320},
    **{"features": (768, 6144), "hidden": (2048, 768), "blocks": (8, 2)},
}
IN_BFLOAT16, IN_FLOAT32 = ({"bfloat16": half, "towers": TOWERS} for half in (True, False))
ROWS = {
    "step, bfloat16, batch 1,024": Row(STEP, 110, LARGE | BEST),
    "step, bfloat16, batch 1,024, unrolled": Row(STEP, 110, LARGE | BEST | UNROLLED),
    "step in PyTorch, bfloat16, batch 1,024": Row(TORCH_STEP, 110, LARGE | IN_BFLOAT16),
    "step, float32, batch 256, of 250 x 62": Row(STEP, 90, SMALL | {"steps": (250, 62)}),
    "soft-DTW, 62 x 62": Row(SOFT_DTW, 45, {"visual_steps": 62}, "soft-DTW"),
    "soft-DTW by ott, 62 x 62": Row(OTT, 30, {"visual_steps": 62}, "soft-DTW"),
    "soft-DTW, 250 x 62": Row(SOFT_DTW, 45, {"visual_steps": 250}, "soft-DTW"),
    "soft-DTW by ott, 250 x 62": Row(OTT, 30, {"visual_steps": 250}, "soft-DTW"),
    "ragged, visual_to_audio": Row(RAGGED, 45, {"resample": "visual_to_audio"}, "ragged"),
    "ragged, audio_to_visual": Row(RAGGED, 45, {"resample": "audio_to_visual"}, "ragged"),
    "search, 1,000 x 10,000": Row("accelerator_search:search", 70),
    "step in 32 GB, batch 4,096, cached": Row(STEP, 90, LARGE | {"batch": 4096, "microbatch": 64}),
    "step in 32 GB, batch 16,384, cached, bfloat16": Row(
        STEP, 100, LARGE | {"batch": 16_384, "microbatch": 64} | BEST
    ),
    "from disk, bfloat16, batch 1,024": Row("accelerator_disk:from_disk", 110, {"data": ""}),
    "CLIP B/32, 250 frames, bfloat16": Row(CLIP, 40, {"dtype": "bfloat16"}, "encoders"),
    "BEATs, 10 s, bfloat16": Row(BEATS, 40, {"dtype": "bfloat16"}, "encoders"),
    "evaluation, Euclidean": Row(EVALUATION, 30, {"distance": "euclidean"}, "evaluation"),
    "evaluation, DTW": Row(EVALUATION, 30, {"distance": "dtw"}, "evaluation"),
    "soft-DTW, 16,384 pairs": Row(SOFT_DTW, 30, {"visual_steps": 62, "clips": 128}),
    "step, float32, batch 256": Row(STEP, 90, SMALL),
    "step in PyTorch, float32, batch 256": Row(TORCH_STEP, 90, SMALL | IN_FLOAT32),
    "CLIP B/32, 250 frames, float32": Row(CLIP, 40, {"dtype": "float32"}, "encoders, float32"),
    "BEATs, 10 s, float32": Row(BEATS, 40, {"dtype": "float32"}, "encoders, float32"),
    "soft-DTW by pytorch-softdtw-cuda, 62 x 62": Row(IN_CUDA, 40, {"visual_steps": 62}),
    "soft-DTW by pytorch-softdtw-cuda, 250 x 62": Row(IN_CUDA, 40, {"visual_steps": 250}),
}
RATIOS = (  # what is printed at the end: which figure of one row over that of another
    ("clips_per_s", "step, bfloat16, batch 1,024", "step in PyTorch, bfloat16, batch 1,024"),
    ("clips_per_s", "step, bfloat16, batch 1,024, unrolled", "step, bfloat16, batch 1,024"),
    ("ms", "soft-DTW by ott, 62 x 62", "soft-DTW, 62 x 62"),
    ("ms", "soft-DTW by ott, 250 x 62", "soft-DTW, 250 x 62"),
)


# -- a row's process ------------------------------------------------------------------------------


def attempted(name: str, options: argparse.Namespace) -> dict:
    """The figures of one row, or why there are none; and the device, where JAX has one."""
    module, _, function = ROWS[name].what.partition(":")
    given = dict(ROWS[name].given)
    if "data" in given:
        given["data"] = options.data
    try:
        found = getattr(importlib.import_module(module), function)(options.quick, **given)
    except ImportError as error:
        found = {"missing" if is_elsewhere(error.name) else "error": str(error)}
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        found = {"error": f"{type(error).__name__}: {error}"[:1000], "where": where}
    if jax := sys.modules.get("jax"):
        with contextlib.suppress(Exception):  # which was the row's own error
            found["device"] = jax.devices()[0].device_kind
    return found


def is_elsewhere(module: str | None) -> bool:
    """Whether a module that could not be imported is a package that one may go without."""
    top = (module or "").partition(".")[0]
    return bool(top) and top != "scav_jax" and not top.startswith("accelerator")


def child(options: argparse.Namespace) -> None:
    """Writes a file for each row, whole or not at all: the process may be killed at any time."""
    for number, name in enumerate(options.row):
        write(Path(options.out) / f"{number}.json", attempted(name, options))


def write(path: Path, found: dict) -> None:
    """JSON, which has neither NaN nor infinity."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(finite(found), indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


def finite(value):
    """The same with None for what is no number."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the run --------------------------------------------------------------------------------------


def environment(limited: bool, memory_bytes: float) -> dict:
    """Of a process; `limited` to `LIMITED_BYTES`, which it takes at once."""
    environ = dict(os.environ, JAX_ENABLE_COMPILATION_CACHE="false")
    # Ours first, and then the caller's: packages that were brought along.
    paths = str(ROOT), environ.get("PYTHONPATH", "")
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        environ["JAX_PLATFORMS"] = f"{platforms},cpu"  # some rows compare with it
    environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = str(limited).lower()
    if limited:
        environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{LIMITED_BYTES / memory_bytes:.4f}"
    return environ


def asked_of_the_card(what: str) -> list[str]:
    """What the driver says; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return said_by(command).splitlines()


def said_by(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def head() -> dict:
    """What the figures are of."""
    versions = {}
    for package in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions | {"python": platform.python_version()},
        "card": asked_of_the_card("name,driver_version,memory.total"),  # MiB
        "commit": said_by(["git", "describe", "--always", "--dirty", "--abbrev=40"]) or None,
        "cores": os.cpu_count(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": sys.argv[1:],
    }


def shown_name(name: str, figures: dict, limited: bool) -> str:
    """A row's name; one that could not be limited says so."""
    if LIMIT not in name:
        return name
    held = figures.get("limit_gb") or (LIMITED_BYTES / 1e9 if limited else math.inf)
    return name if held <= 1.03 * LIMITED_BYTES / 1e9 else name.replace(LIMIT, " without a limit")


def processes(names: list[str], together: bool) -> list[list[str]]:
    """The rows of each process."""
    if together:
        return [names]
    own = groupby(names, key=lambda name: ROWS[name].beside or name)
    return [list(group) for _, group in own]


def measured(
    names: list[str], options: argparse.Namespace, end: float, memory_bytes: float
) -> Iterator[tuple[str, dict]]:
    """(name, figures) of rows that share a process, as they come; a new one where it ends early."""
    limited = LIMIT in "".join(names) and not options.together and memory_bytes > LIMITED_BYTES
    while names:
        with tempfile.TemporaryDirectory() as folder:
            for name, figures in followed(names, options, end, Path(folder), limited, memory_bytes):
                names = names[1:]
                yield shown_name(name, figures, limited), figures


def followed(
    names, options, end: float, folder: Path, limited: bool, memory_bytes: float
) -> Iterator[tuple[str, dict]]:
    """The rows of one process up to the one that ends it."""
    command = [sys.executable, __file__, "--row", *names, "--out", str(folder)]
    command += ["--data", options.data] + (["--quick"] if options.quick else [])
    if end - time.monotonic() < LEAST_S:
        yield from ((name, {"missing": "no time was left"}) for name in names)
        return
    with open(folder / "words", "wb") as words:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(limited, memory_bytes),
            stdout=words,
            stderr=subprocess.STDOUT,
            process_group=0,  # ends with all that it starts
        )
    try:
        for number, name in enumerate(names):
            left = end - time.monotonic()
            limit = min(ROWS[name].most_s, left)
            if found := waited(process, folder / f"{number}.json", limit):
                yield name, found
                continue
            if process.poll() is None:
                why = {"missing": f"no time: {left:.0f} s were left"}
                if limit < left:
                    why = {"error": f"given up after {limit:.0f} s"}
            else:
                why = {"error": f"exit code {process.returncode}"}
            said = (folder / "words").read_text(errors="replace")[-1000:]
            yield name, why | {"where": said}
            return
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def waited(process: subprocess.Popen, file: Path, limit_s: float) -> dict | None:
    """What a row has written; None where its process has ended without, or takes too long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        ended = process.poll() is not None
        if file.exists():
            return json.loads(file.read_text())
        if ended:
            return None
        time.sleep(POLL_S)
    return None


def in_words(name: str, figures: dict) -> str:
    words = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
        if key != "where"
    ]
    return f"{name:46} " + ", ".join(words)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of everything (default 8)")
    parser.add_argument("--only", nargs="+", default=[], help="rows, by how their names begin")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--together", action="store_true", help="all rows in one process")
    parser.add_argument("--data", default="", help="features to train on, for the row from disk")
    parser.add_argument("--out", default="accelerator.json", help="the figures (accelerator.json)")
    parser.add_argument("--row", nargs="+", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data:
        options.data = str(Path(options.data).resolve())  # rows run in another folder
    return options


def main() -> None:
    options = parse()
    if options.row:
        child(options)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the row's process too
    end, memory = time.monotonic() + 60 * options.minutes, asked_of_the_card("memory.total")
    memory_bytes = float(memory[0]) * 2**20 if memory else 0.0
    names = [name for name in ROWS if not options.only or name.startswith(tuple(options.only))]
    told, rows = head(), {}
    for group in processes(names, options.together):
        for name, figures in measured(group, options, end, memory_bytes):
            told["device"] = figures.pop("device", None) or told.get("device")
            rows[name] = figures
            print(in_words(name, figures), flush=True)
            write(Path(options.out), {"head": told, "rows": rows})
    for figure, one, other in RATIOS:
        first, second = (rows.get(name, {}).get(figure) for name in (one, other))
        if first and second:
            print(f"{figure}, {one} over {other}: {first / second:.2f}")


if __name__ == "__main__":
    main()
