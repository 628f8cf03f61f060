"""The recurrence under `jax.lax.scan`, on the device of the problem's tensors."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .problem import Problem, Results


class JaxScan:
    """The leaky loop under jax.lax.scan, compiled. Unrolling the scan makes it no faster."""

    def __init__(self, problem: Problem) -> None:
        self._jax = jax = import_jax()
        jnp, decay = jax.numpy, problem.decay
        self.decay = decay
        if problem.x.dtype == torch.float64:
            jax.config.update("jax_enable_x64", True)
        if problem.x.is_cuda:
            # As in torch, float32 is exact unless TF32 was allowed.
            tf32 = torch.backends.cuda.matmul.allow_tf32
            jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "highest")

        def layer(weights: dict[str, Any], x: Any) -> Any:
            pre = x @ weights["weight_ih_l0"].T + (weights["bias_ih_l0"] + weights["bias_hh_l0"])

            def step(h: Any, p: Any) -> tuple[Any, Any]:
                z = p + h @ weights["weight_hh_l0"].T
                h = decay * h + (1 - decay) * jax.nn.relu(z)
                return h, h

            return jax.lax.scan(step, jnp.zeros_like(pre[0]), pre)[1]

        def layer_and_gradients(weights: dict[str, Any], x: Any, grad_output: Any) -> Any:
            output, pull_back = jax.vjp(lambda weights: layer(weights, x), weights)
            return output, pull_back(grad_output)[0]

        self._layer, self._layer_and_gradients = jax.jit(layer), jax.jit(layer_and_gradients)

        def to_jax(x: Tensor) -> Any:
            if x.is_cuda:
                return jax.dlpack.from_dlpack(x.contiguous())
            if x.dtype == torch.bfloat16:  # NumPy has no bfloat16
                return jnp.asarray(x.float().numpy(), dtype=jnp.bfloat16)
            return jnp.asarray(x.numpy())

        self._weights = {name: to_jax(w) for name, w in problem.weights.items()}
        self._x, self._grad_output = to_jax(problem.x), to_jax(problem.grad_output)

    def forward(self) -> Any:
        return self._jax.block_until_ready(self._layer(self._weights, self._x))

    def forward_backward(self) -> Any:
        result = self._layer_and_gradients(self._weights, self._x, self._grad_output)
        return self._jax.block_until_ready(result)

    def results(self) -> Results:
        output, gradients = self.forward_backward()
        return Results(from_dlpack(output), {name: from_dlpack(grad) for name, grad in gradients.items()})


def prepare_jax(device: str, threads: int) -> None:
    """Set the environment from which JAX reads its device, memory and CPU threads when it starts."""
    os.environ.setdefault("JAX_PLATFORMS", device)
    if device == "cuda":
        # Otherwise JAX reserves three quarters of the GPU's memory.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["NPROC"] = str(threads)
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def import_jax() -> Any:
    return importlib.import_module("jax")


def no_jax() -> str | None:
    """Why JAX cannot be measured here."""
    try:
        import_jax().devices()
    except ImportError:
        return "JAX is not installed"
    except RuntimeError as error:  # a jaxlib of another version, or none for this device
        return f"JAX does not start: {str(error).splitlines()[0]}"
    return None
