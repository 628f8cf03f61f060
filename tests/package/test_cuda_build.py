"""The decisions of a build about CUDA: whether it has kernels, for which GPUs, and its messages if not."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from setuptools.errors import SetupError

_spec = importlib.util.spec_from_file_location("cuda_build", ROOT / "cuda_build.py")
cuda_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cuda_build)

NONE = ["-DRNNKERNELS_CUDA_ARCHITECTURES="]
VERSION = "Cuda compilation tools, release {}, V{}.88"


def listing(*names: str) -> str:
    return "\n".join(f"compute_{name}" for name in names) + "\n"


KNOWN = {
    "12.4": {"7.5", "8.0", "8.6", "8.9", "9.0"},
    "12.8": {"7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"},
}


@pytest.fixture
def nvcc(tmp_path: Path):
    """A function that makes a fake nvcc of a given version, which compiles or fails as requested."""

    def make(folder: str, version: str = "12.8", compiles: bool = True) -> Path:
        path = tmp_path / folder / "nvcc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "#!/bin/sh\n"
            "case $1 in\n"
            f"--version) echo '{VERSION.format(version, version)}' ;;\n"
            "--list-gpu-arch) printf 'compute_80\\ncompute_90\\ncompute_100\\n' ;;\n"
            f"*) echo 'error: unsupported GNU version'; exit {int(not compiles)} ;;\n"
            "esac\n"
        )
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without nvcc."""
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path: None if "/usr/local/cuda/" in name else which(name, path=path)
    )
    return {"PATH": ""}


# --- Whether the build has kernels -------------------------------------------------------------------


def test_without_nvcc_there_are_no_kernels_and_a_message(environ, capsys):
    assert cuda_build.cmake_options(environ, "c++") == NONE
    said = capsys.readouterr().out
    assert said == (
        "rnnkernels is built without CUDA kernels: "
        "found no nvcc in CUDACXX, in CUDA_HOME, on PATH or in /usr/local/cuda\n"
    )


def test_required_kernels_need_nvcc(environ):
    with pytest.raises(SetupError) as error:
        cuda_build.cmake_options(environ | {"RNNKERNELS_CUDA": "1"}, "c++")
    assert str(error.value) == (
        "RNNKERNELS_CUDA=1, but found no nvcc in CUDACXX, in CUDA_HOME, on PATH or in /usr/local/cuda"
    )


@pytest.mark.parametrize("wanted", ["", "1"])
def test_with_nvcc_there_are_kernels(environ, nvcc, wanted, capsys):
    path = nvcc("bin")
    environ |= {"PATH": str(path.parent), "RNNKERNELS_CUDA": wanted}
    assert cuda_build.cmake_options(environ, "/usr/bin/c++") == [
        "-DRNNKERNELS_CUDA_ARCHITECTURES=8.0;9.0a;10.0+PTX",
        f"-DCMAKE_CUDA_COMPILER={path}",
        "-DCMAKE_CUDA_HOST_COMPILER=/usr/bin/c++",
    ]
    assert f"with CUDA kernels for 8.0, 9.0a, 10.0+PTX, by {path}" in capsys.readouterr().out
    assert cuda_build.cmake_options(environ | {"RNNKERNELS_CUDA": "0"}, "c++") == NONE


@pytest.mark.parametrize("value", ["yes", "2", " 1", "ON"])
def test_any_other_value_raises(environ, value):
    with pytest.raises(SetupError, match=r"must be 0 \(no CUDA kernels\), 1 .* or unset, got"):
        cuda_build.cmake_options(environ | {"RNNKERNELS_CUDA": value}, "c++")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "11.8"}, "nvcc 11.8 is too old: the kernels need 12.0"),
        (
            {"compiles": False},
            "does not work with gcc-99 .CUDAHOSTCXX names another.*unsupported GNU version",
        ),
    ],
)
def test_an_unusable_nvcc_is_an_error_only_if_kernels_are_required(environ, nvcc, options, message, capsys):
    environ |= {"CUDACXX": str(nvcc("bin", **options))}
    assert cuda_build.cmake_options(environ, "gcc-99") == NONE
    with pytest.raises(SetupError, match=f"^RNNKERNELS_CUDA=1, but .*{message}") as error:
        cuda_build.cmake_options(environ | {"RNNKERNELS_CUDA": "1"}, "gcc-99")
    assert str(error.value).removeprefix("RNNKERNELS_CUDA=1, but ") in capsys.readouterr().out


def test_a_program_that_is_not_nvcc_raises():
    with pytest.raises(cuda_build.UnavailableError, match="nvcc --version names no release: 'hello'"):
        cuda_build.version_of("hello\n")
    with pytest.raises(cuda_build.UnavailableError, match="false does not run: it printed nothing"):
        cuda_build.run("false does not run", "false")
    assert cuda_build.version_of(VERSION.format("13.0", "13.0")) == "13.0"
    assert cuda_build.version_of(VERSION.format("12.0", "12.0")) == "12.0"


def test_where_nvcc_is_found(environ, nvcc):
    named, home, path = nvcc("named"), nvcc("home/bin"), nvcc("path")
    environ["PATH"] = str(path.parent)
    assert cuda_build.find_nvcc(environ) == str(path)
    environ["CUDA_HOME"] = str(home.parent.parent)
    assert cuda_build.find_nvcc(environ) == str(home)
    environ["CUDACXX"] = str(named)
    assert cuda_build.find_nvcc(environ) == str(named)
    environ["CUDACXX"] = str(named) + "x"
    with pytest.raises(cuda_build.UnavailableError, match="found no nvcc"):
        cuda_build.find_nvcc(environ)


def test_the_host_compiler_can_be_chosen(environ, nvcc):
    environ |= {"CUDACXX": str(nvcc("bin")), "CUDAHOSTCXX": "g++-12"}
    assert "-DCMAKE_CUDA_HOST_COMPILER=g++-12" in cuda_build.cmake_options(environ, "/usr/bin/g++-14")


# --- For which GPUs ----------------------------------------------------------------------------------


def test_the_list_of_nvcc_is_parsed():
    assert cuda_build.known_architectures(listing("75", "80", "90", "100", "121")) == {
        "7.5", "8.0", "9.0", "10.0", "12.1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "requested", "chosen"),
    [
        ("12.8", "", ["8.0", "9.0a", "10.0+PTX"]),
        # PTX of the newest architecture is needed for later GPUs.
        ("12.4", "", ["8.0+PTX", "9.0a"]),
        ("12.8", "9.0a", ["9.0a"]),
        ("12.8", "8.0;9.0a 10.0+PTX", ["8.0", "9.0a", "10.0+PTX"]),
        ("12.8", " 12.0a  8.6; 8.6 ", ["12.0a", "8.6"]),
        # A list that is meant for other packages, too, may name GPUs that the kernels do not support.
        ("12.8", "5.2 7.5 8.0 8.6 9.0+PTX", ["8.0", "8.6", "9.0+PTX"]),
    ],
)
def test_architectures_are_the_requested_ones_or_the_default(version, requested, chosen):
    assert cuda_build.choose_architectures(requested, KNOWN[version], version) == chosen


def test_architectures_that_cannot_be_built_raise():
    choose, known = cuda_build.choose_architectures, KNOWN["12.4"]
    with pytest.raises(
        SetupError, match=r"TORCH_CUDA_ARCH_LIST has 10\.0\+PTX, which nvcc 12\.4 does not know"
    ):
        choose("9.0a;10.0+PTX", known, "12.4")
    for value in ("Hopper", "9", "9.0b", "sm_90", "8.0,9.0", ";"):
        with pytest.raises(
            SetupError, match=r"TORCH_CUDA_ARCH_LIST must be a list as in '8.0;9.0a;10.0\+PTX', got"
        ):
            choose(value, known, "12.4")
    with pytest.raises(
        cuda_build.UnavailableError, match=r"='7\.0 7\.5' has none from 8\.0 on, as the kernels need"
    ):
        choose("7.0 7.5", known, "12.4")


# --- With the installed nvcc -------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_installed_nvcc_is_supported(capfd):
    environ = {k: v for k, v in os.environ.items() if k not in ("RNNKERNELS_CUDA", "TORCH_CUDA_ARCH_LIST")}
    options = cuda_build.cmake_options(environ, shutil.which("c++"))
    if options == NONE:
        pytest.skip(capfd.readouterr().out)
    assert options[0].startswith("-DRNNKERNELS_CUDA_ARCHITECTURES=8.0")
