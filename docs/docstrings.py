"""How docstrings become pages: what they set in columns, and examples, are shown as they are."""

import re

import griffe

# An example outside a section "Examples:", or a list of names with what they are, in columns.
BLOCKS = re.compile(r"(?m)^(?:>>> .*\n(?:(?!$).+\n?)*|(?:\w[\w, ]*? {2,}\S.*\n(?: {4,}.+\n)*){2,})")
# Several parameters that share their words.
SHARED = re.compile(r"(?m)^( +)(\w+(?:, \w+)+): (.*\n(?:\1 +\S.*\n)*)")


class AsWritten(griffe.Extension):
    """Fences around what Markdown would take for quotations or a paragraph."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            text = SHARED.sub(_each, obj.docstring.value + "\n")
            obj.docstring.value = BLOCKS.sub(_fenced, text).rstrip()


def _fenced(found: re.Match) -> str:
    language = "pycon" if found[0].startswith(">>>") else "text"
    return f"```{language}\n{found[0].rstrip()}\n```\n"


def _each(found: re.Match) -> str:
    indent, names, words = found.groups()
    return "".join(f"{indent}{name}: {words}" for name in names.split(", "))
