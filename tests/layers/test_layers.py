"""Imports go down only: every module stands in a row, and may import from lower rows alone.

The picture that this test enforces is in docs/architecture.md.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "pullback"

# Row by row from the ground up; inside a row, from left to right. A package counts as one module.
ROWS = [
    ["types", "_modules", "_checks", "_batching", "autodiff", "io", "stores"],
    ["decoders", "chords", "metrics", "surfaces", "curves", "curvature"],
    ["geodesics", "graphs"],
    ["executors", "distances", "diagnostics"],
    ["statistics"],
    ["datasets", "models", "interop", "plot"],
    ["commands", "cli"],
]
HEIGHT = {module: height for height, module in enumerate(module for row in ROWS for module in row)}

# Heavy packages that only few functions need: imported inside these functions.
ON_DEMAND = {"matplotlib", "geomstats", "networkx", "sklearn", "ray", "zarr", "faiss"}
ESTIMATORS = {"statistics"}  # need scikit-learn's base class at the top; this room is itself imported on demand
LIGHT = {"cli"}  # answers --help: the standard library alone at the top


def modules() -> dict[str, str]:
    """Source text by dotted module name below `pullback`; the package itself is ''."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf8")
    return found


def at_the_top(node: ast.AST) -> list[ast.AST]:
    """The nodes that run when a module is imported: everything outside of functions and of TYPE_CHECKING."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in at_the_top(child))]


def imported(module: str, nodes: Iterable[ast.AST], is_package: bool = False) -> set[str]:
    """Full dotted names of what these nodes of a module import; `from a import b` counts as `a.b`."""
    here = ["pullback", *module.split(".")] if module else ["pullback"]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            anchor = here[: len(here) - node.level + (1 if is_package else 0)] if node.level else []
            origin = ".".join([*anchor, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def violations(sources: dict[str, str]) -> list[str]:
    """Every import that goes up, sideways against the order, or through the public facade."""
    wrong = []
    for module, text in sources.items():
        if not module:
            continue  # the facade imports everything
        room = module.split(".")[0]
        is_package = any(other.startswith(module + ".") for other in sources)
        for name in sorted(imported(module, ast.walk(ast.parse(text)), is_package)):
            if name.split(".")[0] != "pullback":
                continue
            target = [*name.split("."), ""][1]
            if target == room:
                continue
            if target not in HEIGHT:
                wrong.append(f"{module} imports {name}: through the facade, or from a module that stands in no row")
            elif HEIGHT[target] >= HEIGHT[room]:
                wrong.append(f"{module} imports {name}: {target} stands above {room}")
    return wrong


def test_every_module_stands_in_a_row():
    rooms = {module.split(".")[0] for module in modules()} - {""}
    assert rooms <= HEIGHT.keys(), f"name a row for {sorted(rooms - HEIGHT.keys())} in ROWS and in docs/architecture.md"


def test_imports_go_down_only():
    assert violations(modules()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("autodiff", "from pullback.metrics import Metric"),
        ("decoders", "from pullback.metrics import Metric"),
        ("metrics", "from pullback import curves"),
        ("metrics", "from .curves import Curve"),
        ("geodesics.relax", "from ..plot import geodesics"),
        ("curves", "def inside():\n    import pullback.geodesics"),
        ("plot", "import pullback"),
        ("plot", "from pullback import Pullback"),
    ],
)
def test_an_import_that_goes_up_is_found(module, line):
    assert len(violations({module: line})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("metrics", "from pullback.decoders import feature_map"),
        ("geodesics.relax", "from pullback.geodesics.solver import minimize\nfrom .solution import Status"),
        ("geodesics.relax", "from ..curves import Curve"),
        ("cli", "from pullback.commands import demo"),
        ("models.vae", "import torch"),
    ],
)
def test_an_import_that_goes_down_is_allowed(module, line):
    assert violations({module: line}) == []


def test_heavy_packages_are_imported_where_they_are_needed():
    found = []
    for module, text in modules().items():
        names = {name.split(".")[0] for name in imported(module, at_the_top(ast.parse(text)))}
        allowed = {"sklearn"} if module.split(".")[0] in ESTIMATORS else set()
        banned = (ON_DEMAND - allowed) | ({"torch", "numpy", "scipy", "tqdm"} if module in LIGHT else set())
        found += [f"{module} imports {name} at the top" for name in sorted(names & banned)]
    assert found == []
