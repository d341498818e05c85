"""Conditions on named columns, as in SQL, checked before anything is done with them.

    condition  = and { OR and }            and = not { AND not }
    not        = NOT not | ( condition ) | comparison | TRUE | FALSE
    comparison = sum (= == != <> < <= > >=) sum
               | sum [NOT] IN ( value, ... )  | sum [NOT] BETWEEN sum AND sum
               | sum [NOT] LIKE 'text'  (also ILIKE) | sum IS [NOT] NULL
    sum        = product { (+ -) product } product = value { (* /) value }
    value      = column | number | 'text' | - value | ( sum ) | lower, upper, length ( sum )

Nothing else is taken: what a condition costs grows with its length and the number of rows only.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from scav_jax.base.errors import InputError, did_you_mean

MOST_CHARACTERS = 100_000
MOST_DEPTH = 12
MOST_OPERATORS = 256  # lists of IN are free: they cost no depth where the condition is evaluated
TEXT, NUMBER, TRUTH = "text", "number", "condition"
FUNCTIONS = {"lower": TEXT, "upper": TEXT, "length": NUMBER}  # of text
COMPARISONS = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">"} | {
    ">=": ">="
}
KEYWORDS = {"and", "or", "not", "in", "between", "like", "ilike", "is", "null", "true", "false"}
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<text>'(?:[^']|'')*')
    | (?P<word>[^\W\d]\w*)
    | "(?P<quoted>[^"]+)" | `(?P<ticked>[^`]+)`
    | (?P<sign><=|>=|<>|!=|==|[=<>()+\-*/,])
    )""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str  # number, text, word (a keyword too), column, sign, end
    value: str  # words in lower case


class _Expression(NamedTuple):
    kind: str
    sql: str


class Wrong(ValueError):
    """Why it is no condition."""


def as_sql(text: str, columns: Mapping[str, str]) -> str:
    """A condition in one spelling, all of whose parts are known.

    Args:
      text: what somebody wrote.
      columns: the name of each column, and `TEXT` or `NUMBER`.

    Raises:
      InputError: anything but a condition on these columns.

    >>> as_sql("Label = 'dog' and not (start<6e1)", {"label": TEXT, "start": NUMBER})
    "((`label` = 'dog') AND (NOT (`start` < 60.0)))"
    """
    try:
        if len(text) > MOST_CHARACTERS:
            raise Wrong(f"{len(text):,} characters, expected at most {MOST_CHARACTERS:,}")
        return _ConditionParser(_tokens(text), columns).whole()
    except Wrong as wrong:
        said = text if len(text) <= 200 else text[:200] + " ..."
        names = list(columns)
        raise InputError(
            f"filter {said!r}: expected a condition on {', '.join(names[:-1])} or {names[-1]} such "
            f"as \"label = 'dog' AND start < 60\", got: {wrong}"
        ) from None


def _tokens(text: str) -> list[_Token]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            if rest[0] == "'":
                raise Wrong(f"a text that does not end: {rest[:40]}")
            if rest[0] == ";":
                raise Wrong("';': a filter is one condition; a ';' of a text stands in quotes")
            raise Wrong(f"{rest[0]!r}, which no condition has")
        kind, at = str(match.lastgroup), match.end()
        value = match[kind]
        if kind in ("quoted", "ticked"):
            kind = "column"
        found.append(_Token(kind, value.lower() if kind == "word" else value))
    return [*found, _Token("end", "its end")]


class _ConditionParser:
    """One token after the other, from left to right."""

    def __init__(self, tokens: list[_Token], columns: Mapping[str, str]):
        self._tokens, self._columns = tokens, columns
        self._at = self._depth = 0
        operators = sum(kind == "sign" and value not in "()," for kind, value in tokens)
        operators += sum(kind == "word" and value in KEYWORDS for kind, value in tokens)
        if operators > MOST_OPERATORS:
            raise Wrong(f"{operators} operators, expected at most {MOST_OPERATORS}")

    def whole(self) -> str:
        found = self._truth()
        if self._next.kind != "end":
            raise Wrong(f"{self._next.value!r} after a whole condition")
        return found.sql

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *values: str) -> str | None:
        """The next token's value if it is one of these signs or words."""
        kind, value = self._next
        if kind not in ("sign", "word") or value not in values:
            return None
        self._at += 1
        return value

    def _need(self, value: str) -> None:
        if self._take(value) is None:
            raise Wrong(f"{self._next.value!r} where {value.upper()!r} should be")

    def _deeper(self, read: Callable[[], _Expression]) -> _Expression:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise Wrong(f"parentheses or signs more than {MOST_DEPTH} deep")
        found = read()
        self._depth -= 1
        return found

    def _all(self, word: str, read: Callable[[], _Expression]) -> _Expression:
        parts = [read()]
        while self._take(word):
            parts.append(read())
        if len(parts) == 1:
            return parts[0]
        for part in parts:
            _check(part, TRUTH)
        return _Expression(TRUTH, "(" + f" {word.upper()} ".join(part.sql for part in parts) + ")")

    def _truth(self) -> _Expression:
        found = self._all("or", lambda: self._all("and", self._negation))
        _check(found, TRUTH)
        return found

    def _negation(self) -> _Expression:
        if not self._take("not"):
            return self._comparison()
        denied = self._deeper(self._negation)
        _check(denied, TRUTH)
        return _Expression(TRUTH, f"(NOT {denied.sql})")

    def _comparison(self) -> _Expression:
        if word := self._take("true", "false"):
            return _Expression(TRUTH, word.upper())
        left = self._sum()
        if sign := self._take(*COMPARISONS):
            return _Expression(TRUTH, f"({left.sql} {COMPARISONS[sign]} {self._like(left).sql})")
        if self._take("is"):
            denied = "NOT " if self._take("not") else ""
            self._need("null")
            return _Expression(TRUTH, f"({left.sql} IS {denied}NULL)")
        denied = "NOT " if self._take("not") else ""
        if self._take("between"):
            low = self._like(left)
            self._need("and")
            return _Expression(
                TRUTH, f"({left.sql} {denied}BETWEEN {low.sql} AND {self._like(left).sql})"
            )
        if word := self._take("like", "ilike"):
            _check(left, TEXT)
            if self._next.kind != "text":
                raise Wrong(f"{self._next.value!r} after {word.upper()}, expected a 'text'")
            return _Expression(TRUTH, f"({left.sql} {denied}{word.upper()} {self._value().sql})")
        if self._take("in"):
            self._need("(")
            values = [self._like(left).sql]
            while self._take(","):
                values.append(self._like(left).sql)
            self._need(")")
            return _Expression(TRUTH, f"({left.sql} {denied}IN ({', '.join(values)}))")
        if denied:
            raise Wrong(f"{self._next.value!r} after NOT, expected IN, LIKE or BETWEEN")
        return left

    def _like(self, left: _Expression) -> _Expression:
        """What is compared with `left`, of the same kind."""
        right = self._sum()
        _check(right, left.kind)
        return right

    def _sum(self) -> _Expression:
        return self._operations(("+", "-"), lambda: self._operations(("*", "/"), self._value))

    def _operations(self, signs: tuple[str, ...], read: Callable[[], _Expression]) -> _Expression:
        found = read()
        sql = [found.sql]
        while sign := self._take(*signs):
            right = read()
            _check(found, NUMBER)
            _check(right, NUMBER)
            sql += [sign, right.sql]
        return found if len(sql) == 1 else _Expression(NUMBER, f"({' '.join(sql)})")

    def _value(self) -> _Expression:
        kind, value = self._next
        if self._take("("):
            found = self._deeper(lambda: self._all("or", lambda: self._all("and", self._negation)))
            self._need(")")
            return found
        if self._take("-"):
            found = self._deeper(self._value)
            _check(found, NUMBER)
            return _Expression(NUMBER, f"(-{found.sql})")
        if kind not in ("number", "text", "column", "word") or value in KEYWORDS:
            raise Wrong(f"{value!r} where a column, a number or a 'text' should be")
        self._at += 1
        if kind == "number":
            return _Expression(NUMBER, _number(value))
        if kind == "text":
            return _Expression(TEXT, value)
        if kind == "word" and self._take("("):
            return self._function(value)
        return self._column(value)

    def _function(self, name: str) -> _Expression:
        if name not in FUNCTIONS:
            raise Wrong(f"the function {name!r}; there are {', '.join(FUNCTIONS)}")
        found = self._deeper(self._sum)
        _check(found, TEXT)
        self._need(")")
        return _Expression(FUNCTIONS[name], f"{name}({found.sql})")

    def _column(self, name: str) -> _Expression:
        if name not in self._columns:
            hint = did_you_mean(name, list(self._columns))
            raise Wrong(f"No field named {name}.{hint} (texts stand in single quotes)")
        return _Expression(self._columns[name], f"`{name}`")


def _number(digits: str) -> str:
    value = float(digits)
    if math.isinf(value):
        raise Wrong(f"{digits[:40]}, expected a number below 1e308")
    return repr(value)


def _check(part: _Expression, kind: str) -> None:
    if part.kind != kind:
        raise Wrong(f"a {part.kind} ({part.sql[:60]}) where a {kind} should be")
