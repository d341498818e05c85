"""SCAV on `chimes`, rendered videos of struck bars that ship with us: `./scripts/demo`.

Reproduces: no figure of the paper. Its test is the situation of the paper's MUSIC test, clips of
one performance that differ only in what is struck when; the figures are ours, see docs/results.md.

Command:   python -m scav_jax.train --config configs/demo.py --workdir runs/demo
Hardware:  two CPU cores; a small tower, 325 steps, minutes.
The baseline: configs/table1/cav.py:demo. Every row of the paper's tables has such a variant.
"""

from configs import base


def get_config():
    return base.chimes_demo()
