"""Whether the CUDA kernels are built, for which architectures, and if not, why: what CMake is told.

RNNKERNELS_CUDA         0: never; 1: always, or it is an error; unset: where a working nvcc is found
TORCH_CUDA_ARCH_LIST    for which GPUs, as torch has it: 8.0;9.0a 10.0+PTX
CUDACXX, CUDA_HOME      where nvcc is; else on PATH, or in /usr/local/cuda
CUDAHOSTCXX             nvcc's host compiler; else the one that compiles the rest
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from setuptools.errors import SetupError

OLDEST_NVCC = (12, 0)  # the first that compiles C++20
OLDEST_ARCHITECTURE = 8.0  # the first with asynchronous copies and products of bfloat16
ARCHITECTURES = ["8.0", "9.0a", "10.0+PTX"]

# Compiled and linked as the kernels will be, before CMake gives up on a compiler that cannot.
PROBE = """
#include <vector>
__global__ void kernel() {}
int main() { kernel<<<1, 1>>>(); return std::vector<int>(1).size() != 1; }
"""


class UnavailableError(Exception):
    """There can be no CUDA kernels; the message says why."""


def cmake_options(environ, host_compiler):
    """CMake's options for the CUDA kernels, or for none."""
    wanted = environ.get("RNNKERNELS_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SetupError(
            f"RNNKERNELS_CUDA must be 0 (no CUDA kernels), 1 (CUDA kernels) or unset, got {wanted!r}"
        )
    none = ["-DRNNKERNELS_CUDA_ARCHITECTURES="]
    if wanted == "0":
        return none
    host_compiler = environ.get("CUDAHOSTCXX") or host_compiler
    try:
        nvcc = find_nvcc(environ)
        version = version_of(run(f"{nvcc} does not run", nvcc, "--version"))
        known = known_architectures(run(f"{nvcc} does not run", nvcc, "--list-gpu-arch"))
        architectures = choose_architectures(environ.get("TORCH_CUDA_ARCH_LIST", ""), known, version)
        check_compiler(nvcc, host_compiler)
    except UnavailableError as reason:
        if wanted == "1":
            raise SetupError(f"RNNKERNELS_CUDA=1, but {reason}") from reason
        print(f"rnnkernels is built without CUDA kernels: {reason}", flush=True)
        return none
    print(f"rnnkernels is built with CUDA kernels for {', '.join(architectures)}, by {nvcc}", flush=True)
    return [
        f"-DRNNKERNELS_CUDA_ARCHITECTURES={';'.join(architectures)}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_HOST_COMPILER={host_compiler}",
    ]


def find_nvcc(environ):
    """The path of nvcc. CUDACXX, if it is set, is the only answer."""
    home = environ.get("CUDA_HOME")
    places = [str(Path(home, "bin", "nvcc"))] if home else []
    places += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for place in [environ["CUDACXX"]] if environ.get("CUDACXX") else places:
        if found := shutil.which(place, path=environ.get("PATH", os.defpath)):
            return found
    raise UnavailableError("found no nvcc in CUDACXX, in CUDA_HOME, on PATH or in /usr/local/cuda")


def run(failure, *command):
    """What a program prints. If it fails, that comes after ``failure``."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise UnavailableError(f"{failure}: {done.stdout.strip() or 'it printed nothing'}")
    return done.stdout


def version_of(text):
    """``"12.8"``, out of what ``nvcc --version`` prints."""
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise UnavailableError(f"nvcc --version names no release: {text.strip()!r}")
    version = ".".join(found.groups())
    if tuple(map(int, found.groups())) < OLDEST_NVCC:
        raise UnavailableError(
            f"nvcc {version} is too old: the kernels need {'.'.join(map(str, OLDEST_NVCC))}"
        )
    return version


def known_architectures(listing):
    """``{"8.0", "10.0", ...}``, out of what ``nvcc --list-gpu-arch`` prints."""
    return {f"{major}.{minor}" for major, minor in re.findall(r"compute_(\d+)(\d)", listing)}


def number(architecture):
    """``"9.0"`` of ``"9.0a+PTX"``."""
    return re.match(r"[\d.]*", architecture).group()


def choose_architectures(requested, known, version):
    """Those of TORCH_CUDA_ARCH_LIST that can run the kernels, or else the default that nvcc knows."""
    names = list(dict.fromkeys(re.split(r"[;\s]+", requested.strip()))) if requested.strip() else []
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise SetupError(
                f"TORCH_CUDA_ARCH_LIST must be a list as in '8.0;9.0a;10.0+PTX', got {requested!r}"
            )
    chosen = [name for name in names if float(number(name)) >= OLDEST_ARCHITECTURE]
    for name in chosen:
        if number(name) not in known:
            raise SetupError(f"TORCH_CUDA_ARCH_LIST has {name}, which nvcc {version} does not know")
    if names and not chosen:
        raise UnavailableError(
            f"TORCH_CUDA_ARCH_LIST={requested!r} has none from {OLDEST_ARCHITECTURE} on, as the kernels need"
        )
    if names:
        return chosen
    chosen = [name for name in ARCHITECTURES if number(name) in known]
    if "+PTX" not in "".join(chosen):  # what GPUs of later kinds compile for themselves
        chosen[0] += "+PTX"
    return chosen


def check_compiler(nvcc, host_compiler):
    """Compile and link a kernel; nvcc accepts some host compilers and some versions of them only."""
    failure = f"{nvcc} does not work with {host_compiler} (CUDAHOSTCXX names another host compiler)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(PROBE)
        command = [
            nvcc,
            "-std=c++20",
            "-ccbin",
            host_compiler,
            str(source),
            "-o",
            str(source.with_suffix("")),
        ]
        run(failure, *command)
