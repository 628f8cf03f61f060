"""The list of features behind the tables in README.md and docs/features.md.

A cell of the table is either tried, with a check that runs here, or read, with a place in the library's own
files. If a check returns False, the text of its cell begins with "no". Run as a script, this file writes both
tables: `PYTHONPATH=tests python tests/features/features.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from features_jax import in_jax
from features_torch import ours, rnn
from helpers import ROOT

LIBRARIES = ("rnnkernels", "`nn.RNN`", "haste", "FlashRNN", "SRU", "JAX")

# The commits at which the sources were read.
SOURCES = {
    "haste": "https://github.com/lmnt-com/haste/blob/ceba32ecd3735062f25e56b08ef3143caa086753",
    "FlashRNN": "https://github.com/NX-AI/flashrnn/blob/d73fb52b1b492ce9f9b2c107660b49079add5eb1",
    "SRU": "https://github.com/asappresearch/sru/blob/9ddc8da12f067125c2cfdd4f3b28a87c02889681",
    "flax": "https://github.com/google/flax/blob/006da41a475e1a8057bb8de36f5687cef2c2076c",
}


class Tried(NamedTuple):
    """A cell that a test checks: ``check`` returns whether the library has the feature."""

    text: str
    check: Callable[[], bool]


class Read(NamedTuple):
    """A cell that was read in the library's files.

    ``place`` is a path in its repository, with #L and the line, or a name and an address.
    """

    text: str
    place: str


class Feature(NamedTuple):
    """A row of the table. ``means`` says what the tests check."""

    name: str
    means: str
    cells: tuple[Tried | Read, ...]  # in the order of LIBRARIES


def feature(name: str, means: str, *cells: Tried | Read) -> Feature:
    return Feature(name, means, cells)


ELMAN, FLASH = "flashrnn/flashrnn/vanilla/elman.py", "flashrnn/flashrnn/flashrnn.py"
INDRNN, SRU_LOOP, SRU_CELL = "frameworks/pytorch/indrnn.py", "sru/ops.py", "sru/modules.py"
FLAX = "flax:flax/linen/recurrent.py"
NOTHING = "not mentioned in the README or the code"

FEATURES = (
    feature(
        "leak per unit, fixed or learned",
        "with zero input and weights, the state shrinks by each unit's decay; learned decays get a gradient",
        Tried("yes", ours.leak),
        Tried("no", rnn.leak),
        Read("gates in LSTM, GRU", f"{INDRNN}#L47"),
        Read("gates in LSTM, GRU", f"{ELMAN}#L20"),
        Read("a gate that depends on the input", f"{SRU_LOOP}#L224"),
        Tried("in your cell", in_jax.leak),
    ),
    feature(
        "LSTM, GRU",
        "the library has layers of that name",
        Tried("no", ours.gated),
        Tried("`nn.LSTM`, `nn.GRU`", rnn.gated),
        Read("yes", "README.md#L14"),
        Read("yes, and sLSTM", "README.md#L80"),
        Read("a gated unit of its own", f"{SRU_LOOP}#L224"),
        Read("flax's cells", f"{FLAX}"),
    ),
    feature(
        "nonlinearity",
        "each gives the values of its definition, and an unknown name raises an error",
        Tried("relu, tanh, sigmoid, softplus", ours.nonlinearities),
        Tried("relu, tanh", rnn.nonlinearities),
        Read("tanh", f"{INDRNN}#L47"),
        Read("tanh", f"{ELMAN}#L20"),
        Read("none, tanh", f"{SRU_CELL}#L118"),
        Tried("any", in_jax.nonlinearities),
    ),
    feature(
        "several layers, both directions and dropout in one module",
        "two bidirectional layers with dropout run in training",
        Tried("yes", ours.layers),
        Tried("yes", rnn.layers),
        Read("directions, in TensorFlow", "frameworks/tf/base_rnn.py#L48"),
        Read("no", f"{FLASH}#L1114"),
        Read("yes", f"{SRU_CELL}#L435"),
        Read("directions, in flax", f"{FLAX}"),
    ),
    feature(
        "sequences of different lengths",
        "a packed batch gives the same results as each sequence alone",
        Tried("packed", ours.lengths),
        Tried("packed", rnn.lengths),
        Read("`lengths`, padded", "frameworks/pytorch/base_rnn.py#L59"),
        Read("no", f"{FLASH}#L1114"),
        Read("packed, padded inside", f"{SRU_CELL}#L607"),
        Read("`seq_lengths` in flax", f"{FLAX}"),
    ),
    feature(
        "trained initial state",
        "the state before the first step gets a gradient",
        Tried("`learn_h0`, `hx`", ours.initial_state),
        Tried("`hx`", rnn.initial_state),
        Read("`state`", "frameworks/pytorch/indrnn.cc#L140"),
        Read("`states`", "README.md#L77"),
        Read("`c0`", "sru/cuda_functional.py#L260"),
        Tried("yes", in_jax.initial_state),
    ),
    feature(
        "input or noise added inside f at each step",
        "a term added to the pre-activation has the same effect as an equal change of W_ih x",
        Tried("`drive`", ours.drive),
        Tried("no", rnn.drive),
        Read("no", f"{INDRNN}#L139"),
        Read("yes, the caller computes `Wx`", "README.md#L74"),
        Read("`custom_m`", f"{SRU_CELL}#L90"),
        Tried("in your cell", in_jax.drive),
    ),
    feature(
        "training on the CPU without a loop over operators",
        "forward and backward call as many operators for 50 steps as for 5 (JAX: equations of the program)",
        Tried("yes", ours.no_loop),
        Tried("no", rnn.no_loop),
        Read("no, a loop", f"{INDRNN}#L46"),
        Read("no, a loop", "flashrnn/flashrnn/vanilla/__init__.py#L54"),
        Read("forward only", f"{SRU_LOOP}#L161"),
        Tried("yes, by XLA", in_jax.no_loop),
    ),
    feature(
        "GPU",
        "CUDA kernels are registered if and only if the build configuration says so",
        Tried("built with nvcc, not yet run on a GPU", ours.gpu),
        Read("yes", "torch: torch/nn/modules/rnn.py (cuDNN)"),
        Read("yes, required to build", "README.md#L31"),
        Read("yes, required by the fused kernels", "README.md#L33"),
        Read("yes", "README.md#L71"),
        Read("yes", "JAX: https://docs.jax.dev/en/latest/installation.html"),
    ),
    feature(
        "second derivatives, forward mode",
        "a Hessian-vector product from two backward passes equals the one from forward mode over backward",
        Tried("yes", ours.derivatives),
        Tried("on the CPU (cuDNN has none)", rnn.derivatives),
        Read("in its CPU loop", f"{INDRNN}#L172"),
        Read("in `vanilla`", f"{FLASH}#L863"),
        Read("in its CPU loop", f"{SRU_LOOP}#L222"),
        Tried("yes", in_jax.derivatives),
    ),
    feature(
        "many networks in one call",
        "`vmap` over stacked weights runs, and gives the same results as each network alone",
        Tried("`vmap`", ours.networks),
        Tried("no", rnn.networks),
        Read("no", f"{INDRNN}#L172"),
        Read("heads; no `vmap`", f"{FLASH}#L1114"),
        Read("no", f"{SRU_LOOP}#L222"),
        Tried("`vmap`", in_jax.networks),
    ),
    feature(
        "compiled without a graph break, any T",
        "`torch.compile(fullgraph=True)` (or `jax.jit`) gives the results of the eager layer at two lengths",
        Tried("yes", ours.compiled),
        Tried("no", rnn.compiled),
        Read("CPU loop, unrolled", f"{INDRNN}#L46"),
        Read("`vanilla`, unrolled", "flashrnn/flashrnn/vanilla/__init__.py#L54"),
        Read("no", f"{SRU_LOOP}#L162"),
        Tried("`jit`, once per T", in_jax.compiled),
    ),
    feature(
        "export for any T",
        "a program exported at one length runs at another; ONNX models run in onnxruntime",
        Tried("`torch.export`, ONNX", ours.exported),
        Tried("ONNX", rnn.exported),
        Read("no", f"{INDRNN}#L46"),
        Read("no", "flashrnn/flashrnn/vanilla/__init__.py#L54"),
        Read("TorchScript", "test/sru/test_torchscript.py#L50"),
        Tried("`jax.export`", in_jax.exported),
    ),
    feature(
        "a slow leak in bfloat16",
        "with decay 0.999 and bfloat16 weights, the state reaches the value that it reaches in float32",
        Tried("yes", ours.bfloat16),
        Tried("no leak", rnn.bfloat16),
        Read("no bfloat16", "frameworks/pytorch/indrnn.cc#L60"),
        Read("no, state in bfloat16", f"{FLASH}#L190"),
        Read("on the GPU", f"{SRU_LOOP}#L119"),
        Tried("in your cell", in_jax.bfloat16),
    ),
    feature(
        "checkpointing in time",
        "backward keeps less than a third of the values (JAX: not measured), with the same gradients",
        Tried("`checkpoint_every`", ours.checkpoints),
        Tried("no", rnn.checkpoints),
        Read("no", f"{INDRNN}#L139"),
        Read("no", f"{FLASH}#L1114"),
        Read("no", f"{SRU_CELL}#L573"),
        Tried("`jax.checkpoint` in your scan", in_jax.checkpoints),
    ),
    feature(
        "same bits for any number of threads",
        "output and gradients, with and without `drive`, have the same bits with 1, 2 and 3 threads",
        Tried("yes", ours.same_bits),
        Read("not stated", "torch: https://docs.pytorch.org/docs/stable/notes/randomness.html"),
        Read("not stated", NOTHING),
        Read("not stated", NOTHING),
        Read("not stated", NOTHING),
        Read("not stated", "not found in JAX's documentation"),
    ),
    feature(
        "`nn.RNN`'s state dict",
        "the state dict of an `nn.RNN` loads, and gives the same output",
        Tried("yes, both ways", ours.state_dict),
        Tried("yes", rnn.state_dict),
        Read("GRU, LSTM to torch", "frameworks/pytorch/gru.py#L161"),
        Read("no, a function", "README.md#L60"),
        Read("no", f"{SRU_CELL}#L435"),
        Read("no", "the user has arrays instead of modules"),
    ),
    feature(
        "clipping and update in one call",
        "one `step()` equals `clip_grad_norm_` and the step of torch's optimizer",
        Tried("`ClippedNesterov`, `ClippedAdamW`", ours.clipped_step),
        Tried("no", rnn.clipped_step),
        Read("no", NOTHING),
        Read("no", NOTHING),
        Read("no", NOTHING),
        Read("optax, under `jit`", "optax: https://optax.readthedocs.io/en/latest/api/transformations.html"),
    ),
)


def table() -> str:
    """Return the table in README.md."""
    lines = ["| feature | " + " | ".join(LIBRARIES) + " |", "|---" * (len(LIBRARIES) + 1) + "|"]
    for f in FEATURES:
        lines.append(f"| {f.name} | " + " | ".join(cell.text for cell in f.cells) + " |")
    return "\n".join(lines) + "\n"


def places() -> str:
    """Return the table in docs/features.md: what the tests check, and where the rest was read."""
    lines = ["| feature | what the test checks | where the other cells were read |", "|---|---|---|"]
    for f in FEATURES:
        read = "; ".join(
            f"{library}: {link(library, cell.place)}"
            for library, cell in zip(LIBRARIES, f.cells, strict=True)
            if isinstance(cell, Read)
        )
        lines.append(f"| {f.name} | {f.means} | {read} |")
    return "\n".join(lines) + "\n"


def link(library: str, place: str) -> str:
    """Return a place as Markdown."""
    name, _, rest = place.partition(":")
    if name in SOURCES:
        library, place = name, rest
    elif rest:  # a name and an address, or a name and a file
        address = rest.strip()
        return f"[its documentation]({address})" if address.startswith("https://") else f"`{address}`"
    if library not in SOURCES or " " in place:
        return place
    return f"[{place.replace('#L', ':')}]({SOURCES[library]}/{place})"


BLOCKS: dict[str, Callable[[], str]] = {"README.md": table, "docs/features.md": places}


def block(text: str) -> re.Match[str]:
    """Return the match of the generated table in a file."""
    found = re.search(
        r"(?<=<!-- features: written by tests/features/features.py -->\n\n)\|.*?\n(?=\n)", text, re.DOTALL
    )
    assert found, "no block of features"
    return found


def write() -> None:
    """Write the tables into both files."""
    for name, make in BLOCKS.items():
        path = ROOT / name
        text = path.read_text()
        found = block(text)
        path.write_text(text[: found.start()] + make() + text[found.end() :])


def tried() -> dict[str, tuple[Tried, str]]:
    """Return all cells that are tried, with their library, by a name for the test."""
    return {
        f"{library.strip('`')}: {f.name}".replace("`", ""): (cell, library)
        for f in FEATURES
        for library, cell in zip(LIBRARIES, f.cells, strict=True)
        if isinstance(cell, Tried)
    }


if __name__ == "__main__":
    write()
