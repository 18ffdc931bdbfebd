"""The peers' side of the comparison: lightly and solo-learn on the work that ``ours.py`` does.

    python -m benchmarks.peers step32 lightly FOLDER       # started by compare.py

Runs in the peers' own environment. What is a peer's own is imported from its package: lightly's
transform, projection head and loss, and the step of its examples/pytorch/simclr.py; solo-learn's
transforms, loss, accuracy and LARS. The step of solo-learn is written out here after its
``BaseMethod.training_step`` and ``SimCLR.training_step`` (views one after the other, an online
classifier on the detached features), for the release in the registry asks for torch 1.9 and for
packages that no longer import. Its files are loaded one by one for the same reason.

Both get torchvision's ResNet with the small-image stem of 3 x 3 pixels, as ours. (solo-learn pads
that stem by 2, which would give it 34 x 34 maps, 13% more work; here it is padded by 1.)
Blur is off at 32 pixels, as in SimCLR's CIFAR recipe and lightly's example.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from lightly.loss import NTXentLoss  # pyright: ignore[reportMissingImports]
from lightly.models.modules import SimCLRProjectionHead  # pyright: ignore[reportMissingImports]
from lightly.transforms import SimCLRTransform  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from benchmarks.laps import Laps, PeakMemory

Lap = Callable[..., None]
CLASSES = 10


def solo(name: str) -> ModuleType:
    """A module of solo-learn by its file, without the packages around it."""
    file = Path(str(distribution("solo-learn").locate_file(f"solo/{name}.py")))
    loader = SourceFileLoader(f"solo_{file.stem}", str(file))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


def transform(peer: str, size: int) -> Callable[[Image.Image], list[Tensor]]:
    """The peer's two views of an image."""
    blur = 0.0 if size <= 32 else 0.5
    if peer == "lightly":
        return SimCLRTransform(input_size=size, gaussian_blur=blur)
    loading = solo("utils/pretrain_dataloader")
    view = loading.prepare_transform(
        "cifar10" if size <= 32 else "imagenet100",
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        gaussian_prob=blur,
        crop_size=size,
    )
    return loading.prepare_n_crop_transform([view], [2])


class InMemory(Dataset):
    """Images in memory, handed to the transform as torchvision's CIFAR-10 does."""

    def __init__(self, pixels: np.ndarray, transform: Callable):
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.pixels[index])), index % CLASSES


def small_images(work: Path, transform: Callable) -> Dataset:
    """The images of 32 x 32 pixels, in memory."""
    return InMemory(np.load(work / "small.npy"), transform)


def photos(work: Path, transform: Callable) -> Dataset:
    """The JPEG files."""
    return torchvision.datasets.ImageFolder(str(work / "photos"), transform)


def batches(dataset: Dataset, batch_size: int, workers: int) -> Iterator:
    """Shuffled batches without end."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=10**8)  # type: ignore[arg-type]
    return iter(
        DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    )


# ---------------------------------------------------------------------------------- whole steps
def backbone(name: str, size: int) -> tuple[nn.Module, int]:
    """The network of torchvision without its last layer, and its width."""
    net = getattr(torchvision.models, name)()
    width = net.fc.in_features
    net.fc = nn.Identity()
    if size <= 32:
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return net, width


def autocast(bf16: bool, device: str = "cpu") -> contextlib.AbstractContextManager:
    """Mixed precision of a whole training step, as Lightning's bf16-mixed."""
    return torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()


def lightly_steps(
    data: Iterator, name: str, size: int, bf16: bool, device: str = "cpu"
) -> Iterator[Tensor]:
    """Losses of updates after lightly's examples/pytorch/simclr.py."""
    net, width = backbone(name, size)
    model = nn.Sequential(net, SimCLRProjectionHead(width, width, 128)).to(device)
    criterion, optimizer = NTXentLoss(), torch.optim.SGD(model.parameters(), lr=0.06)
    for batch in data:
        x0, x1 = (view.to(device) for view in batch[0])
        with autocast(bf16, device):
            z0, z1 = model(x0), model(x1)
            loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def solo_steps(data: Iterator, name: str, size: int, bf16: bool) -> Iterator[Tensor]:
    """Losses of updates after solo-learn's methods; channels_last is its present default."""
    simclr_loss = solo("losses/simclr").simclr_loss_func
    accuracy_at_k = solo("utils/metrics").accuracy_at_k
    net, width = backbone(name, size)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    projector = nn.Sequential(nn.Linear(width, 2048), nn.ReLU(), nn.Linear(2048, 256))
    classifier = nn.Linear(width, CLASSES)
    optimizer = solo("utils/lars").LARSWrapper(
        torch.optim.SGD(
            [
                {"params": net.parameters()},
                {"params": classifier.parameters(), "lr": 0.1, "weight_decay": 0},
                {"params": projector.parameters()},
            ],
            lr=0.4,
            momentum=0.9,
            weight_decay=1e-4,
        ),
        eta=0.02,
        clip=True,
        exclude_bias_n_norm=True,
    )
    for views, targets in data:
        with autocast(bf16):
            features, hard = [], []
            for x in views:
                feats = net(x.to(memory_format=torch.channels_last))
                logits = classifier(feats.detach())
                hard.append(F.cross_entropy(logits, targets, ignore_index=-1))
                accuracy_at_k(logits, targets, top_k=(1, 5))
                features.append(feats)
            z1, z2 = (projector(feats) for feats in features)
            loss = simclr_loss(z1, z2, temperature=0.2) + sum(hard) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def step(
    lap: Lap, peer: str, data: Iterator, name: str, size: int, items: int, bf16: bool, count: int
) -> None:
    """Whole updates; a lap is ``count`` of them."""
    steps = {"lightly": lightly_steps, "solo": solo_steps}[peer](data, name, size, bf16)
    for done, loss in enumerate(steps, 1):
        assert loss.isfinite()
        if done % count == 0:
            lap(count * items)


def fixed(batch_size: int, size: int) -> Iterator:
    """The same batch again and again: what remains is the model, the loss and the optimizer."""
    views = [torch.rand(batch_size, 3, size, size) for _ in range(2)]
    targets = torch.arange(batch_size) % CLASSES
    while True:
        yield views, targets


# ---------------------------------------------------------------------------------- the rest
def loading(lap: Lap, data: Iterator, items: int, count: int) -> None:
    """Batches without a network; a lap is ``count`` of them."""
    for done, _ in enumerate(data):
        if done % count == 0:
            lap(count * items)


def augmentation(lap: Lap, peer: str, work: Path, count: int) -> None:
    """Views of images that are PIL images in memory; items are views."""
    images = [Image.fromarray(image) for image in np.load(work / "small.npy")]
    views = transform(peer, 32)
    while True:
        for index in range(count // 2):
            views(images[index % len(images)])
        lap(count)


def loss(lap: Lap, peer: str, embeddings: int, times: int) -> None:
    """Forward and backward of the peer's NT-Xent on so many embeddings of width 128."""
    function = NTXentLoss(0.1) if peer == "lightly" else solo("losses/simclr").simclr_loss_func
    z1, z2 = (torch.randn(embeddings // 2, 128, requires_grad=True) for _ in range(2))
    while True:
        memory = PeakMemory()
        for _ in range(times):
            function(z1, z2).backward()
            z1.grad = z2.grad = None
        lap(times, extra_mb=memory.rise())


def run(line: str, peer: str, lap: Lap, work: Path) -> None:
    """Work on a line of the table until ``lap`` raises."""
    name, _, variant = line.partition(":")
    # In memory without workers: that costs the peers least, images need not go between processes.
    if name in ("step32", "step32_bf16"):
        size = 256 if name == "step32" else 64
        data = batches(small_images(work, transform(peer, 32)), size, workers=0)
        step(lap, peer, data, "resnet18", 32, size, name == "step32_bf16", 256 // size // 2 or 1)
    elif name == "model32":
        step(lap, peer, fixed(64, 32), "resnet18", 32, 64, variant == "bf16", 2)
    elif name == "step224":
        data = batches(photos(work, transform(peer, 224)), 8, workers=2)
        step(lap, peer, data, "resnet50", 224, 8, False, 2)
    elif name == "augment32":
        augmentation(lap, peer, work, 1024)
    elif name == "load224":
        plain = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        )
        loading(lap, batches(photos(work, plain), 32, workers=2), 32, 8)
    elif name == "data224":
        loading(lap, batches(photos(work, transform(peer, 224)), 32, workers=2), 32, 4)
    elif name == "data32":
        loading(lap, batches(small_images(work, transform(peer, 32)), 256, workers=0), 256, 4)
    elif name.startswith("loss"):
        embeddings = int(name.removeprefix("loss"))
        loss(lap, peer, embeddings, max(1, (4096 // embeddings) ** 2))
    else:
        raise ValueError(f"no such line: {line}")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Laps(), Path(sys.argv[3]))
