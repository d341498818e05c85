"""Filters: what they mean, row by row in Python, and what is no condition is refused at once."""

import operator
import random
import time

import pytest
from test_index import embedded, made

from scav_jax.base.conditions import NUMBER, TEXT, as_sql
from scav_jax.base.errors import InputError
from scav_jax.index import rows

COLUMNS = {"id": TEXT, "label": TEXT, "start": NUMBER, "end": NUMBER}
SIGNS = {"=": operator.eq, "==": operator.eq, "<>": operator.ne, "!=": operator.ne} | {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def number(chance, depth=0):
    """A sum in words, and the function of a row that it is."""
    kind = chance.choice(["column", "value", "plus", "times", "minus"] if depth < 2 else ["column"])
    if kind == "column":
        name = chance.choice(["start", "END", "`end`"])
        return name, lambda row: row[name.strip("`").lower()]
    if kind == "value":
        value = chance.choice([0, 3, 7.5, 20])
        return f"{value}", lambda row: value
    (a, left), (b, right) = number(chance, depth + 1), number(chance, depth + 1)
    if kind == "minus":
        return f"-({a})", lambda row: -left(row)
    if kind == "plus":
        return f"({a} + {b})", lambda row: left(row) + right(row)
    return f"({a}) * {b}", lambda row: left(row) * right(row)


def condition(chance, depth=0):
    """A condition in words, and the function of a row that it is."""
    kinds = ["numbers", "texts", "in", "between", "like", "and", "or", "not", "brackets"]
    kind = chance.choice(kinds if depth < 3 else kinds[:5])
    if kind == "numbers":
        sign, (a, left), (b, right) = chance.choice([*SIGNS]), number(chance), number(chance)
        return f"{a} {sign} {b}", lambda row: SIGNS[sign](left(row), right(row))
    if kind == "texts":
        sign, value = chance.choice([*SIGNS]), chance.choice(["dog", "it's", "cl;--ip"])
        quoted = value.replace("'", "''")
        return f"label{sign}'{quoted}'", lambda row: SIGNS[sign](row["label"], value)
    denied = chance.choice(["", "NOT "])
    if kind == "in":
        words = f"lower(label) {denied}in ('dog', 'it''s')"
        return words, lambda row: (row["label"] in ("dog", "it's")) != bool(denied)
    if kind == "between":
        words = f"start {denied}Between 4 And 3+9"
        return words, lambda row: (4 <= row["start"] <= 12) != bool(denied)
    if kind == "like":
        return f"id {denied}LIKE '%1'", lambda row: row["id"].endswith("1") != bool(denied)
    a, first = condition(chance, depth + 1)
    if kind == "not":
        return f"not ({a})", lambda row: not first(row)
    if kind == "brackets":
        return f"({a})", first
    b, second = condition(chance, depth + 1)
    joined = {"and": lambda row: first(row) and second(row), "or": None}[kind]
    joined = joined or (lambda row: first(row) or second(row))
    return f"({a}) {kind} ({b})", joined


def test_conditions_mean_what_they_say(tmp_path):
    index, clips, chance = made(tmp_path / "i", 24), embedded(24), random.Random(1)
    rows = [
        {"id": one, "label": label, "start": start, "end": end}
        for one, label, start, end in zip(
            clips.ids, clips.labels, clips.starts, clips.ends, strict=True
        )
    ]
    seen = set()
    for _ in range(60):
        words, holds = condition(chance)
        wanted = {row["id"] for row in rows if holds(row)}
        (hits,) = index.search(clips.take([0]), "a2v", 24, "aggregation", words)
        assert {hit.id for hit in hits} == wanted, words
        seen.add(len(wanted))
    assert len(seen) > 6
    # AND binds more than OR, NOT more than both; signs in a row go from left to right.
    (hits,) = index.search(
        clips.take([0]), "a2v", 24, "aggregation", "start = 0 or start = 2 and not end < 9 - 3 - 2"
    )
    assert {hit.start for hit in hits} == {0.0}
    for words, count in (("label is not null and TRUE", 24), ("id is null or false", 0)):
        (hits,) = index.search(clips.take([0]), "a2v", 24, "aggregation", words)
        assert len(hits) == count


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("label = 'dog';", "';': a filter is one condition"),
        ("label = 'dog'; DROP TABLE x", "';': a filter is one condition"),
        ("label = 'dog' -- all", "No field named all"),
        ("label = 'dog' /* all */", "'\\*' where a column"),
        ("label = 'dog' start", "'start' after a whole condition"),
        ("label = 'dog", "a text that does not end"),
        ('label = "dog"', "No field named dog"),
        ("lable = 'dog'", "No field named lable. Did you mean 'label'"),
        ("key = 3", "No field named key"),
        ("regexp_match(label, '(a*)*b')", "the function 'regexp_match'"),
        ("repeat('a', 999999999) = label", "the function 'repeat'"),
        ("start = '3'", "a text .* where a number"),
        ("label", "a text .* where a condition"),
        ("start and end", "a number .* where a condition"),
        ("label in (select 1)", "No field named select"),
        ("label in 'dog'", "\"'dog'\" where '\\(' should be"),
        ("label like id", "'id' after LIKE, expected a 'text'"),
        ("label not = 'dog'", "'=' after NOT, expected IN, LIKE or BETWEEN"),
        ("", "'its end' where"),
        ("start < 1e999", "below 1e308"),
        ("\0", "which no condition has"),
        ("(" * 99 + "true" + ")" * 99, "more than 12 deep"),
        ("not " * 99 + "true", "more than 12 deep|operators"),
        ("start = 1 or " * 999 + "true", "expected at most 256"),
        ("1" + "+1" * 999 + " > start", "expected at most 256"),
        ("label = '" + "x" * 200_000 + "'", "expected at most 100,000"),
    ],
)
def test_what_is_no_condition_is_refused_before_anything_is_read(words, said):
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"filter .*expected a condition on .*{said}") as raised:
        as_sql(words, COLUMNS)
    assert len(str(raised.value)) < 600 and time.monotonic() - begin < 1


def test_a_filter_has_a_time_limit(tmp_path, monkeypatch):
    index = made(tmp_path / "i", 3)
    monkeypatch.setattr(rows, "FILTER_SECONDS", 1e-9)
    with pytest.raises(InputError, match="no answer within 1e-09 s"):
        index.search(embedded(1), "a2v", 1, "exact", "start < 9")
    index.search(embedded(1), "a2v", 1, "exact")  # what nobody wrote has none
