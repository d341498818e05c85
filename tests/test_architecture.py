"""The house stands as its map says: order, cycles, what the mathematics needs, what importing does.

The map is the docstring of `scav_jax`, read here, so that it cannot drift from the code. Imports
are read from the syntax tree, those inside functions too.
"""

import ast
import graphlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scav_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scav_jax"
MATHEMATICS = (
    *("sequences", "sharding", "encoders", "distances", "views", "objectives"),
    *("optimizer", "gradient_cache", "train_step", "retrieve", "metrics"),
)
# The house's size: it may not grow without a decision.
MOST_ROOMS, MOST_ARROWS, MOST_FLOORS = 28, 130, 9
MOST_LINES, MOST_PARAMETERS = 60, 8  # of a function
# Classes that several modules have, and mean the same: what an objective learns beside the towers,
# what the loss sees of clips (a tree for who caches gradients), tensors of others by their names.
SHARED_NAMES = {"Heads", "Outputs", "State"}
# The mathematics imports none of these itself, and runs where all but the first two are missing,
# which flax needs.
NOT_FOR_MATHEMATICS = (
    *("absl", "orbax", "array_record", "av", "grain", "matplotlib", "PIL"),
    *("tensorboardX", "tensorflow_datasets", "tqdm", "transformers"),
)
CAN_BE_MISSING = NOT_FOR_MATHEMATICS[2:]
OTT = "ott"  # takes seconds to import: inside functions only
LATE = "scav_jax.distances.sinkhorn"  # a subclass of ott's: itself imported where it is used
NOBODY_IMPORTS = ("train", "evaluate", "probe", "score", "export", "inspect", "web")


def module_map(docstring: str) -> list[str]:
    """The modules of a map, top to bottom: lines of `    name    what it is`."""
    return re.findall(r"^    (\w+) {2,}\S", docstring, flags=re.MULTILINE)


def module_name(path: Path) -> str:
    """`scav_jax.distances.dtw` of a file; a package has the name of its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {module_name(path) for path in PACKAGE.rglob("__init__.py")}


def absolute(node: ast.ImportFrom, importer: str, packages: set[str]) -> str:
    """The module of a `from`, with the dots of a relative import written out."""
    if node.level == 0:
        return node.module
    parents = importer.split(".")[: None if importer in packages else -1]
    parents = parents[: len(parents) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def imports(
    source: str, importer: str, modules: set[str], packages: set[str]
) -> list[tuple[str, bool]]:
    """What a module imports, as (dotted name, whether at module level).

    `from package import name` is `package.name` where that is a module, else `package`.
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found, nodes = [], [(ast.parse(source), False)]
    for node, inside in nodes:  # which grows; an import is no part of an expression
        inside = inside or isinstance(node, functions)
        children = ast.iter_child_nodes(node)
        nodes += [(child, inside) for child in children if not isinstance(child, ast.expr)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, importer, packages)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in names]
        else:
            continue
        found += [(name, not inside) for name in dict.fromkeys(names)]
    return found


IMPORTS = {name: imports(source, name, set(SOURCES), PACKAGES) for name, source in SOURCES.items()}
MODULE_MAP = module_map(scav_jax.__doc__)


def room(module: str) -> str:
    """The name on the map that a module belongs to; "" is `scav_jax` itself, and `scav`."""
    return module.removesuffix(".__main__").partition(".")[2].partition(".")[0]


def against_the_order(imported: dict[str, list[tuple[str, bool]]], order: list[str]) -> list[str]:
    """Every import that does not go upwards on the map, in words."""
    place = {name: number for number, name in enumerate(order)}
    return [
        f"{importer} imports {name}"
        for importer, names in imported.items()
        for name, _ in names
        if name.startswith("scav_jax.") and room(importer) and room(importer) != room(name)
        if place[room(name)] >= place[room(importer)]
    ]


def test_map_names_every_module_and_nothing_else():
    files = {room(name) for name in SOURCES} - {""}
    assert len(MODULE_MAP) == len(set(MODULE_MAP))
    assert set(MODULE_MAP) == files, (
        f"not on the map: {sorted(files - set(MODULE_MAP))}; "
        f"on the map only: {sorted(set(MODULE_MAP) - files)} (the docstring of scav_jax)"
    )


def test_imports_go_upwards_on_the_map():
    assert against_the_order(IMPORTS, MODULE_MAP) == []


def test_the_house_is_small():
    arrows = {
        (room(importer), room(name))
        for importer, names in IMPORTS.items()
        for name, _ in names
        if name.startswith("scav_jax.") and room(importer) not in ("", room(name))
    }
    below: dict[str, set[str]] = {name: set() for name in MODULE_MAP}
    for importer, name in arrows:
        below[importer].add(name)
    floors: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(below).static_order():
        floors[name] = 1 + max((floors[other] for other in below[name]), default=0)
    assert len(MODULE_MAP) <= MOST_ROOMS
    assert len(arrows) <= MOST_ARROWS
    assert max(floors.values()) <= MOST_FLOORS


def too_large(source: str) -> list[str]:
    """The functions with too many lines or parameters; `self` and `cls` are none."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            names += [arg.arg for arg in (given.vararg, given.kwarg) if arg]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_LINES or parameters > MOST_PARAMETERS:
                found.append(f"{node.name}: {lines} lines, {parameters} parameters")
    return found


def test_functions_are_small():
    large = {name: too_large(source) for name, source in SOURCES.items()}
    assert {name: found for name, found in large.items() if found} == {}


def classes(source: str) -> list[str]:
    """Public classes of a module, and aliases of types that are named like one."""
    names = []
    for node in ast.parse(source).body:
        targets = [node] if isinstance(node, ast.ClassDef) else getattr(node, "targets", [])
        names += [getattr(target, "name", getattr(target, "id", "")) for target in targets]
    return [name for name in names if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)]


def test_a_class_means_one_thing():
    modules: dict[str, list[str]] = {}
    for module, source in SOURCES.items():
        for name in classes(source):
            modules.setdefault(name, []).append(module)
    several = {name: found for name, found in modules.items() if len(found) > 1}
    assert set(several) == SHARED_NAMES, several


def test_package_itself_imports_nothing():
    assert IMPORTS["scav_jax"] == []


def test_no_import_cycle():
    ours = {
        importer: {name for name, _ in names if name in SOURCES and name != importer}
        for importer, names in IMPORTS.items()
    }
    graphlib.TopologicalSorter(ours).prepare()  # CycleError names the ring


def test_nobody_imports_a_program():
    wrong = [
        f"{importer} imports {name}"
        for importer, names in IMPORTS.items()
        for name, _ in names
        if room(name) in NOBODY_IMPORTS or name.endswith("__main__")
        if room(importer) != room(name) or name.endswith("__main__")
    ]
    assert wrong == []


def test_mathematics_imports_mathematics_only():
    for importer, names in IMPORTS.items():
        if room(importer) in MATHEMATICS:
            libraries = {name.partition(".")[0] for name, _ in names}
            assert not libraries & set(NOT_FOR_MATHEMATICS), importer


def test_ott_is_imported_where_it_is_used():
    """Its import takes seconds: only the module that is itself imported late may name it on top."""
    at_module_level = [
        importer
        for importer, names in IMPORTS.items()
        if any(top and (name.partition(".")[0] == OTT or name == LATE) for name, top in names)
    ]
    assert at_module_level == [LATE]


def test_only_sharding_names_a_partition_spec():
    def names(source: str) -> set[str]:
        nodes = list(ast.walk(ast.parse(source)))
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        return used | {
            n.name for node in nodes if isinstance(node, ast.ImportFrom) for n in node.names
        }

    users = {name for name, source in SOURCES.items() if "PartitionSpec" in names(source)}
    assert users == {"scav_jax.sharding"}


def test_every_library_is_declared():
    """A library that another one happens to bring along is declared all the same.

    What only an option needs may be an extra, if it is imported inside a function.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for some in project["optional-dependencies"].values() for text in some]
    always, late = (
        {normalized(re.match(r"[\w.-]+", text)[0]) for text in texts}
        for texts in (project["dependencies"], project["dependencies"] + extras)
    )
    providers = importlib.metadata.packages_distributions()
    for importer, names in IMPORTS.items():
        for name, on_top in {(name.partition(".")[0], on_top) for name, on_top in names}:
            if name not in sys.stdlib_module_names and name != "scav_jax":
                by = {normalized(provider) for provider in providers.get(name, [name])}
                declared = always if on_top else late
                assert by & declared, f"{importer} imports {name} ({by})"


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


IMPORT_ALL = """
import importlib, json, os, platform, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r} (absent on purpose)", name=name)

ABSENT, MODULES, SYSTEM = json.loads(sys.argv[1])
platform.system = lambda: SYSTEM
sys.meta_path.insert(0, Absent())
environment = dict(os.environ)
for name in MODULES:
    importlib.import_module(name)
flags = sys.modules.get("absl.flags")
bridge = sys.modules.get("jax._src.xla_bridge")
print(json.dumps({
    "devices": sorted(bridge._backends) if bridge else [],
    "flags": sorted(f.name for module, fs in flags.FLAGS.flags_by_module_dict().items()
                    for f in fs if module.startswith("scav_jax")) if flags else [],
    "environment": sorted(k for k in {*environment, *os.environ} if k.startswith(("JAX", "XLA"))
                          and environment.get(k) != os.environ.get(k)),
    "ott": "ott" in sys.modules,
}))
"""


def import_elsewhere(
    modules: list[str],
    folder: Path,
    absent: tuple[str, ...] = (),
    system: str = platform.system(),
) -> dict:
    """Imports modules in a new interpreter, in an empty folder, and says what that touched."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps([absent, modules, system])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "files": os.listdir(folder)}


@pytest.mark.slow
def test_importing_touches_no_device_no_file_no_flag(tmp_path):
    everything = [name for name in SOURCES if not name.endswith("__main__") and name != LATE]
    touched = import_elsewhere(everything, tmp_path)
    assert touched == {"devices": [], "flags": [], "environment": [], "ott": False, "files": []}


def test_importing_the_package_needs_no_jax(tmp_path):
    import_elsewhere(["scav_jax"], tmp_path, absent=("jax", "numpy", *NOT_FOR_MATHEMATICS))


@pytest.mark.slow
def test_mathematics_imports_without_the_rest(tmp_path):
    modules = [name for name in SOURCES if room(name) in MATHEMATICS and name != LATE]
    assert len(modules) > len(MATHEMATICS)
    import_elsewhere(modules, tmp_path, absent=(OTT, *CAN_BE_MISSING))


@pytest.mark.slow
def test_files_are_searched_and_scored_without_array_record(tmp_path):
    """Which has no wheel for Windows; Grain does without it there."""
    modules = ["index", "retrieval.model", "search.asking", "score.program", "web.uploads"]
    names = [f"scav_jax.{name}" for name in modules]
    import_elsewhere(names, tmp_path, absent=("array_record", "resource"), system="Windows")


# The rules above pass on a house in order; these show that they see one that is not.


def test_order_sees_an_import_inside_a_function():
    source = "def f():\n    from scav_jax import train\n    from .sequences import g\n"
    modules = {"scav_jax.train", "scav_jax.sequences", "scav_jax.optimizer"}
    found = imports(source, "scav_jax.optimizer", modules, {"scav_jax"})
    assert found == [("scav_jax.train", False), ("scav_jax.sequences", False)]
    order = ["sequences", "optimizer", "train"]
    wrong = against_the_order({"scav_jax.optimizer": found}, order)
    assert wrong == ["scav_jax.optimizer imports scav_jax.train"]


def test_large_functions_are_seen():
    lines = "\n".join(["    pass"] * MOST_LINES)
    parameters = ", ".join(f"p{number}" for number in range(MOST_PARAMETERS))
    small = f"def f(self, {parameters}):\n    pass\n"
    large = f"def g():\n{lines}\nasync def h({parameters}, *more):\n    pass\n"
    assert too_large(small + large) == ["g: 61 lines, 0 parameters", "h: 2 lines, 9 parameters"]


@pytest.mark.parametrize("importer, expected", [("a.b", "a.c"), ("a", "a.c")])
def test_relative_imports_are_written_out(importer, expected):
    node = ast.parse("from .c import d").body[0]
    assert absolute(node, importer, packages={"a"}) == expected


def test_map_is_read_from_indented_lines_only():
    text = "Title  x.\n\nwords\n    one     first\n            goes on\n    two_2   second\n"
    assert module_map(text) == ["one", "two_2"]


def test_absent_libraries_are_really_absent(tmp_path):
    with pytest.raises(AssertionError, match="absent on purpose"):
        import_elsewhere(["scav_jax.sequences"], tmp_path, absent=("flax",))
