"""`scav export --run RUN --out DIR`: a trained model as files that others can load.

    DIR/README.md                     the model card
    DIR/model.safetensors             parameters, as encoders.visual.block_0.attention.query.kernel
    DIR/config.json                   the resolved config, and what was exported
    DIR/preprocessing.json            the fingerprint of the extractor
    DIR/towers/visual.jaxexport       each tower as StableHLO for CPU, CUDA and TPU, of any batch
    DIR/towers/audio.jaxexport          and number of steps, without its parameters
    DIR/sketch/                       where the run has one, see `scav sketch`

`scav_jax.retrieval.model.load(DIR)` needs no orbax. The same run gives the same bytes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scav_jax.base.commands import Parser
from scav_jax.base.errors import run_program
from scav_jax.export import UNKNOWN_LICENCE


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav export", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a finished training")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument(
        "--licence", default=UNKNOWN_LICENCE, help="of the parameters, for the card: an SPDX name"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    from scav_jax.export.writing import export

    model = export(options.run, options.out, licence=options.licence)
    print(f"wrote {options.out}: model {model.identity}")
    return 0


if __name__ == "__main__":
    run_program(main)
