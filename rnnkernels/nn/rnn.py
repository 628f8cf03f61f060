"""The layer: the leaky recurrence over whole sequences, with the interface of ``torch.nn.RNN``."""

from __future__ import annotations

from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnkernels._checks import (
    check_dtype,
    check_like_input,
    check_spec,
    check_tensor,
    checked_dropout,
    checked_flag,
    checked_size,
)
from rnnkernels._devices import autocasts
from rnnkernels._fx import leaf_call
from rnnkernels._ops.spec import ProjectedTensors, RecurrenceSpec
from rnnkernels.functional import run_projected
from rnnkernels.nn._base import Decay, LeakyModule

__all__ = ["LeakyRNN"]

_Layer = TypeVar("_Layer", bound="LeakyRNN")
_Weights = tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]  # W_ih, W_hh, and b_ih and b_hh


class LeakyRNN(LeakyModule):
    r"""Recurrent layers of leaky units. With ``decay=0`` they compute ``torch.nn.RNN``.

    .. math::
        p_t &= W_{ih} x_t + b_{ih} + b_{hh} \;(+\, \text{drive}_t) \\
        \text{rate:}\quad    h_t &= d\, h_{t-1} + (1-d)\, f(p_t + W_{hh} h_{t-1}) \\
        \text{current:}\quad h_t &= d\, h_{t-1} + (1-d)\, (p_t + W_{hh} f(h_{t-1}))

    The rate form is that of Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), where
    ``d`` is called alpha; the current form is that of most rate networks in neuroscience. The output
    is the state ``h_t`` in both. In the current form, apply ``f`` to the output to get the rates.

        rnn = rnnkernels.LeakyRNN(88, 200, decay=0.8)
        output, h_n = rnn(torch.randn(100, 16, 88))  # [100, 16, 200], [1, 16, 200]

    The parameters have the names, shapes, order and initialization of ``torch.nn.RNN``
    (``weight_ih_l0 [H, I]``, ``weight_hh_l0 [H, H]``, ``bias_ih_l0 [H]``, ``bias_hh_l0 [H]``, and so
    on for ``l0_reverse``, ``l1``, ...), so state dicts load in both directions. In the shapes, ``D`` is
    2 if the layer is bidirectional, otherwise 1, and ``N = num_layers * D`` in the order of ``h_n``: first
    layer forward, first layer backward, second layer forward, ...

    A decay that consists of numbers is a setting, and not in the state dict. A decay per unit is a buffer,
    ``decay``. A learned decay is the sigmoid of a parameter, ``decay_logit [N, H]``. A learned initial state
    is a parameter, ``h0 [N, H]``. All three may be missing in a state dict that is loaded; missing keys keep
    their current values. The buffer and ``decay_logit`` are float32 in a layer of half precision. A decay can
    be set, ``rnn.decay = 0.9``; see :attr:`decay`.

    Args:
        input_size: ``I``, the number of features of the input.
        hidden_size: ``H``, the number of units per layer and direction.
        num_layers: Number of layers; the input of each is the output of the one before.
        nonlinearity: ``f``: ``"relu"`` (default; ``nn.RNN``'s is tanh), ``"tanh"``, ``"sigmoid"`` or
            ``"softplus"``.
        bias: Whether the layers have the biases ``b_ih`` and ``b_hh``.
        batch_first: If True, input, output and drive are ``[B, T, ...]`` instead of ``[T, B, ...]``. This has
            no effect on unbatched and packed input, nor on ``hx`` and ``h_n``.
        dropout: Probability of setting an output to zero in training, for all layers except the last.
        bidirectional: If True, each layer also runs from the last step to the first, with weights of its
            own, and the outputs of both directions are concatenated.
        decay: ``d``, the fraction of the previous state that is kept, in ``[0, 1)``: a number; one value per
            unit, ``[H]``, for every layer and direction; a list or tuple with a number or ``[H]`` for each
            layer; or ``[N, H]``. A tensor must have values, so it cannot be on the meta device. See
            :func:`rnnkernels.decay_from_tau` and :func:`rnnkernels.draw_decay`.
        learn_decay: Whether to train the decay of each unit of every layer and direction. Training starts at
            the values given, but at 0.001 or above. The decay stays in ``[0, 1)`` for any logit. Weight decay
            on ``decay_logit`` would pull the decay towards 0.5.
        learn_h0: Whether to train the state before the first step, which is used if ``hx`` is None. It is
            initialized to zero.
        form: ``"rate"`` or ``"current"``.
        checkpoint_every: ``k``; backward keeps every k-th state and recomputes the steps between them, see
            :func:`rnnkernels.projected_recurrence`. None keeps everything that backward needs.
        device, dtype: Device and dtype of the parameters: float32, float64, bfloat16 or float16. Any device
            works, but only devices with kernels are fast; see :func:`rnnkernels.functional.leaky_recurrence`.

    Raises:
        ValueError, TypeError: An argument is out of range or has the wrong type; the message names it.

    Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901) for the rate form.
    """

    h0: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        decay: Decay = 0.0,
        learn_decay: bool = False,
        learn_h0: bool = False,
        form: str = "rate",
        checkpoint_every: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_spec(nonlinearity, form)
        check_dtype(dtype)
        self.input_size = input_size = checked_size("input_size", input_size)
        self.hidden_size = hidden_size = checked_size("hidden_size", hidden_size)
        self.num_layers = num_layers = checked_size("num_layers", num_layers)
        self.nonlinearity = nonlinearity
        self.bias = checked_flag("bias", bias)
        self.batch_first = checked_flag("batch_first", batch_first)
        self.dropout = checked_dropout(dropout, num_layers)
        self.bidirectional = checked_flag("bidirectional", bidirectional)
        self.learn_h0 = checked_flag("learn_h0", learn_h0)
        self.form = form
        self.checkpoint_every = checkpoint_every
        if checkpoint_every is not None:
            self.checkpoint_every = checked_size("checkpoint_every", checkpoint_every)

        directions = 2 if bidirectional else 1
        self._parameter_names: list[list[str]] = []  # for each layer and direction
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size * directions
            shapes = {"weight_ih": (hidden_size, inputs), "weight_hh": (hidden_size, hidden_size)}
            biases = {"bias_ih": (hidden_size,), "bias_hh": (hidden_size,)} if bias else {}
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:directions]:
                names = {name + suffix: shape for name, shape in (shapes | biases).items()}
                for name, shape in names.items():
                    setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                self._parameter_names.append(list(names))
        like = cast(Tensor, self.weight_hh_l0)
        rows = (num_layers * directions, hidden_size)
        self.register_parameter("h0", nn.Parameter(like.new_empty(rows)) if learn_h0 else None)
        self._init_decay(decay, learn_decay, rows, like)
        self.reset_parameters()

    @classmethod
    def from_rnn(
        cls: type[_Layer], rnn: nn.RNN, *, decay: Decay = 0.0, share: bool = False, **options: Any
    ) -> _Layer:
        """Return a leaky layer with the settings of an ``nn.RNN`` and a copy of its parameters.

            layer = LeakyRNN.from_rnn(nn.RNN(88, 200), decay=0.8)

        A parameter that several layers or directions of ``rnn`` share is one parameter of the layer as well.

        Args:
            rnn: The ``nn.RNN``.
            decay: ``d``, as for :class:`LeakyRNN`. With 0 the layer computes the same as ``rnn``.
            share: Whether the layer gets the parameters of ``rnn`` themselves instead of copies. Then they
                stay tied to other modules that share them, and optimizers that have them go on.
            options: Arguments of :class:`LeakyRNN` that ``nn.RNN`` does not have, such as ``form``.

        Returns:
            The layer, with the device and dtype of ``rnn``'s weights, in training mode if ``rnn`` is. Its
            parameters require gradients where those of ``rnn`` do.

        Raises:
            TypeError: ``rnn`` is not an ``nn.RNN``.
            ValueError: A weight of ``rnn`` is not a parameter, because a parametrization or a hook computes
                it (pruning, weight norm). Make it a parameter first, for example by
                ``torch.nn.utils.parametrize.remove_parametrizations``, and constrain the layer.
        """
        if not isinstance(rnn, nn.RNN):
            raise TypeError(f"rnn must be a torch.nn.RNN, got {type(rnn).__name__}")
        names = ("input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout")
        settings = {name: getattr(rnn, name) for name in names} | {"bidirectional": bool(rnn.bidirectional)}
        if settings["num_layers"] == 1:
            settings["dropout"] = 0.0  # has no effect, and nn.RNN has already warned of it
        share = checked_flag("share", share)
        like = cast(Tensor, rnn.weight_hh_l0)
        layer = cls(**settings, decay=decay, device=like.device, dtype=like.dtype, **options)
        copies: dict[nn.Parameter, nn.Parameter] = {}
        for name in (name for names in layer._parameter_names for name in names):
            given = rnn._parameters.get(name)
            if given is None:
                raise ValueError(
                    f"rnn.{name} must be a parameter, got a tensor that a parametrization or a hook "
                    "computes: remove it from rnn, and constrain the layer"
                )
            if given not in copies:
                copies[given] = nn.Parameter(given.detach().clone(), requires_grad=given.requires_grad)
            setattr(layer, name, given if share else copies[given])
        layer.dropout = rnn.dropout
        return layer.train(rnn.training)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights and biases of each layer and direction, in the order of ``nn.RNN``."""
        return [[getattr(self, name) for name in names] for names in self._parameter_names]

    def flatten_parameters(self) -> None:
        """Do nothing. The method exists for code that was written for ``nn.RNN``."""

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, drive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        drive: Tensor | PackedSequence | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        drive: Tensor | PackedSequence | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer over a batch of sequences.

        Args:
            input: ``x``, in the dtype of the parameters: ``[T, B, I]``; ``[B, T, I]`` with ``batch_first``;
                ``[T, I]`` unbatched; or a ``PackedSequence`` of ``[T_b, I]``, which is never padded.
            hx: State before the first step of each direction's time loop, ``[N, B, H]``, or ``[N, H]``
                unbatched. None for zero, or for ``h0`` with ``learn_h0``.
            drive: Added to the pre-activation of the first layer, ``[T, B, D H]``, shaped like the output. If
                bidirectional, the first half of the last dimension belongs to the forward direction. For
                packed input, a ``PackedSequence`` of the same lengths, or its data, ``[sum(T_b), D H]``.

        Returns:
            ``output``, the states ``h_t`` of the last layer at every step, ``[T, B, D H]`` (or
            ``[B, T, D H]``, ``[T, D H]``, or a ``PackedSequence``); and ``h_n``, the last states of every
            layer and direction, ``[N, B, H]`` (or ``[N, H]``). Backward reads ``output``, so do not change it
            in place before: write ``output * mask``, for example.

        Raises:
            ValueError, RuntimeError: A tensor has the wrong shape, dtype or device; the message names
                it. The error has the same type as in ``nn.RNN``.
            TypeError: An argument is not a Tensor.
        """
        packed, batch_sizes, order, undo = False, None, None, None
        sequence: Any = input
        are_tensors = isinstance(input, Tensor) and (hx is None or isinstance(hx, Tensor))
        if not are_tensors or not (drive is None or isinstance(drive, Tensor)):
            if (traced := leaf_call(self, input, hx, drive=drive)) is not None:  # torch.fx traces the call
                return cast(tuple[Tensor, Tensor], traced)
            if isinstance(input, PackedSequence):
                packed = True
                sequence, batch_sizes, order, undo = input
        weights = [self._weights(k) for k in range(len(self._parameter_names))]
        self._check_input(sequence, packed, weights[0][0])
        unbatched = not packed and sequence.dim() == 2
        batch_first = self.batch_first and not packed and not unbatched
        if drive is not None:
            drive = self._checked_drive(drive, input)
        if unbatched:
            sequence = sequence.unsqueeze(1)
            drive = None if drive is None else drive.unsqueeze(1)
        if hx is None and not self.learn_h0:
            states: tuple[Tensor | None, ...] = (None,) * len(weights)
        else:
            if batch_sizes is None:
                batch = sequence.shape[0 if batch_first else 1]
            elif torch.compiler.is_compiling() and isinstance(hx, Tensor) and hx.dim() == 3:
                batch = hx.shape[1]  # a traced value cannot be read; the operator checks it when it runs
            else:
                batch = int(batch_sizes[0])
            states = self._initial_states(hx, sequence, batch, unbatched, order)
        output, h_n = self._run(sequence, states, weights, drive, batch_sizes, batch_first)
        if unbatched:
            return output.squeeze(1), h_n.squeeze(1)
        if packed:
            h_n = h_n if undo is None else h_n.index_select(1, undo)
            return PackedSequence(output, batch_sizes, order, undo), h_n
        return output, h_n

    def _run(
        self,
        sequence: Tensor,
        states: tuple[Tensor | None, ...],
        weights: list[_Weights],
        drive: Tensor | None,
        batch_sizes: Tensor | None,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run all layers over ``[T, B, I]``, ``[B, T, I]`` or packed rows; ``h_n`` is ``[N, B, H]``."""
        if batch_first:
            sequence = sequence.transpose(0, 1)
            drive = None if drive is None else drive.transpose(0, 1)
        directions = 2 if self.bidirectional else 1
        drives = (drive,) * directions if drive is None else drive.chunk(directions, -1)
        decays = self._decays()
        finals = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                layer_drive = drives[direction] if layer == 0 else None
                tensors = ProjectedTensors(
                    sequence, states[k], *weights[k], layer_drive, decays[k], batch_sizes
                )
                spec = RecurrenceSpec(self.nonlinearity, self.form, reverse=direction == 1)
                output, h_n = run_projected(tensors, spec, self.checkpoint_every)
                outputs.append(output)
                finals.append(h_n)
            sequence = outputs[0] if directions == 1 else torch.cat(outputs, -1)
            if self.dropout and layer < self.num_layers - 1:
                sequence = nn.functional.dropout(sequence, self.dropout, self.training)
        if batch_first:
            sequence = sequence.transpose(0, 1)
        return sequence, finals[0].unsqueeze(0) if len(finals) == 1 else torch.stack(finals)

    def _weights(self, k: int) -> _Weights:
        # Read each name once, because a parametrization computes the weight at every access.
        names = self._parameter_names[k]
        bias = self._biases(names[2], names[3]) if self.bias else None
        return self._read(names[0]), self._read(names[1]), bias

    def _decays(self) -> tuple[float | Tensor, ...]:
        """Return the decay of each layer and direction: a float, a scalar tensor or ``[H]``."""
        decay, rows = self.decay, len(self._parameter_names)
        if isinstance(decay, tuple):
            return tuple(decay[k * self.num_layers // rows] for k in range(rows))
        if isinstance(decay, Tensor) and decay.dim() == 2:
            return decay.unbind()
        return (decay,) * rows

    def _initial_states(
        self, hx: Tensor | None, sequence: Tensor, batch: int, unbatched: bool, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the initial state of each layer and direction, ``[B, H]``, with rows in packed order."""
        rows = len(self._parameter_names)
        if hx is None:
            return tuple(h0.expand(batch, -1) for h0 in cast(Tensor, self.h0).unbind())
        check_tensor("hx", hx)
        expected = (rows, self.hidden_size) if unbatched else (rows, batch, self.hidden_size)
        if tuple(hx.shape) != expected:
            names = "[N, H]" if unbatched else "[N, B, H]"
            raise RuntimeError(f"hx must be {names} = {list(expected)}, got {list(hx.shape)}")
        check_like_input("hx", hx, sequence)
        if unbatched:
            hx = hx.unsqueeze(1)
        elif order is not None:
            hx = hx.index_select(1, order)
        return hx.unbind() if rows > 1 else (hx.squeeze(0),)

    def _check_input(self, sequence: Tensor, packed: bool, weight: Tensor) -> None:
        check_tensor("input", sequence)
        if packed and sequence.dim() != 2:
            raise RuntimeError(f"a packed input must be [sum(T_b), I], got {list(sequence.shape)}")
        if sequence.dim() not in (2, 3):
            raise ValueError(
                f"input must be 2D ([T, I], unbatched) or 3D ([T, B, I]), got {list(sequence.shape)}"
            )
        if sequence.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size = {self.input_size}, got {list(sequence.shape)}"
            )
        if sequence.dtype != weight.dtype and not autocasts(sequence.device):
            raise ValueError(
                f"input must have the dtype of the weights, {weight.dtype}, got {sequence.dtype}"
            )
        if sequence.device != weight.device:
            raise RuntimeError(
                f"input must be on the device of the weights, {weight.device}, got {sequence.device}"
            )

    def _checked_drive(self, drive: Tensor | PackedSequence, input: Tensor | PackedSequence) -> Tensor:
        """Return ``drive`` as a tensor shaped like the output of the first layer."""
        if isinstance(drive, PackedSequence):
            if isinstance(input, PackedSequence) and len(input.batch_sizes) > len(input.data):
                raise ValueError(
                    f"batch_sizes must be positive and add up to the {len(input.data)} rows of input, "
                    f"got {len(input.batch_sizes)} steps"
                )
            if not isinstance(input, PackedSequence) or not _same_packing(drive, input):
                raise RuntimeError(
                    "drive must be packed as the input is: the same batch_sizes and the same order"
                )
            drive = drive.data
        check_tensor("drive", drive)
        like = input.data if isinstance(input, PackedSequence) else input
        expected = (*like.shape[:-1], self.hidden_size * (2 if self.bidirectional else 1))
        if tuple(drive.shape) != expected:
            raise RuntimeError(
                f"drive must be shaped like the output, {list(expected)}, got {list(drive.shape)}"
            )
        check_like_input("drive", drive, like)
        return drive

    def extra_repr(self) -> str:
        """Return the sizes and the arguments that differ from the defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in (
            ("num_layers", 1),
            ("nonlinearity", "relu"),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("learn_h0", False),
            ("form", "rate"),
            ("checkpoint_every", None),
        ):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts + self._decay_repr())


def _same_packing(a: PackedSequence, b: PackedSequence) -> bool:
    orders = (a.sorted_indices, b.sorted_indices)
    if not torch.equal(a.batch_sizes, b.batch_sizes) or (orders[0] is None) != (orders[1] is None):
        return False
    return orders[0] is None or torch.equal(*cast(tuple[Tensor, Tensor], orders))
