"""Builds the extension module by calling CMake. Downloads nothing; all metadata is in pyproject.toml.

The extension must be built against the torch of the environment that it is installed into. A build
in isolation does not see that torch, so this file asks the environment's own interpreter for it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # where build front ends do not
from cuda_build import cmake_options  # noqa: E402

OLDEST_TORCH = (2, 8)
ASK_TORCH = (
    "import json, os, sys, torch; "
    "print(json.dumps([torch.__version__, os.path.dirname(torch.__file__), sys.version_info[:2]]))"
)


def environments():
    """Interpreters, with their variables, in which the target's torch may be: this one as it is; this
    one without the isolation that pip lays over it; the activated environment (other front ends)."""
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    yield sys.executable, dict(os.environ)
    yield sys.executable, plain
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(variable):
            yield str(Path(os.environ[variable], "bin", "python")), plain


def find_torch():
    """The version and folder of the target environment's torch."""
    for python, variables in environments():
        try:
            asked = subprocess.run(
                [python, "-c", ASK_TORCH], env=variables, capture_output=True, text=True, cwd="/"
            )
        except OSError:
            continue
        if asked.returncode != 0:
            continue
        version, folder, python_version = json.loads(asked.stdout.splitlines()[-1])
        if tuple(python_version) != sys.version_info[:2]:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
            raise SetupError(
                f"rnnkernels needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, found {version}"
            )
        return version, folder
    raise SetupError(
        "rnnkernels is built against the torch of its environment, and found none: install torch "
        "first, then rnnkernels (with --no-build-isolation if your installer hides the environment)"
    )


def find_tool(name, hint):
    """The path of a program on PATH or beside the interpreter."""
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    path = shutil.which(name, path=beside)
    if path is None:
        raise SetupError(f"rnnkernels needs {hint} to build, and found no `{name}`")
    return path


class BuildWithCMake(build_ext):
    """Configure, build, and put the module and a record of its torch where setuptools wants them."""

    def build_extension(self, ext):
        compiler = os.environ.get("CXX", "").split()
        compiler = find_tool(compiler[0] if compiler else "c++", "a C++20 compiler (g++ or clang++)")
        cmake = find_tool("cmake", "CMake (pip install cmake)")
        ninja = find_tool("ninja", "Ninja (pip install ninja)")
        try:
            import pybind11
        except ImportError as error:
            raise SetupError("rnnkernels needs pybind11 to build (pip install pybind11)") from error
        version, folder = find_torch()

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Kept from one install to the next, so that only what changed is compiled again.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        for path in (target, build):
            path.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DRNNKERNELS_TORCH={folder}",
            f"-DRNNKERNELS_TORCH_VERSION={version}", *cmake_options(os.environ, compiler),
        ]  # fmt: skip
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        self.call(configure)
        self.call(configure)  # if nvcc is another than the last time, CMake has dropped all other options
        self.call([cmake, "--build", str(build), *jobs])
        self.call([cmake, "--install", str(build), "--prefix", str(target), "--component", "module"])
        (target / "_build.json").write_text(json.dumps({"torch": version}) + "\n")

    def copy_extensions_to_source(self):
        """The record stays with the module where it is used from this folder."""
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib, "rnnkernels", "_build.json"), ROOT / "rnnkernels")

    def call(self, command):
        """Run a command; if it fails, raise an error with a one-line message."""
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise SetupError(f"building rnnkernels failed in `{' '.join(command[:3])} ...`") from error


# RNNKERNELS_EXTENSION=0 installs the rest of the package; `setup.py build_ext --inplace` adds the extension.
extensions = [] if os.environ.get("RNNKERNELS_EXTENSION") == "0" else [Extension("rnnkernels._C", sources=[])]
setup(ext_modules=extensions, cmdclass={"build_ext": BuildWithCMake})
