"""`scav export --run RUN --out DIR`: a trained model as files that others can load.

    DIR/README.md                     the model card
    DIR/model.safetensors             parameters, as encoders.visual.blocks.attention.query.kernel
    DIR/config.json                   the resolved config, and what was exported
    DIR/preprocessing.json            the fingerprint of the extractor
    DIR/towers/visual.jaxexport       each tower as StableHLO for CPU, CUDA and TPU, of any batch
    DIR/towers/audio.jaxexport          and number of steps, without its parameters
    DIR/onnx/visual.onnx, audio.onnx  with --onnx: the same as ONNX, of a fixed number of steps
    DIR/sketch/                       where the run has one, see `scav sketch`
    DIR/synchrony.json                where the run is calibrated, see `scav score`

`scav_jax.retrieval.model.load(DIR)` needs no orbax. The same run gives the same bytes.
`--push OWNER/NAME` uploads DIR to the Hugging Face hub, where `load("OWNER/NAME")` finds it; log in
with `hf auth login` first. Without --run, what DIR holds already is uploaded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short  # of words, which may be of any length

from scav_jax.base.commands import Parser, add_trust, at_least
from scav_jax.base.errors import run_program
from scav_jax.export import UNKNOWN_LICENCE


def _steps(text: str) -> dict[str, int]:
    try:
        visual, audio = map(at_least(1), text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"expected the visual and the audio steps of a clip, as in 250,62, got {short(text)}"
        ) from None
    return {"visual": visual, "audio": audio}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="scav export", description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished training")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    parser.add_argument(
        "--licence",
        default=UNKNOWN_LICENCE,
        help="of the parameters, for the card: an SPDX name (default: unknown)",
    )
    parser.add_argument(
        "--onnx", type=_steps, metavar="N,M", help="towers as ONNX too, of N and of M steps a clip"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="uploads it to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="with --push: for its owner only")
    add_trust(parser)
    options = parser.parse_args(argv)
    if options.run is None and options.push is None:
        parser.error("--run: expected a finished training, got none")
    if options.onnx and options.run is None:
        parser.error("--onnx: expected with --run")
    if options.private and options.push is None:
        parser.error("--private: expected with --push only")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    from scav_jax.export import hub
    from scav_jax.export.writing import export
    from scav_jax.retrieval.model import code_beside_backbone

    trust = list(options.trust)
    if options.push:
        hub.check(options.push)
    if options.run:
        model = export(options.run, options.out, licence=options.licence, onnx=options.onnx)
        print(f"wrote {options.out}: model {model.identity}")
        trust += code_beside_backbone(model.run.config).values()  # it was imported with the run
    if options.push:
        address = hub.push(options.out, options.push, private=options.private, trust=trust)
        print(f"uploaded: {address}")
    return 0


if __name__ == "__main__":
    run_program(main)
