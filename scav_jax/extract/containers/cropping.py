"""What a container says is to be cut off its pictures.

Matroska has PixelCrop elements (letter boxes that mkvtoolnix takes off) and MP4 and MOV a clean
aperture (`clap`: the edges of broadcast and DV). Players and FFmpeg's program leave those edges
out; FFmpeg's decoders, which PyAV has, do not. What a codec itself crops, they do.
"""

import mmap
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from scav_jax.extract.containers.nested import Extent, box, boxes, elements, mapped, tracks
from scav_jax.extract.containers.opening import MATROSKA, MOV

SEGMENT, TRACKS, ENTRY, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
CLUSTER, TRACK_TYPE = 0x1F43B675, 0x83
PIXEL_CROPS = (0x54CC, 0x54DD, 0x54BB, 0x54AA)  # left, right, top, bottom
PICTURE = 1
SAMPLE_ENTRY_BYTES = 78  # of a picture's description, before the boxes in it


class Margins(NamedTuple):
    """Stored pixels that are not shown, at each edge."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def rest(self, width: int, height: int) -> tuple[int, int]:
        """The width and the height that they leave of a picture."""
        return width - self.left - self.right, height - self.top - self.bottom


NO_MARGINS = Margins()


def margins(path: Path, format_name: str, number: int, width: int, height: int) -> Margins:
    """What is cut off the pictures of a file's `number`-th picture track, counted from 0.

    Args:
      path: of a file that FFmpeg can open.
      format_name: FFmpeg's, of the container.
      number: of the track.
      width: of the stored pictures.
      height: of the stored pictures.

    Returns:
      The margins; none where the container says nothing, or what cannot be.
    """
    find = {MOV: _clean_apertures, MATROSKA: _pixel_crops}.get(format_name)
    if find is None:
        return NO_MARGINS
    with mapped(path) as content:
        for at, found in enumerate(find(content, width, height)):
            if at == number:
                can_be = min(found) >= 0 and min(found.rest(width, height)) > 0
                return found if can_be else NO_MARGINS
    return NO_MARGINS


# -- MP4 and MOV: ISO/IEC 14496-12 ----------------------------------------------------------------


def _clean_apertures(content: mmap.mmap, width: int, height: int) -> Iterator[Margins]:
    for kind, media in tracks(content):
        if kind == b"vide":
            yield _clean_aperture(content, media, width, height)


def _clean_aperture(content: mmap.mmap, media: Extent, width: int, height: int) -> Margins:
    listed = box(content, media, b"minf", b"stbl", b"stsd")
    entries = boxes(content, (listed[0] + 8, listed[1])) if listed else iter(())
    _, (begin, end) = next(entries, (b"", (0, 0)))
    aperture = box(content, (begin + SAMPLE_ENTRY_BYTES, end), b"clap")
    if aperture is None or aperture[1] - aperture[0] < 32:
        return NO_MARGINS
    words = [content[at : at + 4] for at in range(aperture[0], aperture[0] + 32, 4)]
    across, down, right_by, down_by = (
        _ratio(above, below) for above, below in zip(words[::2], words[1::2], strict=True)
    )
    if None in (across, down, right_by, down_by):
        return NO_MARGINS
    left, right = _sides(width, across, right_by)
    return Margins(left, right, *_sides(height, down, down_by))


def _ratio(above: bytes, below: bytes) -> Fraction | None:
    divisor = int.from_bytes(below, "big", signed=True)
    return Fraction(int.from_bytes(above, "big", signed=True), divisor) if divisor > 0 else None


def _sides(size: int, kept: Fraction, moved: Fraction) -> tuple[int, int]:
    """Whole pixels before and behind an aperture `kept` wide whose centre is `moved` off."""
    before = (size - kept) / 2 + moved
    return int(before), int(size - kept - before)


# -- Matroska: RFC 9559 ---------------------------------------------------------------------------


def _pixel_crops(content: mmap.mmap, width: int, height: int) -> Iterator[Margins]:
    del width, height
    whole = elements(content, (0, len(content)))
    segment = next((inner for kind, inner in whole if kind == SEGMENT), (0, 0))
    for kind, inner in elements(content, segment):
        if kind == TRACKS:
            tracks = (track for name, track in elements(content, inner) if name == ENTRY)
            yield from filter(None, (_pixel_crop(content, track) for track in tracks))
        if kind in (TRACKS, CLUSTER):
            return


def _pixel_crop(content: mmap.mmap, track: Extent) -> Margins | None:
    """None of a track that is no picture."""
    parts = dict(elements(content, track))
    if _unsigned(content, parts.get(TRACK_TYPE, (0, 0))) != PICTURE:
        return None
    said = dict(elements(content, parts.get(VIDEO, (0, 0))))
    return Margins(*(_unsigned(content, said.get(kind, (0, 0))) for kind in PIXEL_CROPS))


def _unsigned(content: mmap.mmap, extent: Extent) -> int:
    begin, end = extent
    return int.from_bytes(content[begin : min(end, begin + 8)], "big")
