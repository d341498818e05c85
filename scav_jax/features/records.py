"""The TFDS side of a data set of clips: its features, and writing it without TensorFlow.

What is written is what `tfds.builder_from_directory(DATA)` opens: one version of a TFDS data set
in array_record form. Every tensor has `encoding="bytes"`, which is what makes TFDS fast.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt64
from tensorflow_datasets.core import dataset_info, example_serializer, naming

from scav_jax.base.errors import OUR_FAULTS, InputError, in_a_line
from scav_jax.base.files import check_readable
from scav_jax.features.clip import STORED_DTYPE, STREAMS, Clip, as_stored

try:
    from array_record.python.array_record_module import ArrayRecordWriter
except ModuleNotFoundError:
    raise InputError(
        "a data set on disk needs array-record, which has no wheel for Windows: use WSL 2 there, "
        "elsewhere `pip install array-record`; files are embedded, indexed and searched without "
        "it, by a model that was exported"
    ) from None

VERSION = "1.0.0"
CLIPS_A_SHARD = 1024
STORAGE = "group_size:1,uncompressed"  # random access at full speed
MEND = "bring the data set back from a copy, or extract it again"


class Column(NamedTuple):
    """A stream of a data set: numbers a step, and what they are stored in."""

    width: int
    dtype: np.dtype = np.dtype(STORED_DTYPE)

    @classmethod
    def of(cls, values: np.ndarray) -> "Column":
        """That of some clip's features."""
        return cls(values.shape[1], as_stored(values[:0]).dtype)


def clip_features(
    visual: Column, audio: Column, shared: bool = False
) -> tfds.features.FeaturesDict:
    """The record of one clip (see `features.Clip`); only resampled copies have `shared`."""
    text = tfds.features.Text

    def tensor(shape: tuple, dtype: Any) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "label": text(),
            "source": text(),
            "start": tfds.features.Scalar(np.float32),
            "end": tfds.features.Scalar(np.float32),
            "visual": tensor((None, visual.width), visual.dtype),
            "audio": tensor((None, audio.width), audio.dtype),
            "visual_span": tensor((2,), np.float32),
            "audio_span": tensor((2,), np.float32),
            **({"shared": tensor((2,), np.float32)} if shared else {}),
        }
    )


class RecordWriter:
    """Appends clips to the splits of a new TFDS data set, in the order that they come.

        with RecordWriter(folder, "folder", *map(Column.of, (visual, audio))) as records:
            records.add("train", clip)

    TFDS has a writer of its own, but it fixes the compression, which on float16 features saves a
    tenth of the space and takes half of the reading speed.
    """

    def __init__(
        self, folder: Path, name: str, visual: Column, audio: Column, shared: bool = False
    ):
        identity = dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
            release_notes={VERSION: "features of clips, written by scav_jax"},
        )
        self._info = tfds.core.DatasetInfo(
            builder=identity,
            description="Audio-visual features of clips; scav.json says how they were made.",
            features=clip_features(visual, audio, shared),
            disable_shuffling=True,
        )
        self._info.set_file_format("array_record", override=True)
        serialized = self._info.features.get_serialized_info()
        self._examples = example_serializer.ExampleSerializer(serialized)
        self._folder, self._name = folder, name
        self._splits: dict[str, _SplitFiles] = {}

    def __enter__(self) -> "RecordWriter":
        return self

    def add(self, split: str, clip: Clip) -> int:
        """Writes a clip; the checksum of its record."""
        if split not in self._splits:
            template = naming.ShardedFileTemplate(
                data_dir=self._folder,
                dataset_name=self._name,
                split=split,
                filetype_suffix=self._info.file_format.file_suffix,
            )
            self._splits[split] = _SplitFiles(template)
        record = self._info.features.encode_example(_record(clip))
        # The order of a protobuf map is random in every process, unless it is asked for.
        example = self._examples.get_tf_example(record)
        serialized = example.SerializeToString(deterministic=True)
        self._splits[split].write(serialized)
        return record_sum(serialized)

    def __exit__(self, kind, *_) -> None:
        for files in self._splits.values():
            files.close()
        if kind is None:
            infos = [files.finish() for files in self._splits.values()]
            self._info.set_splits(tfds.core.splits.SplitDict(infos))
            self._info.write_to_directory(self._folder)


class _SplitFiles:
    """The files of one split; how many there will be is known at the end only."""

    def __init__(self, template: naming.ShardedFileTemplate):
        self._template = template
        self._writer: ArrayRecordWriter | None = None
        self._lengths: list[int] = []
        self._bytes = 0

    def _path(self, shard: int) -> Path:
        return Path(self._template.data_dir) / f"{self._template.split}-{shard}.unfinished"

    def write(self, serialized: bytes) -> None:
        if self._writer is None:
            self._writer = ArrayRecordWriter(str(self._path(len(self._lengths))), STORAGE)
            self._lengths.append(0)
        self._writer.write(serialized)
        self._lengths[-1] += 1
        self._bytes += len(serialized)
        if self._lengths[-1] == CLIPS_A_SHARD:
            self.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def finish(self) -> tfds.core.SplitInfo:
        """Gives the files their names."""
        for shard in range(len(self._lengths)):
            path = self._template.sharded_filepath(shard_index=shard, num_shards=len(self._lengths))
            self._path(shard).rename(path)
        return tfds.core.SplitInfo(
            name=self._template.split,
            shard_lengths=self._lengths,
            num_bytes=self._bytes,
            filename_template=self._template,
        )


def _record(clip: Clip) -> dict[str, Any]:
    record = dict(vars(clip))
    if clip.shared is None:
        del record["shared"]
    for name in record.keys() & {"visual_span", "audio_span", "shared"}:
        record[name] = np.array(record[name], np.float32)
    for name in STREAMS:
        record[name] = np.ascontiguousarray(as_stored(record[name]))
    return record


class ClipRecords:
    """A random-access source of the clips of one split.

    Records are `tf.train.Example` messages, read here by their wire format: the general parsers
    copy every feature twice, which takes as long as reading the record.
    """

    def __init__(self, folder: Path, split: str):
        self._folder, self._place = folder, f"{folder} ({split})"
        with self._naming("its records"):
            builder = tfds.builder_from_directory(str(folder))
            self._records = builder.as_data_source(
                split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
            features = builder.info.features
            self._columns = {
                name: Column(features[name].shape[-1], np.dtype(features[name].np_dtype))
                for name in STREAMS
            }

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, checksum: int) -> Clip:
        """The clip of a record that has this checksum.

        Raises:
          InputError: it cannot be read, or is not what was written.
        """
        with self._naming(f"record {index}"):
            record = self._records[index]
        if record_sum(record) != checksum:
            raise InputError(
                f"{self._place}: expected record {index} as it was written, its checksum is "
                f"another: the file is damaged, or that of another data set; {MEND}"
            )
        return clip_of(fields_of(record), self._columns)

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Says in a line what is damaged, whatever the libraries below make of it."""
        try:
            yield
        except (InputError, PermissionError, MemoryError, *OUR_FAULTS):
            raise
        except Exception as error:
            check_readable(self._folder)
            raise InputError(
                f"{self._place}: {what} cannot be read ({in_a_line(error)}); {MEND}"
            ) from error


def record_sum(record: bytes) -> int:
    """The sum of a record's 64-bit words, each times an odd number of its own, modulo 2^64.

    Every flipped bit changes it, and so does an exchange of words; three times as fast as a CRC.
    """
    words = np.frombuffer(record, "<u8", len(record) // 8)
    rest = int.from_bytes(record[8 * len(words) :], "little")
    total = int(np.dot(words, _odd_numbers(len(words)))) if len(words) else 0
    return (total + (rest << 1) + len(record)) % 2**64


@functools.cache
def _table_of_odd_numbers(size: int) -> UInt64[np.ndarray, " size"]:
    return (np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def _odd_numbers(count: int) -> UInt64[np.ndarray, " count"]:
    size = 1 << max(count - 1, 1).bit_length()  # few tables, whatever the lengths
    return _table_of_odd_numbers(size)[:count]


def fields_of(record: bytes) -> dict[str, memoryview]:
    """The features of a serialized `tf.train.Example` with one value each, not copied.

    Returns:
      name -> the bytes of a BytesList's value, or those of a FloatList.

    Raises:
      InputError: the record is no such message.
    """
    try:
        fields = {}
        (features,) = _messages(memoryview(record))
        for entry in _messages(features):
            name, feature = _messages(entry)
            (values,) = _messages(feature)  # a BytesList or a FloatList, packed
            (fields[str(name, "utf-8")],) = _messages(values)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"a record of {len(record):,} bytes is not a tf.train.Example as scav_jax writes it "
            f"({error}); {MEND}"
        ) from None
    return fields


def _messages(message: memoryview) -> list[memoryview]:
    """The length-delimited fields of a protobuf message that has no others, in order."""
    found, at = [], 0
    while at < len(message):
        tag = message[at]
        if tag & 7 != 2 or tag >= 128:
            raise ValueError(f"field tag {tag} at byte {at}")
        size, at = _varint(message, at + 1)
        if at + size > len(message):
            raise ValueError(f"a field ends {at + size - len(message)} bytes too late")
        found.append(message[at : at + size])
        at += size
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A variable-length integer, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def clip_of(fields: Mapping[str, memoryview], columns: Mapping[str, Column]) -> Clip:
    """The clip that a record's fields hold; its features are views of the record, at any byte."""

    def text(name: str) -> str:
        return str(fields[name], "utf-8")

    def floats(name: str) -> tuple:
        return tuple(np.frombuffer(fields[name], "<f4").tolist())

    def stream(name: str) -> np.ndarray:
        width, dtype = columns[name]
        values = np.frombuffer(fields[name], dtype)
        return values.reshape(-1, width) if width else values.reshape(0, 0)

    (start,), (end,) = floats("start"), floats("end")
    return Clip(
        id=text("id"),
        visual=stream("visual"),
        visual_span=floats("visual_span"),
        audio=stream("audio"),
        audio_span=floats("audio_span"),
        source=text("source"),
        start=start,
        end=end,
        label=text("label"),
        shared=floats("shared") if "shared" in fields else None,
    )
