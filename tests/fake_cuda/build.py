"""Builds the fake CUDA library, which is preloaded in place of the real driver, runtime, cuBLAS and cuDNN; see README.md."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = ("device.cpp", "memory.cpp", "kernels.cpp", "driver.cpp", "libraries.cpp")
MISTAKE = "the next piece of code\n"
"""On stderr of `tests.fake_cuda.steps`, which this module spares the tests to import."""

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
    """Why the fake cannot be built on this machine, or None."""
    if not sys.platform.startswith("linux"):
        return "it works on Linux only"
    for tool in ("g++", "nm"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers, which Triton's launcher needs, are not installed"
    if torch.version.cuda is None or len(_headers()) < 3:
        return "this PyTorch was installed without CUDA or its headers"
    return None


def build(folder: Path) -> dict[str, str]:
    """Build the library into `folder`; returns the environment variables that load it into a process."""
    together, compiled = folder / "all.cpp", folder / "all.o"
    together.write_text("".join(f'#include "{HERE / name}"\n' for name in SOURCES))  # CUDA's headers are read once
    _run("g++", "-std=c++17", "-fPIC", "-O1", *(f"-I{path}" for path in _headers()), "-c", together, "-o", compiled)
    defined = set(re.findall(r" T (\w+)$", _run("nm", compiled), re.MULTILINE))
    libraries = [path for name in LIBRARIES if (path := TORCH / f"lib{name}.so").exists()]
    needed = {*re.findall(CUDA, _run("nm", "--dynamic", "--undefined-only", *libraries)), *TRITON}
    # All functions that the sources do not define return 0, success.
    others = folder / "others.c"
    others.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in sorted(needed - defined)))
    library = folder / "libcuda.so.1"
    _run("gcc", "-fPIC", "-fno-builtin", "-c", others, "-o", folder / "others.o")
    _run("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", library, compiled, folder / "others.o", "-ldl", "-lpthread")
    (folder / "libcuda.so").symlink_to(library)  # for Triton's build
    return {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(folder), "TRITON_LIBCUDA_PATH": str(folder)}


def _headers() -> list[Path]:
    """The include folders of CUDA and cuDNN, which come with PyTorch's packages and with Triton (crt/)."""
    packages = [Path(path) for path in sys.path if (Path(path) / "nvidia").is_dir()]
    headers = ("nvidia/*/include/cuda_runtime_api.h", "nvidia/*/include/cudnn_graph.h", "triton/backends/nvidia/include/cuda.h")
    paths = (next(package.glob(header), None) for package in packages[:1] for header in headers)
    return [path.parent for path in paths if path is not None]


def _run(*command: object) -> str:
    return subprocess.run([str(arg) for arg in command], check=True, capture_output=True, text=True).stdout
