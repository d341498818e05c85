"""`chimes`: rendered audio-visual data that ships with us, as real video files.

A performance is a minute of an instrument of 5-8 bars, struck by moving mallets: a struck bar
flashes, vibrates and rings. Clips of one performance differ only in what is struck when.

    scav datasets chimes --preset demo --out VIDEOS

    presets      the parameters, the presets, which performances and clips they make
    instrument   how an instrument looks and sounds, drawn from its name
    performance  what is struck when, and how things move because of it
    picture      frames
    sound        samples
    room         light and frequency response, constant in time
    video        frames and samples -> MP4
    rendering    all of it in parallel, resumable

DATASHEET.md says what the data can and cannot show.
"""

from scav_jax.datasets.chimes.presets import (
    PRESETS,
    SPLITS,
    Parameters,
    Performance,
    clips,
    override,
    performances,
    preset,
)
from scav_jax.datasets.chimes.rendering import render, score_of

__all__ = [
    "PRESETS",
    "SPLITS",
    "Parameters",
    "Performance",
    "clips",
    "override",
    "performances",
    "preset",
    "render",
    "score_of",
]
