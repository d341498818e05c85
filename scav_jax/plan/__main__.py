"""A plan before the run: `scav plan --config vggsound --device v100`.

Memory, FLOPs, time and input of a config by arithmetic: nothing is computed, no data need be there.
`--compile` asks XLA too, without running anything; `--run` runs the step a few times on random
features: seconds, share of the peak and, on an accelerator, the memory that was in use.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import ConfigParser, at_least, number
from scav_jax.base.errors import check_one_of, run_program
from scav_jax.base.ranges import Range, check_range
from scav_jax.plan.devices import (
    DEVICES,
    EFFICIENCY,
    GIVEN,
    MEASURED,
    STALE,
    TERA,
    Device,
    efficiency_of,
)

# Of anything that trains: outside are slips, of which no time that is planned means anything.
TFLOPS, SHARE_OF_PEAK = Range(1e-3, 1e6), Range(1e-6, 1)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ConfigParser(prog="scav plan", description=__doc__)
    parser.add_argument("--devices", type=at_least(1), default=1, help="how many (default 1)")
    parser.add_argument(
        "--device", default="v100", help=f"one of {', '.join(DEVICES)} (default v100)"
    )
    parser.add_argument("--memory", help="of each device, such as 32GiB; else the device's")
    parser.add_argument("--peak-tflops", type=number, help="of each device; else the device's")
    known = ", ".join(f"{' in '.join(which)} {share:.2f}" for which, share in MEASURED.items())
    parser.add_argument(
        "--efficiency",
        type=number,
        help=f"share of the peak; default: {known} ({STALE}), else {EFFICIENCY}, which is assumed",
    )
    parser.add_argument("--compile", action="store_true", help="asks XLA too, on this machine")
    parser.add_argument("--run", action="store_true", help="runs the step here, a few times")
    parser.add_argument("--json", type=Path, help="writes every figure there")
    return parser.parse_args(argv)


def _device(arguments: argparse.Namespace) -> Device:
    from scav_jax.plan import estimate

    check_one_of("--device", arguments.device, DEVICES)
    device = DEVICES[arguments.device]
    if arguments.memory is not None:
        device = device._replace(memory=estimate.bytes_of(arguments.memory))
    check_range("--efficiency", arguments.efficiency, SHARE_OF_PEAK)
    check_range("--peak-tflops", arguments.peak_tflops, TFLOPS)
    if arguments.peak_tflops is not None:
        peak = arguments.peak_tflops * TERA
        device = device._replace(float32=peak, tensorfloat32=peak, bfloat16=peak)
    return device


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from scav_jax.base.files import check_may_be_written, write_json
    from scav_jax.plan import estimate, trial
    from scav_jax.training import config_files
    from scav_jax.training.setup import check_config, optimizer_of

    check_may_be_written(arguments.json)
    config = config_files.load(arguments)
    check_config(config)
    source = GIVEN
    if arguments.efficiency is None:
        arguments.efficiency, source = efficiency_of(arguments.device, config.train.precision)
    device = _device(arguments)
    stored = estimate.stored_features(config)
    work = estimate.workload(config, arguments.devices, stored)
    found = estimate.report(config, work, stored, device, arguments.efficiency)
    found["efficiency_is"] = source
    if arguments.compile or arguments.run:
        optimizer = optimizer_of(config)
        estimate.check_devices(work)
        step = trial.lowered_step(work, optimizer).compile()
        found["xla"] = trial.compared(step, work)
        if arguments.run:
            found["run"] = trial.run(step, work, optimizer)
    print(estimate.in_words(found))
    if arguments.json:
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    run_program(main)
