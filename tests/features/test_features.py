"""The tables of features in README.md and docs/features.md equal the list, and its cells are true."""

from __future__ import annotations

import importlib.util

import features
import pytest
from features import BLOCKS, FEATURES, LIBRARIES, Read, Tried, block
from helpers import ROOT

HAS_JAX = importlib.util.find_spec("jax") is not None
TRIED = features.tried()


@pytest.mark.parametrize("name", TRIED)
def test_a_cell_agrees_with_its_check(name):
    cell, library = TRIED[name]
    if library == "JAX" and not HAS_JAX:
        pytest.skip("JAX is not installed")
    assert cell.check() is not cell.text.startswith("no")


@pytest.mark.parametrize("file", BLOCKS)
def test_the_tables_are_generated_from_the_list(file):
    found = block((ROOT / file).read_text())
    assert found.group() == BLOCKS[file]()  # features.py writes them


def test_every_cell_of_rnnkernels_is_tried_and_every_cell_that_was_read_has_a_place():
    for feature in FEATURES:
        assert len(feature.cells) == len(LIBRARIES), feature.name
        assert isinstance(feature.cells[0], Tried), feature.name
        assert all(cell.place for cell in feature.cells if isinstance(cell, Read)), feature.name
