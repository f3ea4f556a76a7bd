"""The arrows of the architecture are the only imports inside the project, and outside parts stay where they belong.

Every unit, a module or package right under `delivery/`, has its row. A new unit needs one, a new arrow a reason.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "delivery"

# Who may import whom. `errors` lies under everything and is left out.
ARROWS: dict[str, str] = {
    # the public surface, lazy
    "__init__": "api policy auth server",
    # what clients need too: no Django
    "errors": "",
    "escaping": "",
    "protocol": "",
    "reservation": "",
    "websocket": "",
    "client": "escaping protocol reservation websocket",
    # the ground of the server
    "conf": "",
    "checks": "conf protocol dispatch buffer policy",
    "signals": "",
    "models": "protocol conf",
    "policy": "models conf",
    "storage": "models conf reservation",
    "buffer": "conf protocol",  # the checksum of frames
    "notify": "conf buffer",
    "dispatch": "conf buffer",
    # what happens
    "transfers": "models storage buffer notify dispatch signals policy protocol conf",
    "api": "transfers models storage dispatch policy protocol conf notify",  # deliver(), adeliver()
    "tasks": "transfers dispatch worker conf",
    "worker": "conf notify buffer dispatch",
    # who speaks on a socket
    "auth": "escaping protocol conf policy",
    "server": "auth escaping websocket protocol transfers api notify conf buffer dispatch models policy",
    "routing": "server websocket",
    # what people see
    "urls": "views",
    "views": "api transfers models policy conf",
    "admin": "transfers models policy signals protocol conf",
    "forms": "transfers models policy conf",
    "templatetags": "conf models",
    "migrations": "models protocol",
    # processes
    "launch": "conf escaping websocket",
    "management": "launch websocket buffer server transfers worker dispatch models storage policy auth conf __init__",
    "apps": "checks worker signals conf models policy transfers escaping",
}

# Imports against the arrows that are meant, all of them inside a function.
UPWARDS = {("models", "api"): "payload.open(), attach(), discard(), url()"}

# Not an arrow but a shortcut for site code, taken when it is called: the one exception to "no circles".
LAZY = {("delivery.models", "delivery.api")}

# The only units that may import these packages from outside.
OUTSIDE = {
    "redis": {"buffer"},
    "celery": {"dispatch", "tasks", "worker", "launch", "apps"},
    "channels": {"notify", "routing", "server", "launch", "management"},
    "uvicorn": {"websocket"},
    "websockets": {"client", "websocket"},
    "crc32c": {"protocol"},
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WITHOUT_DJANGO = ("errors", "escaping", "protocol", "reservation", "websocket", "client")


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    unit: str  # that imports
    name: str  # what is imported, absolute
    local: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"

    @property
    def target(self) -> str | None:
        """The unit that is imported, None where it is outside of the project."""
        parts = self.name.split(".")
        if parts[0] != "delivery":
            return None
        return parts[1] if len(parts) > 1 and parts[1] in units() else "__init__"


def units() -> set[str]:
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")} | {"management"}
    return folders | {path.stem for path in PACKAGE.glob("*.py")}


def all_imports() -> Iterator[Import]:
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        tree = ast.parse(file.read_text(encoding="utf-8"))
        hidden = set(_type_checking(tree))
        local = {
            id(node) for function in ast.walk(tree) if isinstance(function, FUNCTIONS) for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if id(node) not in hidden:
                for name in _names(node, ("delivery", *parts)):
                    yield Import(file, node.lineno, parts[0], name, id(node) in local)


def _type_checking(tree: ast.Module) -> Iterator[int]:
    """Yield what stands under `if TYPE_CHECKING:` in the lazy public surface; it is checked by the lazy names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from (id(inner) for inner in ast.walk(node))


def _names(node: ast.AST, module: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        base = ".".join([*module[: -node.level], *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names] if base == "delivery" else [base]


IMPORTS = list(all_imports())


def test_every_unit_has_its_row():
    assert units() <= set(ARROWS)
    assert {target for row in ARROWS.values() for target in row.split()} <= set(ARROWS)


def test_the_arrows_are_the_only_imports():
    wrong = [
        str(found)
        for found in IMPORTS
        if found.target not in {None, found.unit, "errors", *ARROWS.get(found.unit, "").split()}
        and not (found.local and (found.unit, found.target) in UPWARDS)
    ]
    assert wrong == []


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in found.items()}


def edges() -> dict[str, set[str]]:
    """What each module imports of the project, in functions and under `if TYPE_CHECKING:` too."""
    known, found = modules(), {}
    for module, file in known.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        wanted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {name if name in known else node.module for name in inner}
        found[module] = {name for name in wanted if name in known and name != module and (module, name) not in LAZY}
    return found


def test_no_circles_of_imports() -> None:
    left = edges()
    while ends := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in ends}
    while begins := left.keys() - {target for targets in left.values() for target in targets}:
        left = {module: targets for module, targets in left.items() if module not in begins}
    assert left == {}


def test_every_exception_is_still_needed():
    used = {(found.unit, found.target) for found in IMPORTS if found.local}
    assert set(UPWARDS) <= used


def test_the_arrows_of_clients_and_core_have_no_way_to_django():
    reached, todo = set(), list(WITHOUT_DJANGO)
    while todo:
        unit = todo.pop()
        reached.add(unit)
        todo += [target for target in ARROWS[unit].split() if target not in reached]
    assert reached == set(WITHOUT_DJANGO)


@pytest.mark.parametrize("package", OUTSIDE)
def test_outside_parts_stay_where_they_belong(package):
    wrong = [str(i) for i in IMPORTS if i.name.split(".")[0] == package and i.unit not in OUTSIDE[package]]
    assert wrong == []


def test_the_core_needs_the_standard_library_and_a_checksum_only():
    allowed = {*sys.stdlib_module_names, "crc32c", "delivery"}
    wrong = [str(i) for i in IMPORTS if i.unit in ("protocol", "errors") and i.name.split(".")[0] not in allowed]
    assert wrong == []


@pytest.mark.parametrize("module", ["asyncio", "time", "datetime", "random", "secrets", "socket", "threading", "os"])
def test_the_core_has_no_clock_no_chance_and_no_io(module):
    assert [str(i) for i in IMPORTS if i.unit == "protocol" and i.name.split(".")[0] == module] == []


def test_no_setting_is_read_but_by_conf():
    """`conf` reads the site's `DELIVERY`; others read what is Django's own."""
    wrong = [
        f"{file.relative_to(ROOT)}"
        for file in PACKAGE.rglob("*.py")
        if file.name != "conf.py" and "settings.DELIVERY" in file.read_text(encoding="utf-8")
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ["delivery", "delivery.client", "delivery.client.__main__", "delivery.protocol"])
def test_clients_import_without_django(module):
    blocked = ["django", "channels", "celery", "redis", "uvicorn", "asgiref"]
    program = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport {module}\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_one_module_begins_transactions_so_that_each_names_its_database() -> None:
    found = {str(one.file.relative_to(PACKAGE)) for one in all_imports() if one.name == "django.db.transaction"}
    assert found <= {"transfers/sql.py"}, "use delivery.transfers.sql"
