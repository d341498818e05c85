"""Training: `scav train --config demo --workdir runs/demo`. `loop` reads top to bottom."""
