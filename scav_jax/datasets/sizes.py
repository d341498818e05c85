"""How large features will be, before hours are spent on making them.

For CLIP ViT-B/32 and BEATs (`clip_beats`): a visual step of 768 numbers for each frame, an audio
step of 6144 for each 0.16 s, in float16. A copy that `resample` makes has as many visual steps as
audio steps.
"""

VISUAL_WIDTH, AUDIO_WIDTH = 768, 6144
BYTES_A_NUMBER = 2
RATE_HZ, WINDOW, HOP, FRAMES_A_STEP = 16_000, 400, 160, 16  # of BEATs: 25 ms every 10 ms, by 16
FRAME_RATES_HZ = (25, 30)  # what most videos have


def audio_steps(seconds: float) -> int:
    """Steps of BEATs' geometry in so many seconds of sound.

    >>> audio_steps(10), audio_steps(4)
    (62, 24)
    """
    frames = 1 + (round(seconds * RATE_HZ) - WINDOW) // HOP
    return frames // FRAMES_A_STEP


def clip_bytes(seconds: float, frame_rate: float | None) -> int:
    """The features of one clip in bytes; without a frame rate, of a resampled copy.

    >>> clip_bytes(10, 30), clip_bytes(10, 25), clip_bytes(10, None)
    (1222656, 1145856, 857088)
    """
    audio = audio_steps(seconds)
    visual = audio if frame_rate is None else round(seconds * frame_rate)
    return BYTES_A_NUMBER * (visual * VISUAL_WIDTH + audio * AUDIO_WIDTH)


def prediction(clips: int, seconds: float) -> list[str]:
    """Lines that say how much disk the features of `clips` clips of that length take."""
    lines = [f"features of {clips:,} clips of {seconds:g} s in float16 (CLIP ViT-B/32 and BEATs):"]
    kinds = {f"native, {rate} frames/s": rate for rate in FRAME_RATES_HZ}
    for name, rate in {**kinds, "visual_to_audio copies": None}.items():
        each = clip_bytes(seconds, rate)
        lines.append(f"  {name:<24}{each / 1e6:6.2f} MB a clip{each * clips / 1e9:10.2f} GB in all")
    return lines
