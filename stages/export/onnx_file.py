"""ONNX: for onnxruntime and everything else that reads it, without torch."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.runtime.errors import UserError
from stages.export.images import Function
from stages.export.network import Source

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# An import of onnxruntime 1.32 reports to its maker, and notes a number of the machine in ~/.cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
LARGEST = 2**31 - 2**20  # bytes of weights: one ONNX file holds less than 2 GiB


def require_packages() -> None:
    """UserError where a package of the extra ``[export]`` is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to onnx needs {', '.join(missing)}, not installed here;"
            " pip install -e '.[export]', or choose --to torchscript"
        )


def write(source: Source, path: Path) -> None:
    """Write ``images`` (N, 3, S, S) -> ``probabilities`` or ``features``, N free.

    Raises:
        UserError: the network has an operator that ONNX lacks, or is too large for one file.
    """
    import onnx

    size = sum(p.numel() * p.element_size() for p in source.network.parameters())
    if size > LARGEST:
        raise UserError(
            f"{source.path} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds less than"
            " 2 GiB; choose --to torchscript"
        )
    try:
        program = torch.onnx.export(
            source.network,
            (source.example,),
            dynamo=True,
            input_names=["images"],
            output_names=[source.output],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"encoder {source.meta['encoder']} cannot be written as ONNX: {_reason(error)};"
            " choose --to torchscript"
        ) from error
    assert program is not None  # without a file's name it is returned
    model = program.model_proto
    _forget_where_it_was_made(model)
    onnx.helper.set_model_props(model, source.notes())
    onnx.save(model, path)


def _reason(error: BaseException) -> str:
    """The line of the first cause, which names the operator; the exporter's own are long."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason'}"


def _forget_where_it_was_made(model: Any) -> None:
    """Remove the exporter's notes, which hold lines of code and paths of this machine."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for part in (graph, *graph.node, *graph.value_info):
            del part.metadata_props[:]
            part.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def load(path: Path) -> Function:
    """The file as a function, by onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime cannot run it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class of their own
        raise UserError(
            f"onnxruntime cannot run the exported file: {' '.join(str(error).split())[:200]};"
            " choose --to torchscript"
        ) from error

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def notes(path: Path) -> dict[str, str] | None:
    """What an exported file says of itself; None where it is no file of an export."""
    import onnx

    try:
        properties = onnx.load(path, load_external_data=False).metadata_props
    except Exception:  # the parser's errors are those of its backend
        return None
    notes_ = {entry.key: entry.value for entry in properties}
    return notes_ if "source" in notes_ else None


def quantize(source: Source, path: Path, out: Path) -> None:
    """Write the file with weights in 8 bits; activations are rounded to 8 bits as they come.

    Raises:
        UserError: onnxruntime cannot do it.
    """
    import onnx
    from onnxruntime import quantization

    logging.disable(logging.WARNING)  # one asks for a preparation that the exporter has done
    try:
        # unsigned, because onnxruntime's convolution on CPUs takes no other
        kind = quantization.QuantType.QUInt8
        quantization.quantize_dynamic(path, out, per_channel=True, weight_type=kind)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of many kinds; also where its copy in between had no room
        raise UserError(
            f"onnxruntime cannot write the weights in 8 bits: {' '.join(str(error).split())[:200]};"
            " make room, or leave --int8 out"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    model = onnx.load(out)
    onnx.helper.set_model_props(model, source.notes())  # without onnxruntime's, which is no JSON
    onnx.save(model, out)
