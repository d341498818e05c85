"""Pictures as players show them, and which picture stream is the film."""

import itertools
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.codec.context import Flags
from test_media import click_track, cut, flash_frames, write_video

from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding import media
from scav_jax.extract.decoding.measured import picture_ratio, stream_kinds

MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1
]  # all eight turns and reflections


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "a.mp4"
    track = click_track(1.2, 16_000, [0.5])
    return write_video(path, flash_frames(1.2, []), track, audio_rate=16_000)


def with_matrix(path, target, matrix):
    """The file with another upper left 2 x 2 in the header of its first track, the picture's."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[at + place : at + place + 4] = (value * 65_536).to_bytes(4, "big", signed=True)
    target.write_bytes(content)
    return target


def moved(picture, matrix):
    """ISO 14496-12: the point (x, y) is shown at (a x + c y, b x + d y); moved into the frame."""
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    out = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), picture.dtype)
    out[to_y, to_x] = picture
    return out


@pytest.mark.parametrize("matrix", MATRICES)
def test_turns_and_reflections_are_those_of_the_display_matrix(tmp_path, stored, matrix):
    assert len(MATRICES) == 8
    path = with_matrix(stored, tmp_path / "a.mp4", matrix)
    expected = moved(cut(stored, size=None).frames[7], matrix)
    np.testing.assert_array_equal(cut(path, size=None).frames[7], expected)
    assert picture_ratio(path) == pytest.approx(expected.shape[1] / expected.shape[0])


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_a_turn_that_stands_at_key_frames_holds_for_the_pictures_after_them(
    tmp_path, stored, start
):
    path = tmp_path / "a.mp4"
    with av.open(str(stored)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        turning = "h264_metadata=display_orientation=insert:rotate=90"
        turning = BitStreamFilterContext(turning, source.streams.video[0], video)
        for packet in source.demux(video=0):
            for turned in turning.filter(packet if packet.size else None):
                turned.stream = video
                target.mux(turned)
    with media.Reader(path, None, kinds=("video",)) as reader:
        shown = reader.cut(start, None).frames
    with media.Reader(stored, None, kinds=("video",)) as reader:
        expected = reader.cut(start, None).frames
    np.testing.assert_array_equal(shown, np.rot90(expected, 1, axes=(1, 2)))


def shown_by_ffmpeg(path, *filters):
    """The first frame of a film, and its pixels as FFmpeg's filters and its scaler make them."""
    with av.open(str(path)) as container:
        graph, stream = av.filter.Graph(), container.streams.video[0]
        chain = [
            graph.add_buffer(template=stream),
            *(graph.add(*one) for one in filters),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*chain).configure()
        frame = next(container.decode(stream))
        graph.push(frame)
        return frame, graph.pull().to_ndarray()


def write_anamorphic(path, ratio):
    """A film with pixels that are `ratio` as wide as they are high; its left half is bright."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.codec_context.sample_aspect_ratio = ratio
        video.bit_rate = 2_000_000
        for index in range(30):
            rgb = np.full((64, 96, 3), 20 + index, np.uint8)
            rgb[:, :48] = 200
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("ratio", [Fraction(2), Fraction(1, 2), Fraction(32, 27), Fraction(1, 500)])
def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path, suffix, ratio):
    path = write_anamorphic(tmp_path / f"a.{suffix}", ratio)
    with media.Reader(path, None, kinds=("video",)) as reader:
        frames = reader.cut(0.0, None).frames
    width = int(96 * ratio) if ratio > Fraction(1, 16) else 96  # a header that cannot be right
    assert frames.shape == (30, 64, width, 3)
    assert picture_ratio(path) == pytest.approx(width / 64, rel=0.02)
    row = frames[0, 32, :, 0].astype(int)
    assert (row[: width // 2 - 8] > 150).all() and (row[width // 2 + 8 :] < 80).all()
    with media.Reader(path, (32, 32), kinds=("video",)) as reader:  # the whole picture, as before
        assert reader.cut(0.0, None).frames.shape == (30, 32, 32, 3)


def test_what_is_cut_off_at_the_left_is_not_shown(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=25, options={"x264-params": "crop-rect=6,0,0,2"}
        )
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for rgb in flash_frames(1.2, []):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode())
    with media.Reader(path, None, kinds=("video",)) as reader:
        assert reader.cut(0.0, None).frames.shape == (30, 62, 90, 3)


def with_clean_aperture(content, width, height, margins):
    """An MP4 whose picture is the first track, with a `clap` box in the picture's description."""
    left, right, top, bottom = margins
    kept = width - left - right, height - top - bottom
    words = [2 * kept[0], 2, 3 * kept[1], 3, left - right, 2, 2 * (top - bottom), 4]
    box = b"".join(
        [(40).to_bytes(4, "big"), b"clap", *(w.to_bytes(4, "big", signed=True) for w in words)]
    )
    content, path = (
        bytearray(content),
        (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v"),
    )
    places = [content.index(path[0]) - 4]
    for kind in path[1:]:
        places.append(content.index(kind, places[-1]) - 4)
    for at in places:
        content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") + 40).to_bytes(4, "big")
    end = places[-1] + int.from_bytes(content[places[-1] : places[-1] + 4], "big") - 40
    content[end:end] = box
    return bytes(content)


def with_pixel_crops(content, margins):
    """A Matroska film of one track, with PixelCrop elements in place of a void behind its seeks."""
    said = b"".join(
        bytes((0x54, kind, 0x81, margin))
        for kind, margin in zip((0xCC, 0xDD, 0xBB, 0xAA), margins, strict=True)
    )
    content = bytearray(content)
    width = content.index(b"\xb0\x81\x60\xba\x81\x40")  # 96 x 64
    video = content.rindex(b"\xe0", 0, width)
    tracks = content.rindex(b"\x16\x54\xae\x6b", 0, video)
    entry = content.index(b"\xae\x01\0\0", tracks)
    for at in (tracks + 4, entry + 1, video + 1):
        digits = 9 - content[at].bit_length()
        size = int.from_bytes(content[at : at + digits], "big") + len(said)
        content[at : at + digits] = size.to_bytes(digits, "big")
    content[width:width] = said
    void = content.index(b"\xec\x01")  # eight bytes of length
    size = int.from_bytes(content[void + 2 : void + 9], "big")
    content[void + 2 : void + 9] = (size - len(said)).to_bytes(7, "big")
    del content[void + 9 : void + 9 + len(said)]
    return bytes(content)


def write_coordinates(path):
    """A film whose red tells the column and whose green tells the line."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25, options={"qscale": "1", "qmin": "1"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.bit_rate = 8_000_000
        rgb = np.zeros((64, 96, 3), np.uint8)
        rgb[..., 0], rgb[..., 1] = 2 * np.arange(96), 3 * np.arange(64)[:, None]
        for _ in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("margins", [(0, 0, 8, 12), (4, 10, 0, 0), (7, 3, 5, 20)])
def test_what_the_container_cuts_off_is_not_shown(tmp_path, suffix, margins):
    whole = write_coordinates(tmp_path / f"whole.{suffix}")
    content = whole.read_bytes()
    path = tmp_path / f"a.{suffix}"
    if suffix == "mp4":
        path.write_bytes(with_clean_aperture(content, 96, 64, margins))
    else:
        path.write_bytes(with_pixel_crops(content, margins))
    left, right, top, bottom = margins
    width, height = (96 - left - right) // 2 * 2, (64 - top - bottom) // 2 * 2
    left, top = left // 2 * 2, top // 2 * 2  # colours belong to 2 x 2 pixels
    with media.Reader(whole, None, kinds=("video",)) as reader:
        expected = reader.cut(0.0, None).frames[:, top : top + height, left : left + width]
    with media.Reader(path, None, kinds=("video",)) as reader:
        np.testing.assert_array_equal(reader.cut(0.0, None).frames, expected)
    assert picture_ratio(path) == pytest.approx(expected.shape[2] / expected.shape[1])
    with media.Reader(path, (16, 16), kinds=("video",)) as reader:
        shown = reader.cut(0.0, None).frames[0]
    np.testing.assert_allclose(shown[0, 0, :2], (2 * left + 5, 3 * top + 4), atol=6)
    crop, scale = f"{width}:{height}:{left}:{top}", "16:16:flags=area"
    _, expected = shown_by_ffmpeg(whole, ("crop", crop), ("scale", scale))
    np.testing.assert_array_equal(shown, expected)


def test_margins_that_leave_nothing_cut_nothing_off_or_are_refused(tmp_path):
    whole = write_coordinates(tmp_path / "whole.mp4").read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(with_clean_aperture(whole, 96, 64, (50, 50, 0, 0)))
    with media.Reader(path, None, kinds=("video",)) as reader:
        assert reader.cut(0.0, None).frames.shape == (30, 64, 96, 3)
    whole = write_coordinates(tmp_path / "whole.mkv").read_bytes()
    path = tmp_path / "a.mkv"
    path.write_bytes(with_pixel_crops(whole, (50, 50, 0, 0)))
    with pytest.raises(Unusable, match="not a readable video"):  # by FFmpeg
        media.Reader(path, None, kinds=("video",))


def write_interlaced(path, codec, colours, size, first="tff"):
    """A film of fields in which a coloured board moves sideways: the lines of a picture differ."""
    marking = av.filter.Graph()
    chain = [
        marking.add_buffer(
            width=size[0], height=size[1], format="rgb24", time_base=Fraction(1, 25)
        ),
        marking.add("format", colours),
        marking.add("setfield", f"mode={first}"),
        marking.add("buffersink"),
    ]
    marking.link_nodes(*chain).configure()
    y, x = np.mgrid[: size[1], : size[0]]
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=Fraction(30_000, 1_001) if size[1] == 480 else 25)
        video.width, video.height, video.pix_fmt = *size, colours
        video.codec_context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        if codec == "libx264":
            video.options = {"x264-params": f"{first}=1", "preset": "ultrafast"}
        for index in range(30):
            at = x + 3 * (2 * index + y % 2)
            rgb = 255 * np.stack([at // 8 % 2, (at + y) // 16 % 2, y // 8 % 2], axis=-1)
            marking.push(av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24"))
            frame = marking.pull()
            frame.pts = None
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


@pytest.mark.parametrize("scaled_to", [None, (40, 24)])
@pytest.mark.parametrize(
    ("name", "codec", "colours", "size", "first"),
    [
        ("a.mpg", "mpeg2video", "yuv420p", (96, 64), "tff"),
        ("a.mkv", "libx264", "yuv420p", (96, 64), "tff"),
        ("a.mkv", "libx264", "yuv420p", (96, 64), "bff"),
        ("a.mkv", "libx264", "yuv420p10le", (96, 64), "tff"),
        ("a.mkv", "libx264", "yuv420p", (90, 60), "tff"),
        ("a.mov", "dvvideo", "yuv411p", (720, 480), "bff"),
        ("a.mov", "dvvideo", "yuv422p", (720, 576), "bff"),
        ("a.mov", "prores_ks", "yuv422p10le", (96, 64), "tff"),
    ],
)
def test_pictures_of_two_fields_are_scaled_as_one(
    tmp_path, name, codec, colours, size, first, scaled_to
):
    path = write_interlaced(tmp_path / name, codec, colours, size, first)
    with media.Reader(path, scaled_to, kinds=("video",)) as reader:
        shown = reader.cut(0.0, None).frames[0]
    way = "bicubic" if scaled_to is None else "area"
    size = f"{shown.shape[1]}:{shown.shape[0]}"
    frame, expected = shown_by_ffmpeg(path, ("scale", f"{size}:flags={way}"))
    assert frame.interlaced_frame
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize(
    ("codec", "colours"),
    [
        ("ffv1", "yuv410p"),
        ("ffv1", "yuv411p"),
        ("ffv1", "yuv440p"),
        ("ffv1", "yuv420p16le"),
        ("libx264", "yuv420p10le"),  # it says where between pixels colours were taken
    ],
)
def test_colours_of_whole_pictures_are_those_of_ffmpegs_scaler(tmp_path, codec, colours):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, colours
        for rgb in flash_frames(1.2, []):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode())
    _, expected = shown_by_ffmpeg(path, ("scale", "flags=bicubic"))
    with media.Reader(path, None, kinds=("video",)) as reader:
        np.testing.assert_array_equal(reader.cut(0.0, None).frames[0], expected)


@pytest.mark.parametrize("size", [None, (40, 24)])
def test_colours_that_ffmpeg_cannot_convert_are_called_that(tmp_path, size):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv444p"
        video.options = {"x264-params": "colormatrix=YCgCo"}
        for rgb in flash_frames(1.2, []):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode())
    with (
        media.Reader(path, size, kinds=("video",)) as reader,
        pytest.raises(Unusable, match=r"unknown colours: .* by H.273's matrix 8;"),
    ):
        reader.cut(0.0, None)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ((1, 1, -1, 1), "turned: by 45 degrees, which is no quarter turn"),
        ((-1, 1, 1, 1), "turned: by 135 degrees, which is no quarter turn"),  # mirrored too
        ((1, 0, 1, 1), "slanted: by 45 degrees by its display matrix"),
    ],
)
def test_turns_that_are_no_quarter_are_refused(tmp_path, stored, matrix, words):
    path = with_matrix(stored, tmp_path / "a.mp4", matrix)
    with pytest.raises(Unusable, match=words):
        cut(path)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "png"), ("mp4", "mjpeg"), ("mkv", "mjpeg"), ("nut", "png")]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_still_is_not_the_film(tmp_path, suffix, codec, first):
    """Larger than the film, before or behind it, and not marked as a cover."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        streams = {}
        for name in ("still", "film") if first else ("film", "still"):
            streams[name] = container.add_stream(codec if name == "still" else "mpeg4", rate=25)
        streams["still"].width = streams["still"].height = 320
        streams["still"].pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        streams["film"].width, streams["film"].height = 96, 64
        streams["film"].pix_fmt = "yuv420p"
        packets = []
        for name, count in (("still", 1), ("film", 30)):
            stream = streams[name]
            for index, rgb in enumerate(itertools.islice(flash_frames(1.2, [0.6]), count)):
                shown = np.resize(rgb, (stream.height, stream.width, 3))
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    with media.Reader(path, None, kinds=("video",)) as reader:
        frames = reader.cut(0.0, None).frames
    assert frames.shape == (30, 64, 96, 3)
    assert frames.mean(axis=(1, 2, 3)).argmax() == 15
    assert stream_kinds(path) == ("video",)
