"""The form of content that was read: types, keys, lengths, and the dtype and shape of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyphonic_music.files import UnusableError


class Each(NamedTuple):
    """The form of a list of any length: that of each entry."""

    form: Any


class Either(NamedTuple):
    """Forms of which a value must have one."""

    forms: tuple[Any, ...]


FLOAT_OR_NULL = Either((float, type(None)))


def check_form(value: Any, form: Any, where: str) -> None:
    """Raise UnusableError unless a value has a form. ``where`` names the value in the message.

    A form is a type, `Each` or `Either`, or an example: a dict has the same keys, a list the same length, a
    tensor the same dtype and shape, any other value the same type; the entries of a dict or list are forms.
    """
    if isinstance(form, Either):
        if not any(_fits(value, option) for option in form.forms):
            raise UnusableError(f"{where} has a wrong form, got {type(value).__name__}")
    elif isinstance(form, Each):
        _check_type(value, list, where)
        for i, entry in enumerate(value):
            check_form(entry, form.form, f"{where}[{i}]")
    elif isinstance(form, Mapping):
        _check_type(value, Mapping, where)
        for name in [*form, *value]:
            if name not in form or name not in value:
                raise UnusableError(f"{where} {'lacks' if name in form else 'has'} {name!r:.60}")
        for name, entry in form.items():
            check_form(value[name], entry, f"{where}[{name!r}]")
    elif isinstance(form, list):
        _check_type(value, list, where)
        if len(value) != len(form):
            raise UnusableError(f"{where} must have {len(form)} entries, got {len(value)}")
        for i, (entry, expected) in enumerate(zip(value, form, strict=True)):
            check_form(entry, expected, f"{where}[{i}]")
    elif isinstance(form, Tensor):
        _check_tensor(value, form, where)
    else:
        _check_type(value, form if isinstance(form, type) else type(form), where)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UnusableError if a tensor has an entry that is not finite."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UnusableError(f"{where}[{name!r}] has entries that are not finite")


def _fits(value: Any, form: Any) -> bool:
    try:
        check_form(value, form, "")
    except UnusableError:
        return False
    return True


def _check_type(value: Any, expected: type, where: str) -> None:
    fits = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if not fits:
        raise UnusableError(f"{where} must be of type {expected.__name__}, got {type(value).__name__}")


def _check_tensor(value: Any, form: Tensor, where: str) -> None:
    if not isinstance(value, Tensor):
        raise UnusableError(f"{where} must be a tensor, got {type(value).__name__}")
    if value.dtype != form.dtype or value.shape != form.shape or value.layout != form.layout:
        raise UnusableError(
            f"{where} must be {form.dtype} {list(form.shape)}, got {value.dtype} {list(value.shape)}"
        )
