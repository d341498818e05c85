"""Weights on disk: what is written comes back, mapped; a bad file is named; hashes mean content."""

import fnmatch
import hashlib
import json
import zipfile

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scav_jax.base.errors import InputError
from scav_jax.extract.backbones import __main__ as converter
from scav_jax.extract.backbones import torch_files, weights


@pytest.fixture
def arrays(random):
    return {
        "layer.weight": random.normal(size=(5, 3)).astype(np.float32),
        "layer.bias": random.normal(size=3).astype(np.float16),
        "wide": random.normal(size=(2, 3, 4)).astype(jnp.bfloat16),
        "double": random.normal(size=2),
        "scalar": np.asarray(4.6, np.float32),
        "ids": np.arange(7, dtype=np.int64)[None],
        "flags": np.asarray([True, False, True]),
        "none": np.zeros((0, 3), np.float32),
    }


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def shard(folder, arrays):
    """The arrays as two shards and their index."""
    names = sorted(arrays)
    places = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        weights.write(folder / file, {n: arrays[n] for n in names if places[n] == file})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / weights.INDEX).write_text(json.dumps(index))


def test_what_is_written_comes_back(arrays, tmp_path):
    weights.write(tmp_path / "folder" / "x.safetensors", arrays, {"made by": "a test"})
    assert_same(weights.read(tmp_path / "folder" / "x.safetensors"), arrays)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["x.safetensors"]


def test_memory_layout_does_not_matter(random, tmp_path):
    array = random.normal(size=(4, 6)).astype(np.float32)
    weights.write(tmp_path / "x.safetensors", {"t": array.T, "s": array[::2, ::-1]})
    assert_same(weights.read(tmp_path / "x.safetensors"), {"t": array.T, "s": array[::2, ::-1]})


def test_the_library_reads_ours_and_we_read_its(arrays, tmp_path):
    weights.write(tmp_path / "ours.safetensors", arrays)
    assert_same(load_file(tmp_path / "ours.safetensors"), arrays)
    save_file(arrays, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert_same(weights.read(tmp_path / "theirs.safetensors"), arrays)


def test_arrays_are_views_of_the_file(arrays, tmp_path):
    path = tmp_path / "x.safetensors"
    weights.write(path, {"x": np.zeros(3, np.uint8)})
    found = weights.read(path)["x"]
    with open(path, "r+b") as file:  # the same file, changed after it was read
        file.seek(-1, 2)
        file.write(b"\x07")
    assert found.tolist() == [0, 0, 7]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_a_directory_holds_one_model(arrays, tmp_path):
    weights.write(tmp_path / "other.safetensors", {"x": np.ones(2)})
    assert_same(weights.read(tmp_path), {"x": np.ones(2)})
    shard(tmp_path, arrays)  # the index counts more than a file of any name
    assert_same(weights.read(tmp_path), arrays)
    weights.write(tmp_path / weights.FILE, {"y": np.ones(3)})
    assert_same(weights.read(tmp_path), {"y": np.ones(3)})


def bad_files(folder):
    good = folder / "good.safetensors"
    weights.write(good, {"x": np.arange(9.0)})
    content = good.read_bytes()
    yield content[:-1], "or a part of one"
    yield content[:20], "or a part of one"
    yield content + b"\0", "or a part of one"
    yield b"", "or a part of one"
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"
    yield b"PK\x03\x04 archive/data.pkl", "PyTorch pickle"
    yield b"<!DOCTYPE html> not found " * 9, "or a part of one"


def test_a_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "bad.safetensors"
    for content, words in bad_files(tmp_path):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words) as error:
            weights.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="got no file of that name"):
        weights.read(tmp_path / "absent.safetensors")


def test_an_unknown_dtype_is_named(tmp_path):
    header = b'{"eight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    header += b" " * (-len(header) % 8)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(InputError, match=r"eight: expected a dtype of .*got F8_E4M3"):
        weights.read(path)


def test_a_directory_without_a_model_says_what_is_there(tmp_path):
    with pytest.raises(InputError, match="got none"):
        weights.read(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(InputError, match=r"flax_model\.msgpack.*converted to safetensors"):
        weights.read(tmp_path)
    for name in "ab":
        weights.write(tmp_path / f"{name}.safetensors", {"x": np.ones(1)})
    with pytest.raises(InputError, match=r"a\.safetensors, b\.safetensors"):
        weights.read(tmp_path)


def test_shards_are_checked(arrays, tmp_path):
    shard(tmp_path, arrays)
    index = json.loads((tmp_path / weights.INDEX).read_text())
    index["weight_map"]["lost"] = "model-00001-of-00002.safetensors"
    (tmp_path / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="got none of lost"):
        weights.read(tmp_path)
    for content, words in (
        ('{"weight_map": {"x": "../good.safetensors"}}', "names of files beside it"),
        ('{"weight_map": {"x": "absent.safetensors"}}', "absent.*got no file"),
        ("{}", "expected JSON with a weight_map"),
        ("no JSON", "as JSON"),
    ):
        (tmp_path / weights.INDEX).write_text(content)
        with pytest.raises(InputError, match=words):
            weights.read(tmp_path)


def test_hash_is_of_the_content_alone(arrays, tmp_path):
    expected = weights.sha256(arrays)
    assert weights.sha256(dict(reversed(arrays.items()))) == expected
    weights.write(tmp_path / "one" / weights.FILE, arrays, {"format": "pt"})
    (tmp_path / "two").mkdir()
    shard(tmp_path / "two", arrays)
    one, two = (weights.read(tmp_path / name) for name in ("one", "two"))
    assert weights.sha256(one) == weights.sha256(two) == expected
    assert weights.sha256({"x": arrays["layer.weight"].T}) == weights.sha256(
        {"x": np.ascontiguousarray(arrays["layer.weight"].T)}
    )


def test_hash_sees_name_dtype_shape_and_value():
    x = np.arange(6, dtype=np.int32)
    different = [
        {"x": x},
        {"y": x},
        {"x": x.astype(np.uint32)},
        {"x": x.reshape(2, 3)},
        {"x": x + (x == 5)},
        {"x": x, "y": x[:0]},
        {},
    ]
    assert len({weights.sha256(arrays) for arrays in different}) == len(different)


def test_hash_stays_what_it_was():
    """It is stored with features: another value would make them look like another model's."""
    found = weights.sha256({"b": np.ones(2, np.float16), "a": np.arange(3, dtype=np.int64)})
    content = b'["a", "int64", [3]]\n' + bytes(8) + b"\1" + bytes(7) + b"\2" + bytes(7)
    content += b'["b", "float16", [2]]\n' + b"\0\x3c" * 2
    assert found == hashlib.sha256(content).hexdigest()


def test_a_directory_is_where_the_model_is(tmp_path):
    assert weights.locate(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", "/no/such/folder", "one-word", "a/b/c"):
        with pytest.raises(InputError, match="expected a directory or a hub id"):
            weights.locate(wrong)


def test_a_hub_id_brings_what_is_needed_and_no_pickles(monkeypatch, tmp_path):
    calls = []

    def snapshot(hub_id, revision, allow_patterns):
        calls.append((hub_id, revision))
        wanted = ("config.json", "preprocessor_config.json", "model.safetensors", "merges.txt")
        wanted += ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
        wanted += ("vocab.json", "tokenizer.json", "tokenizer_config.json")
        unwanted = (
            "pytorch_model.bin",
            "flax_model.msgpack",
            "tf_model.h5",
            "model.fp16.safetensors",
        )
        match = {n: any(fnmatch.fnmatch(n, p) for p in allow_patterns) for n in wanted + unwanted}
        assert {name for name, yes in match.items() if yes} == set(wanted)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    (tmp_path / weights.FILE).touch()
    assert weights.locate("openai/clip-vit-base-patch32") == tmp_path
    assert weights.locate("owner/name.x@refs/pr/15") == tmp_path
    assert calls == [("openai/clip-vit-base-patch32", None), ("owner/name.x", "refs/pr/15")]


def write_torch(path, arrays, extra=b""):
    """A `pytorch_model.bin` as torch.save writes one, without torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = b"\x80\x02ccollections\nOrderedDict\n)R"
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, array) in enumerate(arrays.items()):
            archive.writestr(f"a/data/{number}", array.tobytes())
            numbers = array.shape, [stride // array.itemsize for stride in array.strides]
            shape, strides = ("".join(f"I{n}\n" for n in row) for row in numbers)
            pid = f"(Vstorage\nctorch\nFloatStorage\nV{number}\nVcpu\nI{array.size}\ntQ"
            tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({pid}I0\n({shape}t({strides}tI00\n}}tR"
            state += f"V{name}\n{tensor}s".encode()
        archive.writestr("a/data.pkl", state + extra + b".")


def test_a_model_without_safetensors_is_read_as_data(random, tmp_path):
    arrays = {n: random.normal(size=(3, 4)).astype(np.float32) for n in ("one", "two")}
    write_torch(tmp_path / "a" / weights.TORCH_FILE, arrays)
    assert_same(weights.read(tmp_path / "a"), arrays)
    weights.write(tmp_path / "a" / weights.FILE, {"other": arrays["one"]})
    assert_same(weights.read(tmp_path / "a"), {"other": arrays["one"]})  # safetensors come first
    write_torch(tmp_path / "b" / weights.TORCH_FILE, arrays, b"Vthree\nI3\ns")
    with pytest.raises(InputError, match=r"a tensor under every name.*three"):
        weights.read(tmp_path / "b")
    proof = tmp_path / "proof"
    call = f"cos\nmkdir\n(V{proof}\ntR".encode()
    write_torch(tmp_path / "c" / weights.TORCH_FILE, arrays, b"Vfour\n" + call + b"s")
    with pytest.raises(InputError, match="mkdir"):
        weights.read(tmp_path / "c")
    assert not proof.exists()


def test_pickles_come_from_the_hub_only_where_there_is_nothing_else(monkeypatch, random, tmp_path):
    arrays = {"one": random.normal(size=(3, 4)).astype(np.float32)}

    def snapshot(hub_id, revision, allow_patterns):
        if weights.TORCH_FILE in allow_patterns:
            write_torch(tmp_path / weights.TORCH_FILE, arrays)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert_same(weights.read(weights.locate("openai/clip-vit-base-patch32")), arrays)


def test_the_converter_writes_the_same_model_once(random, tmp_path):
    arrays = {n: random.normal(size=(3, 4)).astype(np.float32) for n in ("one", "two")}
    source, target = tmp_path / "source", tmp_path / "target"
    write_torch(source / weights.TORCH_FILE, arrays)
    for name in ("config.json", "vocab.json", "README.md"):
        (source / name).write_text("{}")
    converter.convert(str(source), target)
    assert sorted(p.name for p in target.iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocab.json",
    ]
    assert_same(load_file(target / weights.FILE), arrays)
    assert weights.sha256(weights.read(target)) == weights.sha256(
        torch_files.read(source / weights.TORCH_FILE)
    )
    with pytest.raises(InputError, match="another folder"):
        converter.convert(str(target), target)


def test_no_network_is_one_line(monkeypatch):
    def snapshot(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match=r"owner/name.*no connection.*give a directory") as error:
        weights.locate("owner/name")
    assert "\n" not in str(error.value)
