"""The shape of the code: imports go one way, and files and functions stay small enough to read."""

import ast
from collections import Counter
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
ROOT = SRC / "totalvi"
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
# Signatures that people call, whose parameters are their documentation.
PUBLIC_CLASSES = {"Model", "TOTALVI", "Training"}
# What a command does, from Python, with the parameters of the command.
COMMANDS = {
    "totalvi.run.run.run",
    "totalvi.run.impute.impute",
    "totalvi.run.commands.train_model",
    "totalvi.data.io.read.read",
    "totalvi.data.simulate.simulate",
    "totalvi.data.simulate.simulate_to_zarr",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported(tree: ast.AST, *, at_start: bool = False) -> set[str]:
    """Return the modules of the package that a file imports; only when it is loaded, or at all."""
    found: set[str] = set()
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if at_start and (
            is_type_checking(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("totalvi"):
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
    return found


IMPORTS = {name: imported(tree) for name, tree in TREES.items()}


def package_of(module: str) -> str:
    """Return the package of a module below ``totalvi``, or the module itself at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "totalvi"


def stated_order() -> list[list[str]]:
    """Return the floors that docs/architecture.md states, from the lowest; names on one share it."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    block = text.split("<!-- order of packages -->")[1].split("```")[1]
    return [line.split("#")[0].split() for line in block.strip().splitlines()]


def test_the_stated_order_names_every_package() -> None:
    stated = [name for floor in stated_order() for name in floor]
    assert sorted(stated) == sorted({package_of(name) for name in FILES} - {"totalvi"})


def test_no_package_imports_one_above_it() -> None:
    floor = {name: i for i, names in enumerate(stated_order()) for name in names}
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if package_of(module) != package_of(other)
        and module != "totalvi"  # it only hands on names
        and other != "totalvi"
        and floor[package_of(other)] >= floor[package_of(module)]
    ]
    assert upward == []


def test_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for other in IMPORTS[module]:
            if other != "totalvi":
                visit(other, (*way, module))
        done.add(module)

    for module in FILES:
        if module != "totalvi":
            visit(module, ())


def test_base_names_are_unique() -> None:
    names = Counter(path.name for path in FILES.values() if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_files_are_few_and_short() -> None:
    assert len(FILES) <= 233
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()
    }
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    found = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    owner = node.name if isinstance(node, ast.ClassDef) else ""
                    found.append((module, child, owner))
    return found


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has besides its docstring and signature."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def is_public(module: str, function: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> bool:
    """Return whether people call it by its parameters: of Model, TOTALVI, the package, a command."""
    is_method = owner in PUBLIC_CLASSES or owner.endswith("Queries")
    is_command = package_of(module) == "cli" or f"{module}.{function.name}" in COMMANDS
    return is_method or is_command


def is_compiled_loop(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether numba compiles it: such loops take arrays and numbers, and no objects."""
    return any("compiled(" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_functions_are_short() -> None:
    long = {
        f"{module}.{owner}{'.' if owner else ''}{function.name}": lines_of_code(function)
        for module, function, owner in functions()
        if lines_of_code(function) > 80
    }
    assert long == {}


def test_functions_take_few_parameters() -> None:
    many = {}
    for module, function, owner in functions():
        arguments = function.args
        count = sum(map(len, (arguments.posonlyargs, arguments.args, arguments.kwonlyargs)))
        if count > 12 and not is_public(module, function, owner) and not is_compiled_loop(function):
            many[f"{module}.{owner}.{function.name}"] = count
    assert many == {}
