"""Records as bytes -> clips: read by their wire format, wherever features begin in them."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_run import noise

from scav_jax.base.errors import InputError
from scav_jax.features import store
from scav_jax.features.batches import Padding, load_batch, training_batches
from scav_jax.features.clip import all_finite
from scav_jax.features.records import ClipRecords, Column, clip_of, fields_of, record_sum


def clip(number, random):
    n, m = int(random.integers(9, 14)), int(random.integers(4, 7))
    about = {"source": f"é/{'x' * (number % 3)}.mp4", "label": "" if number % 2 else "bell"}
    about |= {"id": "clip " + "ü" * number}  # of every length: features begin at every byte
    about |= {"visual_span": (0.0, 2.0 + number), "audio_span": (0.25, 1.9)}
    about |= {"start": 2.0 * number, "end": 2.5 * number + 2.0}
    return noise(random, number, (n, m), (7, 5), **about)


@pytest.fixture
def data(tmp_path, random):
    clips = [clip(number, random) for number in range(11)]
    store.write(
        [("train", c) for c in clips], tmp_path / "data", fingerprint={}, videos="", rejected=[]
    )
    return tmp_path / "data", clips


def test_records_are_read_as_tfds_reads_them(data):
    folder, clips = data
    theirs = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    ours, sums = ClipRecords(folder, "train"), store.read(folder, "train").checksums
    assert len(ours) == len(theirs) == len(clips)
    begins = set()
    for number, (record, written) in enumerate(zip(theirs, clips, strict=True)):
        read = ours.read(number, int(sums[number]))
        for name, value in vars(written).items():
            expected = record[name] if name != "shared" else None
            expected = expected.decode() if isinstance(expected, bytes) else expected
            np.testing.assert_array_equal(getattr(read, name), expected, err_msg=name)
            if name not in ("visual_span", "audio_span"):
                np.testing.assert_array_equal(getattr(read, name), value, err_msg=name)
        begins |= {read.visual.flags.aligned, read.audio.flags.aligned}
    assert begins == {True, False}  # both kinds were seen


def test_without_array_record_the_error_says_where_there_is_none(data, monkeypatch):
    """As on Windows, for which it has no wheel."""
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    monkeypatch.delitem(sys.modules, "scav_jax.features.records")
    with pytest.raises(InputError, match="no wheel for Windows"):
        store.read(data[0], "train").take([0])[0]


def unaligned(values):
    """The same numbers, beginning at an odd address."""
    octets = np.empty(values.nbytes + 1, np.uint8)
    octets[1:] = values.view(np.uint8).ravel()
    made = octets[1:].view(values.dtype).reshape(values.shape)
    assert not made.flags.aligned
    return made


@pytest.mark.parametrize("place", [lambda x: x, unaligned], ids=["aligned", "unaligned"])
def test_every_float16_is_known_as_finite_or_not(place):
    for bits in range(0, 2**16, 7):
        value = np.uint16(bits).view(np.float16)
        for at in (0, 1, 2):  # first, in the middle, last
            values = np.ones((3, 1), np.float16)
            values[at] = value
            assert all_finite(place(values)) == np.isfinite(value), (bits, at)


@pytest.mark.parametrize("place", [lambda x: x, unaligned], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("at", [0, 32767, 32768, 65535, 65536, 70000, 99999])
def test_one_nan_among_many_is_found(place, at):
    values = np.full((1000, 100), 6e4, np.float16)
    assert all_finite(place(values))
    values.ravel()[at] = np.nan
    assert not all_finite(place(values))


def test_a_checksum_is_what_the_formula_says_and_sees_every_flip(random):
    for size in (0, 5, 8, 29, 64):
        record = random.bytes(size)
        words = [record[at : at + 8] for at in range(0, size - size % 8, 8)]
        numbers = [int.from_bytes(word, "little") for word in words]
        odd = [(i * 0x9E3779B97F4A7C15) % 2**64 | 1 for i in range(len(numbers))]
        rest = int.from_bytes(record[8 * len(words) :], "little")
        total = sum(n * o for n, o in zip(numbers, odd, strict=True)) + 2 * rest + size
        assert record_sum(record) == total % 2**64
        for bit in range(8 * size):
            flipped = bytearray(record)
            flipped[bit // 8] ^= 1 << bit % 8
            assert record_sum(bytes(flipped)) != record_sum(record)


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_a_damaged_record_is_an_input_error(data, cut):
    folder, _ = data
    source = tfds.builder_from_directory(str(folder)).as_data_source(
        split="train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    with pytest.raises(InputError, match=r"not a tf\.train\.Example as scav_jax writes it"):
        fields_of(source[3][:-cut])
    whole = clip_of(fields_of(source[3]), {"visual": Column(7), "audio": Column(5)})
    assert whole.id == "clip üüü"


def test_records_that_may_not_be_read_are_not_called_damaged(data, seal):
    folder, _ = data
    for file in folder.glob("*-train.array_record-*"):
        seal(file)
    with pytest.raises(PermissionError, match="array_record"):
        store.read(folder, "train")[0]


def test_float16_batches_hold_what_is_stored_and_widen_to_the_float32_ones(data):
    folder, clips = data
    split = store.read(folder, "train")
    order = np.array([4, 9, 2])
    half, wide = (load_batch(split, order, Padding(17, 9), "index", d).features for d in DTYPES)
    for row, number in enumerate(order):
        for name in ("visual", "audio"):
            stored, values = getattr(clips[number], name), getattr(half, name).values
            assert values.dtype == np.float16
            np.testing.assert_array_equal(values[row, : len(stored)], stored)
            assert not values[row, len(stored) :].any()
    for one, other in zip(half, wide, strict=True):
        assert other.values.dtype == np.float32
        np.testing.assert_array_equal(one.values.astype(np.float32), other.values)
        np.testing.assert_array_equal(one.lengths, other.lengths)
        np.testing.assert_array_equal(one.windows, other.windows)


DTYPES = ("float16", "float32")


def test_another_dtype_is_refused(data):
    split = store.read(data[0], "train")
    with pytest.raises(InputError, match=r"data\.features: .*Did you mean 'float16'"):
        training_batches(split, batch_size=2, seed=0, dtype="flaot16")
