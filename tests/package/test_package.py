"""Structure of the code, versions, the check of torch, and the build configuration."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_python

import rnnkernels
from rnnkernels import _C, _build

SOURCES = sorted((ROOT / "csrc").rglob("*.[ch]*"))
PYTHON_SOURCES = sorted((ROOT / "rnnkernels").rglob("*.py"))


# --- Layers ------------------------------------------------------------------------------------------

TORCH_INCLUDE = re.compile(
    r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2|pybind11|Python\.h)\b', re.MULTILINE
)


def including_torch() -> set[Path]:
    found = (path for path in SOURCES if TORCH_INCLUDE.search(path.read_text()))
    return {path.relative_to(ROOT / "csrc") for path in found}


def test_only_the_binding_includes_torch():
    found = including_torch()
    assert {path.parts[0] for path in found} == {"binding"}  # the search does find includes
    assert Path("binding/module.cpp") in found
    assert {path.relative_to(ROOT / "csrc").parts[0] for path in SOURCES} > {"binding", "core"}


@pytest.mark.parametrize("folder", ["core", "cpu", "emulation", "cuda"])
def test_lower_layers_do_not_include_higher_ones(folder):
    higher = {
        "core": "cpu|cuda|emulation|binding",
        "cpu": "cuda|emulation|binding",
        "emulation": "cpu|binding",
        "cuda": "cpu|binding",
    }[folder]
    paths = [path for path in SOURCES if path.parent.name == folder]
    assert paths
    for path in paths:
        assert not re.search(rf'#\s*include\s*"({higher})/', path.read_text()), path.name


def test_only_one_module_mentions_torch_ops():
    found = {path for path in PYTHON_SOURCES if "torch.ops" in path.read_text()}
    assert found == {ROOT / "rnnkernels" / "_ops" / "__init__.py"}


def test_the_build_does_not_depend_on_the_processor():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "-mavx2" in text  # otherwise the flags have moved, and this test must follow
    for flag in ("-march=native", "-mtune=native", "-mcpu=native", "-ffast-math", "-Ofast"):
        assert flag not in text


# Object files of the kernels, which are compiled once per instruction set.
OBJECTS = sorted((ROOT / "build").glob("cmake-*/CMakeFiles/rnnkernels_cpu_*.dir/**/*.o"))


@pytest.mark.skipif(not OBJECTS or not shutil.which("nm"), reason="needs a build folder and nm")
def test_kernels_of_an_instruction_set_have_no_weak_symbols():
    # The linker keeps any one copy of a weak symbol. It could keep the one with AVX-512 for all processors.
    seen = set()
    for path in OBJECTS:
        listed = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        symbols = [line[16:].strip().split(maxsplit=1) for line in listed.splitlines()]
        seen |= {kind for kind, _ in symbols}
        weak = [name for kind, name in symbols if kind in "WVu"]
        assert not weak, path
    assert "t" in seen  # nm did list functions


# --- Versions ----------------------------------------------------------------------------------------


def test_versions_agree():
    assert rnnkernels.__version__ == _C.version == rnnkernels.build_config()["version"]
    assert rnnkernels.__version__ == importlib.metadata.version("rnnkernels")
    namespace: dict[str, str] = {}
    exec((ROOT / "rnnkernels" / "_version.py").read_text(), namespace)
    assert namespace["__version__"] == rnnkernels.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "rnnkernels._version.__version__" }' in project


def test_a_wheel_has_the_package_and_nothing_else(tmp_path):
    copy = tmp_path / "copy"
    made = shutil.ignore_patterns("build", "dist", ".*", "*.egg-info", "__pycache__", "*.so", "_build.json")
    shutil.copytree(ROOT, copy, ignore=made)
    code = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    ran = run_python("-c", code, cwd=copy, RNNKERNELS_EXTENSION="0")
    assert ran.returncode == 0, ran.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    found = {name for name in names if not name.parts[0].endswith(".dist-info")}
    sources = {path.relative_to(ROOT) for path in (*PYTHON_SOURCES, *(ROOT / "rnnkernels").rglob("*.pyi"))}
    assert found == sources | {Path("rnnkernels", "py.typed")}


def test_the_stub_lists_all_names_of_the_module():
    stub = ast.parse((ROOT / "rnnkernels" / "_C.pyi").read_text())
    listed = set()
    for node in stub.body:
        if isinstance(node, ast.AnnAssign):
            listed.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            listed.add(node.name)
    assert listed == {name for name in dir(_C) if not name.startswith("_")}


def test_the_types_in_the_stub_equal_those_of_the_values():
    assert all(isinstance(x, str) for x in (_C.version, _C.compiler, _C.torch_version))
    assert isinstance(_C.cuda_architectures, tuple)
    assert all(isinstance(name, str) for name in _C.nonlinearities())
    assert all(isinstance(runs, bool) for runs in _C.instruction_sets().values())
    assert isinstance(_C.active_instruction_set(), str | None)


def test_all_names_in_all_exist():
    for name in rnnkernels.__all__:
        assert hasattr(rnnkernels, name), name
    assert rnnkernels.functional.__all__ == [
        "leaky_recurrence",
        "nade_log_prob",
        "nade_sample",
        "projected_recurrence",
    ]
    assert (ROOT / "rnnkernels" / "py.typed").exists()


# --- Another torch -----------------------------------------------------------------------------------


def record(monkeypatch, tmp_path, text):
    path = tmp_path / "_build.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(_build, "_RECORD", path)


def test_a_torch_of_another_minor_version_is_refused(monkeypatch, tmp_path):
    major, minor, *_ = torch.__version__.split(".")
    for other in (
        f"{major}.{int(minor) + 1}.0",
        f"{major}.{int(minor) - 1}.9+cpu",
        f"{int(major) + 1}.{minor}.0",
    ):
        record(monkeypatch, tmp_path, json.dumps({"torch": other}))
        with pytest.raises(ImportError) as error:
            _build.check_torch()
        assert str(error.value) == (
            f"rnnkernels was built against torch {other}, but torch {torch.__version__} is "
            "installed: reinstall rnnkernels to build it against this one"
        )


def test_a_torch_of_another_patch_version_is_accepted(monkeypatch, tmp_path):
    major, minor, *_ = torch.__version__.split(".")
    for other in (f"{major}.{minor}.99", f"{major}.{minor}.0+cu130", f"{major}.{minor}.0a0+git123"):
        record(monkeypatch, tmp_path, json.dumps({"torch": other}))
        _build.check_torch()


def test_a_package_that_was_not_built_raises(monkeypatch, tmp_path):
    record(monkeypatch, tmp_path, None)
    with pytest.raises(ImportError, match="no compiled extension here: install it with"):
        _build.check_torch()


# --- From the outside --------------------------------------------------------------------------------


def test_the_build_configuration_is_printed_in_any_directory(tmp_path):
    ran = run_python("-m", "rnnkernels", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    config = rnnkernels.build_config()
    lines = {re.split(r"\s{2,}", line.strip(), maxsplit=1)[0]: line for line in ran.stdout.splitlines()}
    assert list(lines) == [
        "rnnkernels", "compiler", "instruction sets", "active", "CUDA", "torch", "threads", "nonlinearities"
    ]  # fmt: skip
    assert lines["rnnkernels"].endswith(config["version"])
    assert config["compiler"] in lines["compiler"]
    assert all(name in lines["instruction sets"] for name in config["instruction_sets"])
    assert lines["active"].endswith(config["active_instruction_set"])
    assert "not built" in lines["CUDA"] or config["cuda"]
    assert f"{config['torch']} (built against {config['built_against_torch']})" in lines["torch"]
    assert lines["nonlinearities"].endswith(", ".join(config["nonlinearities"]))


def test_json_output_equals_the_build_configuration(tmp_path):
    ran = run_python("-m", "rnnkernels", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == rnnkernels.build_config()


def test_the_build_configuration_has_plain_and_correct_values():
    config = rnnkernels.build_config()
    assert json.loads(json.dumps(config)) == config
    assert config["torch"] == torch.__version__
    assert config["built_against_torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert config["cuda"] is bool(config["cuda_architectures"])
    assert config["threads"] == torch.get_num_threads()
    # It is the fastest one that runs, unless the environment chooses another.
    runs = [name for name, here in config["instruction_sets"].items() if here]
    assert "generic" in runs
    assert config["active_instruction_set"] in runs


CALL = """
import json, torch, rnnkernels
try:
    rnnkernels.LeakyRNN(3, 5)(torch.randn(4, 2, 3))
    error = None
except RuntimeError as e:
    error = str(e).splitlines()[0]
print(json.dumps([rnnkernels.build_config()["active_instruction_set"], error]))
"""


@pytest.mark.parametrize("wanted", ["generic", "", "pentium"])
def test_the_environment_chooses_the_instruction_set(wanted, tmp_path):
    ran = run_python("-c", CALL, cwd=tmp_path, RNNKERNELS_ISA=wanted)
    assert ran.returncode == 0, ran.stderr
    active, error = json.loads(ran.stdout)
    if wanted == "pentium":  # raises at the first call, not at the import
        assert active is None
        assert error == (
            "RNNKERNELS_ISA must name an instruction set that was built and runs on this processor; "
            "python -m rnnkernels lists them"
        )
    else:
        best = next(name for name, runs in _C.instruction_sets().items() if runs)
        assert (active, error) == (wanted or best, None)


def test_an_impossible_instruction_set_is_shown_as_none(tmp_path):
    ran = run_python("-m", "rnnkernels", cwd=tmp_path, RNNKERNELS_ISA="pentium")
    assert ran.returncode == 0, ran.stderr
    assert "none: RNNKERNELS_ISA names one that cannot run" in ran.stdout


def test_importing_the_package_prints_nothing_and_imports_only_torch_and_numpy(tmp_path):
    code = "import sys, torch, numpy; before = set(sys.modules); import rnnkernels; print(sorted("
    code += "{name.split('.')[0] for name in set(sys.modules) - before} - {'torch', 'numpy'}"
    code += " - sys.stdlib_module_names))"
    ran = run_python("-W", "error::UserWarning:rnnkernels", "-c", code, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ast.literal_eval(ran.stdout) == ["rnnkernels"]
    assert not ran.stderr
    assert sys.version_info >= (3, 10)


# --- Imported again, and from a source folder --------------------------------------------------------

AGAIN = """
import importlib, sys, torch
from torch.utils.flop_counter import FlopCounterMode

def use():
    package = importlib.import_module("rnnkernels")
    layer, nade = package.LeakyRNN(3, 4, nonlinearity="tanh"), package.NADE(4, 3, 3)
    x, v = torch.randn(5, 2, 3, requires_grad=True), torch.ones(2, 4)
    for value in (lambda x: layer(x)[0].square().sum(), lambda x: nade(v, x[0]).sum()):
        gradient, = torch.autograd.grad(value(x), x, create_graph=True)
        gradient.square().sum().backward()
        torch.func.hessian(value)(x.detach())
    with FlopCounterMode(display=False) as flops:
        layer(x)
    assert flops.get_total_flops() == 2 * 5 * 2 * 4 * (3 + 4)
    return package

first = use()
for chosen in (
    lambda name: True,
    lambda name: name == "rnnkernels",
    lambda name: name != "rnnkernels._C",
    lambda name: name == "rnnkernels._C",
    lambda name: "_autograd" in name or name == "rnnkernels",
):
    for name in [x for x in sys.modules if x.split(".")[0] == "rnnkernels" and chosen(x)]:
        del sys.modules[name]
    use()
importlib.reload(use())
use()
"""


def test_the_package_can_be_imported_again(tmp_path):
    ran = run_python("-c", AGAIN, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def clone(tmp_path):
    """A folder with the sources and without the extension."""
    ignored = shutil.ignore_patterns("_C*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "rnnkernels", tmp_path / "clone" / "rnnkernels", ignore=ignored)
    return tmp_path / "clone"


@pytest.fixture
def installed(tmp_path):
    """A folder with the package as it would be installed."""
    shutil.copytree(
        Path(rnnkernels.__file__).parent,
        tmp_path / "installed" / "rnnkernels",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path / "installed"


WHERE = """
import sys, rnnkernels.nn
print({module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "rnnkernels"})
"""


def test_in_a_source_folder_the_installed_package_is_used(clone, installed):
    shown = run_python("-m", "rnnkernels", "--json", cwd=clone, PYTHONPATH=str(installed))
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["version"] == rnnkernels.__version__
    for path in (str(installed), f"{clone}:{installed}"):
        ran = run_python("-c", WHERE, cwd=clone, PYTHONPATH=path)
        assert ran.returncode == 0, ran.stderr
        found = ast.literal_eval(ran.stdout)
        assert len(found) > 10
        assert all(name.startswith(str(installed)) for name in found)


def test_a_source_folder_of_another_version_raises(clone, installed):
    version = clone / "rnnkernels" / "_version.py"
    version.write_text('__version__ = "99.0.0"\n')
    ran = run_python("-c", WHERE, cwd=clone, PYTHONPATH=str(installed))
    assert ran.returncode == 1
    message = ran.stderr.splitlines()[-1]
    assert f"rnnkernels is installed in {installed}/rnnkernels, but the sources of another" in message
    assert f"{clone}/rnnkernels: install these, or run Python in another folder" in message
