"""Builds the null GPU: a library that answers torch's CUDA, cuBLAS and NCCL calls.

Loaded before CUDA's own libraries (``LD_PRELOAD``), it lets torch's CUDA build run its whole host
code on a machine without a GPU. ``answers.c`` and ``structs.c`` hold the answers that say
something; every other call that torch makes gets 0, which is "success". Seen to work with torch
2.14 for CUDA 13; another version may need another answer.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

HERE = Path(__file__).parent
PACKAGES = Path(sysconfig.get_path("purelib"))
TORCH = Path(torch.__file__).parent / "lib"
CALLS = re.compile(r"(cuda|cublas|nccl|curand|cusparseCreate|cudnn|cu(?!File)[A-Z])")


def why_not() -> str:
    """Why the null GPU cannot be built here; empty where it can."""
    if sys.platform != "linux":
        return "the null GPU needs LD_PRELOAD of Linux"
    if torch.version.cuda is None or not (TORCH / "libtorch_cuda.so").exists():
        return "this torch is a CPU build"
    missing = [program for program in ("gcc", "nm") if shutil.which(program) is None]
    if missing:
        return f"the null GPU is built with {' and '.join(missing)}, not installed here"
    return "" if _headers() else "cuda_runtime_api.h is not among the packages"


def build(folder: Path) -> Path:
    """Compile the library into ``folder``, in about 2 seconds; return its path."""
    objects = []
    for name in ("answers", "structs"):
        objects.append(folder / f"{name}.o")
        _gcc("-c", "-I", _headers()[0], HERE / f"{name}.c", "-o", objects[-1])
    answered = _symbols("--defined-only", *objects)
    called = _symbols("-D", "--undefined-only", *TORCH.glob("lib*.so"))
    silent = sorted(name for name in called - answered if CALLS.match(name))
    source = folder / "silent.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in silent))
    library = folder / "libnullgpu.so"
    _gcc("-shared", source, *objects, "-o", library, "-ldl")
    (folder / "libcuda.so.1").symlink_to(library.name)  # torch opens the driver by this name
    return library


def environment(library: Path, gpus: int = 1) -> dict[str, str]:
    """The environment of a process that sees so many null GPUs."""
    folders = [str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders)),
        "NULL_GPUS": str(gpus),
    }


def _headers() -> list[Path]:
    """Folders with CUDA's runtime header, which triton and NVIDIA's packages bring."""
    patterns = ("triton/backends/nvidia/include", "nvidia/*/include")
    folders = [folder for pattern in patterns for folder in PACKAGES.glob(pattern)]
    return [folder for folder in folders if (folder / "cuda_runtime_api.h").exists()]


def _gcc(*arguments: str | Path) -> None:
    subprocess.run(["gcc", "-fPIC", "-O1", "-w", "-fno-builtin", *arguments], check=True)


def _symbols(*arguments: str | Path) -> set[str]:
    """Names that nm lists, without their versions."""
    listed = subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in listed.splitlines() if line and not line.endswith(":")]
    return {line[-1].split("@")[0] for line in lines if line}
