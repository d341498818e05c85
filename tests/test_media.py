"""Decoding: frames and sound of a clip on the clip's own clock, from generated files."""

import contextlib
import errno
import io
import itertools
import os
import re
import struct
import threading
import wave
from collections import Counter
from fractions import Fraction

import av
import films
import numpy as np
import pytest

from scav_jax.base import containers
from scav_jax.base.errors import ProgramFault
from scav_jax.extract import backbones, fbank, manifest
from scav_jax.extract.containers import losses
from scav_jax.extract.containers.opening import Unusable, decoder_errors
from scav_jax.extract.decoding import media, streams
from scav_jax.extract.decoding.measured import stream_seconds
from scav_jax.extract.decoding.order import Order
from scav_jax.extract.decoding.packets import workable_rate
from scav_jax.extract.decoding.streams import Stream

FPS = 25
SIZE = (96, 64)  # width, height


def click_track(seconds, rate, clicks, channels=1, seed=0):
    """Quiet noise with short loud bursts at the given seconds, `[channels, samples]`."""
    random = np.random.default_rng(seed)
    track = 0.003 * random.standard_normal((channels, round(seconds * rate)))
    for moment in clicks:
        begin = round(moment * rate)
        track[:, begin : begin + round(0.02 * rate)] += 0.5 * random.standard_normal(
            (1, round(0.02 * rate))
        )
    return track.clip(-1, 1).astype(np.float32)


def flash_frames(seconds, flashes, rate=FPS, size=SIZE, seed=0):
    """Dark noise that drifts, white for one frame at the given seconds."""
    random = np.random.default_rng(seed)
    width, height = size
    texture = random.integers(0, 60, (height, width * 2, 3), dtype=np.uint8)
    for index in range(round(seconds * rate)):
        frame = texture[:, index % width : index % width + width].copy()
        if any(index == round(moment * rate) for moment in flashes):
            frame[:] = 255
        yield frame


def write_video(
    path,
    frames=(),
    track=None,
    *,
    audio_rate=44_100,
    frame_rate=FPS,
    timestamps=None,
    size=SIZE,
    audio_delay_s=0.0,
    audio_codec="aac",
    pixels="yuv420p",
    key_frames=12,
    options=None,
):
    """Encodes frames (H.264) and sound (AAC), interleaved; a stream that is None is left out."""
    frames = None if frames is None else list(frames)
    with av.open(str(path), "w", options=options or {}) as container:
        packets = []
        if frames is not None:
            video = container.add_stream("libx264", rate=frame_rate)
            video.width, video.height = size
            video.pix_fmt = pixels
            video.options = {"crf": "14", "preset": "ultrafast", "g": str(key_frames)}
            if timestamps is not None:
                video.codec_context.time_base = Fraction(1, 1000)
        if track is not None:
            audio = container.add_stream(audio_codec, rate=audio_rate)
            audio.layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(track)]
            if audio_codec in ("aac", "wmav2"):
                audio.bit_rate = 128_000
        if frames is not None:
            for index, rgb in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts = index if timestamps is None else timestamps[index]
                if timestamps is not None:
                    frame.time_base = video.codec_context.time_base
                packets += video.encode(frame)
            packets += video.encode()
        if track is not None:
            delay = round(audio_delay_s * audio_rate)
            for begin in range(0, track.shape[1], 1024):
                part = np.ascontiguousarray(track[:, begin : begin + 1024])
                frame = av.AudioFrame.from_ndarray(part, "fltp", layout=audio.layout.name)
                frame.sample_rate, frame.pts = audio_rate, begin + delay
                packets += audio.encode(frame)
            packets += audio.encode()
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            container.mux(packet)
    return path


def cut(path, start=0.0, end=None, size=SIZE):
    with media.Reader(path, size) as reader:
        return reader.cut(start, end)


def loudest_moment(waveform):
    """The middle of the loudest 20 ms, in seconds."""
    power = np.convolve(waveform.astype(np.float64) ** 2, np.ones(320), "valid")
    return (power.argmax() + 160) / 16_000


def brightest_frame(frames):
    return int(frames.reshape(len(frames), -1).mean(axis=1).argmax())


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"),
    [(44_100, 1, "mp4"), (48_000, 2, "mp4"), (8_000, 1, "mkv"), (32_000, 2, "ts")],
)
def test_flash_and_click_land_where_they_were(tmp_path, rate, channels, suffix):
    moment = 1.48
    path = write_video(
        tmp_path / f"a.{suffix}",
        flash_frames(3, [moment]),
        click_track(3, rate, [moment], channels),
        audio_rate=rate,
    )
    clip = cut(path)
    begin, end = clip.frames_span
    assert clip.frames.shape == (75, 64, 96, 3)
    assert end - begin == pytest.approx(3.0)
    seen = begin + brightest_frame(clip.frames) / FPS
    heard = loudest_moment(clip.waveform) - 0.010
    if suffix == "ts":  # its clock starts where the first stream does: AAC priming counts there
        assert heard - seen == pytest.approx(0, abs=0.01)
    else:
        assert seen == pytest.approx(moment, abs=1e-3)
        assert heard == pytest.approx(moment, abs=0.004)


def test_flash_and_click_land_on_the_same_step_of_both_features(tmp_path):
    moment = 1.96
    path = write_video(
        tmp_path / "a.mp4", flash_frames(4, [moment]), click_track(4, 44_100, [moment])
    )
    clip, plain = cut(path, 0.0, 4.0, (64, 64)), backbones.load("plain").preparer
    visual = plain.visual.prepare(clip.frames, clip.previous)
    audio = plain.audio.prepare(clip.waveform)
    assert visual.shape == (100, 384) and audio.shape == (24, 2048)
    assert visual[:, :192].mean(axis=1).argmax() == 49
    frame = audio.reshape(24 * 16, 128).mean(axis=1).argmax()
    assert frame * 0.01 + 0.0125 == pytest.approx(moment + 0.01, abs=0.0101)


def test_aac_priming_would_show_if_it_were_ignored(tmp_path):
    """The test above can fail: without timestamps the sound comes 1024 samples late."""
    path = write_video(tmp_path / "a.mp4", flash_frames(3, []), click_track(3, 44_100, [1.0]))
    with av.open(str(path)) as container:
        container.streams.audio[0].codec_context.flags2 |= av.codec.context.Flags2.skip_manual
        raw = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    power = np.convolve(raw.astype(np.float64) ** 2, np.ones(882), "valid")
    assert power.argmax() / 44_100 - 1.0 == pytest.approx(1024 / 44_100, abs=0.003)
    assert loudest_moment(cut(path).waveform) - 0.010 == pytest.approx(1.0, abs=0.003)


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_sound_ends_where_the_file_says_and_not_with_the_padding_of_its_last_frame(
    tmp_path, suffix, delay_s
):
    """The last AAC frame has 136 samples of sound and 888 of padding.

    libavformat 62 decodes all of it; 63 cuts what an edit list delays off the end once more.
    """
    path = write_video(
        tmp_path / f"a.{suffix}",
        flash_frames(2, []),
        click_track(2, 44_100, [1.0]),
        audio_delay_s=delay_s,
    )
    clip = cut(path)
    assert len(clip.waveform) == pytest.approx(16_000 * (2 + delay_s), abs=17)  # ms in edit lists
    assert loudest_moment(clip.waveform) - 0.010 == pytest.approx(1.0 + delay_s, abs=0.004)


def test_sound_beyond_what_a_header_says_is_kept(tmp_path):
    """Only padding inside the last frame goes: more than that is sound, and the header is wrong."""
    path = write_video(tmp_path / "a.mp4", flash_frames(2, []), click_track(2, 44_100, [1.8]))
    content = bytearray(path.read_bytes())
    begin = content.rindex(b"mdhd")  # of the sound
    assert int.from_bytes(content[begin + 16 : begin + 20], "big") == 44_100
    content[begin + 20 : begin + 24] = (44_100).to_bytes(4, "big")
    path.write_bytes(content.replace(b"elst", b"free"))
    assert loudest_moment(cut(path).waveform) - 0.010 == pytest.approx(1.8, abs=0.03)


def test_names_that_are_no_text_hinder_nothing(tmp_path):
    path = write_video(tmp_path / "a.mkv", flash_frames(2, []), click_track(2, 44_100, [1.0]))
    content = path.read_bytes()
    assert b"Lavc" in content
    path.write_bytes(content.replace(b"Lavc", b"L\xff\xfec"))
    assert len(cut(path).frames) == 50


def test_only_what_ffmpeg_says_is_the_files_fault(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(Unusable, match="decoder error: InvalidDataError"), decoder_errors(path):
        raise av.error.InvalidDataError(1, "bad data")
    for ours in (TypeError("f() got an argument"), ZeroDivisionError(), KeyError("x")):
        with pytest.raises(ProgramFault, match=f"decoding .*a.mp4: {type(ours).__name__}"):  # noqa: SIM117
            with decoder_errors(path):
                raise ours
    for machine in (av.error.OSError(errno.EMFILE, "files"), OSError(errno.EACCES, "disk")):
        with pytest.raises(OSError) as raised, decoder_errors(path):
            raise machine
        assert raised.value.errno == machine.errno


def test_clips_from_the_middle_hold_the_right_frames_and_samples(tmp_path):
    path = write_video(
        tmp_path / "a.mp4", flash_frames(9, [4.2]), click_track(9, 44_100, [2.1, 6.4])
    )
    with av.open(str(path)) as container:
        expected = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    whole = cut(path, size=None)
    np.testing.assert_array_equal(whole.frames, expected)
    assert whole.previous is None
    with media.Reader(path, None) as reader:
        for start, end in [(0.0, 2.0), (2.0, 5.0), (2.4, 4.4), (7.0, 9.0)]:
            clip = reader.cut(start, end)
            first, last = round(start * FPS), round(end * FPS)
            np.testing.assert_array_equal(clip.frames, expected[first:last])
            if first:
                np.testing.assert_array_equal(clip.previous, expected[first - 1])
            assert clip.frames_span == pytest.approx((0, end - start))
            wave = whole.waveform[round(start * 16_000) : round(end * 16_000)]
            np.testing.assert_allclose(clip.waveform, wave, atol=2e-6)
            assert clip.end == end


def test_seeking_gives_the_same_as_reading_on(tmp_path, monkeypatch):
    path = write_video(
        tmp_path / "a.mkv",
        flash_frames(12, []),
        click_track(12, 48_000, [9.5]),
        audio_rate=48_000,
        audio_codec="pcm_s16le",  # AAC's substituted noise depends on what was decoded before
    )
    read_on = cut(path, 8.0, 11.0)
    monkeypatch.setattr(streams, "SEEK_GAP_S", 2.0)
    sought = cut(path, 8.0, 11.0)
    np.testing.assert_array_equal(sought.frames, read_on.frames)
    np.testing.assert_array_equal(sought.previous, read_on.previous)
    np.testing.assert_array_equal(sought.waveform, read_on.waveform)
    assert loudest_moment(sought.waveform) == pytest.approx(1.51, abs=0.004)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_variable_rate_shows_every_frame_at_its_moment(tmp_path, suffix):
    # 12.5 Hz for two seconds, then one frame that stays for a second, then 25 Hz for two seconds.
    times = [*range(0, 2000, 80), 2000, *range(3000, 5000, 40)]
    levels = np.linspace(20, 230, len(times)).astype(np.uint8)
    frames = [np.full((64, 96, 3), level) for level in levels]
    path = write_video(
        tmp_path / f"a.{suffix}",
        frames,
        click_track(5, 16_000, [1.0]),
        audio_rate=16_000,
        timestamps=times,
    )
    clip = cut(path, 0.0, 5.0)
    begin, end = clip.frames_span
    assert begin == pytest.approx(0, abs=1e-3) and end == pytest.approx(5.0, abs=0.1)
    rate = len(clip.frames) / (end - begin)
    got = clip.frames.reshape(len(clip.frames), -1).mean(axis=1)
    for step, level in enumerate(got):
        half = 500 / rate
        moment = 1000 * step / rate
        shown = max(index for index, time in enumerate(times) if time <= moment + half)
        assert level == pytest.approx(levels[shown], abs=3), step
    assert all(np.abs(got - level).min() < 2 for level in levels)  # none is left out


@pytest.mark.parametrize(
    ("rate", "seconds", "suffix", "worked_with"),
    [
        (480, 1.5, "mp4", 240),
        (480, 1.5, "mkv", 240),
        (960, 1.5, "ts", 240),
        (Fraction(1, 3), 12.0, "mp4", 2 / 3),
        (Fraction(2, 5), 12.5, "mp4", 4 / 5),
        (Fraction(1, 3), 12.0, "flv", 2 / 3),
    ],
)
def test_slow_motion_and_time_lapse_have_a_rate(tmp_path, rate, seconds, suffix, worked_with):
    count = round(seconds * rate)
    levels = np.linspace(20, 230, count).astype(np.uint8)
    path = write_video(
        tmp_path / f"a.{suffix}",
        [np.full((32, 32, 3), level) for level in levels],
        click_track(seconds, 44_100, [1.0]),
        frame_rate=rate,
        size=(32, 32),
    )
    clip = cut(path, size=None)
    begin, end = clip.frames_span
    assert len(clip.frames) / (end - begin) == pytest.approx(worked_with, rel=0.03)
    got = clip.frames.reshape(len(clip.frames), -1).mean(axis=1)
    shown = np.minimum((np.arange(len(got)) + 0.5) * float(rate) / worked_with, count - 1)
    tolerance = 3 + (levels[1] - levels[0] if rate > 1 else 0)
    assert np.abs(got - levels[shown.astype(int)]).max() < tolerance


def test_a_header_s_rate_leaves_no_pictures_out(tmp_path):
    path = films.write_film(tmp_path / "a.flv", "flv")
    whole = cut(path).frames
    content = path.read_bytes()
    claimed = b"framerate\0" + struct.pack(">d", 25)
    assert claimed in content
    path.write_bytes(content.replace(claimed, b"framerate\0" + struct.pack(">d", 1)))
    np.testing.assert_array_equal(cut(path).frames, whole)


def test_a_picture_before_a_pause_does_not_make_the_film_longer(tmp_path):
    """An MP4 says how long pictures last in the order of decoding."""
    times = [*range(0, 1200, 40), *range(4000, 5000, 40)]
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.options = {"bf": "3", "g": "100", "preset": "veryfast"}
        for time, rgb in zip(times, flash_frames(len(times) / FPS, []), strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    assert stream_seconds(path, "video") == pytest.approx(5.0, abs=0.05)


def test_a_rate_is_measured_where_the_header_has_none():
    uneven = [0.0, 3.0, *(6 + np.arange(360) / 60).round(3)]
    assert workable_rate(uneven) == pytest.approx(60, abs=0.1)
    assert workable_rate(reversed(uneven)) == pytest.approx(60, abs=0.1)
    bursts = [start + n / 25 for start in (0.0, 0.56, 1.44, 2.36) for n in range(3)]
    assert workable_rate(bursts) == pytest.approx(25)
    of_arrival = [(40 * n + 17 * (n % 3)) / 1_000 for n in range(75)]
    assert workable_rate(of_arrival) == pytest.approx(25, rel=0.02)
    assert workable_rate([1.0]) == workable_rate([]) == 0.5
    slides = [0.0, 5.0, 5.3, 10.0]  # between its gaps lies what none of them is like
    assert workable_rate(slides) == pytest.approx(1 / 0.3)


@pytest.mark.parametrize("container", ["mkv", "ts"])
def test_pictures_without_a_key_frame_are_called_that(tmp_path, container):
    def without(number, seconds, data):
        return None if number == 0 and round(seconds * FPS) % 12 == 0 else data

    path = films.write_film(tmp_path / "a.film", container, change=without)
    with pytest.raises(Unusable, match="no frames: the picture has no key frame"):
        cut(path)


def test_late_and_short_sound_keep_their_time(tmp_path):
    frames = list(flash_frames(4, []))
    late = write_video(
        tmp_path / "late.mkv",
        frames,
        click_track(3, 16_000, [1.0]),
        audio_rate=16_000,
        audio_delay_s=0.5,
    )
    clip = cut(late)
    assert loudest_moment(clip.waveform) - 0.010 == pytest.approx(1.5, abs=0.004)
    assert np.abs(clip.waveform[: round(0.4 * 16_000)]).max() == 0
    short = write_video(
        tmp_path / "short.mp4", frames, click_track(2.5, 16_000, [1.0]), audio_rate=16_000
    )
    clip = cut(short)
    assert len(clip.frames) == 100
    assert len(clip.waveform) / 16_000 == pytest.approx(2.5, abs=0.07)


def test_stereo_is_averaged(tmp_path):
    left = click_track(2, 16_000, [1.0])
    track = np.concatenate([left, np.zeros_like(left)])
    stereo = write_video(tmp_path / "s.mkv", flash_frames(2, []), track, audio_rate=16_000)
    mono = write_video(tmp_path / "m.mkv", flash_frames(2, []), left / 2, audio_rate=16_000)
    loud, half = (np.abs(cut(path).waveform).max() for path in (stereo, mono))
    assert loud == pytest.approx(half, rel=0.15)


@pytest.mark.parametrize(("codec", "scale"), [("pcm_s16le", -1.0), ("flac", -0.9), ("aac", -1.0)])
def test_channels_that_cancel_each_other_are_told(tmp_path, codec, scale):
    left = click_track(1.2, 16_000, [0.5])
    both, sound = np.concatenate([left, scale * left]), {"audio_codec": codec, "audio_rate": 16_000}
    path = write_video(tmp_path / "a.mkv", flash_frames(1.2, []), both, **sound)
    with pytest.raises(Unusable, match="opposite phase: its channels cancel each other"):
        cut(path)


def test_odd_sizes_are_scaled(tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        flash_frames(2, [], size=(130, 46)),
        click_track(2, 16_000, [1]),
        audio_rate=16_000,
        size=(130, 46),
    )
    assert cut(path, size=(64, 64)).frames.shape == (50, 64, 64, 3)
    assert stream_seconds(path, "video") == pytest.approx(2.0)


def changing_size(path):
    """A video whose picture becomes smaller, as in a call whose connection became worse."""
    parts = [
        write_video(
            path.with_name(f"{width}.ts"),
            flash_frames(1.5, [], size=(width, 32)),
            click_track(1.5, 44_100, [1.0]),
            size=(width, 32),
            options={"output_ts_offset": "1.5" if width < 64 else "0"},
        ).read_bytes()
        for width in (64, 32)
    ]
    path.write_bytes(b"".join(parts))


def test_pictures_that_change_their_size_are_scaled_or_told(tmp_path):
    path = tmp_path / "a.ts"
    changing_size(path)
    assert cut(path, size=(48, 48)).frames.shape[1:] == (48, 48, 3)
    with pytest.raises(Unusable, match="changing size: pictures from 64x32 to 32x32"):
        cut(path, size=None)


def damaged(path, share, count):
    """The file with `count` bytes overwritten, from `share` of the pictures on."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    at = packets[round(share * len(packets))].pos
    noise = np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)
    content[at : at + count] = bytes(noise)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("suffix", "count"), [("mp4", 3_000), ("mkv", 30_000)])
def test_damage_spoils_its_own_clip_only(tmp_path, suffix, count):
    path = write_video(
        tmp_path / f"a.{suffix}",
        flash_frames(8, []),
        click_track(8, 16_000, [1.0]),
        audio_rate=16_000,
    )
    damaged(path, 0.3, count)
    with media.Reader(path, SIZE) as reader:
        assert len(reader.cut(0.0, 2.0).frames) == 50
        with pytest.raises(Unusable, match="corrupt"):
            reader.cut(2.0, 4.0)
        assert len(reader.cut(6.0, 8.0).frames) == 50


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("aac", "aac"), ("ac3", "ac3"), ("flac", "flac"), ("wma", "wmav2"), ("ts", "aac")],
)
def test_a_recording_that_was_cut_off_ends_before_its_last_packet(tmp_path, suffix, codec):
    whole = write_video(
        tmp_path / f"a.{suffix}", None, click_track(4, 44_100, [1.0]), audio_codec=codec
    )
    content, path = whole.read_bytes(), tmp_path / f"b.{suffix}"
    for count in range(round(0.8 * len(content)), len(content), len(content) // 83):
        path.write_bytes(content[:count])
        end = stream_seconds(path, "audio")
        for start in (0.0, end - 1.5):
            with media.Reader(path, None, kinds=("audio",)) as reader:
                wave = reader.cut(start, end).waveform
            assert len(wave) / 16_000 == pytest.approx(end - start, abs=0.25)


def test_nothing_but_zeros_behind_a_sound_is_no_part_of_it(tmp_path):
    path = tmp_path / "a.mp3"
    write_video(path, None, click_track(3, 44_100, [1.0]), audio_codec="libmp3lame")
    path.write_bytes(path.read_bytes() + bytes(4_096))
    with media.Reader(path, None, kinds=("audio",)) as reader:
        assert len(reader.cut(0.0, None).waveform) == pytest.approx(48_000, abs=1_000)


def test_damaged_sound_spoils_the_clips_that_it_touches(tmp_path):
    path = write_video(tmp_path / "a.mkv", flash_frames(6, []), click_track(6, 44_100, [1.0]))
    with av.open(str(path)) as container:
        packets = [one for one in container.demux(audio=0) if one.size]
    content = bytearray(path.read_bytes())
    for seconds in (3.0, 5.9):  # the last of these is not the end of the file
        packet = next(one for one in packets if one.pts * one.time_base >= seconds)
        at = content.index(bytes(packet))
        noise = np.random.default_rng(0).integers(0, 256, packet.size, dtype=np.uint8)
        content[at : at + packet.size] = bytes(noise)
    path.write_bytes(content)
    with media.Reader(path, SIZE) as reader:
        for start, end, spoilt in ((0.0, 2.0, 0), (2.0, 4.0, 1), (4.0, 5.5, 0), (4.0, 6.0, 1)):
            context = (
                pytest.raises(Unusable, match="corrupt") if spoilt else contextlib.nullcontext()
            )
            with context:
                reader.cut(start, end)


def test_plain_equals_naive_loops(random):
    frames = random.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    previous = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    waveform = (0.1 * random.standard_normal(9_000)).astype(np.float32)
    plain = backbones.load("plain").preparer
    for before in (None, previous):
        got = plain.visual.prepare(frames, before)
        for step in range(5):
            last = frames[step - 1] if step else (frames[0] if before is None else before)
            now, last = frames[step].astype(int), last.astype(int)
            for row in range(8):
                for column in range(8):
                    for channel in range(3):
                        cell = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, channel]
                        place = (row * 8 + column) * 3 + channel
                        colour = (now[cell].mean() / 255 - 0.5) / 0.25
                        change = np.abs(now[cell] - last[cell]).mean() / 255 / 0.05
                        assert got[step, place] == pytest.approx(colour, abs=1e-5)
                        assert got[step, 192 + place] == pytest.approx(change, abs=1e-4)
    audio = plain.audio.prepare(waveform)
    log_mel = fbank.log_mel(waveform)
    assert len(log_mel) == 54 and audio.shape == (3, 2048)
    for step in range(3):
        for frame in range(16):
            expected = (log_mel[16 * step + frame] - 15.41663) / (2 * 6.55582)
            got = audio[step, 128 * frame : 128 * (frame + 1)]
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_plain_is_the_same_in_blocks(monkeypatch):
    from scav_jax.extract.backbones import plain

    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (23, 64, 64, 3), dtype=np.uint8)
    whole = plain.PlainVisual().prepare(frames, None)
    monkeypatch.setattr(plain, "FRAMES_AT_ONCE", 4)
    np.testing.assert_array_equal(plain.PlainVisual().prepare(frames, None), whole)


# ---- one film in every container: the whole matrix is scripts/benchmarks/containers.py --------

FRAME_S = 0.04
OFFSETS = (0.0, 5.0, 50_000.0, -1.0)
GOES_ON = ("avi", "m2ts", "mpg", "ts")  # where joined files are one film; the others are refused


def cells():
    """Of each container every way, with offsets and lengths drawn by a seed."""
    random = np.random.default_rng(15)
    for container in films.CONTAINERS:
        for way in ("file", "pipe", "joined"):
            yield (
                container,
                float(random.choice(OFFSETS)),
                str(random.choice([*films.LENGTHS])),
                way,
            )


def aligned(got, expected):
    return len(got) == len(expected) and np.allclose(got, expected, rtol=0, atol=FRAME_S)


@pytest.mark.parametrize(("container", "offset", "lengths", "way"), list(cells()))
def test_a_film_is_the_same_in_every_container(tmp_path, container, offset, lengths, way):
    path = tmp_path / f"film.{films.CONTAINERS[container][0]}"
    try:
        films.write_film(path, container, offset=offset, lengths=lengths, way=way)
    except av.FFmpegError:  # it cannot be written so
        if way != "pipe":
            offset = 0.0
        films.write_film(path, container, offset=offset, lengths=lengths, way="file")
        way = "file"
    refused = {"unclear times", "joined"} if way == "joined" or offset < 0 else set()
    try:
        media = cut(path, size=films.SIZE)
    except Unusable as unusable:
        assert unusable.reason.partition(":")[0] in refused, unusable.reason
        assert not (way == "joined" and container in GOES_ON)
        return
    flashes, clicks = films.of_media(media)
    if way != "joined":
        true_flashes, true_clicks = films.plainly_decoded(path)
        assert len(true_flashes) == len(true_clicks) == 1
        assert aligned(flashes, true_flashes) and aligned(clicks, true_clicks)
        for kind, expected in zip(("video", "audio"), films.LENGTHS[lengths], strict=True):
            end = stream_seconds(path, kind)
            assert min(abs(end - expected - cut_off) for cut_off in (0, min(offset, 0))) < 0.15
        return
    longest = max(films.LENGTHS[lengths])
    assert container in GOES_ON and len(flashes) == len(clicks) == 2
    assert np.allclose(flashes, clicks, rtol=0, atol=2.5 * FRAME_S if offset else FRAME_S)
    assert flashes[1] - flashes[0] == pytest.approx(longest, abs=2.5 * FRAME_S)


def test_a_header_without_a_length_is_cut_as_one_with_it(tmp_path):
    """What a browser records, or a muxer writes to a pipe."""
    lists = []
    for way in ("file", "pipe"):
        path = films.write_film(tmp_path / f"{way}.webm", "webm", lengths="longer sound", way=way)
        listing = manifest.Listing(
            [manifest.ClipRequest(path.name, 0.0, None, "id")], 1.5, {}, [], Counter(), "", tmp_path
        )
        clips, _, _ = manifest.cut_whole_videos(
            listing, lambda file: stream_seconds(tmp_path / file, "video")
        )
        lists.append([(clip.start, clip.end) for clip in clips])
    assert lists[0] == lists[1] == [(0.0, 1.5), (1.5, 3.0)]


@pytest.mark.parametrize("factor", [0.01, 300.0])
def test_a_header_that_lies_about_the_length_hides_and_refuses_nothing(tmp_path, factor):
    path = films.write_film(tmp_path / "a.mkv", "mkv")
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3  # Duration, a double
    (seconds,) = struct.unpack(">d", content[at : at + 8])
    content[at : at + 8] = struct.pack(">d", factor * seconds)
    path.write_bytes(content)
    assert stream_seconds(path, "video") == pytest.approx(3.0, abs=0.1)
    if factor < 1:
        assert len(cut(path).frames) == 75
        return
    with pytest.raises(Unusable, match="truncated: the clip should end at 9"):  # not "too long"
        cut(path)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("aiff", "pcm_s16be"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("wma", "wmav2"),
        ("wv", "wavpack"),
        ("mxf", "pcm_s16le"),
    ],
)
def test_a_download_that_broke_off_is_told_where_a_header_says_its_length(tmp_path, suffix, codec):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        streams = films.add_streams(container, ("mpeg2video", codec)) if suffix == "mxf" else []
        sound = streams[-1] if streams else container.add_stream(codec, 48_000, layout="mono")
        sound.bit_rate = 96_000
        frame = av.AudioFrame.from_ndarray(films.sound(3.0), "fltp", layout="mono")
        frame.sample_rate = 48_000
        frame.pts, frame.time_base = 0, Fraction(1, 48_000)
        packets = [*sound.encode(frame), *sound.encode()]
        for rgb in films.pictures(3.0) if streams else ():
            packets += streams[0].encode(av.VideoFrame.from_ndarray(rgb, format="rgb24"))
        packets += streams[0].encode() if streams else []
        for packet in sorted(packets, key=lambda one: float(one.pts * one.time_base)):
            container.mux(packet)
    with media.Reader(path, None, kinds=("audio",)) as reader:
        assert len(reader.cut(0.0, None).waveform) == pytest.approx(48_000, abs=1_600)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with (
        media.Reader(path, None, kinds=("audio",)) as reader,
        pytest.raises(Unusable, match=r"truncated: the clip should end at [23].* end at 1\."),
    ):
        reader.cut(0.0, None)


def test_an_mp4_that_ends_within_its_header_is_told(tmp_path):
    """The tables that are whole list a part of the sound."""
    content = films.write_film(tmp_path / "a.mp4", "mp4").read_bytes()
    said = Counter()
    for lacking in range(10, 1_500, 60):
        (tmp_path / "a.mp4").write_bytes(content[:-lacking])
        with pytest.raises(Unusable) as error:
            cut(tmp_path / "a.mp4")
        said[error.value.reason.split(":")[0]] += 1
    assert set(said) == {"truncated", "not a readable video"}, said  # FFmpeg opens some of them


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "wmv", "avi", "flv"])
def test_a_clip_after_the_end_is_told_where_that_is(tmp_path, container):
    path = films.write_film(tmp_path / f"a.{container}", container)
    for kind, words in (("audio", "no sound so late: the sound"), ("video", "no frames: the pic")):
        for before in ([], [(0.0, 1.0)]):
            with media.Reader(path, None, kinds=(kind,)) as reader:
                for start, end in before:
                    reader.cut(start, end)
                with pytest.raises(Unusable, match=rf"{words}.* ends at 3\.0\d s"):
                    reader.cut(50.0, None)


def test_sound_that_begins_after_a_clip_is_not_said_to_be_over(tmp_path):
    path = write_video(
        tmp_path / "a.mkv", flash_frames(5, []), click_track(2, 44_100, [1.0]), audio_delay_s=3.0
    )
    with pytest.raises(Unusable, match="no sound in this clip"):
        cut(path, 0.0, 2.0)


@pytest.mark.parametrize(
    ("suffix", "late"),
    [*itertools.product(["mkv", "nut", "ts", "flv"], ["picture", "sound"]), ("mp4", "sound")],
)
def test_what_begins_late_by_any_time_is_no_damage(tmp_path, suffix, late):
    """Later than libavformat's probing looks, so that it says the file's own start."""
    picture_s, sound_s = (6.0, 0.0) if late == "picture" else (0.0, 6.0)
    path = write_video(
        tmp_path / f"a.{suffix}",
        flash_frames(8.0 - picture_s, [7.0 - picture_s], size=(32, 32)),
        click_track(8.0 - sound_s, 44_100, [7.0 - sound_s]),
        timestamps=range(round(1000 * picture_s), 8_000, 40),
        audio_delay_s=sound_s,
        size=(32, 32),
        options={"movflags": "frag_keyframe+empty_moov"} if suffix == "mp4" else {},
    )
    for found in films.of_media(cut(path, size=None)):
        np.testing.assert_allclose(found, [7.0], rtol=0, atol=2 * FRAME_S)
    if suffix != "mp4":  # a fragment begins with the film, and its first piece of sound with it
        with pytest.raises(Unusable, match=f"no {late} in this clip"):
            cut(path, 1.0, 3.0, size=None)
    later = cut(path, 5.0, 8.0, size=None)
    assert len(later.waveform) == pytest.approx(48_000, abs=1_000)
    assert later.frames_span[0] == pytest.approx(1.0 if late == "picture" else 0.0, abs=2 * FRAME_S)


@pytest.mark.parametrize("container", ["wmv", "flv", "nut", "mkv"])
def test_the_length_of_a_film_is_not_counted_from_a_late_streams_begin(tmp_path, container):
    suffix = films.CONTAINERS[container][0]
    path = films.write_film(
        tmp_path / f"a.{suffix}", container, moved=lambda number, _: 1.3 * (number == 1)
    )
    flashes, clicks = films.of_media(cut(path, size=films.SIZE))
    assert len(flashes) == len(clicks) == 1
    assert clicks[0] - flashes[0] == pytest.approx(1.3, abs=2 * FRAME_S)


def test_a_clip_before_the_sound_begins_says_that_it_has_none(tmp_path):
    path = films.write_film(tmp_path / "a.mkv", "mkv", moved=lambda of, seconds: 35.0 * (of == 1))
    with (
        media.Reader(path, None, kinds=("audio",)) as reader,
        pytest.raises(Unusable, match="no sound in this clip"),
    ):
        reader.cut(24.0, 30.0)


@pytest.mark.parametrize("container", ["ts", "mpg"])
def test_pictures_before_the_first_key_frame_are_no_damage(tmp_path, container):
    """A recording of a broadcast begins anywhere: the sound at once, the picture with a key."""
    path = films.write_film(
        tmp_path / f"a.{container}",
        container,
        change=lambda number, seconds, data: None if number == 0 and seconds < 0.04 else data,
    )
    found = cut(path, size=films.SIZE)
    assert 0.35 < found.frames_span[0] < 0.55  # the first key frame that is left is the 12th
    assert aligned(*films.of_media(found))


@pytest.mark.parametrize("container", ["m2ts", "mpg", "mkv"])
def test_a_broadcast_may_begin_within_its_sound(tmp_path, container):
    """Some packets are parts then; where a file was written as one they were damaged."""

    def part(number, seconds, data):
        return bytes(len(data)) if number == 1 and seconds < 0.4 else data

    path = films.write_film(tmp_path / "a.film", container, change=part)
    if container == "mkv":
        with pytest.raises(Unusable, match=r"corrupt: the sound cannot be decoded before 0\.4"):
            cut(path)
        return
    found = cut(path, size=films.SIZE)
    assert aligned(*films.of_media(found))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_key_frame_that_cannot_be_decoded_is_damage(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", flash_frames(3, []), click_track(3, 44_100, [1.0]))
    content, spoilt = bytearray(path.read_bytes()), 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and spoilt < 12:
                spoilt += 1
                at = content.find(bytes(packet)[-40:]) if suffix == "ts" else packet.pos
                content[at : at + 40 if suffix == "ts" else at + packet.size] = b""
                content[at:at] = bytes(40 if suffix == "ts" else packet.size)
    path.write_bytes(content)
    with pytest.raises(Unusable, match="corrupt"):
        cut(path)


def test_sound_that_is_shorter_than_the_picture_can_be_asked_for_alone(tmp_path):
    path = films.write_film(tmp_path / "a.mkv", "mkv", lengths="longer picture")
    with media.Reader(path, None, kinds=("audio",)) as reader:
        assert len(reader.cut(0.0, None).waveform) == pytest.approx(3 * 16_000, abs=1_000)


@pytest.mark.parametrize("container", ["webm", "mkv", "mp4", "ts", "flv"])
def test_sound_that_is_left_out_is_silence(tmp_path, container):
    def silent(number, seconds, data):
        return None if number == 1 and 1.9 <= seconds < 2.6 else data

    path = films.write_film(
        tmp_path / f"a.{films.CONTAINERS[container][0]}", container, change=silent
    )
    media = cut(path, size=films.SIZE)
    assert aligned(*films.of_media(media))
    assert np.abs(media.waveform[round(2.1 * 16_000) : round(2.5 * 16_000)]).max() < 1e-4
    assert np.abs(media.waveform[round(2.8 * 16_000) :]).max() > 1e-3
    later = cut(path, 2.1, 2.95, size=films.SIZE).waveform  # it begins where nothing sounds
    assert np.abs(later[: round(0.4 * 16_000)]).max() < 1e-4 < np.abs(later[-2_000:]).max()


@pytest.mark.parametrize("container", ["mkv", "mp4", "mpg"])
def test_nothing_is_lost_where_the_clock_of_the_sound_steps_back(tmp_path, container):
    """Sound from after the click stands over its last part: both are heard."""

    def back(number, seconds):
        return -0.08 if number == 1 and seconds > films.MOMENT + 0.02 else 0.0

    path = films.write_film(tmp_path / f"a.{container}", container, moved=back)
    plain = cut(films.write_film(tmp_path / f"b.{container}", container), size=films.SIZE)
    begin, end = (round((films.MOMENT + at) * 16_000) for at in (0.013, 0.019))
    loud = np.abs(plain.waveform[begin:end]).mean()
    assert np.abs(cut(path, size=films.SIZE).waveform[begin:end]).mean() > 0.8 * loud > 0.05


@pytest.mark.parametrize("container", ["mkv", "mp4", "ts", "avi"])
def test_sound_that_lies_over_itself_has_no_clear_times(tmp_path, container):
    if container == "avi":  # a header that counts bytes of a codec of frames, as FFmpeg's do of DTS
        path = films.write_film(tmp_path / "a.avi", "avi")
        content = bytearray(path.read_bytes())
        at = content.index(b"auds") + 20
        rate = int.from_bytes(content[at + 4 : at + 8], "little")
        content[at + 4 : at + 8] = (2 * rate).to_bytes(4, "little")
        path.write_bytes(content)
    else:
        path = films.write_film(
            tmp_path / "a.film", container, moved=lambda number, seconds: -number * seconds / 2
        )
    with pytest.raises(Unusable, match=r"unclear times: from 0\.\d\d s on the sound lies over"):
        cut(path)


@pytest.mark.parametrize("container", ["mp4", "mkv", "flac"])
def test_a_small_step_of_the_sound_s_clock_is_followed(tmp_path, monkeypatch, container):
    """Whatever was cut before: 20 ms from a joint to the end would not be heard but measured."""
    monkeypatch.setitem(films.CONTAINERS, "flac", ("mkv", "matroska", films.H264, "flac", {}))

    def later(number, seconds):
        return 0.02 if number == 1 and seconds > 0.7 else 0.0

    path = films.write_film(tmp_path / "a.film", container, moved=later)
    truth = films.plainly_decoded(path)[1]
    alone = cut(path, 1.2, 2.4, size=films.SIZE)
    with media.Reader(path, films.SIZE) as reader:
        first, second = reader.cut(0.0, 2.0), reader.cut(1.2, 2.4)
    for found, start in ((first, 0.0), (alone, 1.2), (second, 1.2)):
        clicks = films.of_media(found)[1]
        np.testing.assert_allclose(clicks, np.array(truth) - start, rtol=0, atol=0.004)
    if container == "flac":  # AAC's substituted noise depends on what was decoded before
        np.testing.assert_array_equal(alone.waveform, second.waveform)


@pytest.mark.parametrize("later", [44_100, 16_000])
def test_a_rate_that_changes_is_sound_all_the_same(tmp_path, later):
    """Broadcasts that were joined; libavformat guesses when packets begin that came in one."""
    tracks = []
    for number, rate in enumerate((48_000, later)):
        part = write_video(
            tmp_path / f"{number}.ts",
            flash_frames(3, [1.0]),
            click_track(3, rate, [1.0]),
            audio_rate=rate,
            options={"output_ts_offset": str(3 * number), "max_delay": "700000"},
        )
        tracks.append(part.read_bytes())
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(tracks))
    flashes, clicks = films.of_media(cut(path))
    assert len(flashes) == len(clicks) == 2
    assert aligned(flashes, clicks)
    for start, end, moment in ((2.5, 5.0, 4.0), (3.5, 5.5, 4.0), (0.2, 2.2, 1.0)):
        assert loudest_moment(cut(path, start, end).waveform) - 0.01 == pytest.approx(
            moment - start, abs=2 * FRAME_S
        )
    assert silent_share(cut(path, 3.5, 5.5)) < 0.01


def silent_share(clip):
    return (np.abs(clip.waveform) < 1e-7).mean()


def element(kind, content):
    """Of a Matroska file: what it is, its length in eight bytes, its content."""
    return bytes.fromhex(kind) + (2**56 + len(content)).to_bytes(8, "big") + content


@pytest.mark.parametrize("laced", [6, 40])
def test_packets_of_one_block_follow_each_other(tmp_path, laced):
    """Also where a header is wrong about how long they last, as of AAC at half its rate."""
    track = click_track(3, 44_100, [1.0, 2.0], channels=2)
    encoder = av.CodecContext.create("vorbis", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 44_100, "stereo", "fltp"
    encoder.options, encoder.time_base = {"strict": "-2"}, Fraction(1, 44_100)
    packets = []
    for at in range(0, track.shape[1], 64):
        part = np.ascontiguousarray(track[:, at : at + 64])
        frame = av.AudioFrame.from_ndarray(part, "fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44_100, at
        packets += encoder.encode(frame)
    packets = [(packet.pts, bytes(packet)) for packet in (*packets, *encoder.encode())]
    blocks = b""
    for at in range(0, len(packets), laced):
        (begin, _), *_ = some = packets[at : at + laced]
        sizes = b"".join(
            b"\xff" * (len(data) // 255) + bytes([len(data) % 255]) for _, data in some[:-1]
        )
        head = struct.pack(">BhBB", 0x81, round(max(begin, 0) / 44.1), 0x82, len(some) - 1)
        blocks += element("A3", head + sizes + b"".join(data for _, data in some))
    sound = element("B5", struct.pack(">d", 44_100)) + element("9F", b"\2")
    half = round(1e9 * 512 / 44_100).to_bytes(4, "big")
    about = [("D7", b"\1"), ("73C5", b"\1"), ("83", b"\2"), ("86", b"A_VORBIS")]
    about += [("23E383", half), ("63A2", encoder.extradata), ("E1", sound)]
    tracks = element("1654AE6B", element("AE", b"".join(element(*one) for one in about)))
    cluster = element("1F43B675", element("E7", b"\0") + blocks)
    path = tmp_path / "a.mka"
    start = element("1A45DFA3", element("4282", b"matroska"))
    path.write_bytes(start + element("18538067", tracks + cluster))
    with media.Reader(path, None, kinds=("audio",)) as reader:
        clip = reader.cut(0.0, None)
    assert len(clip.waveform) / 16_000 == pytest.approx(3.0, abs=0.02)
    assert silent_share(clip) < 0.01
    clicks = films.apart(np.flatnonzero(np.abs(clip.waveform) > 0.25) / 16_000)
    np.testing.assert_allclose(clicks, [1.0, 2.0], rtol=0, atol=0.02)


def test_a_sound_that_nobody_reads_moves_no_clock(tmp_path):
    path = films.write_film(tmp_path / "a.m2ts", "m2ts", offset=5.0, beside=("equal", -1.0))
    found = cut(path, size=films.SIZE)
    assert aligned(*films.of_media(found))
    assert films.of_media(found)[0][0] == pytest.approx(films.MOMENT, abs=FRAME_S)


def test_a_sound_that_nobody_reads_may_outlast_the_film(tmp_path, monkeypatch):
    monkeypatch.setitem(films.CONTAINERS, "S", ("mkv", "matroska", films.H264, "pcm_s16le", {}))
    path = films.write_film(tmp_path / "a.mkv", "S", beside=("longer sound", 0.0))
    assert len(cut(path, size=films.SIZE).frames) == 75
    content = path.read_bytes()
    (tmp_path / "b.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(Unusable, match="truncated"):
        cut(tmp_path / "b.mkv")


@pytest.mark.parametrize("begins", [np.inf, 5.5, 1.0])
def test_a_sound_that_has_not_begun_is_not_the_film_s(tmp_path, begins):
    """Of two, the first has more channels and is the default, as FFmpeg's program has it."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        sounds = [container.add_stream("ac3", rate=48_000) for _ in range(2)]
        for audio, layout in zip(sounds, ("5.1", "stereo"), strict=True):
            audio.layout, audio.bit_rate = layout, 192_000
            audio.codec_context.open()
        container.start_encoding()
        for number in range(6 * 32):
            for audio, begin in zip(sounds, (begins, 0.0), strict=True):
                frame = av.AudioFrame(format="fltp", layout=audio.layout.name, samples=1536)
                frame.sample_rate, frame.pts = 48_000, 1536 * number
                if number / 32 >= begin:
                    container.mux(audio.encode(frame))
    with contextlib.closing(Stream(path, "audio")) as found:
        assert found.stream.layout.nb_channels == (6 if begins < 5 else 2)


def test_pictures_that_a_decoder_gives_last_follow_in_an_avi(tmp_path, monkeypatch):
    """It stores no times of showing, and the last pictures have none of decoding."""
    monkeypatch.setitem(films.CONTAINERS, "B", ("avi", "avi", films.H264, "libmp3lame", {}))
    path = films.write_film(tmp_path / "a.avi", "B")
    assert len(cut(path, size=films.SIZE).frames) == 75


@pytest.mark.parametrize("rate", [10, 60])
def test_a_bare_stream_runs_at_its_codec_s_rate(tmp_path, rate):
    with av.open(io.BytesIO(), "w", format="h264") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        packets = []
        for index, rgb in enumerate(flash_frames(2.0, [], rate=rate)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            packets += video.encode(frame)
        packets += video.encode()
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(map(bytes, packets)))
    with media.Reader(path, None, kinds=("video",)) as reader:
        found = reader.cut(0.0, None)
    assert len(found.frames) == 2 * rate and found.frames_span == pytest.approx((0.0, 2.0))


def test_bare_pictures_follow_each_other(tmp_path):
    """libavformat gives Dirac's the times 0, 1, 2 of a clock of 1,200,000 ticks a second."""
    path = tmp_path / "a.drc"
    with av.open(str(path), "w") as container:
        video = container.add_stream("vc2", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.bit_rate = 20_000_000
        for rgb in flash_frames(2.0, [1.2]):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
    with media.Reader(path, None, kinds=("video",)) as reader:
        found = reader.cut(0.0, None)
    assert brightest_frame(found.frames) == 30
    assert found.frames_span == pytest.approx((0.0, 2.0))
    assert stream_seconds(path, "video") == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("suffix", "codec", "later"),
    [("aac", "aac", 48_000), ("aac", "aac", 24_000), ("mp3", "libmp3lame", 44_100)],
)
def test_bare_sounds_that_were_joined_follow_each_other(tmp_path, suffix, codec, later):
    """Their rate may change, and tags stand between MP3's."""
    parts = []
    for number, rate in enumerate((48_000 if suffix == "aac" else 44_100, later)):
        part = tmp_path / f"{number}.{suffix}"
        write_video(part, None, click_track(2, rate, [1.0]), audio_rate=rate, audio_codec=codec)
        parts.append(part.read_bytes())
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(parts))
    with media.Reader(path, None, kinds=("audio",)) as reader:
        clip = reader.cut(0.0, None)
    clicks = films.apart(np.flatnonzero(np.abs(clip.waveform) > 0.25) / 16_000)
    np.testing.assert_allclose(clicks, [1.0, 3.05], rtol=0, atol=0.06)  # their priming is played
    assert silent_share(clip) < 0.04
    seconds = len(clip.waveform) / 16_000
    assert stream_seconds(path, "audio") == pytest.approx(seconds, abs=0.01)


def test_a_picture_that_no_decoder_opens_is_the_files_fault(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        video = container.add_stream("rawvideo", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for rgb in flash_frames(1.2, []):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
    with pytest.raises(Unusable, match="decoder error"):
        media.Reader(path, None, kinds=("video",))


def test_where_picture_and_sound_are_both_missing_something_was_lost(tmp_path):
    def lost(number, seconds, data):
        return None if 1.9 <= seconds < 2.6 else data

    path = films.write_film(tmp_path / "a.avi", "nut", change=lost)
    for kinds in (("video", "audio"), ("video",), ("audio",)):
        with (
            media.Reader(path, SIZE, kinds=kinds) as reader,
            pytest.raises(Unusable, match=r"corrupt: 0\.[679]. s of picture and sound are missing"),
        ):
            reader.cut(0.0, None)
    assert len(cut(path, 0.0, 1.8).frames) in (44, 45)  # the film begins 0.06 s before


def test_sound_behind_a_lost_page_of_an_ogg_keeps_its_time(tmp_path):
    path = tmp_path / "a.opus"
    track = click_track(4, 48_000, [2.5])
    write_video(path, None, track, audio_rate=48_000, audio_codec="libopus")
    content = bytearray(path.read_bytes())
    pages = [found.start() for found in re.finditer(b"OggS", content)]
    content[pages[3] + 200] ^= 1  # the one of the second second; its checksum is wrong now
    path.write_bytes(content)
    with media.Reader(path, None, kinds=("audio",)) as reader:
        with pytest.raises(Unusable, match="corrupt: some of the sound cannot be decoded"):
            reader.cut(0.0, 2.2)
        heard = reader.cut(2.2, None).waveform
    assert loudest_moment(heard) - 0.010 == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(("container", "lost"), [("ts", 2 * 188), ("m2ts", 2 * 192), ("avi", 300)])
def test_what_is_lost_within_a_container_is_told(tmp_path, container, lost):
    """Decoders conceal it, and behind it the pictures of an AVI come too early."""
    path = films.write_film(tmp_path / f"a.{container}", container)
    content = path.read_bytes()
    at = content.index(bytes(1), len(content) * 6 // 10) if container == "avi" else 0
    at = at or len(content) * 6 // 10 // (lost // 2) * (lost // 2)
    path.write_bytes(content[:at] + content[at + lost :])
    with pytest.raises(Unusable, match=r"corrupt: some (frames|of the sound) cannot be decoded"):
        cut(path)
    assert len(cut(path, 0.2, 1.2).frames) == 25


def test_nothing_is_lost_where_two_avis_meet(tmp_path):
    path = films.write_film(tmp_path / "a.avi", "avi", way="joined")
    assert path.read_bytes().count(b"AVI ") == 2 and not losses.losses(path, "avi", ())


def test_a_sound_alone_may_pause(tmp_path):
    whole = write_video(tmp_path / "a.mka", None, click_track(4, 44_100, [2.5]))
    path = tmp_path / "b.mka"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size and not 1.0 <= packet.pts * packet.time_base < 1.7:
                packet.stream = stream
                target.mux(packet)
    with media.Reader(path, None, kinds=("audio",)) as reader:
        heard = reader.cut(0.0, None).waveform
    assert np.abs(heard[round(1.1 * 16_000) : round(1.6 * 16_000)]).max() < 1e-4
    assert loudest_moment(heard) - 0.010 == pytest.approx(2.5, abs=0.004)


@pytest.mark.parametrize("until", [2.3, 9.0])
def test_pictures_that_a_decoder_skips_without_a_word_are_damage(tmp_path, until):
    """HEVC's does where packets have no content, or need what is not there."""

    def spoilt(number, seconds, data):
        return data[:6] if number == 0 and 1.6 <= seconds < until else data

    path = films.write_film(tmp_path / "a.mkv", "hevc", change=spoilt)
    with media.Reader(path, SIZE) as reader:
        assert len(reader.cut(0.0, 1.4).frames) == 35
        with pytest.raises(Unusable, match="corrupt: some frames cannot be decoded"):
            reader.cut(1.4, None)


def test_sound_beside_an_empty_picture_track_is_found_behind_a_long_skip(tmp_path, monkeypatch):
    path = films.write_film(
        tmp_path / "a.mp4", "fragments", change=lambda number, _, data: data if number else None
    )
    monkeypatch.setattr(streams, "SEEK_GAP_S", 1.0)
    with media.Reader(path, None, kinds=("audio",)) as reader:
        assert len(reader.cut(2.0, None).waveform) == pytest.approx(16_000, abs=500)


def test_packets_without_content_repeat_the_picture(tmp_path):
    """As Theora, VP8 and MPEG-4 have them for pictures that stay."""

    def repeat(number, seconds, data):
        return b"" if number == 0 and (1.9 <= seconds < 2.4 or seconds >= 2.8) else data

    path = films.write_film(tmp_path / "a.nut", "nut", change=repeat)
    with av.open(str(path)) as container:
        assert sum(packet.size == 0 for packet in container.demux(video=0)) > 12
    media = cut(path, size=films.SIZE)
    assert len(media.frames) == 75 and stream_seconds(path, "video") == pytest.approx(3.0, abs=0.05)
    for begin, end in ((50, 58), (72, 75)):
        assert (media.frames[begin:end] == media.frames[begin]).all()
    assert aligned(*films.of_media(media))


@pytest.mark.parametrize("offset", [95_440.5, 95_443.0])
@pytest.mark.parametrize("container", ["ts", "mpg"])
def test_clocks_of_33_bits_wrap(tmp_path, container, offset):
    path = films.write_film(tmp_path / f"a.{container}", container, offset=offset)
    media = cut(path, size=films.SIZE)
    flashes, clicks = films.of_media(media)
    assert len(flashes) == 1 and aligned(flashes, clicks)
    assert flashes[0] == pytest.approx(films.MOMENT, abs=FRAME_S)
    assert len(media.frames) == 75


def test_a_long_skip_in_a_file_that_cannot_seek_exactly_gives_the_same(tmp_path, monkeypatch):
    path = films.write_film(tmp_path / "a.ts", "ts", offset=5.0, way="joined")
    read_on = cut(path, 3.6, 5.2)
    monkeypatch.setattr(streams, "SEEK_GAP_S", 1.0)
    skipped = cut(path, 3.6, 5.2)
    np.testing.assert_array_equal(skipped.frames, read_on.frames)
    np.testing.assert_array_equal(skipped.previous, read_on.previous)
    begin = round(0.4 * 16_000)  # AAC's substituted noise depends on what was decoded before
    np.testing.assert_allclose(skipped.waveform[begin:], read_on.waveform[begin:], atol=0.02)


@pytest.mark.parametrize("container", ["ts", "avi", "flv"])
def test_a_long_skip_without_a_key_frame_gives_the_same(tmp_path, monkeypatch, container):
    """What is passed over builds on the one key frame, long before."""
    frames = list(flash_frames(8, [5.48]))
    path = write_video(
        tmp_path / f"a.{container}", frames, click_track(8, 44_100, [5.5]), key_frames=1000
    )
    with media.Reader(path, SIZE) as reader:
        alone = reader.cut(5.0, 6.0)
    monkeypatch.setattr(streams, "SEEK_GAP_S", 2.0)
    with media.Reader(path, SIZE) as reader:
        reader.cut(0.0, 1.0)
        skipped = reader.cut(5.0, 6.0)
    np.testing.assert_array_equal(skipped.frames, alone.frames)
    assert loudest_moment(skipped.waveform) == pytest.approx(0.5, abs=0.05)


def test_a_pipe_is_refused_at_once_and_can_be_saved(tmp_path):
    path = films.write_film(tmp_path / "a.ts", "ts")
    pipe = tmp_path / "pipe.ts"
    os.mkfifo(pipe)
    with pytest.raises(Unusable, match="a pipe: it can be read once only"):
        cut(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(path.read_bytes(),), daemon=True)
    writer.start()
    with containers.saved(pipe) as file:
        np.testing.assert_array_equal(cut(file).frames, cut(path).frames)
    assert not file.exists()
    with containers.saved(path) as file:
        assert file == path


def boxes(content, begin, end):
    """The kinds, begins and ends of an MP4's boxes."""
    while begin < end:
        size = int.from_bytes(content[begin : begin + 4], "big")
        yield content[begin + 4 : begin + 8], begin, begin + size
        begin += size


def with_edits(content, edits):
    """An MP4 whose header stands at its end, each of its tracks shown by these edits.

    `edits` are seconds of their length and of the track (-1 is nothing).
    """
    _, at, end = next(box for box in boxes(content, 0, len(content)) if box[0] == b"moov")
    out, ticks = b"", None
    for kind, begin, stop in boxes(content, at + 8, end):
        box = content[begin:stop]
        if kind == b"mvhd":
            ticks = int.from_bytes(box[20:24], "big")
        elif kind == b"trak":
            scale = int.from_bytes(box[(place := box.index(b"mdhd") + 16) : place + 4], "big")
            parts = [(kind, box[a:b]) for kind, a, b in boxes(box, 8, len(box)) if kind != b"edts"]
            rows = b"".join(
                struct.pack(">IiI", round(length * ticks), round(max(of * scale, -1)), 65_536)
                for length, of in edits
            )
            table = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
            table = struct.pack(">I4s", 8 + len(table), b"edts") + table
            inside = b"".join(table + part if kind == b"mdia" else part for kind, part in parts)
            box = struct.pack(">I4s", 8 + len(inside), b"trak") + inside
        out += box
    return content[:at] + struct.pack(">I4s", 8 + len(out), b"moov") + out


@pytest.mark.parametrize(
    ("edits", "moments"),
    [
        ([(2.0, 0.0), (1.0, 2.0)], [1.48]),
        ([(2.0, 1.0), (1.0, 0.0)], [0.48]),
        ([(0.8, -1), (1.8, 0.0), (0.6, 2.2)], [1.48]),
        ([(1.0, 0.0), (0.8, -1), (2.0, 1.0)], [2.28]),
        ([(2.0, 0.0), (2.0, 0.0)], [1.48, 3.48]),
        ([(3.0, 1.0)], [0.48]),  # one second more than there is
    ],
)
def test_what_an_edit_list_leaves_out_spoils_no_clock(tmp_path, edits, moments):
    path = films.write_film(tmp_path / "a.mp4", "no edit list")
    path.write_bytes(with_edits(path.read_bytes(), edits))
    for found in films.of_media(cut(path, size=films.SIZE)):
        np.testing.assert_allclose(found, moments, rtol=0, atol=3.5 * FRAME_S)  # no priming is cut


@pytest.mark.parametrize("end", [2.0, None])
def test_a_picture_whose_timestamp_is_far_ahead_hides_no_others(tmp_path, end):
    path = films.write_film(tmp_path / "a.mp4", "no edit list")
    whole = cut(path, 0.0, end)
    content = bytearray(path.read_bytes())
    first = content.index(b"ctts") + 12
    runs = range(first + 8 * 10, first + 8 * 20, 8)  # in the first second
    content[next(at for at in runs if content[at + 3] == 1) + 5] += 4  # 20 s
    path.write_bytes(content)
    found = cut(path, 0.0, end, size=films.SIZE)
    assert len(found.frames) == len(whole.frames)
    assert aligned(*films.of_media(found))


FRAGMENTS = "frag_keyframe+delay_moov"


def written_in_fragments(path, flags=FRAGMENTS, delay_s=0.0):
    return write_video(
        path,
        flash_frames(4.8, [2.0], rate=10),  # four groups of pictures
        click_track(4.8, 48_000, [2.0 - delay_s]),
        frame_rate=10,
        audio_rate=48_000,
        audio_delay_s=delay_s,
        options={"movflags": flags},
    )


@pytest.mark.parametrize("delay_s", [-0.7, 0.0])
def test_fragments_whose_sound_an_edit_trims_are_whole(tmp_path, delay_s):
    clip = cut(written_in_fragments(tmp_path / "a.mp4", delay_s=delay_s))
    assert len(clip.waveform) / 16_000 == pytest.approx(4.8 + delay_s, abs=0.03)
    for found in films.of_media(clip):
        np.testing.assert_allclose(found, [2.0], rtol=0, atol=FRAME_S)


@pytest.mark.parametrize(
    ("flags", "behind", "words"),
    [
        ("cmaf+dash", 1_000, "truncated: the (sound|picture) ends at 3.* s, its header says 4"),
        (FRAGMENTS, 1_000, "truncated: the (sound|picture) ends at 3.* s, its header says 4"),
        ("cmaf+dash", -8, "truncated: the clip should end at 4.* s, picture and sound end at 3"),
    ],
)
def test_fragments_that_were_broken_off_are_told(tmp_path, flags, behind, words):
    """Within the last, or before it where an index says how long all of them are."""
    path = written_in_fragments(tmp_path / "a.mp4", flags)
    content = path.read_bytes()
    parts = [(kind, at) for kind, at, _ in boxes(content, 0, len(content))]
    last = max(at for kind, at in parts if kind == (b"mdat" if behind > 0 else b"moof"))
    path.write_bytes(content[: last + behind])
    with pytest.raises(Unusable, match=words):
        cut(path)


def test_fragments_behind_a_damage_are_told(tmp_path):
    """libavformat ends where a box's size is wrong, as if the file did."""
    path = written_in_fragments(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    third = [at for kind, at, _ in boxes(content, 0, len(content)) if kind == b"moof"][2]
    content[third + 1] ^= 0x40
    path.write_bytes(content)
    assert len(cut(path, 0.0, 2.0).frames) == 20
    with pytest.raises(Unusable, match="corrupt: fragments behind a damage"):
        cut(path)
    with pytest.raises(Unusable, match="corrupt: fragments behind a damage"):
        stream_seconds(path, "video")  # so that clips of equal length are not cut of a part


RATES_ALLOWED = {"mmf": 22_050, "aud": 22_050}


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        ("wav", ["pcm_s16le"]),
        ("aiff", ["pcm_s16be"]),
        ("caf", ["pcm_s16le"]),
        ("tta", ["tta"]),
        ("wv", ["wavpack"]),
        ("voc", ["pcm_s16le"]),
        ("nut", ["pcm_s16le"]),
        ("adx", ["adpcm_adx"]),
        ("ast", ["pcm_s16be_planar"]),
        ("mmf", ["adpcm_yamaha"]),
        ("aud", ["adpcm_ima_ws"]),
        ("ogv", ["libopus", "libvpx"]),
        ("mxf", ["pcm_s16le", "mpeg2video"]),
    ],
)
def test_what_is_joined_and_read_in_part_only_is_refused(tmp_path, suffix, codecs):
    path = tmp_path / f"a.{suffix}"
    parts = []
    for options in ({}, {"serial_offset": "7"} if suffix == "ogv" else {}):
        with av.open(str(path), "w", options=options) as container:
            streams = films.add_streams(container, codecs[::-1]) if len(codecs) > 1 else []
            rate = RATES_ALLOWED.get(suffix, 48_000)
            sound = streams[-1] if streams else container.add_stream(codecs[0], rate)
            sound.layout = "mono"
            frame = av.AudioFrame.from_ndarray(films.sound(1.6), "fltp", layout="mono")
            frame.sample_rate = 48_000
            packets = [*sound.encode(frame), *sound.encode()]
            for rgb in films.pictures(1.6) if streams else ():
                packets += streams[0].encode(av.VideoFrame.from_ndarray(rgb, format="rgb24"))
            container.mux([*packets, *(streams[0].encode() if streams else ())])
        parts.append(path.read_bytes())
    assert stream_seconds(path, "audio") == pytest.approx(1.6, abs=0.1)
    path.write_bytes(b"".join(parts))
    with pytest.raises(Unusable, match="joined"):
        stream_seconds(path, "audio")


@pytest.mark.parametrize(
    ("muxer", "codec", "pixels"),
    [
        ("yuv4mpegpipe", "rawvideo", "yuv420p"),
        ("swf", "flv", "yuv420p"),
        ("roq", "roqvideo", "yuvj444p"),
        ("apng", "apng", "rgb24"),
        ("fits", "fits", "gray"),
        ("film_cpk", "cinepak", "rgb24"),
        ("mpjpeg", "mjpeg", "yuvj420p"),
        ("flv", "flv", "yuv420p"),
    ],
)
def test_pictures_that_are_joined_and_read_in_part_only_are_refused(tmp_path, muxer, codec, pixels):
    parts = []
    for size in ((64, 64), (96, 48)):  # what begins alike only by its size is found too
        path = tmp_path / "a"
        with av.open(str(path), "w", format=muxer) as container:
            rate = 30 if muxer == "roq" else 25
            stream = container.add_stream(codec, rate)
            stream.width, stream.height = (64, 64) if muxer == "roq" else size
            stream.pix_fmt = pixels
            for level in range(0, 240, 4):
                image = np.full((stream.height, stream.width, 3), level, np.uint8)
                image[::8, ::8] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        parts.append(path.read_bytes())
    path.write_bytes(parts[0])
    whole = stream_seconds(path, "video")
    assert whole >= 60 / rate - 0.1
    if muxer == "apng":
        path.write_bytes(parts[0][: parts[0].rindex(b"fcTL")])
        assert 2.0 < stream_seconds(path, "video") < whole  # broken off, not joined
    path.write_bytes(b"".join(parts))
    with pytest.raises(Unusable, match="joined: two files byte by byte"):
        stream_seconds(path, "video")


def test_a_film_with_sound_and_one_without_are_joined_too(tmp_path):
    both = films.write_film(tmp_path / "a.flv", "flv").read_bytes()
    mute = io.BytesIO()
    with av.open(mute, "w", format="flv") as container:
        stream = container.add_stream("flv", 25, width=96, height=64, pix_fmt="yuv420p")
        for rgb in films.pictures(1.6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    path = tmp_path / "joined.flv"
    path.write_bytes(both + mute.getvalue())
    with pytest.raises(Unusable, match="joined: two files byte by byte"):
        stream_seconds(path, "video")


@pytest.mark.parametrize("first", [True, False])
def test_program_streams_that_go_on_with_another_sound_are_refused(tmp_path, first):
    parts = []
    for codec in ("mp2", "ac3"):
        path = tmp_path / f"{codec}.mpg"
        with av.open(str(path), "w", format="mpeg") as container:
            streams = films.add_streams(container, ("mpeg2video", codec))
            frame = av.AudioFrame.from_ndarray(films.sound(9.0), "fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = films.RATE, 0, Fraction(1, films.RATE)
            packets = [*streams[1].encode(frame), *streams[1].encode()]
            for index, rgb in enumerate(films.pictures(9.0)):
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, films.FPS)
                packets += streams[0].encode(frame)
            packets += streams[0].encode()
            for packet in sorted(packets, key=lambda one: float(one.dts * one.time_base)):
                container.mux(packet)
        parts.append(path.read_bytes())
        path.write_bytes(2 * parts[-1])  # the same streams go on
        assert stream_seconds(path, "audio") == pytest.approx(18.0, abs=0.3)
    path.write_bytes(b"".join(parts if first else parts[::-1]))
    with pytest.raises(Unusable, match="joined: two files byte by byte"):
        stream_seconds(path, "video")


def test_fragments_that_start_anew_are_refused_and_those_that_go_on_are_read(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", "fragments")
    content = path.read_bytes()
    header = content[: content.index(b"moof") - 4]
    begins = [begin for kind, begin, _ in boxes(content, 0, len(content)) if kind == b"moof"]
    path.write_bytes(content[: begins[1]] + header + content[begins[1] :])
    assert stream_seconds(path, "video") == pytest.approx(films.SECONDS, abs=0.1)
    plain = films.write_film(tmp_path / "b.mp4", "mp4").read_bytes()
    for second in (content, plain):
        path.write_bytes(content + second)
        with pytest.raises(Unusable, match="joined: two files byte by byte"):
            stream_seconds(path, "video")


def changed(content, kinds, change):
    """An MP4 in which what is in the first box of these kinds, one in the other, is changed."""
    kind, *inner = kinds
    _, at, end = next(one for one in boxes(content, 0, len(content)) if one[0] == kind)
    body = content[at + 8 : end]
    body = changed(body, inner, change) if inner else change(body)
    return content[:at] + struct.pack(">I4s", 8 + len(body), kind) + body + content[end:]


def test_a_track_of_several_codecs_is_refused(tmp_path):
    path = films.write_film(tmp_path / "a.mp4", "mp4")
    table = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
    of_runs = changed(path.read_bytes(), (*table, b"stsc"), lambda body: body[:-1] + b"\2")
    for second in (b"avc1", b"hvc1"):

        def doubled(body, second=second):
            return body[:7] + b"\2" + body[8:] + body[8:12] + second + body[16:]

        path.write_bytes(changed(of_runs, (*table, b"stsd"), doubled))
        if second == b"avc1":
            assert len(cut(path).frames) == 75
            continue
        with pytest.raises(Unusable, match="changing codec: FFmpeg reads a track's first only"):
            cut(path)


def test_a_frame_without_a_sample_is_passed_over(tmp_path):
    """ADX ends with one."""
    path = tmp_path / "a.adx"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("adpcm_adx", 16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(films.sound(1.6), "fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode()])
    with media.Reader(path, None, kinds=("audio",)) as reader:
        assert len(reader.cut(0.0, None).waveform) == pytest.approx(1.6 * 16_000, abs=320)


@pytest.mark.parametrize("channels", [7, 8, 9, 64])
def test_a_sound_is_the_mean_of_its_channels_however_many(tmp_path, random, channels):
    """Of eight planes and more PyAV reads what is not there."""
    samples = random.integers(-9_000, 9_000, (32_000, channels), np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    with media.Reader(tmp_path / "a.wav", None, kinds=("audio",)) as reader:
        heard = reader.cut(0.0, None).waveform
    np.testing.assert_allclose(heard, (samples / 2**15).mean(axis=1), atol=1e-6)


def test_side_data_without_a_name_is_passed_over(tmp_path):
    """Exif, of which PyAV 18 has not heard."""
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("tiff", 25, width=64, height=48, pix_fmt="rgb24")
        for level in range(0, 250, 5):
            pixels = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with media.Reader(path, None, kinds=("video",)) as reader:
        frames = reader.cut(0.0, None).frames
    np.testing.assert_array_equal(frames[:, 0, 0, 0], range(0, 250, 5))


def test_pictures_whose_times_run_backwards_are_in_the_order_of_decoding():
    """H.264 with B-frames in AVI, as libavformat 62 guesses its times."""
    given = [(1, 2), (3, 3), (4, 4), (2, 5), (5, 6), (6, 7), (8, 8), (7, 9), (None, 10)]
    order = Order(stored=False)
    assert [order.time(*times) for times in given] == [*range(2, 11)]
    order = Order(stored=True)
    assert [order.time(*times) for times in given] == [1, 3, *range(4, 11)]
