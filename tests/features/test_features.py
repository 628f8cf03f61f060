"""README's table of what each library does is its list, and what the list says is so."""

from __future__ import annotations

import importlib.util

import features
import pytest
from features import BLOCKS, FEATURES, LIBRARIES, Read, Tried, block
from helpers import ROOT

HAS_JAX = importlib.util.find_spec("jax") is not None
TRIED = features.tried()


@pytest.mark.parametrize("name", TRIED)
def test_a_cell_says_what_happens(name):
    cell, library = TRIED[name]
    if library == "JAX" and not HAS_JAX:
        pytest.skip("JAX is not installed")
    assert cell.check() is not cell.text.startswith("no")


@pytest.mark.parametrize("file", BLOCKS)
def test_the_tables_are_the_list(file):
    found = block((ROOT / file).read_text())
    assert found.group() == BLOCKS[file]()  # `PYTHONPATH=tests python tests/features/features.py` writes them


def test_our_own_cells_are_all_tried_and_every_other_has_a_place():
    for feature in FEATURES:
        assert len(feature.cells) == len(LIBRARIES), feature.name
        assert isinstance(feature.cells[0], Tried), feature.name
        assert all(cell.place for cell in feature.cells if isinstance(cell, Read)), feature.name
