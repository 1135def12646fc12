"""The picture of the house in docs/architecture.md is true: rooms, floors, no circle, and the way to the loop."""

import ast
import graphlib
import re

import pytest

from tests.training import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
PICTURE = PAGE.split("```")[1]
PROGRAMS = ("bench", "scripts", "gpt2", "lib")
# Modules in no room, and the room they belong to.
OUTSIDE = {"lib": "lib/track/", "lib.espalier_tracker": "lib/track/", "lib.hold_masks": "lib/prune/"}


def floors():
    """Room -> floor, as the picture has it: `lib/base/` -> 0."""
    found, floor = {}, None
    for line in PICTURE.splitlines():
        if room := re.match(r"(\d| )  ([a-z0-9_/]+/) ", line):
            floor = int(room[1]) if room[1].strip() else floor
            found[room[2]] = floor
    return found


FLOORS = floors()


def module_names():
    """The dotted name of every module of the product -> its file."""
    files = [path for top in PROGRAMS for path in (ROOT / top).rglob("*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    return {".".join(name[:-1] if name[-1] == "__init__" else name): path for path, name in names.items()}


MODULES = module_names()


def room_of(module):
    """The room of a module, the deepest one that holds it: gpt2.data.shards -> gpt2/data/."""
    path = module.replace(".", "/") + "/"
    return max((room for room in FLOORS if path.startswith(room)), key=len, default=OUTSIDE.get(module))


def imports(source, modules=MODULES):
    """The modules of the product that a source imports anywhere, also in functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & set(modules)


IMPORTS = {module: imports(path.read_text()) - {module} for module, path in MODULES.items()}


def test_imports_are_found_wherever_they_are():
    source = "if TYPE_CHECKING:\n    import lib.a\ndef f():\n    from lib import b, name"
    assert imports(source, {"lib", "lib.a", "lib.b", "lib.c"}) == {"lib", "lib.a", "lib.b"}


def test_the_picture_has_every_room():
    assert FLOORS["lib/base/"] == 0
    assert FLOORS["bench/"] == FLOORS["scripts/"] == 9
    assert len(FLOORS) <= 21
    assert [module for module in MODULES if not room_of(module)] == []
    assert [room for room in FLOORS if not (ROOT / room).is_dir()] == []
    counts = re.search(r"lives in (\d+) rooms on (\d+) floors", PAGE)
    assert counts.groups() == (str(len(FLOORS)), str(len(set(FLOORS.values()))))


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_from_lower_floors_only(room):
    wrong = [
        f"{module} imports {imported}"
        for module in MODULES
        if room_of(module) == room
        for imported in IMPORTS[module]
        if room_of(imported) != room and FLOORS[room_of(imported)] >= FLOORS[room]
    ]
    assert sorted(wrong) == []


def test_no_module_imports_itself_by_a_detour():
    try:
        graphlib.TopologicalSorter(IMPORTS).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_way_to_the_loop_exists():
    way = re.findall(r"^\| `([a-z0-9_/]+\.py)` \| (`\w+`(?:, `\w+`)*) \|", PAGE, flags=re.MULTILINE)
    assert [path for path, _ in way][1:3] == ["gpt2/train.py", "gpt2/session.py"]
    assert 5 <= len(way) <= 8
    for path, names in way:
        defined = {node.name for node in ast.parse((ROOT / path).read_text()).body if hasattr(node, "name")}
        assert set(re.findall(r"\w+", names)) <= defined, path
    assert IMPORTS["gpt2.train"] >= {"gpt2.session", "lib.config.command_line"}
    assert IMPORTS["gpt2.session"] >= {"gpt2.loop", "gpt2.training", "gpt2.recorder", "gpt2.ending"}


def test_files_and_links_that_the_page_names_exist():
    names = set(re.findall(r"`((?:lib|gpt2|tests)/[\w/]+\.py)`", PAGE)) | set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([\w/.]+)\)", PAGE)
    assert "extending.md" in links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
