"""Transport streams: whose sound a picture's is, and what is joined though it is read in part."""

import itertools
import zlib

import numpy as np
import pytest
from test_media import brightest_frame, click_track, cut, flash_frames, loudest_moment, write_video

from scav_jax.extract.containers.film import film_of
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.containers.transport import Programmes
from scav_jax.extract.decoding import media
from scav_jax.extract.decoding.measured import stream_kinds, stream_seconds

PACKET, TABLE_PIDS, FIRST_PMT = 188, (0, 17, 4096), 4096
H264, AAC, SUBTITLE, PRIVATE = 0x1B, 0x0F, 0x90, 0x06
AC3_DESCRIPTOR = b"\x6a\x01\0"
SIZES, MOMENTS, SECONDS = {"large": (128, 96), "small": (64, 48)}, {"large": 0.4, "small": 0.8}, 1.2


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two films; the picture of one is larger, the sound of the other has more channels."""
    folder, found = tmp_path_factory.mktemp("recorded"), {}
    for name, channels in (("large", 1), ("small", 2)):
        moment = MOMENTS[name]
        frames = flash_frames(SECONDS, [moment], size=SIZES[name])
        track = click_track(SECONDS, 48_000, [moment], channels)
        path = folder / f"{name}.ts"
        write_video(path, frames, track, audio_rate=48_000, size=SIZES[name])
        found[name] = path.read_bytes()
    return found


def checksum(section):
    """CRC-32 as MPEG has it: zlib's with all bits the other way round."""
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in section)
    return int(f"{zlib.crc32(mirrored) ^ 0xFFFFFFFF:032b}"[::-1], 2).to_bytes(4, "big")


def table(kind, number, rows):
    length = 5 + len(rows) + 4
    section = bytes((kind, 0xB0 | length >> 8, length & 0xFF)) + number.to_bytes(2, "big")
    section += b"\xc1\0\0" + rows
    return section + checksum(section)


def mended(section, place, mask):
    """The section with some bits of one byte cleared, and its checksum right again."""
    changed = section[:place] + bytes((section[place] & mask,)) + section[place + 1 : -4]
    return changed + checksum(changed)


def tables(programmes):
    """(PID, section) of the PAT and of the PMTs: programme -> (PID, type, descriptors)."""
    places = {number: FIRST_PMT + n for n, number in enumerate(programmes)}
    rows = b"".join(
        n.to_bytes(2, "big") + (0xE000 | p).to_bytes(2, "big") for n, p in places.items()
    )
    yield 0, table(0, 1, rows)
    for number, streams in programmes.items():
        rows = b"\xe1\0\xf0\0"  # the clock's PID, and nothing about the programme
        for pid, kind, said in streams:
            rows += bytes((kind,)) + (0xE000 | pid).to_bytes(2, "big")
            rows += (0xF000 | len(said)).to_bytes(2, "big") + said
        yield places[number], table(2, number, rows)


def with_pid(packet, pid):
    return packet[:1] + bytes((packet[1] & 0xE0 | pid >> 8, pid & 0xFF)) + packet[3:]


def packets_of(content, moved=None):
    """The packets of a recording, without its tables, in other PIDs."""
    for at in range(0, len(content), PACKET):
        packet = content[at : at + PACKET]
        pid = int.from_bytes(packet[1:3], "big") & 0x1FFF
        if pid not in TABLE_PIDS:
            yield with_pid(packet, (moved or {}).get(pid, pid))


def mixed(*streams):
    """The packets of several recordings, each spread evenly over the whole."""
    placed = [(n / len(one), packet) for one in streams for n, packet in enumerate(one)]
    return [packet for _, packet in sorted(placed, key=lambda pair: pair[0])]


def broadcast(packets, programmes, spoil=lambda section: section):
    """A transport stream of packets, with tables before every hundred."""
    out, counts = [], itertools.count()
    for begin in range(0, len(packets), 100):
        count = next(counts) & 15
        for pid, section in tables(programmes):
            packet = b"\x47\x40\0" + bytes((0x10 | count,)) + b"\0" + spoil(section)
            out.append(with_pid(packet.ljust(PACKET, b"\xff"), pid))
        out += packets[begin : begin + 100]
    return b"".join(out)


LARGE, SMALL = [(256, H264, b""), (257, AAC, b"")], [(512, H264, b""), (513, AAC, b"")]
ELSEWHERE = {256: 512, 257: 513}


def two_programmes(recorded, programmes):
    both = [*packets_of(recorded["large"])], [*packets_of(recorded["small"], ELSEWHERE)]
    return broadcast(mixed(*both), programmes)


def packets_without(packets, pid):
    return [packet for packet in packets if int.from_bytes(packet[1:3], "big") & 0x1FFF != pid]


@pytest.mark.parametrize("swapped", [False, True])
def test_the_sound_is_of_the_pictures_own_programme(tmp_path, recorded, swapped):
    path = tmp_path / "a.ts"
    programmes = {2: SMALL, 1: LARGE} if swapped else {1: LARGE, 2: SMALL}
    path.write_bytes(two_programmes(recorded, programmes))
    clip = cut(path, size=SIZES["large"])
    assert brightest_frame(clip.frames) == round(MOMENTS["large"] * 25)
    assert loudest_moment(clip.waveform) == pytest.approx(MOMENTS["large"], abs=0.05)
    with media.Reader(path, None, kinds=("audio",)) as reader:  # the same where it is asked alone
        np.testing.assert_array_equal(reader.cut(0.0, None).waveform, clip.waveform)


def test_a_picture_alone_is_silent_beside_a_radio(tmp_path, recorded):
    path = tmp_path / "a.ts"
    path.write_bytes(two_programmes(recorded, {1: LARGE[:1], 2: SMALL[1:]}))
    assert stream_kinds(path) == ("video",)
    with pytest.raises(Unusable, match="no audio stream"):
        stream_seconds(path, "audio")


def test_programmes_may_share_a_picture(tmp_path, recorded):
    path = tmp_path / "a.ts"
    path.write_bytes(two_programmes(recorded, {1: LARGE, 2: LARGE[:1] + SMALL[1:], 3: SMALL[:1]}))
    clip = cut(path, size=SIZES["large"])
    assert brightest_frame(clip.frames) == round(MOMENTS["large"] * 25)
    assert loudest_moment(clip.waveform) == pytest.approx(MOMENTS["small"], abs=0.05)


def test_a_picture_of_no_programme_has_no_sound_that_is_known(tmp_path, recorded):
    path = tmp_path / "a.ts"
    named, radio = [*packets_of(recorded["small"], ELSEWHERE)], [(514, AAC, b"")]
    packets = mixed([*packets_of(recorded["large"])], named)
    path.write_bytes(broadcast(packets, {1: SMALL[1:], 2: [(257, AAC, b"")], 3: radio}))
    with pytest.raises(Unusable, match="unclear programme"):
        film_of(path)


def test_of_one_programme_a_sound_that_is_not_listed_is_the_last_choice(tmp_path, recorded):
    path = tmp_path / "a.ts"
    packets = mixed(
        [*packets_of(recorded["large"])],
        [*packets_of(recorded["small"], ELSEWHERE)],
    )
    path.write_bytes(broadcast(packets, {1: [*LARGE, SMALL[0]]}))
    assert loudest_moment(cut(path).waveform) == pytest.approx(MOMENTS["large"], abs=0.05)
    path.write_bytes(broadcast(packets_without(packets, 257), {1: [LARGE[0], SMALL[0]]}))
    assert loudest_moment(cut(path).waveform) == pytest.approx(MOMENTS["small"], abs=0.05)


THEIRS = {
    "other PIDs": (ELSEWHERE, {1: SMALL}),
    "another sound": ({257: 300}, {1: [LARGE[0], (300, AAC, b"")]}),
    "a private sound": ({257: 300}, {1: [LARGE[0], (300, PRIVATE, AC3_DESCRIPTOR)]}),
    "another picture": ({256: 300}, {1: [(300, H264, b""), LARGE[1]]}),
    "another programme": (ELSEWHERE, {7: SMALL}),
    "the kinds change places": ({256: 257, 257: 256}, {1: [(256, AAC, b""), (257, H264, b"")]}),
}
SAME = {
    "the same": {1: LARGE},
    "another number": {7: LARGE},
    "a subtitle more": {1: [*LARGE, (300, PRIVATE, b"\x59\0")]},
    "a sound more": {1: [*LARGE, (300, AAC, b"")]},
    "a programme more": {1: LARGE, 2: SMALL},
}


def repeated(content, packets, programmes):
    """The recording once, then packets with other tables."""
    return broadcast([*packets_of(content)], {1: LARGE}) + broadcast([*packets], programmes)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("theirs", THEIRS)
def test_recordings_in_other_pids_that_are_joined_are_refused(tmp_path, recorded, theirs, first):
    path = tmp_path / "a.ts"
    pids, programmes = THEIRS[theirs]
    parts = [
        broadcast([*packets_of(recorded["large"])], {1: LARGE}),
        broadcast([*packets_of(recorded["large"], pids)], programmes),
    ]
    path.write_bytes(b"".join(parts if first else parts[::-1]))
    for kind in ("video", "audio"):
        with pytest.raises(Unusable, match="joined: two files byte by byte"):
            stream_seconds(path, kind)


@pytest.mark.parametrize("tables_later", SAME)
def test_tables_that_change_otherwise_refuse_nothing(tmp_path, recorded, tables_later):
    path = tmp_path / "a.ts"
    content = recorded["large"]
    path.write_bytes(repeated(content, packets_of(content), SAME[tables_later]))
    for kind in ("video", "audio"):
        assert stream_seconds(path, kind) == pytest.approx(2 * SECONDS, abs=0.1)


@pytest.mark.parametrize(("bytes_before", "bytes_behind"), [(0, 0), (4, 0), (0, 16)])
def test_packets_of_any_size_are_found_again_behind_noise(
    tmp_path, recorded, random, bytes_before, bytes_behind
):
    def stored(content):
        rows = (content[at : at + PACKET] for at in range(0, len(content), PACKET))
        return b"".join(bytes(bytes_before) + row + bytes(bytes_behind) for row in rows)

    path = tmp_path / "a.ts"
    content = [*packets_of(recorded["large"])]
    one, other = (broadcast(content, {1: streams}) for streams in (LARGE, [*LARGE, SMALL[0]]))
    noise = random.integers(0, 256, 3_333, np.uint8).tobytes()
    path.write_bytes(noise + stored(one)[:-77] + noise + stored(other) + other[:1000])
    programmes = Programmes(path)
    assert programmes.related(256) == {256, 257, 512} and not programmes.several
    assert not programmes.replaced(256, "video")


def test_a_damaged_table_is_not_believed(tmp_path, recorded):
    path = tmp_path / "a.ts"
    packets = [*packets_of(recorded["large"])]
    damaged = broadcast(packets, {1: SMALL}, lambda section: section[:-1] + b"\0")
    path.write_bytes(broadcast(packets, {1: LARGE}) + damaged)
    assert not Programmes(path).replaced(256, "video")


def test_tables_that_are_to_come_and_noise_say_nothing(tmp_path, recorded, random):
    path = tmp_path / "a.ts"
    packets = [*packets_of(recorded["large"])]
    to_come = broadcast(packets, {1: SMALL}, lambda section: mended(section, 5, 0xFE))
    path.write_bytes(broadcast(packets, {1: LARGE}) + to_come)
    assert not Programmes(path).replaced(256, "video")
    rows = random.integers(0, 256, (2_000, PACKET), np.uint8)
    rows[:, 0], rows[:, 1], rows[::2, 2] = 0x47, rows[:, 1] & 0x40, 0
    rows[1::2, 2] = np.arange(1_000) & 3
    path.write_bytes(broadcast(packets, {1: LARGE}) + rows.tobytes())
    assert not Programmes(path).replaced(256, "video")


def test_another_programme_may_change_or_end(tmp_path, recorded):
    path = tmp_path / "a.ts"
    packets = [*packets_of(recorded["large"])]
    moved = [(700, H264, b""), (701, AAC, b"")]
    path.write_bytes(
        b"".join(broadcast(packets, one) for one in ({1: LARGE, 2: SMALL}, {1: LARGE, 2: moved}))
    )
    programmes = Programmes(path)
    assert not programmes.replaced(256, "video") and not programmes.replaced(257, "audio")
    assert programmes.replaced(512, "video") and programmes.replaced(513, "audio")
    path.write_bytes(
        b"".join(broadcast(packets, one) for one in ({1: LARGE, 2: SMALL}, {2: SMALL}))
    )
    assert not Programmes(path).replaced(256, "video")
