"""The options of the import of published weights."""

from argparse import _ArgumentGroup
from pathlib import Path

from shared.config.sections import WEIGHT_FORMATS
from shared.runtime.errors import CommandParser


def parser() -> CommandParser:
    """The options of ``stages.import_weights``."""
    made = CommandParser(
        prog="python -m stages.import_weights",
        description="Turn published weights into an artifact folder that the stages start from:"
        " those of a timm model, or a SimCLR checkpoint of TensorFlow (which is not needed).",
        epilog="With 18 and 34 layers, selective kernels for images of at most 32 pixels leave no"
        " trace in the variables: a TF1 checkpoint is taken to have none.",
    )
    add = made.add_argument
    add(
        "checkpoint",
        metavar="WEIGHTS",
        help="timm:NAME, such as timm:resnet50.a1_in1k, from the hub or its cache; timm:NAME=FILE,"
        f" from a file ({', '.join(WEIGHT_FORMATS)}); timm:FOLDER, with timm's config.json; or"
        " folder or prefix of a checkpoint of TensorFlow, or folder of a SavedModel",
    )
    add("out", type=Path, help="folder to make")
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="of the images that the network sees. Default: of timm's weights what timm says; else"
        " 224, or 32 for the small-image stem, because a checkpoint does not store it",
    )
    add(
        "--expect",
        action="append",
        default=[],
        metavar="SHA256",
        help="refuse a file with another sha256, before it is read; once for each file of a"
        " checkpoint of TensorFlow. After an import the hashes are printed",
    )
    _add_options_of_tensorflow(made.add_argument_group("checkpoints of TensorFlow"))
    return made


def _add_options_of_tensorflow(group: _ArgumentGroup) -> None:
    """What a checkpoint of the authors does not say itself."""
    add = group.add_argument
    add(
        "--as",
        dest="kind",
        choices=("encoder", "classifier"),
        help="encoder: with the whole projection head, for stages.finetune; classifier: with the"
        " linear layer and the head's layers below it, for stages.distill. Default: classifier for"
        " what was fine-tuned, distilled or trained with labels; encoder for what was pretrained,"
        " which often holds a linear layer too, and where nothing tells",
    )
    add(
        "--selector",
        type=int,
        metavar="LAYER",
        help="after how many layers of the head the linear layer stands (the reference's"
        " ft_proj_selector; -1: all). No checkpoint stores it. Default: what the computation graph"
        " beside the weights says (saved_model.pb, .meta); else what the optimizer has trained;"
        " where neither tells and several layers fit, it has to be given",
    )
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line, as your data set has them; default: 0, 1, ..."
        " ImageNet's 1000 are in the order of their synset ids; of 1001 the first is the"
        " background",
    )
    add(
        "--ema",
        action="store_true",
        help="take the moving average (ema_model/...) where there are both",
    )
    add(
        "--drop",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out the variables of this name, such as 'queue/*'",
    )
