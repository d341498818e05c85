"""An index as one file and back: the same hits to the digit."""

import json

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as parquet
import pytest
from test_index import embedded
from test_one_stream import alone

from scav_jax.base.errors import InputError
from scav_jax.index import __main__ as program
from scav_jax.index import create, open_index


def mixed(path, **options):
    clips = embedded(9, steps=5, width=4, lengths=[3, 5, 4] * 3)
    index = create(path, identity="m", root=path.parent, **options)
    index.add(clips.take([0, 1, 2, 3]))
    index.add(alone(clips.take([4]), "visual"))
    index.add(alone(clips.take([5, 6, 7, 8]), "audio"))
    index.delete([clips.ids[2]])
    return index


def found(index, retrieval):
    queries = embedded(3, steps=4, width=4, seed=9)
    return [index.search(queries, way, 9, retrieval) for way in ("a2v", "v2a")]


@pytest.mark.parametrize("kind", ["parquet", "npz"])
@pytest.mark.parametrize(("distance", "certain"), [("euclidean", "exact"), ("dtw", "sequence")])
def test_an_index_comes_back_with_the_same_hits(tmp_path, kind, distance, certain):
    index, file = mixed(tmp_path / "i", distance=(distance, {})), tmp_path / f"all.{kind}"
    program.main(["export", str(index.path), "--out", str(file)])
    program.main(["import", str(tmp_path / "back"), str(file)])
    back = open_index(tmp_path / "back", "m")
    assert len(back) == 8 and back.verify() == 8
    assert back.snapshot.counts() == index.snapshot.counts()
    for retrieval in ("aggregation", "hybrid:9", certain):
        assert found(back, retrieval) == found(index, retrieval)  # places, scores and spans
    program.main(["export", str(back.path), "--out", str(tmp_path / f"again.{kind}")])
    if kind == "parquet":
        assert parquet.read_table(file) == parquet.read_table(tmp_path / "again.parquet")
        rows = parquet.read_table(file).to_pylist()
        assert [row["id"] for row in rows] == [f"clip{n}" for n in (0, 1, 3, 4, 5, 6, 7, 8)]
        assert rows[3]["audio"] is None and rows[3]["visual_steps"] == 5
        assert np.linalg.norm(rows[0]["visual_embedding"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("retrieval", ["exact", "aggregation"])
def test_rounded_sequences_come_back_as_their_values(tmp_path, retrieval):
    """And vectors that rounding has made longer or shorter than 1 as what cosines are taken of."""
    index = mixed(tmp_path / "i", storage="int8")
    program.main(["export", str(index.path), "--out", str(tmp_path / "all.parquet")])
    program.main(["import", str(tmp_path / "back"), str(tmp_path / "all.parquet")])
    rows = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    lengths = [np.linalg.norm(r["visual_embedding"]) for r in rows if r["visual_embedding"]]
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    for one, other in zip(
        found(open_index(tmp_path / "back"), retrieval), found(index, retrieval), strict=True
    ):
        for mine, theirs in zip(one, other, strict=True):
            assert [hit.id for hit in mine] == [hit.id for hit in theirs]
            scores = [[hit.score for hit in hits] for hits in (mine, theirs)]
            np.testing.assert_allclose(*scores, atol=1e-6)


def test_cosines_of_a_rounded_index_are_cosines(tmp_path):
    clips = embedded(200, steps=3, width=8)
    index = create(tmp_path / "i", identity="m", storage="bfloat16")
    index.add(clips)
    hits = index.search(clips, "a2v", 1, "aggregation")
    visual, audio = (
        one / np.linalg.norm(one, axis=1, keepdims=True)
        for one in (clips.visual_embeddings, clips.audio_embeddings)
    )
    stored = visual.astype(jnp.bfloat16).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1)[:, None]
    best = (audio @ stored.T).max(axis=1)
    np.testing.assert_allclose([of_query[0].score for of_query in hits], best, atol=2e-7)


def test_what_is_no_exported_index_is_one_line(tmp_path):
    index = mixed(tmp_path / "i")
    for name, words in (("all.csv", "a .parquet or a .npz"), ("i", "a .parquet or a .npz")):
        with pytest.raises(InputError, match=words):
            program.main(["export", str(index.path), "--out", str(tmp_path / name)])
    file = tmp_path / "all.parquet"
    program.main(["export", str(index.path), "--out", str(file)])
    with pytest.raises(InputError, match="is there"):
        program.main(["export", str(index.path), "--out", str(file)])
    table = parquet.read_table(file)
    bad = {
        "cut.parquet": file.read_bytes()[:-20],
        "text.npz": b"no zip",
        "absent.parquet": None,
    }
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="expected"):
            program.main(["import", str(tmp_path / "back"), str(tmp_path / name)])
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1  # among the numbers
    (tmp_path / "flipped.parquet").write_bytes(content)
    with pytest.raises(InputError, match="export the index again"):
        program.main(["import", str(tmp_path / "back"), str(tmp_path / "flipped.parquet")])
    parquet.write_table(table.drop_columns(["audio"]), tmp_path / "less.parquet")
    parquet.write_table(table.replace_schema_metadata({}), tmp_path / "bare.parquet")
    rows = table.to_pylist()
    rows[1]["visual_embedding"] = None
    without = table.from_pylist(rows, schema=table.schema)
    parquet.write_table(without, tmp_path / "without.parquet")
    np.savez(tmp_path / "less.npz", header="{}")
    program.main(["export", str(index.path), "--out", str(tmp_path / "all.npz")])
    arrays = dict(np.load(tmp_path / "all.npz"))
    others = {"id": np.full(8, np.nan), "source": arrays["source"][:1], "visual": np.array(5)}
    others |= {"audio_steps": np.full(8, 10**12), "label": np.arange(8)}
    others |= {"start": np.full(8, np.nan), "end": arrays["start"]}
    for name, values in others.items():
        np.savez(tmp_path / f"{name}.npz", **{**arrays, name: values})
    about = json.loads(str(arrays["header"]))
    wrong = {"root": 5, "options": [], "width": "4", "identity": None, "clip_seconds": np.nan}
    headers = {name: json.dumps(about | {name: value}) for name, value in wrong.items()}
    headers |= {"cut": json.dumps(about | {"clip_seconds": "x"}), "twice": '{"a": 1, "a": 2}'}
    headers |= {"list": "[]", "deep": "[" * 100_000}
    for name, header in headers.items():
        np.savez(tmp_path / f"{name}.npz", **{**arrays, "header": np.array(header)})
    names = ["less.parquet", "bare.parquet", "without.parquet", "less.npz"]
    for name in [*names, *(f"{name}.npz" for name in (*others, *headers))]:
        with pytest.raises(InputError, match=rf"{name}: expected.*export the index again"):
            program.main(["import", str(tmp_path / "back"), str(tmp_path / name)])
        assert not (tmp_path / "back").exists()
    arrays["id"][1] = arrays["id"][0]
    np.savez(tmp_path / "same.npz", **arrays)
    with pytest.raises(InputError, match=r"same.npz: .*expected every id once"):
        program.main(["import", str(tmp_path / "back"), str(tmp_path / "same.npz")])
    assert not (tmp_path / "back").exists()
    with pytest.raises(InputError, match="a path where nothing is"):
        program.main(["import", str(index.path), str(file)])
    long = tmp_path / "new" / f"{'n' * 243}.parquet"  # as long as a name may be
    program.main(["export", str(index.path), "--out", str(long)])
    assert [one.name for one in long.parent.iterdir()] == [long.name]
    empty = create(tmp_path / "empty", identity="m")
    with pytest.raises(InputError, match="the index is empty"):
        program.main(["export", str(empty.path), "--out", str(tmp_path / "none.npz")])
