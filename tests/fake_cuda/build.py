"""Builds the stand-in for CUDA: a library that is loaded before the real ones and answers in their place.

PyTorch itself is unchanged: its CUDA allocator, streams, graphs, autograd and compiler run as they do on a GPU, Triton
compiles for one, and every call that would reach the device is checked and counted instead. No kernel runs; what is read
back is zero.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = ("device.cpp", "memory.cpp", "kernels.cpp", "driver.cpp", "libraries.cpp")
TORCH = Path(torch.__file__).parent / "lib"
LIBRARIES = ("c10_cuda", "torch_cuda", "torch_python", "torch_nvshmem", "torch_cuda_linalg", "torch_cpu", "caffe2_nvrtc")
CUDA = r"\bU ((?:cuda|__cuda|cu[A-Z]|cublas|cudnn|cusparse|cusolver|cufft|curand|cupti)\w*)"
TRITON = [
    "cuCtxGetLimit",
    "cuCtxSetCurrent",
    "cuCtxSetLimit",
    "cuFuncSetAttribute",
    "cuFuncSetCacheConfig",
    "cuModuleUnload",
    "cuOccupancyMaxActiveClusters",
    "cuPointerGetAttributes",
    "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeTiled",
]


def missing() -> str | None:
    """What keeps the stand-in from being built here, or None."""
    if not sys.platform.startswith("linux"):
        return "shared libraries are replaced as Linux loads them"
    for tool in ("g++", "nm"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed, which Triton compiles its launcher with"
    if torch.version.cuda is None or len(_headers()) < 3:
        return "this PyTorch came without CUDA or its headers"
    return None


def build(folder: Path) -> dict[str, str]:
    """The variables of a process that finds the stand-in. folder: where the library goes."""
    objects = []
    for name in SOURCES:
        objects.append(folder / f"{name}.o")
        _run("g++", "-std=c++17", "-fPIC", "-O1", *(f"-I{path}" for path in _headers()), "-c", HERE / name, "-o", objects[-1])
    ours = set(re.findall(r" T (\w+)$", _run("nm", *objects), re.MULTILINE))
    libraries = [path for name in LIBRARIES if (path := TORCH / f"lib{name}.so").exists()]
    asked = {*re.findall(CUDA, _run("nm", "--dynamic", "--undefined-only", *libraries)), *TRITON}
    # What nothing here needs an answer from says that all went well.
    others = folder / "others.c"
    others.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in sorted(asked - ours)))
    library = folder / "libcuda.so.1"
    _run("gcc", "-fPIC", "-fno-builtin", "-c", others, "-o", folder / "others.o")
    _run("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", library, *objects, folder / "others.o", "-ldl", "-lpthread")
    (folder / "libcuda.so").symlink_to(library)  # what Triton's own build looks for
    return {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(folder), "TRITON_LIBCUDA_PATH": str(folder)}


def _headers() -> list[Path]:
    """The folders of CUDA's and cuDNN's headers, which come with PyTorch's own packages and with Triton (crt/)."""
    packages = [Path(path) for path in sys.path if (Path(path) / "nvidia").is_dir()]
    places = ("nvidia/*/include/cuda_runtime_api.h", "nvidia/*/include/cudnn_graph.h", "triton/backends/nvidia/include/cuda.h")
    found = (next(package.glob(place), None) for package in packages[:1] for place in places)
    return [path.parent for path in found if path is not None]


def _run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
