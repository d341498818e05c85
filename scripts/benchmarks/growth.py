"""How do time, memory and communication of a step grow with batch, length and devices?

    python scripts/benchmarks/growth.py [--quick] [--out DIR]

Batch 32 to 4,096, without and with gradient caching; 62 and 250 steps; 1 to 8 devices, virtual ones
on a CPU. Memory is that of the compiled step (XLA's buffers on each device) beside what
`plan.costs` says; communication is counted from the compiled program; both with the paper's
towers and features. Time is measured where a step is fast enough on the machine at hand and marked
as computed (FLOPs at the speed that was measured) where it is not. Virtual devices share the cores:
their times say nothing about devices, so none are measured.

Finished rows are kept in OUT/growth.json and reused; the plot is OUT/growth.png. Compiling takes
half a minute a row on 2 cores.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from communication import communication_bytes

from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.encoders import Encoders
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.plan import costs, trial
from scav_jax.plan.compiled import memory_of
from scav_jax.plan.memory import planned_memory
from scav_jax.retrieval.results import aligned

DEVICES = 8
BATCHES = (32, 128, 512, 1024, 4096)
MICROBATCH = 32
LENGTHS = (62, 250)
LONGEST_STEP_S = 20.0  # no longer step is run
GIB = 2**30


def work(batch: int, steps: int, microbatch: int = 0, devices: int = 1, **encoders):
    """The paper's step: both streams `steps` long, features as stored."""
    towers = Encoders(**{"pre_resample": "visual_to_audio", **encoders})
    return costs.Workload(
        towers,
        Sequential(),
        batch,
        (steps, 768),
        (steps, 6144),
        microbatch=microbatch,
        devices=devices,
        feature_bytes=(2, 2),
        batches=1,
        on_cpu=jax.default_backend() == "cpu",
    )


def rows_wanted(quick: bool) -> dict[str, list[dict]]:
    """What each panel shows: settings of `work`."""
    small = {"width": 64, "heads": 4, "visual_blocks": 1, "audio_blocks": 1, "feedforward": 128}
    small |= {"visual_hidden": 64, "audio_hidden": 64}
    if quick:
        base = {"steps": 8, **small}
        return {
            "batch": [{"batch": 8, **base}, {"batch": 16, **base}],
            "batch, cached": [{"batch": 16, "microbatch": 8, **base}],
            "length": [{"batch": 8, **base}, {"batch": 8, **base, "steps": 16}],
            "devices": [{"batch": 8, **base, "devices": n} for n in (1, 2)],
        }
    return {
        "batch": [{"batch": b, "steps": 62} for b in BATCHES],
        "batch, cached": [
            {"batch": b, "steps": 62, "microbatch": MICROBATCH} for b in BATCHES if b > MICROBATCH
        ],
        "length": [{"batch": 64, "steps": steps} for steps in LENGTHS],
        "devices": [{"batch": 256, "steps": 62, "devices": n} for n in (1, 2, 4, 8)],
    }


def measured(settings: dict, flops_per_s: float | None) -> dict:
    """Compiles the step of some settings and reads it; runs it where it is fast enough."""
    step, optimizer = work(**settings), make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    begin = time.perf_counter()
    compiled = trial.lowered_step(step, optimizer).compile()
    known = memory_of(compiled)
    count = costs.flops(step).total
    row = {
        **settings,
        "compile_s": time.perf_counter() - begin,
        "memory_bytes": known.total,
        "planned_bytes": planned_memory(step).total,
        "flops": count,
        "communication_bytes": communication_bytes(compiled, unknown_trips=settings["steps"]),
        "step_s": None,
        "computed_step_s": count / flops_per_s if flops_per_s else None,
    }
    fits = known.total < 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    expected = row["computed_step_s"] or 0.0
    if step.devices == 1 and fits and expected < LONGEST_STEP_S:
        row["step_s"] = trial.run(compiled, step, optimizer)["step_s"]
    return row


def collected(out: Path, quick: bool) -> dict[str, list[dict]]:
    """Every row, from `growth.json` where it is there."""
    path = out / ("growth-quick.json" if quick else "growth.json")
    kept = json.loads(path.read_text())["rows"] if path.is_file() else {}
    wanted, speed = rows_wanted(quick), None
    for panel, settings_of_rows in wanted.items():
        for settings in settings_of_rows:
            done = kept.setdefault(panel, [])
            row = next((r for r in done if settings.items() <= r.items()), None)
            if row is None:
                print(f"{panel}: {settings}", file=sys.stderr)
                row = measured(settings, speed)
                done.append(row)
                write_json(path, {"cores": os.cpu_count(), "rows": kept})
            if row["step_s"]:
                speed = row["flops"] / row["step_s"]
    return {panel: kept[panel] for panel in wanted}


def lines_of(rows: dict[str, list[dict]]) -> list[str]:
    lines = [["", "batch", "steps", "devices", "GiB", "planned", "TFLOP", "s/step", "MB received"]]
    for panel, some in rows.items():
        for r in some:
            seconds = f"{r['step_s']:.3g}" if r["step_s"] else "-"
            if not r["step_s"] and r["computed_step_s"]:
                seconds = f"({r['computed_step_s']:.3g})"
            sizes = r["memory_bytes"] / GIB, r["planned_bytes"] / GIB
            received = sum(r["communication_bytes"].values()) / 1e6
            lines.append(
                [
                    panel,
                    f"{r['batch']:,}",
                    str(r["steps"]),
                    str(r.get("devices", 1)),
                    *(f"{size:.3g}" for size in sizes),
                    f"{r['flops'] / 1e12:.3g}",
                    seconds,
                    f"{received:,.3g}",
                ]
            )
    return aligned(lines, words=1)


def draw(rows: dict[str, list[dict]], file: Path) -> None:
    """Four panels: time and memory by batch, by length, memory and communication by devices."""
    import matplotlib
    from matplotlib.figure import Figure

    from scav_jax.report.figures import STYLE

    colours = {"batch": "#0072b2", "batch, cached": "#d55e00"}
    labels = {"batch": "all activations kept", "batch, cached": "gradient caching"}

    def times(panel, some, x, colour, label=None):
        both = [r["step_s"] or r["computed_step_s"] or np.nan for r in some]
        panel.plot(x, both, "-", color=colour, lw=1.6, label=label)
        for at, r, value in zip(x, some, both, strict=True):
            filled = colour if r["step_s"] else "white"
            panel.plot([at], [value], "o", ms=5, color=colour, mfc=filled)

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 7), layout="constrained")
        (time_, memory), (length, devices) = figure.subplots(2, 2)
        for name, colour in colours.items():
            some = rows[name]
            x = [r["batch"] for r in some]
            times(time_, some, x, colour, labels[name])
            gib = [r["memory_bytes"] / GIB for r in some]
            memory.plot(x, gib, "o-", color=colour, ms=5, lw=1.6, label=labels[name])
            planned = [r["planned_bytes"] / GIB for r in some]
            memory.plot(x, planned, "x:", color=colour, ms=5, lw=1, label="planned")
        time_.set_title("Seconds for a step (hollow: computed from FLOPs)")
        memory.set_title("Memory of a step, GiB")
        for panel in (time_, memory):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            sizes = sorted({r["batch"] for name in colours for r in rows[name]})
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
            panel.set_xlabel("batch")
            panel.legend(fontsize=8)
        some, places = rows["length"], range(len(rows["length"]))
        gib = [r["memory_bytes"] / GIB for r in some]
        seconds = [r["step_s"] or r["computed_step_s"] or np.nan for r in some]
        length.bar([p - 0.2 for p in places], gib, 0.36, color="#0072b2", label="memory, GiB")
        length.bar([p + 0.2 for p in places], seconds, 0.36, color="#009e73", label="seconds")
        length.set_xticks(list(places), [f"{r['steps']} steps" for r in some])
        length.set_title(f"Length, batch {some[0]['batch']}")
        length.legend(fontsize=8)
        some = rows["devices"]
        x = [r.get("devices", 1) for r in some]
        gib = [r["memory_bytes"] / GIB for r in some]
        devices.plot(x, gib, "o-", color="#0072b2", label="memory of each, GiB")
        received = [sum(r["communication_bytes"].values()) / 1e9 for r in some]
        devices.plot(x, received, "s--", color="#d55e00", label="received by each, GB")
        devices.set_title(f"Devices, batch {some[0]['batch']} in all")
        devices.set_xlabel("devices")
        devices.set_xticks(x)
        devices.legend(fontsize=8)
        for panel in (time_, memory, length, devices):
            panel.grid(axis="y")
        figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    parser.add_argument("--quick", action="store_true", help="tiny towers, a few rows")
    options = parser.parse_args()
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        jax.config.update("jax_num_cpu_devices", DEVICES)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = collected(options.out, options.quick)
    available = len(jax.devices())
    print(f"{available} {jax.devices()[0].platform} devices, {os.cpu_count()} cores; seconds in ()")
    print("are computed from FLOPs at the speed of the step that was measured before\n")
    print("\n".join(lines_of(rows)))
    picture = options.out / ("growth-quick.png" if options.quick else "growth.png")
    draw(rows, picture)
    print(f"\n{picture}")


if __name__ == "__main__":
    run_program(main)
