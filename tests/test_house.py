"""The rules of the house: imports go downward, the formatter lays out, tests mirror the code."""

import ast
import importlib
import runpy
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

from shared.config.command_line import refuse_unknown_options

ROOT = Path(__file__).parents[1]
# runtime <- config <- {data, networks} <- training <- pretext <- runs <- stages <- pipeline
FLOORS = (
    ("shared.runtime",),
    ("shared.config",),
    ("shared.data", "shared.networks"),
    ("shared.training",),
    ("shared.pretext",),
    ("shared.runs",),
    ("stages",),
    ("pipeline",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Bodies longer than this are hard to read in one go; a stage's run holds the loop, the method.
LONGEST_BODY = 60
LOOPS = {("stages.pretrain", "run"), ("stages.finetune", "run"), ("stages.distill", "run")}
# Old names of commands; tested here.
SHIMS = {"shared.page", "shared.report", "shared.predict", "shared.import_reference"}
# Test files without a module of that name: a new row in all of the room, and a __main__.
WITHOUT_MODULE = {"tests/shared/runs/test_new_method.py", "tests/stages/page/test_main.py"}


def sources() -> dict[str, Path]:
    """Module's name -> file, of all code but tests and benchmarks."""
    files = [ROOT / "pipeline.py", *ROOT.glob("shared/**/*.py"), *ROOT.glob("stages/**/*.py")]
    names = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return {
        ".".join(name[:-1] if name[-1] == "__init__" else name): file
        for name, file in zip(names, files, strict=True)
    }


def imports(file: Path, modules: dict[str, Path]) -> set[str]:
    """Our modules that a file imports, anywhere in it, also inside functions."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                imported.add(whole if whole in modules else str(node.module))
    return {name for name in imported if name in modules}


def room(module: str) -> str:
    """``shared.data`` of ``shared.data.images``; ``stages`` of a stage."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "shared" else parts[0]


def may_import(importer: str, imported: str) -> bool:
    """Whether the rule allows it."""
    if room(importer) == room(imported) == "stages":  # a stage of several files is one stage
        return importer.split(".")[:2] == imported.split(".")[:2]
    if room(importer) == room(imported):
        return True
    return FLOOR[room(imported)] < FLOOR[room(importer)]


def test_packages_import_downward_only():
    modules = sources()
    assert len(modules) > 40
    arrows = [
        (importer, imported)
        for importer, file in modules.items()
        if room(importer) in FLOOR  # not the shims of old names
        for imported in imports(file, modules)
    ]
    assert len(arrows) > 100
    assert [arrow for arrow in arrows if not may_import(*arrow)] == []


def test_the_rule_refuses_what_it_should():
    assert not may_import("shared.runtime.artifacts", "shared.config.schema")
    assert not may_import("shared.data.batches", "shared.networks.resnet")
    assert not may_import("shared.runs.grid", "stages.finetune")
    assert not may_import("stages.distill", "stages.finetune")
    assert not may_import("stages.page.read", "stages.assess.assess")
    assert may_import("stages.page.read", "stages.page.facts")
    assert may_import("pipeline", "stages.finetune")
    assert may_import("shared.runs.grid", "shared.data.images")


def test_no_circle():
    modules = sources()
    graph = {name: imports(file, modules) - {name} for name, file in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_rooms_are_packages_and_none_is_called_utils():
    modules = sources()
    for name, file in modules.items():
        assert "util" not in name
        assert (file.parent / "__init__.py").exists() or file.parent == ROOT, file
    loose = {name for name in modules if name.startswith("shared.") and name.count(".") == 1}
    assert loose - {room for rooms in FLOORS for room in rooms} == SHIMS


def test_tests_lie_in_the_tree_of_the_code():
    """``shared/data/labels.py`` has ``tests/shared/data/test_labels.py``, and the other way."""
    tested_here = {*SHIMS, "shared.runtime.moved", "pipeline"}
    mirrored = set()
    for name, file in sources().items():
        if file.stem not in ("__init__", "__main__") and name not in tested_here:
            folder = file.parent.relative_to(ROOT)
            mirrored.add(f"tests/{folder.as_posix()}/test_{file.name}")
    assert len(mirrored) > 50
    tops = (ROOT / "tests/shared", ROOT / "tests/stages")
    files = {file.relative_to(ROOT).as_posix() for top in tops for file in top.rglob("test_*.py")}
    assert mirrored - files == set()
    assert files - mirrored == WITHOUT_MODULE


def test_the_formatter_decides():
    tops = ("shared", "stages", "tests", "benchmarks")
    files = [*ROOT.glob("*.py"), *(file for top in tops for file in (ROOT / top).rglob("*.py"))]
    # an environment such as benchmarks/.peers is other people's code
    every = [f for f in files if not any(part[0] == "." for part in f.relative_to(ROOT).parts)]
    assert len(every) > 100
    escapes = ["# fmt" + ": skip", "# fmt" + ": off"]
    assert [f for f in every if any(escape in f.read_text() for escape in escapes)] == []


def test_digits_are_those_from_0_to_9():
    """``\\d`` and the like take those of all scripts, so that one number has many names."""
    words = (r"\d", "isdigit", "isdecimal", "isnumeric")
    wide = [
        (name, line)
        for name, file in sources().items()
        for line in file.read_text().splitlines()
        if any(word in line.replace(r"[^\W\d_]", "") for word in words)  # letters alone
    ]
    assert wide == []


def test_what_is_printed_goes_through_one_function():
    """``say`` escapes what would move the cursor; so does the print of our Accelerator.

    Both end nothing where the stream has gone.
    """
    bare = []
    for name, file in sources().items():
        for node in ast.walk(ast.parse(file.read_text())):
            prints = ("print", "sys.stdout.write", "sys.stderr.write")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in prints:
                bare.append(name)
    assert bare == []


def test_bodies_are_short():
    too_long = {}
    for name, file in sources().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = ast.get_docstring(node) is not None
                body = node.body[1:] if documented else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > LONGEST_BODY and (name, node.name) not in LOOPS:
                    too_long[name, node.name] = lines
    assert too_long == {}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--lables", "1pct"], 2, "unknown option --lables; did you mean --labels?"),
        (["--help"], 0, "--labels LABELS"),
        (["--print_config"], 0, "labels: 1pct"),
        (["--labels", "1%"], 2, "labels must be 1pct"),
    ],
)
def test_the_command_line_answers_before_torch_is_imported(arguments, code, says):
    program = (
        "import sys, pipeline\n"
        "try: pipeline.main(sys.argv[1:])\n"
        "except SystemExit as left: code = left.code\n"
        "heavy = {'torch', 'accelerate', 'datasets', 'timm', 'numpy', 'sklearn'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr


ALONE = ("pretrain", "finetune", "distill", "classical", "assess")


@pytest.mark.parametrize("stage", ALONE)
def test_a_stage_alone_answers_a_misspelt_option_before_torch_is_imported(stage, monkeypatch):
    """Its file has nothing above the answer that takes long to import."""
    file = sources().get(f"stages.{stage}.__main__") or sources()[f"stages.{stage}"]
    lines = iter(ast.parse(file.read_text()).body)
    above = [ast.unparse(line) for line in takewhile(lambda line: not _answers(line), lines)]
    own = "from shared.config.command_line import "
    assert [line.startswith(own) or line == "import sys" for line in above[1:]] == [True] * 2
    assert f"refuse_unknown_options('stages.{stage}')" in file.read_text().replace('"', "'")
    monkeypatch.setattr(sys, "argv", [stage, "--config", "none.yaml", "--lables", "1pct"])
    with pytest.raises(SystemExit) as left:
        refuse_unknown_options(f"stages.{stage}")
    assert left.value.code == 2


def _answers(line):
    return isinstance(line, ast.If) and "refuse_unknown_options" in ast.unparse(line)


def imported_by(*names: str) -> set[str]:
    """Packages that these modules of ours import, with what they import of ours, at their top."""
    modules = sources()
    seen, todo, others = set(), [*names], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += {name.rpartition(".")[0]} & {*modules}  # its package comes first
        for node in ast.parse(modules[name].read_text()).body:  # those in functions come later
            if isinstance(node, ast.Import):
                others |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                others.add(str(node.module).partition(".")[0])
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                todo += {name if name in modules else str(node.module) for name in whole} & {
                    *modules
                }
    return others


def test_stage_1_begins_without_what_only_later_stages_need():
    """scikit-learn and scipy take two seconds to import, and the digits' first step neither."""
    begin = ("pipeline", "stages.pretrain", "shared.runs.forecast", "shared.networks.build")
    others = imported_by(*begin, "shared.runs.fit", "shared.runs.results")
    assert {"torch", "timm", "datasets"} < others
    assert not others & {"sklearn", "scipy", "matplotlib", "onnx", "onnxruntime", "jinja2"}


OTHERS = ("report", "page", "predict", "export", "suggest", "import_weights")


@pytest.mark.parametrize("stage", OTHERS)
def test_other_commands_answer_before_torch_is_imported(stage):
    name = f"stages.{stage}"
    command = f"{name}.__main__" if f"{name}.__main__" in sources() else name
    assert "argparse" in imported_by(command)
    assert not imported_by(command) & {"torch", "numpy", "accelerate", "datasets", "timm"}


@pytest.mark.parametrize("stage", OTHERS[2:])
@pytest.mark.parametrize(("flag", "code", "says"), [("-h", 0, "usage: "), ("--outt", 2, "--outt")])
def test_a_bad_call_and_the_help(stage, flag, code, says, monkeypatch, capsys):
    """The command says the same as the ``main`` that it goes on with."""
    main = importlib.import_module(f"stages.{stage}.__main__").main
    monkeypatch.setattr(sys, "argv", [stage, flag])
    if code:
        assert main() == code
    else:
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == code
    printed = capsys.readouterr()
    assert says in printed.out + printed.err
    assert len(printed.err.splitlines()) == (code == 2)


MOVED = {
    "shared.page": ("stages.page", "stages.page.write", "write_page"),
    "shared.report": ("stages.report", "shared.runs.results", "write_results"),
    "shared.predict": ("stages.predict", "stages.predict", "predict"),
    "shared.import_reference": (
        "stages.import_weights",
        "stages.import_weights.command",
        "import_checkpoint",
    ),
}


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("old", MOVED)
def test_old_names_work_and_say_the_new_one(old, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [old, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(old, run_name="__main__", alter_sys=True)
    assert left.value.code == 0
    printed = capsys.readouterr()
    assert f"{old} is now {MOVED[old][0]}; the old name goes with the next version" in printed.err
    assert printed.out.count("usage:") == 1


@pytest.mark.parametrize("old", MOVED)
def test_old_names_can_still_be_imported(old, capsys):
    sys.modules.pop(old, None)
    _, new, public = MOVED[old]
    assert callable(getattr(importlib.import_module(old), public))
    assert f"{old} is now {new}" in capsys.readouterr().err
