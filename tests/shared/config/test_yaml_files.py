"""YAML that would hang, crash or fill the memory is refused in one line, before it is built."""

import pytest

from shared.config.command_line import read_command_line, read_config
from shared.config.yaml_files import MOST_BYTES, MOST_VALUES, read_yaml
from shared.runtime.errors import UserError

NINE = "".join(
    f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "an anchor in itself": ("&a\ndata: *a\n", "&a contains itself"),
    "in a list": ("labels: &a [*a]\n", "&a contains itself"),
    "two in each other": ("data: &a {b: &b [*a]}\n", "&a contains itself"),
    "exponential anchors": (f"a: &a [{'x, ' * 9}]\n{NINE}labels: *i\n", "stands for more than"),
    "exponential merges": (
        "a: &k0 {x: 1, y: 2}\n"
        + "".join(f"k{i}: &k{i} [*k{i - 1}, *k{i - 1}, *k{i - 1}]\n" for i in range(1, 12)),
        "stands for more than",
    ),
    "deep": ("data: " + "{a: " * 500 + "}" * 500, "deep in one another"),
    "many": (f"labels: [{'1, ' * (MOST_VALUES + 1)}]", "stands for more than"),
    "a key twice": ("labels: 1pct\nlabels: 10pct\n", "labels stands there twice"),
    "an option twice": ("data: {train: a, 'train': b}\n", "train stands there twice"),
    "a long value": (f"labels: {'x' * 5000}", "a value of 5,000 characters"),
    "a long file": ("# x\n" * (MOST_BYTES // 4 + 1), "larger than 1,048,576 bytes"),
}
WRONG = [
    "labels: !!python/object/apply:os.system ['touch executed']\n",
    "labels: [\n",
    "1: 2\n",
    "? [a, b]\n: 2\n",
    "labels: 2020-13-45\n",
    "labels: !!binary '***'\n",
    "seed: !!int\n",
    "seed: !!timestamp x\n",
    "seed: !!bool maybe\n",
    "data: !!float {}\n",
    'run: "\\uD800"\n',
    "\x00",
    "pretrain:\n  epochs: " + "9" * 400,
]


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_beyond_the_bounds_is_refused(kind, tmp_path, capsys):
    text, says = HOSTILE[kind]
    file = tmp_path / "r.yaml"
    file.write_text(text)
    for read in (read_yaml, read_config):
        with pytest.raises(UserError, match=says):
            read(file)
    with pytest.raises(SystemExit) as left:
        read_command_line(["--config", str(file)], "p", "d")
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert str(file) in line


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_recipe_is_refused(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml"):
        read_config(tmp_path / "r.yaml")
    with pytest.raises(SystemExit) as left:
        read_command_line(["--config=r.yaml"], "p", "d")
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


NO_OPTIONS = [  # the parser would import a module, open a file, or take it as its own note
    "data: evil.X\n",
    "data: {class_path: evil.X}\n",
    "data.class_path: evil.X\n",
    "pretrain: {class_path: evil.X, init_args: {epochs: 1}}\n",
    "model: other.yaml\n",
    "config: other.yaml\n",
    "config: {seed: 3}\n",
    "config.x: other.yaml\n",
    "__path__: other.yaml\n",
    "data: {__default_config__: other.yaml}\n",
]


@pytest.mark.parametrize("text", NO_OPTIONS)
def test_a_recipe_holds_options_and_nothing_else(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\nclass X: pass\n")
    (tmp_path / "other.yaml").write_text("seed: 3\n")
    for name in ("r.yaml", "runs/own/recipe.yaml"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        with pytest.raises(UserError, match=r"unknown option|a section of options"):
            read_config(file)
    for line in (["--config=r.yaml"], ["--data.train=own"]):
        with pytest.raises(SystemExit) as left:
            read_command_line(line, "p", "d")
        assert left.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("flag", [["--data=evil.X"], ["--data", "other.yaml"], ["--pretrain={}"]])
def test_a_section_is_no_flag(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\nclass X: pass\n")
    with pytest.raises(SystemExit) as left:
        read_command_line(flag, "p", "d")
    assert left.value.code == 2
    assert "is a section of options, such as --" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ["output: ../x", "force: all", "budget: 1h", "plan: true"])
@pytest.mark.parametrize("labels", ["", "labels: 1pct\n"])
def test_a_recipe_of_a_run_asks_for_no_call(text, labels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "runs/own/recipe.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"{labels}{text}\n")
    with pytest.raises(SystemExit) as left:
        read_command_line(["--data.train=own"], "p", "d")
    assert left.value.code == 2
    assert "is not for a run's own recipe; delete the line" in capsys.readouterr().err


OWN = {
    **{kind: text for kind, (text, _) in HOSTILE.items()},
    **{text: text for text in WRONG},
    "very deep": "seed: " + "[" * 3000,
    "an anchor in itself, as a text": 'data:\n  train: "&a [*a]"\n  test: "&a [*a]"\n',
    "a date": "pretrain:\n  epochs: 2020-01-01\n",
    "a set": "labels_of: !!set {a, b}\n",
    "another file": "config: other.yaml\n",
    "help": "help: 1\n",
    "no UTF-8": "run: caf\udce9\n",
}


@pytest.mark.parametrize("kind", OWN)
def test_a_recipe_of_a_run_has_the_same_bounds(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("data: " + "{a: " * 500 + "}" * 500)
    file = tmp_path / "runs/own/recipe.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OWN[kind], errors="surrogateescape")
    with pytest.raises(SystemExit) as left:
        read_command_line(["--data.train=own"], "p", "d")
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs/own/recipe.yaml" in line
    assert not (tmp_path / "executed").exists()


def test_what_is_no_regular_file_is_refused(make_irregular, tmp_path):
    make_irregular(tmp_path / "r.yaml")
    require_refused(tmp_path / "r.yaml")


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\0")
    require_refused(tmp_path / "r.yaml")


def require_refused(file):
    for read in (read_yaml, read_config):
        with pytest.raises(UserError, match=r"r\.yaml"):
            read(file)
    with pytest.raises(SystemExit) as left:
        read_command_line(["--config", str(file)], "p", "d")
    assert left.value.code == 2


def test_anchors_are_welcome(tmp_path):
    (tmp_path / "r.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "r.yaml") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }


@pytest.mark.parametrize(
    ("recipe", "option"),
    [("seed: null", "seed"), ("augment: {jitter: ~}", "augment.jitter"), ("finetune.seed:", "")],
)
def test_an_option_without_a_value_is_refused(recipe, option, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    says = f"{option} has no value; give one, or take the line out" if option else "unknown option"
    with pytest.raises(UserError, match=says):
        read_config(file)


def test_null_is_a_value_of_options_that_may_be_unset(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("finetune: {steps: null, from_layer: null}\npretrain.init: null\n")
    config = read_config(file)
    assert config.finetune.steps is config.finetune.from_layer is config.pretrain.init is None
