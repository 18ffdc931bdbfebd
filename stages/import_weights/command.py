"""The command line: one checkpoint in, one artifact folder out."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from shared.runtime.errors import UserError, exit_code_2
from shared.runtime.files import did_you_mean, read_bytes
from shared.runtime.media import say_block
from stages.import_weights.arguments import parser
from stages.import_weights.reference import import_checkpoint
from stages.import_weights.timm_weights import import_published, is_published


@exit_code_2
def main(argv: Sequence[str] | None = None) -> int:
    """Import one checkpoint: 0, or 2 after one line that says what is wrong."""
    arguments = parser().parse_args(argv)
    source, size = arguments.checkpoint, arguments.image_size
    if is_published(source):
        if other := [option for option, value in _of_tensorflow(arguments).items() if value]:
            raise UserError(f"{', '.join(other)}: for checkpoints of TensorFlow, not for {source}")
        say_block("\n".join(import_published(source, arguments.out, size, arguments.expect)))
        return 0
    lines = import_checkpoint(
        Path(source),
        arguments.out,
        arguments.kind,
        arguments.selector,
        size,
        _read_classes(arguments.classes) if arguments.classes else None,
        arguments.ema,
        arguments.drop,
        arguments.expect,
    )
    say_block("\n".join(lines))
    return 0


def _of_tensorflow(arguments: Namespace) -> dict[str, object]:
    """The options that say what a checkpoint of TensorFlow does not."""
    return {
        "--as classifier": arguments.kind == "classifier",
        "--selector": arguments.selector is not None,
        "--classes": arguments.classes,
        "--ema": arguments.ema,
        "--drop": arguments.drop,
    }


def _read_classes(file: Path) -> list[str]:
    """One name a line; empty lines do not count."""
    try:
        lines = read_bytes(file, 2**24).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        hint = did_you_mean(file)
        raise UserError(f"cannot read --classes {file}: {error}{hint}") from error
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
