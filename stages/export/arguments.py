"""Write an artifact as a file for other programs, and check the file on real images.

    python -m stages.export runs/photos/distill-10pct-seed0 --to onnx

The file takes images (N, 3, S, S) float32, RGB in [0, 1], of the network's size S.
Normalisation and softmax are inside; the central crop and the resize are outside. The file says so
itself, with the names of the classes and the hash of the artifact's weights. It is written only
where its outputs on images of the run are those of torch. A folder for timm holds what timm loads:
normalisation is in its config.json, softmax is left to the caller.
"""

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from shared.runtime.errors import CommandParser

NAMES = {  # of what is written
    "onnx": "model.onnx",
    "timm": "timm",
    "torchscript": "model.pt",
}


def parser() -> CommandParser:
    """The options of ``stages.export``."""
    made = CommandParser(
        "python -m stages.export",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("artifact", type=Path, metavar="runs/NAME/STAGE", help="a classifier or an encoder")
    add(
        "--to",
        choices=NAMES,
        required=True,
        help="onnx: a file for onnxruntime (pip install -e '.[export]'); timm: a folder for"
        ' timm.create_model("local-dir:FOLDER", pretrained=True); torchscript: a file for'
        " torch.jit.load",
    )
    add(
        "-o",
        "--out",
        type=Path,
        metavar="OUT",
        help="file or folder to write; default: "
        + ", ".join(NAMES.values())
        + " in the artifact's folder",
    )
    add(
        "--layer",
        type=int,
        metavar="K",
        help="features instead of probabilities: 0 is the encoder's output, K what K layers of the"
        " projection head make of it; an encoder's default is 0",
    )
    add(
        "--int8",
        action="store_true",
        help="onnx: also write OUT with .int8.onnx, weights in 8 bits (dynamic quantisation), and"
        " print its accuracy on the test images beside that of float",
    )
    add(
        "--images",
        metavar="SOURCE",
        help="check on these images (a folder, a .parquet file, a hub name) instead of the run's",
    )
    add(
        "--push_to_hub",
        metavar="NAME",
        help="timm: also upload the folder to the Hugging Face hub as OWNER/NAME",
    )
    return made
