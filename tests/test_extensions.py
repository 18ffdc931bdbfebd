"""docs/architecture.md says how to extend: each way as a small worked diff, applied and run.

The diffs are applied to a copy of the code, whose pipeline then trains with all of them at once. No
extension touches more than three files.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.toy_run import TINY

ROOT = Path(__file__).parents[1]
NEW = ""  # the anchor of a file that is new


def after(anchor: str, text: str) -> tuple[str, str]:
    return anchor, anchor + text


def before(anchor: str, text: str) -> tuple[str, str]:
    return anchor, text + anchor


# extension -> file -> (anchor, what stands in its place). A second change of a file has a space
# behind its name.
DIFFS: dict[str, dict[str, tuple[str, str]]] = {
    "a loss": {
        "shared/training/losses.py": before(
            "def nt_xent(pairs: Pairs, temperature: float) -> Tensor:\n",
            "def alignment(pairs: Pairs) -> Tensor:\n"
            '    """Mean squared distance of the two views (arXiv 2005.10242, eq. 5)."""\n'
            "    first, second = pairs.anchors.chunk(2)  # (B, D) each\n"
            "    return (first - second).square().sum(1).mean()\n\n\n",
        ),
        "shared/config/schema.py": after('    loss: Literal["nt_xent", ', '"alignment", '),
        "stages/pretrain.py": before(
            '    elif cfg.loss == "margin_triplet":\n',
            '    elif cfg.loss == "alignment":\n'
            "        from shared.training.losses import alignment\n\n"
            "        loss = alignment(pairs)\n",
        ),
        "stages/pretrain.py ": after("    chance = {\n", '        "alignment": 2.0,\n'),
    },
    "an encoder family": {
        "shared/networks/encoders.py": before(
            "from shared.networks import resnet",
            "from shared.networks import tiny  # registers it with timm\n",
        ),
        "shared/networks/tiny.py": (
            NEW,
            "from timm.models import generate_default_cfgs, register_model\n"
            "from torch import nn\n\n"
            "default_cfgs = generate_default_cfgs({'tiny_net': {'num_classes': 0}})\n\n\n"
            "class TinyNet(nn.Sequential):\n"
            "    head_hidden_size = 8\n\n\n"
            "@register_model\n"
            "def tiny_net(pretrained=False, **kwargs):\n"
            "    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
            "    return TinyNet(nn.Conv2d(3, 8, 3), nn.ReLU(), *pooled)\n",
        ),
    },
    "a label source": {
        "shared/config/labelset.py": before(
            "        if _FILE.fullmatch(text):\n",
            '        if match := re.fullmatch(r"(\\d+)each", text):\n'
            "            return cls(text, text, per_class=int(match[1]))\n",
        ),
    },
    "a comparison row": {
        "shared/config/methods.py": before(
            "    )\n}\nCLASSIFIERS",
            '        Method("again", "supervised again", "again", "#112233", "x", "finetune",\n'
            '               "supervised", depends=("data", "augment", "model", "supervised")),\n',
        ),
    },
    "a metric column": {
        "shared/runs/metrics.py": after("METRICS = {\n", '    "brier": Metric("Brier", 1, 3),\n'),
        "shared/training/evaluate.py": before(
            "    return metrics\n",
            "    truth = F.one_hot(targets, logits.shape[1])\n"
            '    metrics["brier"] = (logits.softmax(1) - truth).square().sum(1).mean().item()\n',
        ),
    },
    "a table": {
        "configs/tables/two_rows.yaml": (
            NEW,
            "title: two rows\nmetric: brier\nseeds: 1\n"
            "rows:\n  once: {method: supervised}\n  again: {method: again}\n"
            "columns:\n  few: {labels: 2each}\n",
        ),
    },
    "an augmentation": {
        "shared/config/schema.py": after("    flip: float = 0.5\n", "    invert: bool = False\n"),
        "shared/data/augment.py": before(
            "    _change_(images, draws.flip, lambda x: x.flip(-1))\n",
            "    images = ops.invert(images) if augmentation.invert else images\n",
        ),
        "shared/data/image_ops.py": before(
            "def to_float(images: Tensor) -> Tensor:\n",
            "def invert(images: Tensor) -> Tensor:\n    return 1 - images\n\n\n",
        ),
    },
    "an optimizer": {
        "shared/config/optimizers.py": after(
            '        OptimizerKind("adamw", "fused_adamw", slots=2),\n',
            '        OptimizerKind("rmsprop", "rmsprop", slots=2),\n',
        ),
        "shared/training/optim.py": before(
            "def fused_adamw(",
            "def rmsprop(groups, momentum):\n"
            "    return torch.optim.RMSprop(groups, lr=0.0, momentum=momentum)\n\n\n",
        ),
    },
    "a tracker": {
        "shared/config/schema.py": after('    tracker: Literal["none", ', '"trackio", '),
    },
    "an export format": {
        "stages/export_program.py": (
            NEW,
            "import sys\nfrom pathlib import Path\n\nimport torch\n\n"
            "from shared.networks.build import load_classifier\n\n"
            "model, meta = load_classifier(Path(sys.argv[1]))\n"
            "images = torch.zeros(2, 3, meta['image_size'], meta['image_size'])\n"
            "program = torch.export.export(model.eval(), (images,))\n"
            "torch.export.save(program, sys.argv[2])\n",
        ),
    },
}


def call(root: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the code with all extensions, and a finished run of it."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("shared", "stages", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pipeline.py", root)
    for files in DIFFS.values():
        for name, (anchor, text) in files.items():
            path = root / name.strip()
            if anchor == NEW:
                assert not path.exists()
                path.write_text(text)
            else:
                assert path.read_text().count(anchor) == 1, (name, anchor)
                path.write_text(path.read_text().replace(anchor, text))
    options = [
        *TINY,
        "--output=out",
        "--pretrain.loss=alignment",
        "--distill.student=tiny_net",
        "--labels=2each",
        "--augment.invert=true",
        "--finetune.optimizer=rmsprop",
    ]
    printed = call(root, "pipeline.py", *options)
    table = call(root, "pipeline.py", *options, "--table=two_rows")
    return root, printed, table


def test_at_most_three_files_each():
    assert len(DIFFS) == 10
    assert max(len({name.strip() for name in files}) for files in DIFFS.values()) <= 3
    guide = (ROOT / "docs/architecture.md").read_text()
    for extension, files in DIFFS.items():
        (line,) = [x for x in guide.splitlines() if x.startswith(f"| {extension} ")]
        for name in files:
            folder = str(Path(name).parent)
            assert name.strip() in line or folder in line, (
                f"{extension}: the guide does not name {name}"
            )


def test_the_run_has_the_new_row_and_column(extended):
    root, printed, table = extended
    rows = [json.loads(line) for line in (root / "out/digits/results.jsonl").open()]
    assert [row["stage"] for row in rows if row["labels"] == "2each"][-1] == "again"
    assert all(0 <= row["brier"] <= 2 for row in rows)
    assert "supervised again" in printed
    assert "Brier" in printed
    assert "2each (20)" in printed
    assert "again" in table
    assert "Brier, mean" in table


def test_the_artifacts_were_made_with_the_new_parts(extended):
    root, _, _ = extended
    run = root / "out/digits"
    metas = {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/meta.json")}
    assert metas["pretrain"]["settings"]["pretrain.loss"] == "alignment"
    assert metas["pretrain"]["settings"]["augment.invert"] is True
    assert metas["distill-2each-seed0"]["encoder"] == "tiny_net"
    assert metas["finetune-2each-seed0"]["settings"]["finetune.optimizer"] == "rmsprop"
    losses = [json.loads(line)["loss"] for line in (run / "pretrain/metrics.jsonl").open()]
    assert all(0 <= loss <= 4 for loss in losses)  # squared distances of unit vectors


def test_export_and_tracker(extended):
    root, _, _ = extended
    student = "out/digits/distill-2each-seed0"
    call(root, "-m", "stages.export_program", student, "student.pt2")
    program = torch.export.load(root / "student.pt2")
    assert program.module()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert "tracker: trackio" in call(root, "pipeline.py", "--tracker=trackio", "--print_config")
