"""Every reader is total: any bytes give the value that was written, or one line with a name.

The files, how they are read and what is done to them are those of the script `mutations` among the
benchmarks, which tries more. Bombs, files that unpack to more than a machine has, are read in a
process of their own.
"""

import io
import subprocess
import sys
import zipfile
from collections import Counter

import mutations
import pytest

MUTATIONS = 32  # of a file that reads quickly
# Values in these may change unseen: no checksum covers them.
SEALED_IN_PART = ("of_runs", "of_lists", "of_weights", "of_index", "of_transfers", "of_others")
MOST_MIB = 100  # that reading a bomb may take


@pytest.mark.parametrize("make", mutations.MAKERS, ids=lambda make: make.__name__)
def test_any_bytes_give_the_value_or_one_line(make, tmp_path):
    total: Counter = Counter()
    for reader in make(tmp_path):
        count = max(MUTATIONS // reader.cost, len(mutations.PLACES) + 2)
        counts, wrong = mutations.tried(reader, count, seed=0)
        assert not wrong, "\n".join(wrong)
        total += counts
    assert total["refused"] > total.total() // 4
    assert not total["other"] or make.__name__ in SEALED_IN_PART


def zipped(data: bytes, **more: bytes) -> bytes:
    """An archive as torch writes it, packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in more.items():
            archive.writestr(f"x/{name.replace('_', '/')}", content)
    return buffer.getvalue()


def tensor(numel: int) -> bytes:
    """A pickle of a dictionary with one tensor of so many floats."""
    size = b"J" + numel.to_bytes(4, "little")
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    storage += b"X\x03\x00\x00\x00cpu" + size + b"tQ"
    rest = b"K\x00" + size + b"\x85K\x01\x85\x89}t"
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"Rs."
    )


def bombs() -> dict[str, bytes]:
    """Small files that say that they are large."""
    large, header = bytes(2**27), b"\x80\x02"
    entries = io.BytesIO()
    with zipfile.ZipFile(entries, "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
        for number in range(70_000):
            archive.writestr(f"x/{number}", b"")
    copies = header + b"(" + b"N" * 100_000 + b"lq\x00" + b"ctorch\nSize\nh\x00\x85R" * 3_000 + b"."
    lying = bytearray(zipped(b"N" * 2**26))
    at = lying.rindex(b"PK\x01\x02") + 24
    lying[at : at + 4] = (1_000).to_bytes(4, "little")  # what it unpacks to
    return {
        "byteorder.pt": zipped(b"N.", byteorder=large),
        "storage.pt": zipped(tensor(2**25), data_0=large),
        "pickle.pt": zipped(header + b"N" * 2**26),
        "lying.pt": bytes(lying),
        "sets.pt": zipped(header + b"\x8f" * 2**23),
        "stream.pt": header + b"N" * 2**26,
        "line.pt": header + b"I" + b"1" * 2**26,
        "copies.pt": zipped(copies),
        "entries.pt": entries.getvalue(),
        "header.safetensors": (2**25).to_bytes(8, "little") + b"[" * 2**25,
        "scav.json": b"[" + b"[]," * 2**24 + b"[]]",
    }


READ = """
import resource, sys
from scav_jax.base.documents import read_object
from scav_jax.base.errors import InputError
from scav_jax.extract.backbones import torch_files, weights

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = most()
for path in sys.argv[1:]:
    kind = path.rsplit(".", 1)[1]
    try:
        if kind == "pt":
            torch_files.read(path)
        elif kind == "json":
            read_object(path, "a document", "x")
        else:
            weights.read(path)
        print(path, "read")
    except InputError as error:
        print(path, "refused", len(str(error)) < 1000)
    print(most() - before)
"""


@pytest.mark.slow
def test_bombs_are_refused_in_little_memory(tmp_path):
    names = []
    for name, content in bombs().items():
        (tmp_path / name).write_bytes(content)
        names.append(str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", READ, *names], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for said, grown in zip(lines[::2], lines[1::2], strict=True):
        assert said.endswith("refused True"), said
        assert float(grown) < MOST_MIB, (said, grown)
    assert len(lines) == 2 * len(names)
