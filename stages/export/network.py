"""What is exported: a network that takes images in [0, 1], and the notes that go with it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.data.image_ops import crop_share
from shared.networks.build import load_classifier, load_contrastive
from shared.networks.heads import Classifier, ContrastiveModel
from shared.runtime.artifacts import Meta, read_meta
from shared.runtime.errors import UserError


class Deployed(nn.Module):
    """Normalisation, the network's layers and, for a classifier, softmax.

    Args:
        meta: has ``mean`` and ``std`` of the normalisation.
        layers: applied one after the other.
        softmax: whether the last layer gives logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, meta: Meta, layers: list[nn.Module], softmax: bool) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(meta[name], dtype=torch.float32)
            self.register_buffer(name, values.view(3, 1, 1))
        self.layers, self.softmax = nn.Sequential(*layers), softmax

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) float32 in [0, 1] -> probabilities (N, C) or features (N, F)."""
        outputs = self.layers((images - self.mean) / self.std)
        return outputs.softmax(1) if self.softmax else outputs


@dataclass(frozen=True)
class Source:
    """An artifact that is to be exported.

    Attributes:
        path: its folder.
        meta: its ``meta.json``.
        model: its network, in eval mode.
        layer: how many layers of the projection head the features have passed; None where the
            output is the classes' probabilities.
        network: what is exported, in eval mode, without gradients.
    """

    path: Path
    meta: Meta
    model: Classifier | ContrastiveModel
    layer: int | None
    network: Deployed

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the outputs; empty for features."""
        return self.meta["classes"] if self.layer is None else []  # type: ignore[typeddict-item]

    @property
    def output(self) -> str:
        """What the exported file computes."""
        return "probabilities" if self.layer is None else "features"

    @property
    def example(self) -> Tensor:
        """A batch of blank images."""
        return torch.zeros(2, 3, self.meta["image_size"], self.meta["image_size"])

    def preprocessing(self) -> dict[str, object]:
        """What is done with an image before the exported network sees it, as evaluation does it."""
        size = self.meta["image_size"]
        return {
            "color": "RGB",
            "crop_share": crop_share(size, size),
            "image_size": size,
            "resize": "bicubic",
            "cubic_coefficient": -0.5,
            "antialias": bool(self.meta.get("antialias", False)),
            "range": [0, 1],
            "layout": "NCHW",
            "dtype": "float32",
            "mean_inside": list(self.meta["mean"]),
            "std_inside": list(self.meta["std"]),
        }

    def notes(self) -> dict[str, str]:
        """What the file says of itself: each value is JSON in ASCII, whatever a class is called."""
        keys = ("stage", "encoder", "weights_sha256", "seed", "labels", "git")
        origin = {key: value for key, value in self.meta.items() if key in keys}
        notes = {
            "output": self.output,
            "classes": self.classes,
            "layer": self.layer,
            "preprocessing": self.preprocessing(),
            "source": {"artifact": self.path.resolve().name, **origin},
        }
        return {key: json.dumps(value) for key, value in notes.items()}


def load(path: Path, layer: int | None = None) -> Source:
    """Read an artifact.

    Args:
        path: the folder of a classifier or of an encoder.
        layer: export features instead of probabilities: 0 is the encoder's output, k what k layers
            of the projection head make of it. An encoder's default is 0.

    Raises:
        UserError: there is no such artifact, or it has no such layer.
    """
    meta = read_meta(path)
    kind = meta["kind"]
    if kind == "classifier":
        model, _ = load_classifier(path)
        head = model.layers
    elif kind == "encoder":
        model, _ = load_contrastive(path)
        head, layer = model.head.layers, layer or 0
    else:
        raise UserError(
            f"{path} holds an artifact of kind {kind}; a classifier or an encoder can be exported"
        )
    if layer is not None and not 0 <= layer <= len(head):
        raise UserError(
            f"--layer {layer}: {path} has the layers 0 (the encoder's output) to {len(head)}"
        )
    layers = [model.encoder, *list(head)[:layer]]
    if layer is None and isinstance(model, Classifier):
        layers.append(model.linear)
    network = Deployed(meta, layers, softmax=layer is None)
    return Source(path, meta, model.eval(), layer, network.eval().requires_grad_(False))
