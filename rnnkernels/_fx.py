"""torch.fx: the modules of this package as leaves of a traced program.

``torch.fx.symbolic_trace`` calls a module with Proxies in place of tensors and records what it does with
them. By default it records a call as a whole, as a leaf, only if torch defines the module's class. So the
modules of this package record their call themselves when they get a Proxy.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def leaf_call(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """Return the Proxy of a call of ``module``, or None if no argument is a Proxy or has one as a field.

    Last arguments and keywords that are None are left out.

    Raises:
        TypeError: ``module`` is the one that is traced, instead of a part of it.
    """
    for given in (*arguments, *keywords.values()):
        for x in given if isinstance(given, tuple) else (given,):
            if isinstance(x, Proxy):
                return _record(x.tracer, module, arguments, keywords)
    return None


def _record(tracer: Any, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    if tracer.root is module:
        kind = type(module).__name__
        raise TypeError(f"torch.fx must trace a module that contains the {kind}, got the {kind} itself")
    while arguments and arguments[-1] is None:
        arguments = arguments[:-1]
    given = {name: x for name, x in keywords.items() if x is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)
