"""Pictures as players show them: cropped, turned, mirrored, and with pixels that are not square.

A file may say by a display matrix how its pictures are to be turned (a telephone held on end) or
mirrored (a front camera), by a sample aspect ratio how wide a pixel is (broadcast, DVD), and which
of its edges are not shown (`cropping`). That a picture is of two fields (interlaced) changes
nothing: it is scaled as a whole, as FFmpeg's program does.
"""

import errno
import math
from dataclasses import dataclass
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from scav_jax.extract.containers.cropping import NO_MARGINS, Margins
from scav_jax.extract.containers.opening import Unusable


def _unnamed(cls: type[Type], value: int) -> Type:
    """A kind of side data that FFmpeg has and PyAV has no name for, as EXIF in a picture is.

    Without it, asking a frame that has such data for any other fails.
    """
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return cls._value2member_map_.setdefault(value, member)


Type._missing_ = classmethod(_unnamed)
MOST_OFF = math.tan(math.radians(1.0))  # of a quarter turn: FFmpeg's program turns by more
ANY_TIME_BASE = Fraction(1, 1_000)  # times are not looked at
WIDEST_PIXEL = 16.0  # a header that says more is wrong


@dataclass(frozen=True)
class Placement:
    """How a stored picture becomes the one that is shown: transposed first, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    up_down: bool = False

    def place(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self.left_right:
            pixels = pixels[:, ::-1]
        if self.up_down:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


AS_STORED = Placement()


def placement(frame: av.VideoFrame, before: Placement = AS_STORED) -> Placement:
    """What a frame's display matrix says; `Unusable` where it is not of quarter turns.

    A frame without one is placed as the one before it: a codec's own stands at key frames only. The
    matrix's a, b, c, d take the point (x, y) to (a x + c y, b x + d y).
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return before
    matrix = np.frombuffer(bytes(data), np.int32).astype(np.int64)
    a, b, c, d = (int(matrix[index]) for index in (0, 1, 3, 4))
    upright, lying = abs(a) + abs(d), abs(b) + abs(c)
    if min(upright, lying) > MOST_OFF * max(upright, lying):
        raise Unusable("decode", _no_quarter_turn(a, b, c, d))
    if upright >= lying:
        return Placement(False, a < 0, d < 0)
    return Placement(True, c < 0, b < 0)


def _no_quarter_turn(a: int, b: int, c: int, d: int) -> str:
    """In words, what a display matrix does."""
    across, down = math.degrees(math.atan2(b, a)), math.degrees(math.atan2(-c, d))
    slant = (across - down + 90) % 180 - 90  # 0 where lines and columns stay at right angles
    if abs(slant) > 1:
        return (
            f"slanted: by {abs(slant):.0f} degrees by its display matrix, which slants the picture"
        )
    return f"turned: by {across:.0f} degrees, which is no quarter turn"


def pixel_ratio(stream: av.video.stream.VideoStream) -> float:
    """The width of a stored pixel over its height."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / WIDEST_PIXEL <= ratio <= WIDEST_PIXEL else 1.0


def window(frame: av.VideoFrame, margins: Margins) -> tuple[int, int, int, int]:
    """(left, top, width, height) of what is shown of a frame.

    Where pixels share their colour with their neighbours, it is cut between such groups, as
    FFmpeg's program does.
    """
    across, down = (16 // of(16) for of in (frame.format.chroma_width, frame.format.chroma_height))
    width, height = margins.rest(frame.width, frame.height)
    left, top = margins.left // across * across, margins.top // down * down
    return left, top, width // across * across or width, height // down * down or height


def shown_ratio(
    frame: av.VideoFrame, stream: av.video.stream.VideoStream, margins: Margins
) -> float:
    """The width of a frame over its height, as it is shown."""
    _, _, width, height = window(frame, margins)
    ratio = width * pixel_ratio(stream) / height
    return 1 / ratio if placement(frame).transposed else ratio


class _FrameFilter:
    """Frames as FFmpeg's program gives them to its scaler: cut, and whole though of two fields.

    libswscale would scale the lines of each field of an interlaced frame for themselves, which
    tears apart what moves and shifts colours, and heeds where between pixels colours were taken.
    FFmpeg's program tells it of neither. PyAV cannot change such marks, a filter can; no pixels are
    copied.

    Args:
      margins: that are cut off.
      whole: whether pictures keep their size; their colours are then FFmpeg's to the digit.
    """

    def __init__(self, margins: Margins, whole: bool):
        self._margins = margins
        self._needed = whole or any(margins)
        self._graph: av.filter.Graph | None = None
        self._kind: tuple[int, int, str] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if not self._needed and not frame.interlaced_frame:
            return frame
        kind = frame.width, frame.height, frame.format.name
        if kind != self._kind:
            self._graph, self._kind = self._graph_for(frame), kind
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _graph_for(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        width, height, kind = frame.width, frame.height, frame.format
        chain = [
            graph.add_buffer(width=width, height=height, format=kind, time_base=ANY_TIME_BASE),
            graph.add("setparams", "field_mode=prog:chroma_location=unspecified"),
        ]
        if any(self._margins):
            left, top, width, height = window(frame, self._margins)
            chain.append(graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"))
        chain.append(graph.add("buffersink"))
        graph.link_nodes(*chain).configure()
        return graph


class Upright:
    """Makes RGB pictures of decoded frames, as they are shown.

    Args:
      stream: that the frames are of.
      size: (width, height) that whole pictures are scaled to; None gives each pixel of the height
        a pixel, and the width that it is shown with.
      margins: of stored pixels, that are cut off.
    """

    def __init__(
        self,
        stream: av.video.stream.VideoStream,
        size: tuple[int, int] | None,
        margins: Margins = NO_MARGINS,
    ):
        self._ratio, self._size, self._how = pixel_ratio(stream), size, AS_STORED
        self._prepared, self._scaler = _FrameFilter(margins, size is None), VideoReformatter()

    def pass_over(self, frame: av.VideoFrame) -> None:
        """Notes what a frame that is not shown says of those after it."""
        self._how = placement(frame, self._how)

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
        how = self._how = placement(frame, self._how)
        frame = self._prepared(frame)
        width, height = self._stored_size(frame, how)
        smooth = self._size is None  # as FFmpeg's program scales, colours too
        interpolation = Interpolation.BICUBIC if smooth else Interpolation.AREA
        try:
            rgb = self._scaler.reformat(frame, width, height, "rgb24", interpolation=interpolation)
        except av.FFmpegError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise Unusable(
                "decode",
                f"unknown colours: FFmpeg cannot make RGB of those by H.273's matrix "
                f"{int(frame.colorspace)}; transcode it with another program",
            ) from None
        return how.place(rgb.to_ndarray())

    def _stored_size(self, frame: av.VideoFrame, how: Placement) -> tuple[int | None, int | None]:
        """What the frame is scaled to before it is placed; None for as it is."""
        if self._size is not None:
            width, height = self._size
            return (height, width) if how.transposed else (width, height)
        if self._ratio == 1.0:
            return None, None
        return max(int(frame.width * self._ratio), 1), frame.height
