"""Tables in CSV: the lists that people hand in, read in one way, and those that are written.

A list is UTF-8, with or without a byte order mark; lines end as any system ends them. Spaces around
a cell are none of it. What cannot be what was meant is refused with the line on which its row
begins: a quote that is not closed (the rest of the list would be one cell), text behind a quoted
cell, a row with more or fewer cells than the header, a zero byte.
"""

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from reprlib import repr as short  # of cells, which may be as long as the file

from scav_jax.base.documents import read_text
from scav_jax.base.errors import InputError, did_you_mean

_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")


def read_csv_rows(path: Path, what: str, mend: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV with or without a header: the line on which each begins, and its cells.

    Empty lines are passed over. Of an unquoted cell the spaces before it are gone, others are left.

    Args:
      path: of the file.
      what: it is expected to be, for messages: "a list of clips".
      mend: what to do where it is not, for messages: "correct the list".

    Raises:
      InputError: there is no such file, or it is no CSV.
    """
    try:
        text = read_text(path, what, mend)
    except OSError as error:
        raise InputError(f"expected {what} (CSV in UTF-8) at {path}: {error}") from None
    lines = (match[0] for match in _LINE.finditer(text))  # a StringIO would be a copy, 4 x as large
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    begin = 1
    try:
        for cells in reader:
            if "\0" in "".join(cells):
                raise csv.Error("a zero byte")
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {begin}: expected CSV: {error}; {mend}") from None


class Table:
    """A CSV with a header; `columns` are its names, each of which comes once."""

    def __init__(self, path: Path, what: str, mend: str):
        """Reads the header; raises as `read_csv_rows` does."""
        self.path, self._what = path, what
        self._csv_rows = read_csv_rows(path, what, mend)
        line, header = next(self._csv_rows, (1, []))
        self._header = f"{path}, line {line}"
        self.columns = [name.strip() for name in header]
        if len(set(self.columns)) < len(self.columns):
            raise InputError(f"{self._header}: a column appears twice: {short(self.columns)}")

    def check(
        self, needed: Sequence[str], others: Sequence[str] | None = (), further: str = ""
    ) -> None:
        """`InputError` where a column of `needed` lacks, or one is unknown; others None is any.

        `further` is what to do about one that is none of these by mistake.
        """
        known = [*needed, *(others or ())]
        unknown = [name for name in self.columns if name not in known]
        if unknown and others is not None:
            raise InputError(
                f"{self._header}: unknown column {short(unknown[0])}, expected {', '.join(known)}."
                + (_meant(unknown[0], known) or further)
            )
        for name in needed:
            if name not in self.columns:
                raise InputError(
                    f"{self._header}: expected {self._what} with a header that has "
                    f"{', '.join(needed)}, got {short(self.columns)}."
                    + (_meant(unknown[0], needed) if unknown else "")
                )

    def rows(self, as_written: Collection[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
        """The line on which each row begins, and its cells by column.

        Args:
          as_written: columns whose cells keep the spaces around them (see `named`).

        Raises:
          InputError: a row of another length than the header, or no row.
        """
        number, found = len(self.columns), False
        kept = [place for place, name in enumerate(self.columns) if name in as_written]
        for line, cells in self._csv_rows:
            if len(cells) != number:
                raise InputError(
                    f"{self.path}, line {line}: expected as many cells as the header has "
                    f"({number}), got {len(cells)}; quote commas"
                )
            stripped = [cell.strip() for cell in cells]
            for place in kept:
                stripped[place] = cells[place]
            yield line, dict(zip(self.columns, stripped, strict=True))
            found = True
        if not found:
            raise InputError(
                f"{self.path}: expected {self._what} with at least one row after the header, got "
                "none"
            )


def _meant(name: str, known: Sequence[str]) -> str:
    if ";" in name or "\t" in name:
        return " Cells are separated by commas"
    return did_you_mean(name[:100].lower(), list(known))


def named(folder: str | Path, cell: str) -> str:
    """The file of a cell; spaces around a name are none of it, unless a file is called so."""
    usual = cell.strip()
    return cell if cell != usual and os.path.lexists(os.path.join(folder, cell)) else usual


def write_rows(file: io.TextIOBase, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Writes a header and rows, which are read back to the letter; cells that lack stay empty."""
    writer = csv.writer(file, lineterminator="\n")
    # Python before 3.13 does not quote a carriage return, which ends a line when it is read, and
    # spaces before a cell that is not quoted are none of it.
    quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        lost = any("\r" in cell or cell.startswith(" ") for cell in map(str, cells))
        (quoting if lost else writer).writerow(cells)


def csv_text(columns: Sequence[str], rows: Iterable[dict]) -> str:
    """What `write_rows` writes."""
    text = io.StringIO()
    write_rows(text, columns, rows)
    return text.getvalue()
