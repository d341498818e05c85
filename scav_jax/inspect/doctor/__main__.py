"""`scav doctor`: what this machine has for the project, to paste into a report of a fault."""

import argparse

from scav_jax.base.commands import Parser, add_weights
from scav_jax.base.errors import run_program

EPILOG = """\
Versions and what is missing, devices, decoders, weights, disk, and `scav extract --selfcheck`.
Exit code 1 where something that is needed is missing or another version, or features would differ.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav doctor", description=__doc__, epilog=EPILOG)
    parser.add_argument("--quick", action="store_true", help="without the self-check")
    add_weights(parser, "weights to open too, as for extract")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from scav_jax.inspect.doctor import machine as this

    parts = {
        "machine": this.machine,
        "packages": this.packages,
        "devices": this.devices,
        "decoders": this.decoders,
        "weights": lambda: this.weights(options.weights),
        "disk": this.disk,
    }
    wrong = []
    for title, part in parts.items():
        print(f"{title}\n{'-' * len(title)}")
        for name, told, state in part():
            print(
                f"{name:24} {_homeless(told)}{'' if state == this.OK else f'   {state}'}",
                flush=True,
            )
            wrong += [] if state == this.OK else [name]
        print()
    if not options.quick:
        from scav_jax.extract.selfcheck import selfcheck

        print("self-check\n----------")
        wrong += [] if selfcheck() else ["self-check"]
        print()
    print(f"{len(wrong)} to look at: {', '.join(wrong)}" if wrong else "nothing is wrong")
    return 1 if wrong else 0


def _homeless(text: str) -> str:
    """What is printed is pasted in public: nobody's name is in it."""
    from scav_jax.inspect.doctor.machine import home

    return text.replace(home(), "~") if len(home()) > 1 else text  # "/" is a container's


if __name__ == "__main__":
    run_program(main)
