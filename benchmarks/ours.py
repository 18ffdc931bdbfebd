"""Our side of the comparison: the stages themselves, or the functions that they call.

    python -m benchmarks.ours step32 FOLDER      # started by compare.py, one process per contender

Each function prepares, then works lap after lap until it is stopped. ``quick`` makes the work
tiny, for the tests.
"""

import json
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.laps import Laps, PeakMemory
from shared.config.command import device_type, hardware_precision, keep_freed_memory
from shared.config.command_line import load_config
from shared.config.schema import RECIPES, Config
from shared.data import augment, image_ops
from shared.data.batches import Batches, normalize
from shared.data.sources import open_data
from shared.networks import cpu as convolution
from shared.networks.build import build_classifier, build_contrastive, network_meta
from shared.networks.cpu import Conv2d
from shared.runtime.randomness import generator
from shared.training import stage
from shared.training.device import prepare_to_train, to_device, to_inference
from shared.training.losses import Pairs, nt_xent
from shared.training.optim import build_optimizer, set_learning_rate
from shared.training.runlog import RunLog
from stages import pretrain

Lap = Callable[..., None]

# What a setting is worth: our network, loss and optimizer with one of them otherwise.
SETTINGS = {
    "bare": [],
    "fp32": ["--precision", "no"],
    "nchw": ["--channels_last", "no"],
    "compiled": ["--compile", "true"],
    "returned": [],  # freed memory goes back to the system, see the end of this file
}


def flags(recipe: str, work: Path, images: str, *options: str) -> list[str]:
    """The command line of a recipe on the images that compare.py made."""
    return [
        "--config",
        str(RECIPES / f"{recipe}.yaml"),
        "--output",
        str(work / "runs"),
        "--data.train",
        str(work / images),
        "--data.test",
        "null",
        "--data.workers",
        "2",
        *options,
    ]


def recipe32(work: Path, quick: bool, batch_size: int) -> list[str]:
    """CIFAR-10's recipe at another batch size."""
    size = 8 if quick else batch_size
    encoder = ["--model.encoder", "simclr_resnet8_1x_sk0"] if quick else []
    return flags("cifar10", work, "small", "--pretrain.batch_size", str(size), *encoder)


def recipe224(work: Path, quick: bool, batch_size: int, recipe: str = "imagenet") -> list[str]:
    """The paper's recipe, or that of photos, with ResNet-50 (width 1, no selective kernels)."""
    layers, size, side = (8, 2, 40) if quick else (50, batch_size, 224)
    return flags(
        recipe,
        work,
        "photos",
        "--model.encoder",
        f"simclr_resnet{layers}_1x_sk0",
        "--pretrain.batch_size",
        str(size),
        "--data.image_size",
        str(side),
    )


def read(argv: list[str]) -> Config:
    """The configuration of a command line."""
    return load_config(argv, "benchmarks.ours", "")[0]


def accelerator(precision: str | None = None) -> Accelerator:
    """As the commands make it."""
    device = device_type()
    mixed_precision = precision or hardware_precision(device)
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)


# ---------------------------------------------------------------------------------- whole steps
def step(lap: Lap, argv: list[str], steps_per_lap: int = 1) -> None:
    """``python -m stages.pretrain``; a lap ends where one of its steps begins."""
    config, count, real = read(argv), 0, stage.set_learning_rate

    def begin_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        nonlocal count
        if count % steps_per_lap == 0:
            lap(steps_per_lap * config.pretrain.batch_size)
        count += 1
        real(optimizer, learning_rate)

    stage.set_learning_rate = begin_step
    try:
        pretrain.main(
            [
                *argv,
                "--pretrain.steps",
                "1000000",
                "--run",
                "step",
                "--force",
                "all",
                "--pretrain.checkpoint_every_steps",
                "1000000",
            ]
        )
    finally:
        stage.set_learning_rate = real


def waiting(lap: Lap, argv: list[str], steps: int) -> None:
    """The same, undisturbed; a lap is ``steps`` steps, with what its log says of waiting."""

    class Log(RunLog):
        def write(
            self, step: int, chance: float | None = None, **values: float | torch.Tensor
        ) -> None:
            super().write(step, chance, **values)
            line = json.loads(self._path.read_text().splitlines()[-1])
            lap(steps * self.batch_size, waiting=line["waiting_for_data"])

    real, stage.RunLog = stage.RunLog, Log
    try:
        pretrain.main(
            [
                *argv,
                "--pretrain.steps",
                "1000000",
                "--run",
                "waiting",
                "--force",
                "all",
                "--pretrain.log_every_steps",
                str(steps),
            ]
        )
    finally:
        stage.RunLog = real


def bare(lap: Lap, argv: list[str], steps_per_lap: int = 1) -> None:
    """Network, loss and optimizer of the stage on one fixed batch: no loading, no augmentation."""
    config = read(argv)
    here = accelerator(None if config.precision == "auto" else config.precision)
    cfg, size = config.pretrain, config.data.image_size
    model = build_contrastive(network_meta(config.model, config.data))
    optimizer = build_optimizer(cfg.optimizer, model, cfg.weight_decay, cfg.momentum)
    prepare_to_train(model, config, here)
    net, optimizer = here.prepare(model, optimizer)
    images = torch.rand(2 * cfg.batch_size, 3, size, size, device=here.device)
    net.train()
    while True:
        for _ in range(steps_per_lap):
            set_learning_rate(optimizer, 1e-3)
            z1, z2 = net(images).chunk(2)
            loss = nt_xent(Pairs.of_views(z1, z2, z1, z2), cfg.temperature)
            loss.item()
            here.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        lap(steps_per_lap * cfg.batch_size)


# ---------------------------------------------------------------------------------- data alone
def data(
    lap: Lap, argv: list[str], batches_per_lap: int, augmented: bool = True, for_gpu: bool = False
) -> None:
    """Batches of the stage, or of images as evaluation shows them, without a network.

    With ``for_gpu`` only what the processor does where a GPU takes colours and blur: decoding,
    cropping and bringing the crops together as uint8.
    """
    config, here = read(argv), accelerator()
    images = open_data(config.data, config.label_set, False).train
    batches = Batches(
        images,
        np.arange(len(images)),
        config.data,
        config.augment if augmented else None,
        here,
        seed=0,
        stage="pretrain",
        batch_size=config.pretrain.batch_size,
        views=2,
    )
    batches.workers_finish &= not for_gpu
    whole = 0, 1_000_000
    steps = batches.crops(*whole) if for_gpu else batches.steps(*whole)
    assert isinstance(steps, Generator)
    with closing(steps):  # so its workers end with the last lap
        for count, _ in enumerate(steps):
            if count % batches_per_lap == 0:
                lap(batches_per_lap * config.pretrain.batch_size)


def augmentation(lap: Lap, argv: list[str], batches_per_lap: int) -> None:
    """One view of each image of a batch that is in memory; items are views."""
    config = read(argv)
    images = open_data(config.data, config.label_set, False).train
    options, size = config.augment, config.data.image_size
    batch_size, step = config.pretrain.batch_size, 0
    assert images.pixels is not None
    pixels = images.pixels[torch.arange(batch_size) % len(images)]  # (B, 3, H, W)
    sides = np.full(batch_size, size)
    while True:
        for _ in range(batches_per_lap):
            boxes = augment.draw_boxes(options, generator(0, "crop", step), sides, sides)
            crops = image_ops.crop_resize(pixels, boxes, size, config.data.antialias)
            draws = augment.draw(options, generator(0, "look", step), batch_size)
            normalize(augment.apply(options, crops, draws), config.data)
            step += 1
        lap(batches_per_lap * batch_size)


# ---------------------------------------------------------------------------------- loss, teacher
def convolution_step(lap: Lap, channels: int, side: int, torchs: bool, bf16: bool) -> None:
    """Forward and backward of a convolution, 128 views; ours, or torch's."""
    if torchs:
        for name in ("WEIGHTS_PER_POSITION", "LEAST_CHANNELS", "LEAST_CHANNELS_BY_ONEDNN"):
            setattr(convolution, name, 10**9)
    conv = Conv2d(channels, channels, 3).to(memory_format=torch.channels_last)
    x = torch.randn(128, channels, side, side).to(memory_format=torch.channels_last)
    x.requires_grad_()
    while True:
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y = conv(x)
            y.backward(y.detach())
        lap(20)


def loss(lap: Lap, embeddings: int, times: int) -> None:
    """Forward and backward of NT-Xent on so many embeddings of width 128."""
    z1, z2 = (torch.randn(embeddings // 2, 128, requires_grad=True) for _ in range(2))
    while True:
        memory = PeakMemory()
        for _ in range(times):
            nt_xent(Pairs.of_views(z1, z2), 0.1).backward()
            z1.grad = z2.grad = None
        lap(times, extra_mb=memory.rise())


def teacher(lap: Lap, argv: list[str], batch_size: int, precision: str | None = None) -> None:
    """Predictions of the frozen teacher as stages/distill.py makes them, or in float32."""
    config, here = read(argv), accelerator(precision)
    classes = [str(number) for number in range(1000)]
    meta = network_meta(config.model, config.data)
    model = build_classifier({**meta, "classes": classes, "from_layer": 1})
    if precision == "no":
        model = to_device(model, config, here).eval().requires_grad_(False)
    else:
        model = to_inference(model, config, here)
    size = config.data.image_size
    images = torch.rand(batch_size, 3, size, size, device=here.device)
    while True:
        with torch.inference_mode(), here.autocast():
            model(images)
        lap(batch_size)


def run(line: str, lap: Lap, work: Path, quick: bool) -> None:
    """Work on a line of the table until ``lap`` raises."""
    name, _, variant = line.partition(":")
    few = 1 if quick else 8
    match name, variant:
        case "step32", "":
            step(lap, recipe32(work, quick, 256))
        case "step32_bf16", "":
            step(lap, recipe32(work, quick, 64), 1 if quick else 2)
        case "step32_bf16" | "model32", "bare":
            bare(lap, recipe32(work, quick, 64), 1 if quick else 2)
        case "settings32", setting:
            argv = recipe32(work, quick, 64) + SETTINGS[setting]
            bare(lap, argv, 1 if quick else 2)
        case "step224", "":
            step(lap, recipe224(work, quick, 8), 1 if quick else 2)
        case "step224", "bare":
            bare(lap, recipe224(work, quick, 8), 1 if quick else 2)
        case "waiting32", "":
            waiting(lap, recipe32(work, quick, 64), 2 if quick else 4)
        case "augment32", "":
            augmentation(lap, recipe32(work, quick, 256), 2 * few)
        case "load224", "":
            data(lap, recipe224(work, quick, 32, "image_folder"), few, augmented=False)
        case "data224", "":
            data(lap, recipe224(work, quick, 32, "image_folder"), few)
        case "data224", "paper":
            data(lap, recipe224(work, quick, 32), few)
        case "data224", "gpu":
            data(lap, recipe224(work, quick, 32, "image_folder"), few, for_gpu=True)
        case "data32", "":
            data(lap, recipe32(work, quick, 256), 2 * few)
        case "teacher224", "":
            teacher(lap, recipe224(work, quick, 16), 2 if quick else 16)
        case "teacher224", "fp32":
            teacher(lap, recipe224(work, quick, 16), 2 if quick else 16, "no")
        case "convolution", _:
            convolution_step(lap, 64 if quick else 512, 4, variant == "torch", bf16=True)
        case "convolution_float32", _:
            convolution_step(lap, 128 if quick else 256, 8, variant == "torch", bf16=False)
        case _, "" if name.startswith("loss"):
            embeddings = int(name.removeprefix("loss"))
            loss(lap, embeddings, 1 if quick else max(1, (4096 // embeddings) ** 2))
        case _:
            raise ValueError(f"no such line: {line}")


if __name__ == "__main__":
    if not sys.argv[1].endswith(":returned"):
        keep_freed_memory()  # as every command does
    run(sys.argv[1], Laps(), Path(sys.argv[2]), "--quick" in sys.argv)
