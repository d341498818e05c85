"""The restricted reader of .pt files: what torch wrote comes out, what could run code stays in.

`fixtures/torch_new.pt` and `torch_old.pt` were written by torch 2.13 with `python
tests/test_torch_files.py`, so that most of this needs no torch.
"""

import contextlib
import io
import mmap
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from scav_jax.base.errors import InputError
from scav_jax.extract.backbones import torch_files, torch_pickles

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = {"new": FIXTURES / "torch_new.pt", "old": FIXTURES / "torch_old.pt"}
DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "int64": np.int64,
    "uint8": np.uint8,
    "bool": np.bool_,
}


def checkpoint():
    """A dictionary with everything that a checkpoint may hold. Needs torch."""
    import argparse
    from collections import OrderedDict

    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {name: torch.tensor([0, 1, 3, 2]).to(getattr(torch, name)) for name in DTYPES}
    return {
        "cfg": {"layers": 2, "rate": 0.5, "name": "µ", "flag": True, "none": None, "big": 2**70},
        "model": OrderedDict(
            base=base,
            transposed=base.permute(2, 0, 1),
            part=base[1, 1:, ::2],
            parameter=torch.nn.Parameter(base[0, 0]),
            scalar=torch.tensor(7.5),
            empty=torch.zeros(0, 3),
            **tensors,
        ),
        "args": argparse.Namespace(width=3, inner={"shape": torch.Size([2, 3])}),
        "list": [1, (2, "three"), {4}],
        "label_dict": {0: "/m/09x0r", 1: "/m/05zppz"},
        "module": torch.nn.Linear(2, 3).state_dict(),  # with attributes: `_metadata`
    }


def save(value, path, new):
    import torch

    torch.save(value, path, _use_new_zipfile_serialization=new)


def check(read):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert list(read) == ["cfg", "model", "args", "list", "label_dict", "module"]
    expected = {"layers": 2, "rate": 0.5, "name": "µ", "flag": True, "none": None, "big": 2**70}
    assert read["cfg"] == expected
    assert read["args"] == {"width": 3, "inner": {"shape": (2, 3)}}
    assert read["list"] == [1, (2, "three"), {4}]
    assert read["label_dict"] == {0: "/m/09x0r", 1: "/m/05zppz"}
    assert {name: array.shape for name, array in read["module"].items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }
    model = read["model"]
    assert type(model) is dict
    np.testing.assert_array_equal(model["base"], base)
    np.testing.assert_array_equal(model["transposed"], base.transpose(2, 0, 1))
    np.testing.assert_array_equal(model["part"], base[1, 1:, ::2])
    np.testing.assert_array_equal(model["parameter"], base[0, 0])
    np.testing.assert_array_equal(model["scalar"], np.float32(7.5))
    assert model["empty"].shape == (0, 3)
    for name, dtype in DTYPES.items():
        assert model[name].dtype == dtype
        np.testing.assert_array_equal(model[name], np.array([0, 1, 3, 2]).astype(dtype))
    for name in ("transposed", "part", "parameter"):
        assert np.shares_memory(model["base"], model[name])
    assert not any(array.flags.writeable for array in model.values() if array.size)


@pytest.mark.parametrize("name", FORMATS)
def test_fixture_is_read(name):
    assert FORMATS[name].stat().st_size < 20_000
    check(torch_files.read(FORMATS[name]))


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_writes_is_read(tmp_path, new):
    pytest.importorskip("torch")
    save(checkpoint(), tmp_path / "a.pt", new)
    check(torch_files.read(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_are_mapped_not_copied(name):
    array = torch_files.read(FORMATS[name])["model"]["base"]
    while not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else array.base
        assert array is not None


def test_compressed_archives_are_read_too(tmp_path):
    with zipfile.ZipFile(FORMATS["new"]) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    write_zip(tmp_path / "a.pt", entries, zipfile.ZIP_DEFLATED)
    check(torch_files.read(tmp_path / "a.pt"))


def test_big_endian_is_refused(tmp_path):
    with zipfile.ZipFile(FORMATS["new"]) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    (order,) = (name for name in entries if name.endswith("byteorder"))
    write_zip(tmp_path / "a.pt", entries | {order: b"big"})
    with pytest.raises(InputError, match="little-endian"):
        torch_files.read(tmp_path / "a.pt")


# -- damaged and foreign files --------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_at_every_place(tmp_path, name):
    whole = FORMATS[name].read_bytes()
    path = tmp_path / "cut.pt"
    for size in {*range(0, len(whole), 37), len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.pt: ") as refusal:
            torch_files.read(path)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_give_values_or_an_input_error(tmp_path, name):
    whole = FORMATS[name].read_bytes()
    path = tmp_path / "flipped.pt"
    rng = np.random.default_rng(0)
    for _ in range(60):  # test_readers does more to them, and the script `mutations` more yet
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            torch_files.read(path)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"not a checkpoint\n", "expected a .pt or .pth file"),
        (pickle.dumps({"a": 1}), "another pickle"),
        (b"PK\x03\x04 but no archive", "expected a .pt or .pth file"),
        (b"\x93NUMPY\x01\x00", "expected a .pt or .pth file"),
    ],
)
def test_other_files(tmp_path, content, words):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError, match=words):
        torch_files.read(tmp_path / "a.pt")


def test_other_archives_and_other_values(tmp_path):
    write_zip(tmp_path / "a.pt", {"readme.txt": b"hello"})
    with pytest.raises(InputError, match=r"one data\.pkl, got entries \['readme\.txt'\]"):
        torch_files.read(tmp_path / "a.pt")
    write_new(tmp_path / "b.pt", pickle.dumps([1, 2], 2))
    with pytest.raises(InputError, match="which is a dictionary, got a list"):
        torch_files.read(tmp_path / "b.pt")


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for name, got in (("none.pt", "none"), ("pipe.pt", "a pipe"), ("", "a folder")):
        with pytest.raises(InputError, match=f"expected a .* file, got {got}; check the path"):
            torch_files.read(tmp_path / name)


# -- hostile files --------------------------------------------------------------------------------


def write_zip(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def write_new(path, pickled, **storages):
    write_zip(path, {"a/data.pkl": pickled, **{f"a/data/{k}": v for k, v in storages.items()}})


def write_old(path, pickled):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    header = [pickle.dumps(value, 2) for value in (torch_files.MAGIC, torch_files.PROTOCOL, system)]
    path.write_bytes(b"".join(header) + pickled + pickle.dumps([], 2))


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class PersistentPickler(pickle.Pickler):
    """Pickles `Storage`s as persistent ids, like torch."""

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


class Storage:
    def __init__(self, *pid):
        self.pid = pid


def with_persistent_ids(value, protocol=2):
    out = io.BytesIO()
    PersistentPickler(out, protocol).dump(value)
    return out.getvalue()


def attacks(proof):
    """Pickles that would make a folder `proof` if they ran."""
    make, code = Call(os.mkdir, proof), f"__import__('os').mkdir({proof!r})"
    named = f"c{os.name}\nmkdir\n".encode()
    return {
        "plain": pickle.dumps({"model": make}, 2),
        "nested": pickle.dumps({"model": {"a": [1, (2, {"b": make})]}}, 2),
        "eval": pickle.dumps({"a": Call(eval, code)}, 2),
        "exec": pickle.dumps({"a": Call(exec, code)}, 2),
        "getattr": pickle.dumps({"a": Call(getattr, Call(__import__, "os"), "mkdir")}, 2),
        "STACK_GLOBAL": pickle.dumps({"a": make}, 4),
        "newest protocol": pickle.dumps({"a": make}, 5),
        "dotted name": pickle.dumps(1, 4)[:2] + dotted("collections", "OrderedDict.fromkeys"),
        "persistent id": with_persistent_ids(Storage("storage", make, "0", "cpu", 1)),
        "in a persistent id": with_persistent_ids(
            {"a": Storage("storage", "FloatStorage", make, "cpu", 1)}
        ),
        "INST": b"(V" + proof.encode() + f"\ni{os.name}\nmkdir\n.".encode(),
        "OBJ": b"(" + named + b"V" + proof.encode() + b"\no.",
        "never used": named + b"0}.",
    }


def dotted(module, name):
    text = [b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)]
    return b"".join(text) + b"\x93."


REFUSED = r"evil\.pt: .*('[\w.]+\.\w+', which could run code|got the opcode INST); refused"


@pytest.mark.parametrize("write", [write_new, write_old])
@pytest.mark.parametrize("name", attacks(""))
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, name, write):
    proof = tmp_path / "proof"
    pickled = attacks(str(proof))[name]
    write(tmp_path / "evil.pt", pickled)
    with pytest.raises(InputError, match=REFUSED) as refusal:
        torch_files.read(tmp_path / "evil.pt")
    assert "\n" not in str(refusal.value)
    assert not proof.exists()


def test_the_attacks_are_real(tmp_path):
    """What the tests above rely on: the ordinary unpickler does run these."""
    for name in ("plain", "nested", "eval", "exec", "STACK_GLOBAL", "INST", "OBJ"):
        proof = tmp_path / name
        pickle.loads(attacks(str(proof))[name])
        assert proof.exists(), name


def test_the_header_of_the_old_format_runs_nothing_either(tmp_path):
    proof = tmp_path / "proof"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Call(os.mkdir, str(proof)), 2))
    with pytest.raises(InputError, match="refused"):
        torch_files.read(tmp_path / "evil.pt")
    assert not proof.exists()


@pytest.mark.parametrize("named", torch_pickles.KNOWN)
def test_a_pickle_cannot_change_what_it_may_name(tmp_path, named):
    """Opcode BUILD on the object itself: with a dictionary, and with the state of slots."""
    before = vars(torch_pickles.Bag).copy()
    for state in (b"}Vmake\nI1\ns", b"N}V__call__\nI1\ns\x86", b"N}V__setstate__\nI1\ns\x86"):
        name = f"c{named.module}\n{named.name}\n".encode()
        write_new(tmp_path / "evil.pt", name + state + b"b.")
        with pytest.raises(InputError):
            torch_files.read(tmp_path / "evil.pt")
    assert vars(torch_pickles.Bag) == before


@pytest.mark.parametrize("write", [write_new, write_old])
@pytest.mark.parametrize(
    "pickled",
    [
        b"}r\xff\xff\xff\x7f.",  # memo entry 2**31 - 1
        b"\x8d\xff\xff\xff\xff\xff\x00\x00\x00x.",  # a string of 2**40 characters
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00x.",  # a bytearray of 2**40
        b"\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00}.",  # a frame of 2**40
    ],
)
def test_sizes_in_a_pickle_allocate_nothing(tmp_path, write, pickled):
    """Python's own unpickler takes 32 GB for the first."""
    write(tmp_path / "evil.pt", pickled)
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            torch_files.read(tmp_path / "evil.pt")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def tensor_pickle(offset, shape, strides, numel=6, change=b""):
    """A dictionary with one float32 tensor in storage "0", opcode by opcode."""
    pid = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n" + f"I{numel}\n".encode() + b"tQ" + change
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    shape, strides = ("".join(f"I{n}\n" for n in numbers) for numbers in (shape, strides))
    values = f"I{offset}\n({shape}t({strides}t"
    return b"}Vx\n" + rebuild + b"(" + pid + values.encode() + b"I00\n}tRs."


def write_tensor(path, *arguments, **options):
    data = np.arange(6, dtype=np.float32).tobytes()
    write_new(path, tensor_pickle(*arguments, **options), **{"0": data})
    return path


def test_strides_and_offset_by_hand(tmp_path):
    path = write_tensor(tmp_path / "a.pt", 1, (2, 2), (1, 3))
    np.testing.assert_array_equal(torch_files.read(path)["x"], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((2, (2, 2), (1, 3)), {}, "beyond its storage"),
        ((0, (7,), (1,)), {}, "beyond its storage"),
        ((0, (2,), (10**12,)), {}, "beyond its storage"),
        ((-1, (2,), (1,)), {}, "damaged"),
        ((5, (2,), (-1,)), {}, "damaged"),
        ((0, (2, 2), (1,)), {}, "damaged"),
        ((0, (7,), (1,)), {"numel": 7}, "expected 28 bytes, got 24"),
        ((0, (2,), (1,)), {"numel": -1}, "expected its size"),
        # the storage is made larger after it was checked
        ((0, (99,), (1,)), {"change": b"N}Vnumel\nI99\ns\x86b"}, "damaged"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, arguments, options, words):
    path = write_tensor(tmp_path / "evil.pt", *arguments, **options)
    with pytest.raises(InputError, match=words):
        torch_files.read(path)


def test_values_inside_themselves_are_refused(tmp_path):
    write_new(tmp_path / "a.pt", b"}q\x00Vself\nh\x00s.")
    with pytest.raises(InputError, match="RecursionError"):
        torch_files.read(tmp_path / "a.pt")


def test_values_many_times_over_are_read_once(tmp_path):
    """2**60 strings, were every list written out."""
    deeper = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60))
    write_new(tmp_path / "a.pt", b"}Vx\nVa\n" + deeper + b"s.")
    value = torch_files.read(tmp_path / "a.pt")["x"]
    for _ in range(60):
        assert value[0] is value[1]
        value = value[0]
    assert value == "a"


@pytest.mark.parametrize(
    "use", [b"I1\ns.", b"I1\nu.", b"\x93.", b"0c__builtin__\nset\n(]h\x00atR."]
)
def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path, use):
    deeper = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(1, 60))
    mark = b"(" if use.endswith(b"u.") else b""
    write_new(tmp_path / "a.pt", b"}" + mark + b"Va\n" + deeper + b"q\x00" + use)
    with pytest.raises(InputError, match=r"a key or member that is a tuple|not a string"):
        torch_files.read(tmp_path / "a.pt")


def test_refusals_of_endless_values_are_short(tmp_path):
    deeper = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60))
    pid = b"(Vstorage\ncargparse\nNamespace\nVa\n" + deeper + b"Vcpu\nI1\ntQ."
    write_new(tmp_path / "a.pt", pid)
    with pytest.raises(InputError, match="expected a storage of") as refusal:
        torch_files.read(tmp_path / "a.pt")
    write_tensor(tmp_path / "b.pt", 0, (1,), (1,), change=b"0Va\n" + deeper)
    with pytest.raises(InputError, match="a tensor without a storage"):
        torch_files.read(tmp_path / "b.pt")
    assert len(str(refusal.value)) < 1000
    endless = (
        b"}Vx\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n"
    )
    endless += b"I6\ntQI0\nVa\n" + deeper + b")I00\n}tRs."
    write_new(tmp_path / "c.pt", endless, **{"0": bytes(24)})
    with pytest.raises(InputError, match="a tensor of shape") as refusal:
        torch_files.read(tmp_path / "c.pt")
    assert len(str(refusal.value)) < 1000


def test_old_views_of_a_storage(tmp_path):
    """torch before 0.4 stored a storage inside a storage as (key, offset, size)."""
    pid = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\n(Vview\nI2\nI4\nttQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    pickled = b"}Vx\n" + rebuild + pid + b"I1\n(I3\nt(I1\ntI00\n}tRs."
    write_old(tmp_path / "a.pt", pickled)
    raw = (tmp_path / "a.pt").read_bytes().removesuffix(pickle.dumps([], 2))
    storage = struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()
    (tmp_path / "a.pt").write_bytes(raw + pickle.dumps(["0"], 2) + storage)
    np.testing.assert_array_equal(torch_files.read(tmp_path / "a.pt")["x"], [3, 4, 5])


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for key, fixture in FORMATS.items():
        save(checkpoint(), fixture, key == "new")
