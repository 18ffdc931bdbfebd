"""Whole commands on the null GPU: torch's CUDA build runs its host code, without a GPU.

``stub.py`` builds a library that answers torch's CUDA, cuBLAS and NCCL calls. Device memory is host
memory, and kernels do nothing. So this shows what the host code does: which tensor is on which
device, in which layout and dtype, what the allocator, autograd, the fused optimizers and pinned
memory accept, and where a step would wait for the GPU.

It does not show: numbers (values are garbage), speed, the memory that is used, kernels (a launch
that a real GPU refuses succeeds here), cuDNN (it is off: convolutions are matrix products), what
scikit-learn makes of features (it refuses garbage: no classical rows, no ``stages.assess``), and
what several processes tell one another (each receives what itself has sent). torch's search for
waits knows copies and reads of numbers, but not every operation that waits.
``benchmarks/gpu.py`` and ``pytest -m gpu`` are for a real GPU.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.nullgpu import stub
from tests.nullgpu.driver import Command
from tests.support.photos import class_folders

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.nullgpu,
    pytest.mark.skipif(bool(stub.why_not()), reason=stub.why_not()),
]

STAGES = ("pretrain", "finetune", "linear", "supervised", "distill")
TINY = [
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=32",
    "--model.head_out=16",
    "--threads=1",
    "--labels=10pct",
    "--classical.enabled=false",  # scikit-learn refuses the garbage that kernels leave
    *(
        f"--{stage}.{option}"
        for stage in STAGES
        for option in ("steps=4", "batch_size=32", "warmup_epochs=0", "log_every_steps=2")
    ),
]
FLOAT32 = ["--precision=no"]
BF16 = ["--precision=bf16"]  # and with it channels_last
MEMORY = ["--pretrain.memory=64"]
PARTS = ["--pretrain.micro_batch=16"]
DISTILL = [
    "--distill.self_first=true",
    "--distill.labeled_weight=0.3",
    "--distill.teacher_view=clean",
]
OTHER_WAYS = [
    "--finetune.freeze_after_block=1",
    "--linear.linear_init=class_means",
    "--distill.images=labeled",
    "--checkpoint_activations=true",
]
# all that an augmentation can do, and images that are not in [0, 1]
AUGMENTED = [
    "--augment.crop_area=[0.5,1]",
    "--augment.rotate=10",
    "--augment.jitter=0.8",
    "--augment.color_strength=0.5",
    "--augment.grayscale=0.2",
    "--augment.blur=0.5",
    "--augment.blur_sigma_per=image",
    "--data.mean=[0.5,0.5,0.5]",
    "--data.std=[0.2,0.2,0.2]",
]
PHOTOS = [
    "--config=configs/image_folder.yaml",
    "--data.image_size=32",
    "--data.workers=2",
    "--distill.student=simclr_resnet8_1x_sk0",
    "--data.train={photos}",
    *TINY,
    "--labels=2perclass",
    *(f"--{stage}.batch_size=8" for stage in STAGES),
]
PRETRAIN = {
    "adamw": ["--pretrain.optimizer=adamw"],
    "lars": ["--pretrain.optimizer=lars"],
    "sgd": ["--pretrain.optimizer=sgd"],
    "float32": FLOAT32,
    "nt_logistic": ["--pretrain.loss=nt_logistic"],
    "nt_logistic-semi_hard": ["--pretrain.loss=nt_logistic", "--pretrain.semi_hard=true"],
    "margin_triplet": ["--pretrain.loss=margin_triplet", "--pretrain.semi_hard=true"],
    "memory": MEMORY,
    "moco": [*MEMORY, "--pretrain.negatives=memory"],
    "micro_batch": PARTS,
    "memory-micro_batch": [*MEMORY, *PARTS],
    "checkpoint_activations": ["--checkpoint_activations=true"],
    "augmented": AUGMENTED,
}
RESUMED = ("adamw", "lars", "sgd", "memory", "micro_batch")


PREDICTED = ["{output}/pipeline/distill-10pct-seed0", "{photos}/a/0.png"]

EXPORTED = ["{output}/pipeline/distill-10pct-seed0", "--to", "torchscript"]


def pretrain(name: str, *options: str, **how) -> list[Command]:
    arguments = [*TINY, *BF16, *options, "--output={output}", f"--run={name}"]
    return [Command(name, "stages.pretrain", arguments, **how)]


def pipeline(name: str, *options: str, **how) -> list[Command]:
    return [Command(name, "pipeline", [*options, "--output={output}", f"--run={name}"], **how)]


def resumed(method: str, module: str = "stages.finetune") -> Command:
    """A stage that starts from what the case "pipeline" made, stopped and called again."""
    of_pipeline = [f"--{name}.init={{output}}/pipeline/pretrain" for name in ("finetune", "linear")]
    teacher = "--distill.teacher={output}/pipeline/finetune-10pct-seed0"
    arguments = [*TINY, *BF16, *of_pipeline, teacher, "--output={output}"]
    chosen = [f"--method={method}"] if module == "stages.finetune" else []
    name = f"resumed-{method}"
    return Command(name, module, [*arguments, *chosen, f"--run={name}"], stop_after=2)


# The commands of each case; they may read what those before them made.
CASES = {
    "pipeline": [
        *pipeline("pipeline", *TINY, *BF16, *DISTILL, strict=True),
        Command("predict", "stages.predict", PREDICTED),
        Command("export", "stages.export.export", EXPORTED),
        *(resumed(method) for method in ("finetune", "linear", "supervised")),
        resumed("distill", "stages.distill"),
    ],
    "other_ways": pipeline("other_ways", *TINY, *FLOAT32, *OTHER_WAYS, strict=True),
    "photos": pipeline("photos", *PHOTOS, *BF16, strict=True),
    "photos-micro_batch": pretrain(
        "photos-micro_batch", *PHOTOS, "--pretrain.micro_batch=4", strict=True
    ),
    "page": [
        *pipeline("paged", *TINY, *BF16),
        Command("page", "stages.page.__main__", ["{output}/paged"]),
    ],
    "plan": pipeline("plan", *TINY, *BF16, "--plan"),
    **{name: pretrain(name, *options, strict=True) for name, options in PRETRAIN.items()},
    **{
        f"resumed-{name}": pretrain(f"resumed-{name}", *PRETRAIN[name], stop_after=2)
        for name in RESUMED
    },
}
BY_DEFAULT = {"pipeline", "photos", "memory-micro_batch", "resumed-adamw"}


@pytest.fixture(scope="session")
def null_gpu(tmp_path_factory) -> Path:
    return stub.build(tmp_path_factory.mktemp("null_gpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("photos"), 8, size=(40, 36))


def run(
    commands: list[Command], folder: Path, library: Path, photos: Path, gpus: int = 1
) -> tuple[dict[str, str], str]:
    """Run commands in a process of their own; return their errors by name, and what it printed."""
    wanted, results = folder / "commands.json", folder / "results.jsonl"
    text = json.dumps([asdict(command) for command in commands])
    wanted.write_text(text.replace("{output}", str(folder)).replace("{photos}", str(photos)))
    launcher = [f"--nproc-per-node={gpus}", "--standalone", "-m"]
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            *(["torch.distributed.run", *launcher] if gpus > 1 else []),
            "tests.nullgpu.driver",
            str(wanted),
            str(results),
        ],
        cwd=ROOT,
        env=stub.environment(library, gpus),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    lines = results.read_text().splitlines() if results.exists() else []
    errors: dict[str, str] = {}
    for command in commands:
        of_processes = [x["error"] for x in map(json.loads, lines) if x["name"] == command.name]
        if any(of_processes) or len(of_processes) == gpus:
            errors[command.name] = "".join(of_processes)
    return errors, process.stdout


@pytest.fixture(scope="module")
def ended(request, tmp_path_factory, null_gpu, photos):
    """Errors of the cases that are selected in this session, all run by one process."""
    names = {
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    commands = [command for case in CASES if case in names for command in CASES[case]]
    return run(commands, tmp_path_factory.mktemp("runs"), null_gpu, photos)


def require_success(commands: list[Command], errors: dict[str, str], printed: str) -> None:
    for command in commands:
        assert command.name in errors, f"{command.name} did not end:\n{printed[-3000:]}"
        assert not errors[command.name], f"{errors[command.name]}\n{printed[-3000:]}"


def test_a_wait_is_noticed_and_kernels_do_nothing(null_gpu):
    """Else the tests below would prove nothing."""
    script = (
        "import torch; assert torch.cuda.get_device_name() == 'Null GPU'\n"
        "ones = torch.zeros(3, device='cuda').fill_(1); assert ones.tolist() == [0, 0, 0]\n"
        "torch.cuda.set_sync_debug_mode('error'); ones.sum().item()"
    )
    command, environment = [sys.executable, "-c", script], stub.environment(null_gpu)
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    last_line = process.stderr.splitlines()[-1]
    assert last_line == "RuntimeError: called a synchronizing CUDA operation"


@pytest.mark.parametrize(
    "case", [c if c in BY_DEFAULT else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_commands_run_and_no_step_waits_for_the_gpu(case, ended):
    """Every one ends well, and what an optimizer keeps has the layout of its weight."""
    require_success(CASES[case], *ended)


@pytest.mark.slow
def test_two_gpus(null_gpu, photos, tmp_path):
    """Of two processes, both of which must end well; NCCL answers."""
    commands = pipeline("two", *TINY, *BF16, *DISTILL, strict=True)
    errors, printed = run(commands, tmp_path, null_gpu, photos, gpus=2)
    require_success(commands, errors, printed)
    assert "Grad strides do not match bucket view strides" not in printed
