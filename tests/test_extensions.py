"""docs/architecture.md says how to extend: each way as a small worked diff, applied and run.

The diffs are applied to a copy of the code, whose pipeline then trains with all of them at once. No
extension touches more than three files. The copy passes the linter, the formatter and the type
checker, as the code does.
"""

import hashlib
import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from shared.config.sections import Augmentation
from shared.data import augment
from shared.runtime.randomness import generator
from tests.support.toy_run import TINY

ROOT = Path(__file__).parents[1]


class Edit(NamedTuple):
    """One change of a file: ``new`` in place of ``old``, which the file holds once."""

    old: str
    new: str


def after(anchor: str, text: str) -> Edit:
    return Edit(anchor, anchor + text)


def before(anchor: str, text: str) -> Edit:
    return Edit(anchor, text + anchor)


HALF_TURN = '''"""Half turn: is the image upside down?"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from shared.data.batches import Batch
from shared.networks.heads import ContrastiveModel
from shared.pretext.network import PretextModel
from shared.pretext.task import Answer, Metrics, Task, Tensors


class HalfTurn(Task):
    """Two classes, told by a linear layer on the encoder's features."""

    name = "half-turn"
    chance = math.log(2)

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With a linear layer of two classes."""
        return PretextModel(model, [nn.Linear(model.features, 2)])

    def inputs(self, batch: Batch) -> Tensors:
        """The images upright and upside down: (2b, 3, S, S)."""
        return (torch.cat([batch.images, batch.images.rot90(2, (2, 3))]),)

    def targets(self, batch: Batch) -> Tensors:
        """(2b,) int64."""
        halves = torch.arange(2, device=batch.images.device)
        return (halves.repeat_interleave(len(batch.images)),)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Cross-entropy of the logits (2b, 2)."""
        (logits,), (halves,) = outputs, targets
        smoothing = self.config.half_turn.smoothing
        loss = self.weight * F.cross_entropy(logits.float(), halves, label_smoothing=smoothing)

        def metrics() -> Metrics:
            return {"half-turn_top1": self.weight * (logits.argmax(1) == halves).float().mean()}

        return Answer(loss, metrics)
'''

# extension -> file -> its edits, or the text of a new file
DIFFS: dict[str, dict[str, list[Edit] | str]] = {
    "a loss": {
        "shared/training/losses.py": [
            before(
                "def nt_xent(pairs: Pairs, temperature: float) -> Tensor:\n",
                "def alignment(pairs: Pairs) -> Tensor:\n"
                '    """Mean squared distance of the two views (arXiv 2005.10242, eq. 5)."""\n'
                "    _check_two_views(pairs)\n"
                "    first, second = pairs.anchors.chunk(2)  # (B, D) each\n"
                "    return (first - second).square().sum(1).mean()\n\n\n",
            )
        ],
        "shared/config/sections.py": [after('    "nt_xent",\n', '    "alignment",\n')],
        "shared/pretext/contrastive.py": [
            after("from shared.training.losses import (\n    Pairs,\n", "    alignment,\n"),
            before(
                '    if cfg.loss == "margin_triplet":\n',
                '    if cfg.loss == "alignment":\n        return alignment(pairs)\n',
            ),
            after("    chance = {\n", '        "alignment": 2.0,  # of two orthogonal vectors\n'),
        ],
    },
    "a pretext task": {
        "shared/config/pretext.py": [
            before(
                '        TaskKind("multi-task", ',
                '        TaskKind("half-turn", "is the image upside down", inputs=2),\n',
            ),
            before(
                "@dataclass(frozen=True)\nclass Transitive:\n",
                "@dataclass(frozen=True)\n"
                "class HalfTurn:\n"
                '    """Options of pretrain.task=half-turn.\n\n'
                "    Args:\n"
                "        smoothing: of its two classes.\n"
                '    """\n\n'
                "    smoothing: float = 0.0\n\n"
                "    def __post_init__(self) -> None:\n"
                '        require(0 <= self.smoothing < 1, "half_turn.smoothing", self.smoothing,'
                ' "in [0, 1)")\n\n\n',
            ),
            before('    "transitive": Transitive,\n', '    "half_turn": HalfTurn,\n'),
        ],
        "shared/config/schema.py": [
            after("    Exemplar,\n", "    HalfTurn,\n"),
            before(
                "    transitive: Transitive = ",
                "    half_turn: HalfTurn = field(default_factory=HalfTurn)\n",
            ),
            after(
                "        decoupling: of stage 1 with pretrain.task=decoupling.\n",
                "        half_turn: of stage 1 with pretrain.task=half-turn.\n",
            ),
        ],
        "shared/pretext/half_turn.py": HALF_TURN,
        "shared/pretext/build.py": [
            before(
                "from shared.pretext.infomax import Infomax\n",
                "from shared.pretext.half_turn import HalfTurn\n",
            ),
            after("        Transitive,\n", "        HalfTurn,\n"),
        ],
    },
    "an encoder family": {
        "shared/networks/encoders.py": [
            before(
                "from shared.config.sections import WEIGHT_FORMATS",
                "import shared.networks.tiny  # noqa: F401 (registers it with timm)\n",
            )
        ],
        "shared/networks/tiny.py": (
            '"""One convolution: the smallest encoder family."""\n\n'
            "from timm.models import generate_default_cfgs, register_model\n"
            "from torch import nn\n\n"
            'default_cfgs = generate_default_cfgs({"tiny_net": {"num_classes": 0}})\n\n\n'
            "class TinyNet(nn.Sequential):\n"
            '    """Images (B, 3, S, S) -> features (B, 8)."""\n\n'
            "    head_hidden_size = 8\n\n\n"
            "@register_model\n"
            "def tiny_net(pretrained: bool = False, **kwargs) -> TinyNet:\n"
            '    """As timm calls it; there are no pretrained weights."""\n'
            "    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
            "    return TinyNet(nn.Conv2d(3, 8, 3), nn.ReLU(), *pooled)\n"
        ),
    },
    "a label source": {
        "shared/config/labelset.py": [
            Edit("<n>perclass, ", "<n>perclass, <n>first, "),
            after(
                '_PER_CLASS = re.compile(r"([0-9]{1,12})perclass")\n',
                '_FIRST = re.compile(r"([0-9]{1,12})first")\n',
            ),
            after(
                "        per_class: images of each class.\n",
                "        first: these are the first ones of each class; else they are drawn.\n",
            ),
            after("    file: Path | None = None\n", "    first: bool = False\n"),
            before(
                "        return None\n",
                "        if match := _FIRST.fullmatch(text):\n"
                "            return cls(text, text, per_class=int(match[1]), first=True)\n",
            ),
            before(
                "        if self.share is not None:\n",
                '        if self.first:\n            return f"first {self.per_class} per class"\n',
            ),
        ],
        "shared/data/labels.py": [
            before(
                "    return _stratified(splits.train, labels, ",
                "    if labels.first:\n"
                "        return _first(splits.train, labels.per_class or 0)\n",
            ),
            before(
                "def _proportional(",
                "def _first(images: ImageSet, number: int) -> Labels:\n"
                '    """The first images of each class, in the order of the data set."""\n'
                "    classes = range(len(images.classes))\n"
                "    ids = [np.flatnonzero(images.labels == k)[:number] for k in classes]\n"
                "    positions = np.sort(np.concatenate(ids))\n"
                "    return Labels(positions, images.labels[positions])\n\n\n",
            ),
        ],
    },
    "a comparison row": {
        "shared/config/methods.py": [
            before(
                "    )\n}\nCLASSIFIERS",
                "        Method(\n"
                '            "again",\n'
                '            "supervised again",\n'
                '            "again",\n'
                '            "#112233",\n'
                '            "x",\n'
                '            stage="finetune",\n'
                '            section="supervised",\n'
                '            depends=("data", "augment", "model", "supervised"),\n'
                "        ),\n",
            )
        ],
    },
    "a metric column": {
        "shared/runs/metrics.py": [
            after("METRICS = {\n", '    "brier": Metric("Brier", 1, 3),\n'),
        ],
        "shared/training/evaluate.py": [
            before(
                "    return torch.stack(columns, dim=1)\n",
                "    truth = F.one_hot(targets, logits.shape[1])\n"
                "    columns.append((logits.softmax(1) - truth).square().sum(1))\n",
            ),
            before("    return metrics\n", '    metrics["brier"] = answers[:, 4].mean().item()\n'),
        ],
    },
    "a table": {
        "configs/tables/two_rows.yaml": (
            "title: two rows\nmetric: brier\nseeds: 1\n"
            "rows:\n  once: {method: supervised}\n  again: {method: again}\n"
            "columns:\n  few: {labels: 2first}\n"
        ),
    },
    "an augmentation": {
        "shared/config/sections.py": [
            before(
                "        antialias: the old",
                "        solarize: probability of inverting what is brighter than 1/2.\n",
            ),
            before("    antialias: bool | None", "    solarize: float = 0.0\n"),
            after(
                '            ("blur", "in [0, 1]", 0 <= self.blur <= 1),\n',
                '            ("solarize", "in [0, 1]", 0 <= self.solarize <= 1),\n',
            ),
        ],
        "shared/data/augment.py": [
            Edit(
                '    return augment if kind == "full" else replace('
                "augment, color_strength=0.0, blur=0.0)\n",
                '    if kind == "full":\n'
                "        return augment\n"
                "    return replace(augment, color_strength=0.0, blur=0.0, solarize=0.0)\n",
            ),
            after(
                "        sigma: (B,) float32, pixels.\n",
                "        solarize: (B,) bool.\n",
            ),
            after("    sigma: Tensor\n", "    solarize: Tensor\n"),
            after(
                "        sigma=torch.from_numpy(sigma).float(),\n",
                "        solarize=torch.from_numpy(rng.random(B) < augmentation.solarize),\n",
            ),
            after(
                "lambda x: ops.gaussian_blur(x, sigma, radius).clamp_(0, 1))\n",
                "    _change_(images, draws.solarize, ops.solarize)\n",
            ),
        ],
        "shared/data/image_ops.py": [
            before(
                "def to_float(images: Tensor) -> Tensor:\n",
                "def solarize(images: Tensor) -> Tensor:\n"
                '    """Invert the values above 1/2 (arXiv 2006.07733, appendix B)."""\n'
                "    return torch.where(images > 0.5, 1 - images, images)\n\n\n",
            )
        ],
    },
    "an optimizer": {
        "shared/config/optimizers.py": [
            after(
                '        OptimizerKind("adamw", slots=2),\n',
                '        OptimizerKind("rmsprop", slots=2),\n',
            )
        ],
        "shared/training/optim.py": [
            before(
                "def fused_adamw(",
                "def rmsprop(groups: list[dict[str, Any]], momentum: float)"
                " -> torch.optim.RMSprop:\n"
                '    """Torch\'s RMSprop with momentum."""\n'
                "    return torch.optim.RMSprop(groups, lr=0.0, momentum=momentum)\n\n\n",
            ),
            after('    "adamw": fused_adamw,\n', '    "rmsprop": rmsprop,\n'),
        ],
    },
    "a tracker": {
        "shared/config/schema.py": [after('    tracker: Literal["none", ', '"trackio", ')],
    },
    "an export format": {
        "stages/export/program.py": (
            '"""A program of torch.export: one file for ``torch.export.load``."""\n\n'
            "from pathlib import Path\n\nimport torch\n\n"
            "from stages.export.images import Function\n"
            "from stages.export.network import Source\n\n\n"
            "def write(source: Source, path: Path) -> None:\n"
            '    """Write the program, for any number of images."""\n'
            '    batch = {"images": {0: torch.export.Dim("batch")}}\n'
            "    arguments = (source.example,)\n"
            "    program = torch.export.export(source.network, arguments, dynamic_shapes=batch)\n"
            "    torch.export.save(program, path, extra_files=source.notes())\n\n\n"
            "def load(path: Path) -> Function:\n"
            '    """The file as a function."""\n'
            "    return torch.export.load(path).module()\n"
        ),
        "stages/export/arguments.py": [
            after("NAMES = {  # of what is written\n", '    "program": "model.pt2",\n')
        ],
        "stages/export/export.py": [
            Edit("import onnx_file, timm_folder,", "import onnx_file, program, timm_folder,"),
            after(
                "FORMATS = {\n",
                '    "program": Format('
                'NAMES["program"], program.write, program.load, torchscript.notes),\n',
            ),
        ],
    },
}

# Stands in for the package of a tracker: the values that it gets, a line each.
TRACKIO = """\
import json


class Run:
    def log(self, values, **options):
        with open("tracked.jsonl", "a") as file:
            file.write(json.dumps(values) + "\\n")

    def finish(self):
        pass


def init(project, **options):
    return Run()
"""


# What the tests ask of the extended code, in one process, which imports torch once. Its arguments
# are command lines of the pipeline; `digest` is put in.
PROGRAM = """\
import hashlib
import json
import sys
from contextlib import redirect_stdout
from io import StringIO

import torch

import pipeline
from shared.config.labelset import LabelSet
from shared.config.sections import Augmentation, Data
from shared.data import augment
from shared.data.labels import draw_labels
from shared.data.sources import open_data
from shared.runs.cost import known_counts
from shared.runtime.randomness import generator


{digest}

printed = []
for options in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out:
        code = pipeline.main(options)
    assert code == 0
    printed.append(out.getvalue())
labels = LabelSet.parse("2first")
splits = open_data(Data(), labels)
answers = dict(
    printed=printed,
    classes=splits.train.labels.tolist(),
    draws=[draw_labels(splits, labels, seed).ids.tolist() for seed in (0, 1)],
    title=labels.title,
    planned=known_counts(60_000, 10_000, 10, labels).labeled,
    views=[digest(solarize=share) for share in (0.0, 1.0)],
)
print(json.dumps(answers))
"""


def digest(**options: float) -> str:
    """Hash of the views of eight images."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augmentation = Augmentation(**options)
    draws = augment.draw(augmentation, generator(0, "views"), 8)
    views = augment.apply(augmentation, images, draws)
    return hashlib.sha256(views.numpy().tobytes()).hexdigest()


def call(root: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def apply_change(path: Path, change: list[Edit] | str) -> None:
    """Edit a file, or write a new one."""
    if isinstance(change, str):
        assert not path.exists()
        path.write_text(change)
        return
    content = path.read_text()
    for edit in change:
        assert content.count(edit.old) == 1, (path, edit.old)
        content = content.replace(edit.old, edit.new)
    path.write_text(content)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the code with all extensions, with a finished run, and what it answers."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("shared", "stages", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("pipeline.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for files in DIFFS.values():
        for name, change in files.items():
            apply_change(root / name, change)
    options = [
        *TINY,
        "--output=out",
        "--pretrain.loss=alignment",
        "--pretrain.task=multi-task",
        "--multi_task.tasks=contrastive,half-turn:0.1",
        "--half_turn.smoothing=0.1",
        "--distill.student=tiny_net",
        "--labels=2first",
        "--augment.solarize=0.5",
        "--finetune.optimizer=rmsprop",
    ]
    program = PROGRAM.format(digest=inspect.getsource(digest))
    lines = json.dumps([options, [*options, "--table=two_rows"]])
    return root, json.loads(call(root, "-c", program, lines))


def test_every_row_of_the_guide_has_a_diff_of_at_most_four_files():
    assert max(len(files) for files in DIFFS.values()) <= 4
    guide = (ROOT / "docs/architecture.md").read_text()
    rows = [line.split(" | ")[0] for line in guide.splitlines() if line.startswith("| ")]
    assert rows == ["| what", *(f"| {extension}" for extension in DIFFS)]
    for extension, files in DIFFS.items():
        (line,) = [x for x in guide.splitlines() if x.startswith(f"| {extension} ")]
        for name in files:
            folder = str(Path(name).parent)
            assert name in line or folder in line, f"{extension}: the guide does not name {name}"


def test_the_run_has_the_new_row_and_column(extended):
    root, answers = extended
    printed, table = answers["printed"]
    rows = [json.loads(line) for line in (root / "out/digits/results.jsonl").open()]
    assert [row["stage"] for row in rows if row["labels"] == "2first"][-1] == "again"
    measured = [row for row in rows if not row["stage"].endswith("svm")]
    assert all(0 <= row["brier"] <= 2 for row in measured)
    assert "supervised again" in printed
    assert "Brier" in printed
    assert "2first (20)" in printed
    assert "again" in table
    assert "Brier, mean" in table


def test_the_artifacts_were_made_with_the_new_parts(extended):
    root, _ = extended
    run = root / "out/digits"
    metas = {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/meta.json")}
    assert metas["pretrain"]["settings"]["pretrain.loss"] == "alignment"
    assert metas["pretrain"]["settings"]["augment.solarize"] == 0.5
    assert metas["distill-2first-seed0"]["encoder"] == "tiny_net"
    assert metas["finetune-2first-seed0"]["settings"]["finetune.optimizer"] == "rmsprop"
    assert metas["pretrain"]["settings"]["half_turn.smoothing"] == 0.1
    logs = [json.loads(line) for line in (run / "pretrain/metrics.jsonl").open()]
    # squared distances of unit vectors
    assert all(0 <= log["contrastive_loss"] <= 4 for log in logs)
    assert all(0 <= log["half-turn_top1"] <= 1 for log in logs)


def test_labels_are_the_first_of_each_class(extended):
    _, answers = extended
    classes = answers["classes"]
    wanted = [i for i, k in enumerate(classes) if classes[:i].count(k) < 2]
    assert answers["draws"] == [wanted, wanted]
    assert answers["title"] == "first 2 per class"
    assert answers["planned"] == len(wanted) == 20


def test_a_new_draw_goes_last_and_leaves_the_others(extended):
    """The augmentation changes images; with probability 0 the views are those of before."""
    _, answers = extended
    never, always = answers["views"]
    assert never == digest()
    assert always != digest()


@pytest.mark.slow
def test_the_tracker_gets_the_losses(extended):
    root, _ = extended
    (root / "trackio.py").write_text(TRACKIO)
    (root / "trackio-1.0.dist-info").mkdir()  # accelerate asks for the package's metadata
    (root / "trackio-1.0.dist-info/METADATA").write_text("Name: trackio\nVersion: 1.0\n")
    options = [*TINY, "--output=tracked", "--tracker=trackio", "--pretrain.log_every_steps=2"]
    call(root, "-m", "stages.pretrain", *options)
    lines = [json.loads(line) for line in (root / "tracked.jsonl").open()]
    logged = [json.loads(x) for x in (root / "tracked/digits/pretrain/metrics.jsonl").open()]
    assert [line["pretrain/loss"] for line in lines] == [line["loss"] for line in logged]
    assert len(lines) == 3


@pytest.mark.slow
def test_the_export_runs(extended):
    root, _ = extended
    student = "out/digits/distill-2first-seed0"
    printed = call(root, "-m", "stages.export", student, "--to=program", "--out=student.pt2")
    assert "the same class on all" in printed
    program = torch.export.load(root / "student.pt2")
    assert program.module()(torch.zeros(3, 3, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("ruff", ("check", "--no-cache", "shared", "stages", "pipeline.py")),
        ("ruff", ("format", "--check", "--no-cache", "shared", "stages", "pipeline.py")),
        pytest.param("basedpyright", ("--pythonpath", sys.executable), marks=pytest.mark.slow),
    ],
)
def test_the_tools_pass_the_extended_code(extended, tool, arguments):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install -e '.[dev]'")
    root, _ = extended
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
