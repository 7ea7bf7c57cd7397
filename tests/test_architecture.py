"""Imports point downward only, and the other house rules that a syntax tree can tell."""

import ast
from pathlib import Path

import pytest

import jemstone

SOURCE = Path(jemstone.__file__).parent
FLOORS = (
    {"errors", "pixels", "rng", "temperature", "version"},
    {"execution", "runs"},
    {"energy"},
    {"networks", "data"},
    {"sampling", "margins"},
    {"objective"},
    {"training"},
    {"evaluation", "deployment"},
)
ROOF = {"doctor", "commands", "console", "demo", "parsers", "cli", "__main__", "__init__"}
REPORT_MAY = {"errors", "runs", "report"}
PRINTERS = {"console.py", "demo.py", "cli.py"}
LONGEST = 300
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def modules(source: Path) -> dict[str, ast.Module]:
    """Every module below `source` by its dotted name inside the package; a package is called like its folder."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(tree: ast.Module, name: str, known: set[str]) -> set[str]:
    """Modules of jemstone that a module imports anywhere, also inside functions; other packages by their first name.

    A module is named "jemstone.data.npz"; `from jemstone.report import plots` counts as jemstone.report.plots.
    """
    found: set[str] = set()
    package = name if any(other.startswith(name + ".") for other in known) else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["jemstone", *filter(None, package.split("."))]
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner.removeprefix("jemstone.") in known else base)
    return {
        "jemstone.__init__" if m == "jemstone" else m if m.startswith("jemstone.") else m.split(".")[0] for m in found
    }


def problems(source: Path) -> list[str]:
    """Every breach of the house plan below `source`, as one line each."""
    trees = modules(source)
    known = set(trees)
    found = []
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        own = name.split(".")[0]
        inside = {m.removeprefix("jemstone.") for m in imports(tree, name, known) if m.startswith("jemstone.")}
        graph[name] = {m for m in inside if m.split(".")[0] == own and m != name and own not in ROOF}
        if own not in LEVEL and own not in ROOF and own != "report":
            found.append(f"{name}: {own} has no floor in the house plan")
        for target in sorted(inside):
            other = target.split(".")[0]
            if other == own or own in ROOF:
                continue
            if own == "report":
                if other not in REPORT_MAY:
                    found.append(f"{name} imports {target}: the report reads files only")
            elif other not in LEVEL or (own in LEVEL and LEVEL[other] >= LEVEL[own]):
                found.append(f"{name} imports {target}, which is not on a floor below")
        if own == "report" and "torch" in imports(tree, name, known):
            found.append(f"{name} imports torch")
        found += [
            f"{name}: import *"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        ]
        if not ast.get_docstring(tree):
            found.append(f"{name} has no docstring")
    found += [f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]
    for path in sorted(source.rglob("*.py")):
        where, text = path.relative_to(source), path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LONGEST:
            found.append(f"{where} has {len(text.splitlines())} lines, more than {LONGEST}")
        if path.stem in ("utils", "util", "helpers"):
            found.append(f"{where}: what is it about? Name the file after that")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        if str(where) not in PRINTERS and any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls):
            found.append(f"{where} prints: the core returns, the edge writes")
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Import cycles; a package's own __init__, which only gathers names, may be what its modules are gathered in."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_the_package_keeps_its_house_plan():
    assert problems(SOURCE) == []


def test_every_floor_is_looked_at():
    seen = {name.split(".")[0] for name in modules(SOURCE)}
    assert seen >= set(LEVEL) | ROOF | {"report"}


HOUSE = {
    "__init__.py": '"""The names."""\nfrom jemstone.training.loop import train\n',
    "errors.py": '"""Errors."""\n',
    "energy.py": '"""Energies."""\nfrom jemstone.errors import E\n',
    "training/__init__.py": '"""Training."""\n',
    "training/loop.py": '"""Loop."""\nfrom jemstone.energy import e\nfrom jemstone.training.guard import check\n',
    "training/guard.py": '"""Guard."""\n',
    "evaluation/__init__.py": '"""Evaluation."""\nfrom jemstone.evaluation.ood import auroc\n',
    "evaluation/ood.py": '"""OOD."""\nimport torch\nfrom jemstone.training.loop import train\n',
    "report/__init__.py": '"""Report."""\nfrom jemstone.report import plots\n',
    "report/plots.py": '"""Plots."""\nfrom jemstone.errors import E\n',
    "cli.py": '"""Roof."""\nfrom jemstone.evaluation import auroc\nprint(1)\n',
}

BREACHES = {
    "upward": ("energy.py", "from jemstone.training.loop import train", "which is not on a floor below"),
    "upward, inside a function": ("energy.py", "def f():\n    import jemstone.training.loop", "not on a floor below"),
    "upward, relative": ("energy.py", "from .training import loop", "not on a floor below"),
    "upward, relative from a folder": (
        "training/loop.py",
        "from ..evaluation.ood import auroc",
        "not on a floor below",
    ),
    "the roof": ("training/loop.py", "from jemstone.cli import main", "not on a floor below"),
    "the package itself": ("training/loop.py", "from jemstone import train", "not on a floor below"),
    "sideways": ("deployment.py", "from jemstone.evaluation import auroc", "deployment imports evaluation"),
    "sideways, the other way": ("evaluation/ood.py", "import jemstone.deployment", "not on a floor below"),
    "the report, evaluating": ("report/plots.py", "from jemstone.evaluation import auroc", "reads files only"),
    "the report, with torch": ("report/plots.py", "import torch.nn", "imports torch"),
    "of the report": ("evaluation/ood.py", "from jemstone.report import plots", "not on a floor below"),
    "cycle": ("training/guard.py", "from jemstone.training.loop import train", "import cycle: "),
    "cycle through a package": ("evaluation/ood.py", "from jemstone.evaluation import auroc", "import cycle: "),
    "star": ("energy.py", "from math import *", "import *"),
    "print": ("training/guard.py", "print('healthy')", "prints"),
    "length": ("training/guard.py", "\n" * LONGEST, "lines, more than"),
    "utils": ("training/utils.py", "", "Name the file after that"),
    "docstring": ("training/new.py", "x = 1", "has no docstring"),
    "no floor": ("helping.py", "", "has no floor"),
}


def build(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_the_checker_accepts_a_sound_house(tmp_path):
    assert problems(build(tmp_path, HOUSE)) == []


@pytest.mark.parametrize("breach", BREACHES)
def test_the_checker_finds_a_breach(tmp_path, breach):
    name, line, message = BREACHES[breach]
    start = "" if breach == "docstring" else HOUSE.get(name, '"""New."""\n')
    found = problems(build(tmp_path, HOUSE | {name: f"{start}{line}\n"}))
    assert len(found) >= 1
    assert any(message in problem for problem in found), found
