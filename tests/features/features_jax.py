"""The checks of jax.lax.scan over a cell written by the user. JAX is imported when a check runs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np


class InJax:
    """A leaky layer written with JAX, and its checks."""

    @property
    def jax(self) -> ModuleType:
        import jax

        return jax

    def layer(
        self, weights: Any, x: Any, h0: Any = None, drive: Any = 0.0, f: Any = None, wrap: Any = None
    ) -> Any:
        jax, jnp = self.jax, self.jax.numpy
        w_ih, w_hh, decay = weights
        pre = x @ w_ih.T + drive

        def step(h: Any, p: Any) -> Any:
            h = decay * h + (1 - decay) * (f or jnp.tanh)(p + h @ w_hh.T)
            return h, h

        h0 = jnp.zeros(pre.shape[1:], w_hh.dtype) if h0 is None else h0
        if wrap is not None:
            return wrap(step, h0, pre)
        return jax.lax.scan(step, h0, pre)[1]

    def weights(self, seed: int = 0) -> Any:
        draw = np.random.RandomState(seed).randn
        return tuple(
            self.jax.numpy.asarray(w, "float32") for w in (draw(5, 3), draw(5, 5) / 3, np.full(5, 0.5))
        )

    def x(self, steps: int = 4, batch: int = 2) -> Any:
        return self.jax.numpy.asarray(np.random.RandomState(1).randn(steps, batch, 3), "float32")

    def same(self, a: Any, b: Any) -> bool:
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5))

    def leak(self) -> bool:
        jnp, weights = self.jax.numpy, self.weights()
        decay = jnp.linspace(0, 0.9, 5)
        still = (0 * weights[0], 0 * weights[1], decay)
        gradient = self.jax.grad(lambda d: self.layer((*weights[:2], d), self.x()).sum())(decay)
        state = self.layer(still, self.x(), jnp.ones((2, 5)))[1, 0]
        return self.same(state, decay**2) and bool((gradient != 0).all())

    def nonlinearities(self) -> bool:
        return bool(np.isfinite(self.layer(self.weights(), self.x(), f=self.jax.numpy.sin)).all())

    def initial_state(self) -> bool:
        h0 = self.jax.numpy.zeros((2, 5))
        return bool((self.jax.grad(lambda h: self.layer(self.weights(), self.x(), h).sum())(h0) != 0).any())

    def drive(self) -> bool:
        weights, more = self.weights(), self.x()[::-1]
        found = self.layer(weights, self.x(), drive=more @ weights[0].T)
        return self.same(found, self.layer(weights, self.x() + more))

    def no_loop(self) -> bool:
        gradient = self.jax.grad(lambda w, x: self.layer(w, x).sum())
        counts = [len(self.jax.make_jaxpr(gradient)(self.weights(), self.x(steps)).eqns) for steps in (5, 50)]
        return counts[0] == counts[1]

    def derivatives(self) -> bool:
        jax, weights, x = self.jax, self.weights(), self.x()
        gradient = jax.grad(lambda x: (self.layer(weights, x) ** 2).sum())
        v = x[::-1]
        backward_twice = jax.grad(lambda y: (gradient(y) * v).sum())(x)
        return self.same(jax.jvp(gradient, (x,), (v,))[1], backward_twice)

    def networks(self) -> bool:
        jnp, each = self.jax.numpy, [self.weights(seed) for seed in range(4)]
        stacked = tuple(jnp.stack(group) for group in zip(*each, strict=True))
        found = self.jax.vmap(lambda *w: self.layer(w, self.x()))(*stacked)
        return self.same(found, jnp.stack([self.layer(w, self.x()) for w in each]))

    def compiled(self) -> bool:
        run = self.jax.jit(self.layer)
        return all(
            self.same(run(self.weights(), self.x(n)), self.layer(self.weights(), self.x(n))) for n in (4, 9)
        )

    def exported(self) -> bool:
        from jax import export

        steps, batch = export.symbolic_shape("T, B")
        like = self.jax.ShapeDtypeStruct
        shapes = tuple(like(w.shape, w.dtype) for w in self.weights()), like((steps, batch, 3), "float32")
        program = export.export(self.jax.jit(self.layer))(*shapes)
        return self.same(program.call(self.weights(), self.x(9, 3)), self.layer(self.weights(), self.x(9, 3)))

    def bfloat16(self) -> bool:
        jnp = self.jax.numpy
        low = (jnp.ones((1, 1), "bfloat16"), jnp.zeros((1, 1), "bfloat16"))
        wide = (*(w.astype("float32") for w in low), jnp.full(1, 0.999))
        output = self.layer(wide, jnp.ones((5000, 1, 1)), f=self.jax.nn.relu).astype("bfloat16")
        return abs(float(output[-1, 0, 0]) - (1 - 0.999**5000)) < 0.01

    def checkpoints(self) -> bool:
        jax = self.jax

        def segments(step: Any, h0: Any, pre: Any) -> Any:
            segment = jax.checkpoint(lambda h, p: jax.lax.scan(step, h, p))
            return jax.lax.scan(segment, h0, pre.reshape(5, 10, *pre.shape[1:]))[1].reshape(pre.shape)

        x, weights = self.x(50), self.weights()
        found = jax.grad(lambda w: self.layer(w, x, wrap=segments).sum())(weights)
        expected = jax.grad(lambda w: self.layer(w, x).sum())(weights)
        return all(map(self.same, found, expected))


in_jax = InJax()
