"""`scav extract backbones SOURCE TARGET`: released weights -> safetensors, once.

BEATs, a `.pt` file      -> TARGET.safetensors, with its configuration
CLIP, a folder or hub id -> the folder TARGET with model.safetensors, configuration and tokenizer

Nothing that is pickled in a source is executed. What comes out is mapped into memory when it is
opened, and is the same model: neither features nor their fingerprint change.
"""

import shutil
from pathlib import Path

from scav_jax.base.commands import Parser
from scav_jax.base.errors import InputError, run_program


def convert(source: str, target: Path) -> None:
    """Writes what `source` holds as safetensors to `target`; see above."""
    from scav_jax.extract.backbones import beats_weights, weights

    if Path(source).is_file():
        beats_weights.convert(source, target)
        return
    folder = weights.locate(source)
    if target.exists() and target.resolve() == folder.resolve():
        raise InputError(f"{target}: expected another folder than the source's, got the same")
    arrays = weights.read(folder)
    weights.write(target / weights.FILE, arrays)
    for path in sorted(folder.iterdir()):
        beside = path.name in weights.DOWNLOADED and path.suffix in (".json", ".txt")
        if beside and path.name != weights.INDEX:
            shutil.copyfile(path, target / path.name)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="scav extract backbones", description=__doc__)
    parser.add_argument("source", help="a .pt file, a folder, or a hub id like owner/name")
    parser.add_argument("target", type=Path, help="a .safetensors file (BEATs), a folder (CLIP)")
    options = parser.parse_args(argv)
    convert(options.source, options.target)
    print(f"{options.target}: written")


if __name__ == "__main__":
    run_program(main)
