"""A probe's figures as tables, for the terminal, a page of their own and a report's section."""

from html import escape
from pathlib import Path

from scav_jax.base.documents import read_document
from scav_jax.report import markup
from scav_jax.retrieval.results import few_clips, percent

FILE = "probe.json"
STREAM_NAMES = markup.STREAM_WORDS | {"both": "both"}
TitledTable = tuple[str, list[str], list[list[str]]]  # title, head, rows


def folder(run: Path, data: Path, split: str) -> Path:
    """Where a run's probe of a split is written."""
    return run / "probe" / f"{data.resolve().name}-{split}"


def read(run: Path, data: Path, split: str, ids_sha256: str) -> dict | None:
    """A run's probe of these very clips; None where there is none."""
    file = folder(run, data, split) / FILE
    try:
        document = read_document(file, "the figures of a probe", "remove it, or probe again")
    except FileNotFoundError:
        return None
    return document if document["data"]["ids_sha256"] == ids_sha256 else None


def tables(document: dict) -> list[TitledTable]:
    """What there is: labels, tasks, changes; shares in percent."""
    made = [_labels(document), _tasks(document), _changes(document)]
    return [table for table in made if table[2]]


def _labels(document: dict) -> TitledTable:
    head = ["labels", "linear probe", "chance", "C", "clips", "left out", "1 nearest", "5", "10"]
    rows = []
    for stream, found in document["labels"].items():
        near = document["neighbours"][stream]
        rows.append(
            [
                STREAM_NAMES[stream],
                percent(found["accuracy"]),
                percent(found["chance"]),
                f"{found['C']:g}",
                f"{found['n']:,}",
                f"{found['left_out']:,}",
                *(percent(near[k]) if k in near else "-" for k in ("1", "5", "10")),
            ]
        )
    return "Labels from frozen features, accuracy in %", head, rows


def _tasks(document: dict) -> TitledTable:
    known = ("accuracy", "error", "prior", "n")
    tasks = document["tasks"]
    controls = [key for key in next(iter(tasks.values()), {}) if key not in known]
    rows = [
        [
            name.replace("_", " "),
            f"{percent(found['accuracy'])} ± {percent(found['error'])}",
            percent(found["prior"]),
            *(percent(found[control]) for control in controls),
            f"{found['n']:,}",
        ]
        for name, found in tasks.items()
    ]
    title = "Its own tasks on fixed views, accuracy in %"
    return title, ["task", "accuracy", "prior", *controls, "clips"], rows


def _changes(document: dict) -> TitledTable:
    rows = [
        [
            change,
            *(percent(found[asked]) for asked in STREAM_NAMES),
            f"{found['n']:,}",
            f"{found['rejected']:,}",
        ]
        for change, found in document["changes"].items()
    ]
    head = ["change", *STREAM_NAMES.values(), "clips", "rejected"]
    among = f"{document['data']['n']:,} clips"
    title = f"Changed copies that find their original among {among}, R@1 in %"
    return title, head, rows


def notes(document: dict) -> list[str]:
    """What is left out and why, and what so few clips cannot tell."""
    counts = [document["data"]["n"], *(found["n"] for found in document["changes"].values())]
    left_out = [f"no {part}: {why}" for part, why in document["left_out"].items()]
    if shared := document.get("chose_C"):
        left_out.append(
            f"C was chosen on {shared:,} of these very clips, so that the linear probe is the best "
            "of several there; --validation-split names others"
        )
    return left_out + few_clips(min(filter(None, counts)), "a share")


def section(document: dict) -> str:
    """A part of a page."""
    parts = []
    for title, head, rows in tables(document):
        cells = [[escape(cell) for cell in row] for row in rows]
        parts += [f"<h3>{escape(title)}</h3>", markup.table(head, cells)]
    parts += map(markup.note, notes(document))
    return markup.section(f"What the features tell ({document['name']})", *parts)


def html(document: dict) -> str:
    """A page of its own."""
    data = document["data"]
    title = f"{document['name']}: probe of {data['path']}, {data['split']}"
    header = f'<p class="kicker">Probe</p>\n<h1>{escape(title)}</h1>'
    return markup.document(title, header, [section(document)])
