"""Lists in CSV: what every reader of one takes, and what each refuses with its file and line."""

import pytest

from scav_jax.base.errors import InputError
from scav_jax.base.tables import Table, write_rows
from scav_jax.datasets import imported, vggsound, vggsounder
from scav_jax.extract import manifest
from scav_jax.score import program

# A header, a row, another row, and what reads them; `x` is in a cell of free text.
LISTS = {
    "clips": ("file,label", "a.mp4,x", "b.mp4,y", manifest.read_csv),
    "features": (
        *("id,visual,seconds,label", "a,a.npy,1,x", "b,b.npy,1,y"),
        lambda path: imported.read_manifest(path).rows,
    ),
    "pairs": ("picture,sound", "a.mp4,x.wav", "b.mp4,y.wav", program.read_pairs),
    "annotations": (
        ",".join(vggsounder.SOURCE_COLUMNS),
        "---g-f_I2yQ_000001,x,A,False,False,False",
        "---h-f_I2yQ_000001,y,A,False,False,False",
        vggsounder.read_vggsounder,
    ),
    "VGGSound": (
        *("ytid,start,label,split", "---g-f_I2yQ,1,x,test", "---h-f_I2yQ,1,y,test"),
        lambda path: vggsound.read_lists([str(path)])[0],
    ),
}


@pytest.fixture(params=LISTS)
def of(request, tmp_path):
    """The header, two rows, and what reads a text."""
    header, *rows, read = LISTS[request.param]

    def reads(content: str):
        path = tmp_path / "list.csv"
        path.write_text(content, newline="", errors="surrogateescape")
        return read(path)

    return header, *rows, reads


def test_every_list_may_come_from_any_program(of):
    header, one, other, reads = of
    plain = "\n".join([header, one, other])
    expected = repr(reads(plain))
    quoted = "\n".join(", ".join(f'"{cell}"' for cell in row.split(",")) for row in plain.split())
    for text in (plain + "\n\n", plain.replace("\n", "\r"), plain.replace(",", " , "), quoted):
        for whole in (text, "\ufeff" + text, text.replace("\n", "\r\n")):
            assert repr(reads(whole)) == expected
    odd = one.replace("x", "x\u2028\x0b\x85x")  # they end no line
    assert r"x\u2028\x0b\x85x" in repr(reads("\n".join([header, odd, other])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: f'"{row}', "unexpected end of data"),  # not the rest of the list in a cell
        (lambda row: '"' + row.replace(",", '"z,', 1), "',' expected after"),
        (lambda row: row + "\0", "a zero byte"),
        (lambda row: row + ",z", "cells"),
        (lambda row: row.rpartition(",")[0], "cells"),
        (lambda row: "z" * 200_000 + row, "field larger than field limit"),
        (lambda row: row + "\udce9", "in UTF-8"),
        (lambda row: row + "\udced\udcb3\udca9", "in UTF-8"),  # half of a surrogate pair
    ],
)
def test_a_fault_is_refused_with_the_line_on_which_its_row_begins(of, change, words):
    header, one, other, reads = of
    quoted = ",".join(f'"{cell}\n"' if "x" in cell else cell for cell in one.split(","))
    text = "\r\n".join([header, "", quoted, change(other), one])
    with pytest.raises(InputError) as error:
        reads(text)
    assert "list.csv, line 5: " in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"with a header that has file, got \[\]"),
        ("label\na\n", r"with a header that has file, got \['label'\]"),
        ("file,lable\na,b\n", "unknown column 'lable', expected file, label. Did you mean 'label'"),
        ("FILE\na\n", "Did you mean 'file'"),
        ("file;label\na;b\n", "separated by commas"),
        ("file,label,file\na,b,c\n", "a column appears twice"),
    ],
)
def test_a_header_is_refused_in_words(tmp_path, text, words):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=f"list.csv, line 1: .*{words}"):
        Table(tmp_path / "list.csv", "a list", "correct it").check(["file"], ["label"])


def test_what_is_written_is_read_back_to_the_letter(tmp_path):
    cells = [" a", "a ", "a\rb", "a\nb", 'a"b', "a,b", "\u2028", "", "\ufeff"]
    rows = [{"file": one, "label": other} for one in cells for other in cells]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        write_rows(file, ("file", "label"), rows)
    table = Table(tmp_path / "list.csv", "a list", "correct it")
    assert [row for _, row in table.rows(as_written=table.columns)] == rows
