"""`scav web --index INDEX --model RUN`: the search page, on this machine only."""

import argparse
import ipaddress
import socket
import sys
from pathlib import Path

from scav_jax.base.commands import Parser, add_model, at_least, whole
from scav_jax.base.errors import InputError, number_of, run_program

PORT = 7860


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav web", description=__doc__)
    parser.add_argument("--index", type=Path, required=True, help="of scav_jax.index")
    add_model(parser)
    parser.add_argument("--port", type=whole, default=PORT, help=f"0: a free one (default: {PORT})")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument(
        "--roots",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="play clips below these folders only (default: any source of the index)",
    )
    parser.add_argument(
        "--max-megabytes", type=at_least(1), default=256, help="of a query (default: 256)"
    )
    return parser.parse_args(arguments)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; `InputError` where the port is taken or the host is not ours."""
    if not 0 <= port < 65536:
        raise InputError(f"--port: expected 0 to 65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
        bound.listen()  # else another server may be bound to it too, and fail once it has loaded
    except OSError as error:
        bound.close()
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another"
        ) from None
    return bound


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    bound = bind(options.host, options.port)  # before minutes of loading
    from scav_jax.index import open_index
    from scav_jax.retrieval.model import load_as_asked
    from scav_jax.web.app import LOOPBACK_NAMES, create_app, serve

    model = load_as_asked(options)
    _ = model.backbone  # says now what is missing
    index = open_index(options.index, identity=model.identity)
    local = is_loopback(options.host)
    name = f"[{options.host}]" if ":" in options.host else options.host
    if not local:
        print(
            f"warning: --host {options.host}: everyone who reaches this machine can search the "
            "index and play its clips; there is no password",
            file=sys.stderr,
        )
    app = create_app(
        model,
        index,
        roots=options.roots,
        max_bytes=options.max_megabytes * 2**20,
        hosts=[*LOOPBACK_NAMES, name] if local else ["*"],
    )
    print(
        f"http://{name}:{bound.getsockname()[1]}/  ({number_of(len(index), 'clip')}; Ctrl-C ends)",
        flush=True,
    )
    serve(app, bound)
    return 0


if __name__ == "__main__":
    run_program(main)
