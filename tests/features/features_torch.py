"""The checks of rnnkernels and torch.nn.RNN: each returns whether the feature exists."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import onnxruntime
import torch
from helpers import distance
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.profiler import ProfilerActivity, profile

import rnnkernels
from rnnkernels import ClippedAdamW, ClippedNesterov, LeakyRNN

FUNCTIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
}


def accepts(call: Callable[[], Any], refusal: str) -> bool:
    """Return whether a call succeeds. An error whose message does not match ``refusal`` is raised again."""
    try:
        call()
    except Exception as error:
        if not re.search(refusal, str(error)):
            raise
        return False
    return True


def same(a: Tensor, b: Tensor) -> bool:
    return distance(a, b) < 1e-5


class TorchLayer:
    """The checks that are the same for both libraries."""

    make: Callable[..., nn.Module]

    def kind(self, **options: Any) -> Any:
        return self.make(3, 5, **options)

    def nonlinearities(self) -> bool:
        x = torch.randn(1, 2, 3)
        for name in FUNCTIONS:
            if not self.has_nonlinearity(name):
                continue
            layer = self.kind(nonlinearity=name)
            pre = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
            assert same(layer(x)[0], FUNCTIONS[name](pre))
        assert not accepts(lambda: self.kind(nonlinearity="gelu"), "'gelu'")
        return tuple(filter(self.has_nonlinearity, FUNCTIONS)) == self.named_nonlinearities

    named_nonlinearities: tuple[str, ...]

    def has_nonlinearity(self, name: str) -> bool:
        return accepts(lambda: self.kind(nonlinearity=name), f"[Uu]nknown nonlinearity '{name}'")

    def layers(self) -> bool:
        layer = self.kind(num_layers=2, bidirectional=True, dropout=0.5)
        x = torch.randn(4, 2, 3)
        output, h_n = layer(x)
        dropped = not torch.equal(output, layer(x)[0])
        return dropped and output.shape == (4, 2, 10) and h_n.shape == (4, 2, 5)

    def lengths(self) -> bool:
        layer, sequences = self.kind(), [torch.randn(n, 3) for n in (2, 5, 3)]
        output, h_n = layer(pack_sequence(sequences, enforce_sorted=False))
        alone = [layer(x) for x in sequences]
        return same(h_n, torch.stack([h for _, h in alone], 1)) and all(
            same(a, b) for a, (b, _) in zip(unpack_sequence(output), alone, strict=True)
        )

    def initial_state(self) -> bool:
        hx = torch.zeros(1, 2, 5, requires_grad=True)
        self.kind()(torch.randn(4, 2, 3), hx)[0].sum().backward()
        return bool((hx.grad != 0).any())

    def no_loop(self) -> bool:
        counts = []
        for steps in (5, 50):
            layer, x = self.kind(), torch.randn(steps, 2, 3)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                layer(x)[0].sum().backward()
            counts.append(len(profiler.events()))
        return counts[0] == counts[1]

    def derivatives(self) -> bool:
        layer = self.kind(nonlinearity="tanh", dtype=torch.float64)
        x, v = torch.randn(2, 4, 2, 3, dtype=torch.float64)

        def gradient(x: Tensor) -> Tensor:
            return torch.func.grad(lambda x: layer(x)[0].square().sum())(x)

        x.requires_grad_()
        loss = layer(x)[0].square().sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (backward_twice,) = torch.autograd.grad((first * v).sum(), x)
        return same(jvp(gradient, (x.detach(),), (v,))[1], backward_twice)

    def networks(self) -> bool:
        layers, x = [self.kind() for _ in range(4)], torch.randn(6, 2, 3)
        weights, buffers = stack_module_state(layers)

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return functional_call(layers[0], (weights, buffers), (x,))[0]

        def together() -> None:
            assert same(vmap(one)(weights, buffers), torch.stack([layer(x)[0] for layer in layers]))

        return accepts(together, "Batching rule not implemented for aten::rnn_")

    def compiled(self) -> bool:
        layer = self.kind()
        torch._dynamo.reset()
        run = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")

        def both() -> None:
            for steps in (4, 9):
                x = torch.randn(steps, 2, 3)
                assert same(run(x)[0], layer(x)[0])

        return accepts(both, "Dynamo does not support RNN, GRU, or LSTM")

    def export(self, refusal: str) -> bool:
        """Export with torch.export at one length and run at another."""
        layer, size = self.kind(), torch.export.Dim("T", min=2)

        def program() -> None:
            exported = torch.export.export(layer, (torch.randn(4, 2, 3),), dynamic_shapes=({0: size},))
            x = torch.randn(9, 2, 3)
            assert same(exported.module()(x)[0], layer(x)[0])

        return accepts(program, refusal)

    def onnx(self, layer: nn.Module, path: str | bytes) -> bool:
        session, x = onnxruntime.InferenceSession(path), torch.randn(9, 2, 3)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        return same(torch.from_numpy(found), layer(x)[0])

    def state_dict(self) -> bool:
        layer, other, x = self.kind(nonlinearity="tanh"), nn.RNN(3, 5), torch.randn(4, 2, 3)
        layer.load_state_dict(other.state_dict())
        found = same(layer(x)[0], other(x)[0])
        other.load_state_dict(self.kind().state_dict())
        return found


class Ours(TorchLayer):
    make = LeakyRNN
    named_nonlinearities = ("relu", "tanh", "sigmoid", "softplus")

    def leak(self) -> bool:
        decay = torch.linspace(0, 0.9, 5)
        layer = LeakyRNN(3, 5, decay=decay, learn_decay=True, dtype=torch.float64)
        with torch.no_grad():
            for weights in layer.all_weights:
                for weight in weights:
                    weight.zero_()
        _, h_n = layer(torch.zeros(2, 1, 3).double(), torch.ones(1, 1, 5).double())
        h_n.sum().backward()
        shrunk = torch.where(decay < 0.001, 0.001, decay.double()) ** 2  # learned decays start at 0.001
        return distance(h_n[0, 0], shrunk) < 1e-6 and bool((layer.decay_logit.grad != 0).all())

    def bfloat16(self) -> bool:
        layer = LeakyRNN(1, 1, bias=False, decay=0.999, dtype=torch.bfloat16)
        with torch.no_grad():
            layer.weight_ih_l0.fill_(1)
            layer.weight_hh_l0.zero_()
        state = layer(torch.ones(5000, 1, 1, dtype=torch.bfloat16))[1].item()
        return abs(state - (1 - 0.999**5000)) < 0.01

    def gated(self) -> bool:
        return hasattr(rnnkernels, "LSTM") or hasattr(rnnkernels, "GRU")

    def has_nonlinearity(self, name: str) -> bool:
        return accepts(lambda: self.kind(nonlinearity=name), "nonlinearity must be one of")

    def initial_state(self) -> bool:
        layer = self.kind(learn_h0=True)
        layer(torch.randn(4, 2, 3))[0].sum().backward()
        return super().initial_state() and bool((layer.h0.grad != 0).any())

    def drive(self) -> bool:
        layer, x, more = self.kind(), torch.randn(4, 2, 3), torch.randn(4, 2, 3)
        drive = nn.functional.linear(more, layer.weight_ih_l0)
        return same(layer(x, drive=drive)[0], layer(x + more)[0])

    def gpu(self) -> bool:
        found = torch._C._dispatch_has_kernel_for_dispatch_key("rnnkernels::leaky_recurrence", "CUDA")
        return bool(rnnkernels.build_config()["cuda"]) is found

    def exported(self) -> bool:
        layer = self.kind().eval()
        sizes = ({0: torch.export.Dim("T"), 1: torch.export.Dim("B")},)
        program = torch.export.export(layer, (torch.randn(4, 2, 3),), dynamic_shapes=sizes)
        program = program.run_decompositions(rnnkernels.decompositions())
        model = torch.onnx.export(program, dynamo=True, verbose=False)
        found = self.onnx(layer, model.model_proto.SerializeToString())
        return found and self.export("nothing is refused")

    def checkpoints(self) -> bool:
        kept, gradients = [], []
        for every in (None, 10):
            torch.manual_seed(0)
            layer = self.kind(nonlinearity="tanh", checkpoint_every=every)
            sizes: list[int] = []
            x = torch.randn(100, 4, 3)

            def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = layer(x)[0].sum()
            kept.append(sum(sizes))
            loss.backward()
            gradients.append(layer.weight_hh_l0.grad)
        return kept[1] < kept[0] / 3 and same(*gradients)

    def same_bits(self) -> bool:
        threads, results = torch.get_num_threads(), []
        for number in (1, 2, 3):
            torch.manual_seed(0)
            torch.set_num_threads(number)
            layer, x = LeakyRNN(16, 37, decay=0.5), torch.randn(300, 9, 16)
            drive = torch.randn(300, 9, 37, requires_grad=True)
            outputs = [layer(x)[0], layer(x, drive=drive)[0]]
            torch.cat(outputs).sum().backward()
            results.append([*outputs, drive.grad, *(p.grad for p in layer.parameters())])
        torch.set_num_threads(threads)
        return all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))

    def clipped_step(self) -> bool:
        cases: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
            (ClippedNesterov, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
            (ClippedAdamW, torch.optim.AdamW, {"lr": 0.1}),
        )
        for ours, theirs, options in cases:
            layers = [self.kind(), self.kind()]
            layers[1].load_state_dict(layers[0].state_dict())
            extra = {"nesterov": True} if theirs is torch.optim.SGD else {}
            optimizers = [
                ours(layers[0].parameters(), max_norm=0.1, **options),
                theirs(layers[1].parameters(), **options, **extra),
            ]
            x = torch.randn(4, 2, 3)
            for layer in layers:
                layer(x)[0].square().sum().backward()
            nn.utils.clip_grad_norm_(layers[1].parameters(), 0.1)
            for optimizer in optimizers:
                optimizer.step()
            pairs = zip(*(layer.parameters() for layer in layers), strict=True)
            if not all(same(a, b) for a, b in pairs):
                return False
        return True


class Rnn(TorchLayer):
    make = nn.RNN
    named_nonlinearities = ("relu", "tanh")

    def leak(self) -> bool:
        return accepts(lambda: self.kind(decay=0.5), "unexpected keyword argument 'decay'")

    bfloat16 = leak

    def gated(self) -> bool:
        return hasattr(nn, "LSTM") and hasattr(nn, "GRU")

    def drive(self) -> bool:
        x = torch.randn(4, 2, 3)
        return accepts(lambda: self.kind()(x, drive=x), "unexpected keyword argument 'drive'")

    def exported(self) -> bool:
        assert not self.export("You marked T as dynamic but")
        layer, file, x = self.kind().eval(), io.BytesIO(), torch.randn(4, 2, 3)
        names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "T", 1: "B"}}}
        torch.onnx.export(layer, (x,), file, dynamo=False, **names)  # type: ignore[arg-type]
        return self.onnx(layer, file.getvalue())

    def checkpoints(self) -> bool:
        return accepts(lambda: self.kind(checkpoint_every=10), "unexpected keyword argument")

    def clipped_step(self) -> bool:
        def make() -> None:
            torch.optim.SGD(self.kind().parameters(), max_norm=0.1)  # type: ignore[call-arg]

        return accepts(make, "unexpected keyword argument 'max_norm'")


ours, rnn = Ours(), Rnn()
