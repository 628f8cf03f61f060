"""What each library does: the list behind README's table and docs/features.md.

A cell is tried (a check that runs it here) or read (a place in the library's own files). Where a check says
no, the cell's text begins with "no". Run as a script, it writes both files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from features_jax import in_jax
from features_torch import ours, rnn
from helpers import ROOT

LIBRARIES = ("rnnkernels", "`nn.RNN`", "haste", "FlashRNN", "SRU", "JAX")

# What was read, and when it was as it was read.
SOURCES = {
    "haste": "https://github.com/lmnt-com/haste/blob/ceba32ecd3735062f25e56b08ef3143caa086753",
    "FlashRNN": "https://github.com/NX-AI/flashrnn/blob/d73fb52b1b492ce9f9b2c107660b49079add5eb1",
    "SRU": "https://github.com/asappresearch/sru/blob/9ddc8da12f067125c2cfdd4f3b28a87c02889681",
    "flax": "https://github.com/google/flax/blob/006da41a475e1a8057bb8de36f5687cef2c2076c",
}


class Tried(NamedTuple):
    text: str
    check: Callable[[], bool]


class Read(NamedTuple):
    """``place``: a path in the library's repository, with #L and the line, or a name and an address."""

    text: str
    place: str


class Feature(NamedTuple):
    name: str
    means: str
    cells: tuple[Tried | Read, ...]  # in the order of LIBRARIES


def feature(name: str, means: str, *cells: Tried | Read) -> Feature:
    return Feature(name, means, cells)


ELMAN, FLASH = "flashrnn/flashrnn/vanilla/elman.py", "flashrnn/flashrnn/flashrnn.py"
INDRNN, SRU_LOOP, SRU_CELL = "frameworks/pytorch/indrnn.py", "sru/ops.py", "sru/modules.py"
FLAX = "flax:flax/linen/recurrent.py"
NOTHING = "nothing about it in the README and the code"

FEATURES = (
    feature(
        "leak, fixed or learned, one for each unit",
        "without input and weights the state shrinks by each unit's decay; learned decays get a gradient",
        Tried("yes", ours.leak),
        Tried("no", rnn.leak),
        Read("gates in LSTM, GRU", f"{INDRNN}#L47"),
        Read("gates in LSTM, GRU", f"{ELMAN}#L20"),
        Read("a gate, from the input", f"{SRU_LOOP}#L224"),
        Tried("in your cell", in_jax.leak),
    ),
    feature(
        "LSTM, GRU",
        "there are layers of that name",
        Tried("no", ours.gated),
        Tried("`nn.LSTM`, `nn.GRU`", rnn.gated),
        Read("yes", "README.md#L14"),
        Read("yes, and sLSTM", "README.md#L80"),
        Read("a gated unit of its own", f"{SRU_LOOP}#L224"),
        Read("flax's cells", f"{FLAX}"),
    ),
    feature(
        "nonlinearity",
        "each runs as it is defined, and an unknown name is refused",
        Tried("relu, tanh, sigmoid, softplus", ours.nonlinearities),
        Tried("relu, tanh", rnn.nonlinearities),
        Read("tanh", f"{INDRNN}#L47"),
        Read("tanh", f"{ELMAN}#L20"),
        Read("none, tanh", f"{SRU_CELL}#L118"),
        Tried("any", in_jax.nonlinearities),
    ),
    feature(
        "layers, both directions, dropout in one module",
        "two layers in both directions with dropout run in training",
        Tried("yes", ours.layers),
        Tried("yes", rnn.layers),
        Read("directions, in TensorFlow", "frameworks/tf/base_rnn.py#L48"),
        Read("no", f"{FLASH}#L1114"),
        Read("yes", f"{SRU_CELL}#L435"),
        Read("directions, in flax", f"{FLAX}"),
    ),
    feature(
        "sequences of different lengths",
        "a packed batch gives what each sequence gives alone",
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
        "drive or noise inside of f at each step",
        "what is added to the pre-activation changes the output as W_ih x of that size does",
        Tried("`drive`", ours.drive),
        Tried("no", rnn.drive),
        Read("no", f"{INDRNN}#L139"),
        Read("yes, you give `Wx`", "README.md#L74"),
        Read("`custom_m`", f"{SRU_CELL}#L90"),
        Tried("in your cell", in_jax.drive),
    ),
    feature(
        "training on the CPU without a loop over operators",
        "as many operators forward and backward for 50 steps as for 5 (JAX: equations of the program)",
        Tried("yes", ours.no_loop),
        Tried("no", rnn.no_loop),
        Read("no, a loop", f"{INDRNN}#L46"),
        Read("no, a loop", "flashrnn/flashrnn/vanilla/__init__.py#L54"),
        Read("forward alone", f"{SRU_LOOP}#L161"),
        Tried("yes, by XLA", in_jax.no_loop),
    ),
    feature(
        "GPU",
        "a build that was made with nvcc has kernels for one, and another says that it has none",
        Tried("with nvcc; run on none yet", ours.gpu),
        Read("yes", "torch: torch/nn/modules/rnn.py (cuDNN)"),
        Read("yes, needed to build", "README.md#L31"),
        Read("yes, needed to be fused", "README.md#L33"),
        Read("yes", "README.md#L71"),
        Read("yes", "JAX: https://docs.jax.dev/en/latest/installation.html"),
    ),
    feature(
        "second derivatives, forward mode",
        "a Hessian-vector product by two backward passes is that by a tangent of the gradient",
        Tried("yes", ours.derivatives),
        Tried("on the CPU (cuDNN has none)", rnn.derivatives),
        Read("in its CPU loop", f"{INDRNN}#L172"),
        Read("in `vanilla`", f"{FLASH}#L863"),
        Read("in its CPU loop", f"{SRU_LOOP}#L222"),
        Tried("yes", in_jax.derivatives),
    ),
    feature(
        "many networks in one call",
        "`vmap` over stacked weights runs, and gives what each network gives",
        Tried("`vmap`", ours.networks),
        Tried("no", rnn.networks),
        Read("no", f"{INDRNN}#L172"),
        Read("heads; no `vmap`", f"{FLASH}#L1114"),
        Read("no", f"{SRU_LOOP}#L222"),
        Tried("`vmap`", in_jax.networks),
    ),
    feature(
        "compiled without a graph break, any T",
        "`torch.compile(fullgraph=True)` (or `jax.jit`) and the eager layer give the same at two lengths",
        Tried("yes", ours.compiled),
        Tried("no", rnn.compiled),
        Read("CPU loop, unrolled", f"{INDRNN}#L46"),
        Read("`vanilla`, unrolled", "flashrnn/flashrnn/vanilla/__init__.py#L54"),
        Read("no", f"{SRU_LOOP}#L162"),
        Tried("`jit`, once for each T", in_jax.compiled),
    ),
    feature(
        "export for any T",
        "a program that was exported at one length runs at another; the ONNX model in onnxruntime",
        Tried("`torch.export`, ONNX", ours.exported),
        Tried("ONNX", rnn.exported),
        Read("no", f"{INDRNN}#L46"),
        Read("no", "flashrnn/flashrnn/vanilla/__init__.py#L54"),
        Read("TorchScript", "test/sru/test_torchscript.py#L50"),
        Tried("`jax.export`", in_jax.exported),
    ),
    feature(
        "a slow leak in bfloat16",
        "with decay 0.999 and bfloat16 weights the state gets where it gets in float32",
        Tried("yes", ours.bfloat16),
        Tried("no leak", rnn.bfloat16),
        Read("no bfloat16", "frameworks/pytorch/indrnn.cc#L60"),
        Read("no, state in bfloat16", f"{FLASH}#L190"),
        Read("on the GPU", f"{SRU_LOOP}#L119"),
        Tried("in your cell", in_jax.bfloat16),
    ),
    feature(
        "checkpoints in time",
        "backward keeps less than a third (JAX: is told to), and gives the same gradients",
        Tried("`checkpoint_every`", ours.checkpoints),
        Tried("no", rnn.checkpoints),
        Read("no", f"{INDRNN}#L139"),
        Read("no", f"{FLASH}#L1114"),
        Read("no", f"{SRU_CELL}#L573"),
        Tried("`jax.checkpoint` in your scan", in_jax.checkpoints),
    ),
    feature(
        "same bits for any number of threads",
        "output and gradients, with a `drive` and without, are the same bits with 1, 2 and 3 threads",
        Tried("yes", ours.same_bits),
        Read("not stated", "torch: https://docs.pytorch.org/docs/stable/notes/randomness.html"),
        Read("not stated", NOTHING),
        Read("not stated", NOTHING),
        Read("not stated", NOTHING),
        Read("not stated", "nothing about it found in JAX's documentation"),
    ),
    feature(
        "`nn.RNN`'s state dict",
        "one of an `nn.RNN` loads, and gives its output",
        Tried("yes, both ways", ours.state_dict),
        Tried("yes", rnn.state_dict),
        Read("GRU, LSTM to torch", "frameworks/pytorch/gru.py#L161"),
        Read("no, a function", "README.md#L60"),
        Read("no", f"{SRU_CELL}#L435"),
        Read("no", "arrays of your own"),
    ),
    feature(
        "clipping and update in one call",
        "one `step()` is `clip_grad_norm_` and the step of torch's optimizer",
        Tried("`ClippedNesterov`, `ClippedAdamW`", ours.clipped_step),
        Tried("no", rnn.clipped_step),
        Read("no", NOTHING),
        Read("no", NOTHING),
        Read("no", NOTHING),
        Read("optax, under `jit`", "optax: https://optax.readthedocs.io/en/latest/api/transformations.html"),
    ),
)


def table() -> str:
    """README's."""
    lines = ["| | " + " | ".join(LIBRARIES) + " |", "|---" * (len(LIBRARIES) + 1) + "|"]
    for f in FEATURES:
        lines.append(f"| {f.name} | " + " | ".join(cell.text for cell in f.cells) + " |")
    return "\n".join(lines) + "\n"


def places() -> str:
    """What docs/features.md says of each row."""
    lines = ["| | what the test does | where the rest was read |", "|---|---|---|"]
    for f in FEATURES:
        read = "; ".join(
            f"{library}: {link(library, cell.place)}"
            for library, cell in zip(LIBRARIES, f.cells, strict=True)
            if isinstance(cell, Read)
        )
        lines.append(f"| {f.name} | {f.means} | {read} |")
    return "\n".join(lines) + "\n"


def link(library: str, place: str) -> str:
    name, _, rest = place.partition(":")
    if name in SOURCES:
        library, place = name, rest
    elif rest:  # a name, and what it is the name of
        address = rest.strip()
        return f"[its documentation]({address})" if address.startswith("https://") else f"`{address}`"
    if library not in SOURCES or " " in place:
        return place
    return f"[{place.replace('#L', ':')}]({SOURCES[library]}/{place})"


BLOCKS: dict[str, Callable[[], str]] = {"README.md": table, "docs/features.md": places}


def block(text: str) -> re.Match[str]:
    found = re.search(
        r"(?<=<!-- features: written by tests/features/features.py -->\n\n)\|.*?\n(?=\n)", text, re.DOTALL
    )
    assert found, "no block of features"
    return found


def write() -> None:
    for name, make in BLOCKS.items():
        path = ROOT / name
        text = path.read_text()
        found = block(text)
        path.write_text(text[: found.start()] + make() + text[found.end() :])


def tried() -> dict[str, tuple[Tried, str]]:
    """Every cell that is tried, by a name."""
    return {
        f"{library.strip('`')}: {f.name}".replace("`", ""): (cell, library)
        for f in FEATURES
        for library, cell in zip(LIBRARIES, f.cells, strict=True)
        if isinstance(cell, Tried)
    }


if __name__ == "__main__":
    write()
