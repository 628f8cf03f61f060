"""The chorales of music21: reading of MusicXML scores, choice and splits, cache."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from polyphonic_music import chorales, rolls
from polyphonic_music.files import UnusableError


def measure(text: str, divisions: int = 1, more: str = "") -> str:
    """Notes such as C#4/2 (two divisions long), +E4/2 (in the chord of the last), -/1 (a rest); or XML."""
    out = f"<attributes><divisions>{divisions}</divisions>{more}</attributes>"
    for word in text.split():
        name, duration = word.lstrip("+").rsplit("/", 1)
        alter = f"<alter>{'1' if '#' in name else '-1'}</alter>" if len(name) == 3 else ""
        pitch = f"<pitch><step>{name[0]}</step>{alter}<octave>{name[-1]}</octave></pitch>"
        content = "<rest/>" if name == "-" else "<chord/>" * (word[0] == "+") + pitch
        note = f"<note>{content}<duration>{duration}</duration></note>"
        out += word if word[0] == "<" else note
    return f"<measure>{out}</measure>"


def score(**parts: str) -> bytes:
    """A MusicXML score of parts, each given by its name and its measures."""
    listed = "".join(f'<score-part id="{n}"><part-name>{n}</part-name></score-part>' for n in parts)
    music = "".join(f'<part id="{name}">{measures}</part>' for name, measures in parts.items())
    return f"<score-partwise><part-list>{listed}</part-list>{music}</score-partwise>".encode()


def pitches(roll: rolls.Roll) -> list[list[int]]:
    return [(np.flatnonzero(step) + 21).tolist() for step in roll]


def sounds(**parts: str) -> list[list[int]]:
    return pitches(chorales.roll_from_musicxml(score(**parts)))


def test_notes_are_sampled_at_the_quarters() -> None:
    tied = "<note><pitch><step>C</step><octave>5</octave></pitch><duration>16</duration><tie/></note>"
    bars = measure("C4/2 D4/1 E4/1 Fb4/3 -/1", 2) + measure(f"{tied} C5/8 B3/8", 8)
    assert sounds(A=bars) == [[60], [62], [64], [64], [72], [72], [72], [59]]


def test_chords_voices_and_grace_notes() -> None:
    back, on = (f"<{w}><duration>{n}</duration></{w}>" for w, n in (("backup", 3), ("forward", 1)))
    grace = "<note><grace/><pitch><step>A</step><octave>4</octave></pitch></note>"
    bars = measure(f"C4/2 +E4/2 {grace} G4/1 {back} {on} C3/2") + measure("C2/1")
    assert sounds(A=bars) == [[60, 64], [48, 60, 64], [48, 67], [36]]


def test_transposing_instruments_sound_where_they_sound() -> None:
    clarinet = "<transpose><chromatic>-2</chromatic></transpose>"
    bass = "<transpose><chromatic>0</chromatic><octave-change>-1</octave-change></transpose>"
    assert sounds(A=measure("C4/1", 1, clarinet), B=measure("C3/1", 1, bass)) == [[36, 58]]


def test_the_grid_is_that_of_the_first_full_bar() -> None:
    assert sounds(A=measure("C4/1", 2) + measure("D4/1 E4/1 F4/1 G4/1", 2)) == [[62], [65]]
    assert sounds(A=measure("C4/2", 2) + measure("D4/1 E4/1 F4/1 G4/1", 2)) == [[60], [62], [65]]


def test_silence_around_is_cut_and_inside_kept() -> None:
    assert sounds(A=measure("-/3 C4/1 -/1 D4/1 -/2")) == [[60], [], [62]]


def test_only_the_voices_asked_for() -> None:
    both = score(Soprano=measure("C4/2"), Horn=measure("G5/2"), Bass=measure("C3/2"))
    two = ("soprano", "bass")
    assert pitches(chorales.roll_from_musicxml(both, two)) == [[48, 60]] * 2
    assert chorales.roll_from_musicxml(both, ("soprano", "alto")).shape == (0, 88)
    twice = both.replace(b"<part-name>Horn", b"<part-name>Soprano 2")
    assert chorales.roll_from_musicxml(twice, two).shape == (0, 88)
    unnamed = both.replace(b"<part-name>Horn</part-name>", b"<part-name> </part-name>")
    assert len(chorales.roll_from_musicxml(unnamed, two)) == 2


def test_wrong_scores_are_refused() -> None:
    bars = ("H4/1", "C4/x", "C4/1000000000", "<note><rest/></note>")
    wrong = [score(A=measure(bar)) for bar in bars] + [score(A=measure("C4/1", 0))]
    for text in [*wrong, b"", b"<score", b"<score-timewise/>"]:
        with pytest.raises(UnusableError, match="not a readable MusicXML score"):
            chorales.roll_from_musicxml(text)


def chorale(seed: int, shift: int = 0) -> bytes:
    """Four voices of twelve random quarter notes, moved by `shift` octaves."""
    rng = np.random.default_rng(seed)
    voices = {}
    for name, octave in (("Soprano", 5), ("Alto", 4), ("Tenor", 3), ("Bass", 2)):
        steps = (f"{'CDEFGAB'[i]}{octave + shift}/1" for i in rng.integers(0, 7, 12))
        voices[name] = measure(" ".join(steps))
    return score(**voices)


@pytest.fixture
def not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the modules of music21 that an earlier test imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "music21"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def music21(not_imported: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A synthetic package music21 that must not be imported; returns its folder of scores."""
    root = tmp_path / "site"
    folder = root / "music21" / "corpus" / "bach"
    folder.mkdir(parents=True)
    (root / "music21" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    info = root / "music21-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: music21\nVersion: 0.1\n")
    for i in range(9):
        with zipfile.ZipFile(folder / f"bwv{i}.mxl", "w") as archive:
            archive.writestr("META-INF/container.xml", "<container/>")
            archive.writestr(f"bwv{i}.xml", chorale(i))
    (folder / "bwv90.xml").write_bytes(chorale(3, shift=1))  # a copy in another place
    (folder / "bwv91.xml").write_bytes(score(Piano=measure("C4/9")))
    (folder / "bwv92.krn").write_text("not MusicXML")
    monkeypatch.syspath_prepend(root)
    return folder


def contents(data: rolls.Rolls) -> list[set[bytes]]:
    return [{roll.tobytes() for roll in part} for part in (data.train, data.valid, data.test)]


def test_chorales_are_chosen_and_split(music21: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = chorales.load_chorales(tmp_path / "cache", lambda done, total: calls.append((done, total)))
    assert data.note == "9 of 11 scores of music21 0.1, 5/2/2 train/valid/test"
    assert calls[0] == (0, 11)
    assert calls[-1] == (10, 11)
    assert len(set().union(*contents(data))) == 9
    again = chorales.load_chorales(tmp_path / "other cache")
    assert [roll.tobytes() for roll in again.train] == [roll.tobytes() for roll in data.train]


def test_the_cache_is_used_and_made_again_when_damaged(
    music21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = chorales.load_chorales(cache)
    (kept,) = cache.iterdir()  # no temporary file stays
    whole = kept.read_bytes()
    read = Mock(wraps=chorales._read_scores)
    monkeypatch.setattr(chorales, "_read_scores", read)
    assert contents(chorales.load_chorales(cache)) == contents(first)
    assert not read.called
    for damaged in (b"", whole[:200], b"x" * 999, whole[:80] + b"\xff" * 40 + whole[120:]):
        kept.write_bytes(damaged)
        read.reset_mock()
        assert contents(chorales.load_chorales(cache)) == contents(first)
        assert read.call_count == 1
        np.load(kept, allow_pickle=False)["frames"]  # whole again
    assert list(cache.iterdir()) == [kept]


def test_a_damaged_cache_of_the_chorales_is_reported(
    music21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    roll = np.zeros((2, rolls.KEYS), np.uint8)
    made = {f"bwv{i}": roll for i in range(6)}, 9
    monkeypatch.setattr(chorales, "_read_scores", lambda folder, progress: made)
    chorales.load_chorales(tmp_path / "cache")
    [cache] = (tmp_path / "cache").iterdir()
    whole = cache.read_bytes()
    good = dict(np.load(cache))

    def packed(**changes: Any) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{**good, **changes})
        return buffer.getvalue()

    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", bytes(200 << 20))
    for content, why in (
        (b"", "not a readable .npz file"),
        (whole[:-30], "not a readable .npz file"),
        (bomb.getvalue(), "when decompressed"),
        (packed(frames=good["frames"] + 2), "must be 12 steps of 0 and 1"),
        (packed(frames=good["frames"].astype(float)), "must be 12 steps of 0 and 1"),
        (packed(lengths=good["lengths"] + 1), "must be 18 steps of 0 and 1"),
        (packed(names=np.full(6, "a")), "chorales of different names"),
        (packed(names=np.array([{}] * 6)), "not a readable .npz file"),
    ):
        cache.write_bytes(content)
        assert len(chorales.load_chorales(tmp_path / "cache").train) == 3
        [said] = [record.getMessage() for record in caplog.records]
        caplog.clear()
        assert said.startswith(f"{cache}: ")
        assert why in said
        assert said.endswith("; it is made again")
        chorales.load_chorales(tmp_path / "cache")
        assert not caplog.records
    cache.unlink()
    os.mkfifo(cache)
    chorales.load_chorales(tmp_path / "cache")
    assert "got a named pipe" in caplog.records[0].getMessage()
    assert cache.is_file()


def test_the_cache_follows_xdg_and_may_be_missing(
    music21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    chorales.load_chorales()
    assert len(list((tmp_path / "xdg" / "rnnkernels").glob("chorales-music21-0.1-*.npz"))) == 1
    (tmp_path / "file").write_text("in the way")
    assert len(chorales.load_chorales(tmp_path / "file" / "cache").train) == 5


def test_no_music21_no_scores_broken_score(
    music21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (music21 / "bwv93.mxl").write_bytes(b"not a zip")
    with pytest.raises(UnusableError, match=r"bwv93\.mxl: not a readable \.mxl file \(BadZipFile"):
        chorales.load_chorales(tmp_path)
    for path in music21.iterdir():
        path.unlink()
    with pytest.raises(UnusableError, match="0 chorales found, too few"):
        chorales.load_chorales(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnusableError, match="pip install music21"):
        chorales.load_chorales(tmp_path)


@pytest.mark.usefixtures("not_imported")
def test_real_chorales(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("music21")
    if spec is None or spec.origin is None:
        pytest.skip("music21 is missing")
    scores = sorted((Path(spec.origin).parent / "corpus" / "bach").glob("bwv*.mxl"))
    assert len(scores) > 300
    for path in scores:
        if path.name == "bwv66.6.mxl" or path < scores[30]:
            (tmp_path / path.name).symlink_to(path)
    found, read = chorales._read_scores(tmp_path, None)
    assert 25 <= len(found) < read == 31  # BWV 112.5 is there twice
    assert max(int(roll.sum(axis=1).max()) for roll in found.values()) == 4
    roll = found["bwv66.6.mxl"]  # as music21 itself reads it
    assert pitches(roll[:3]) == [[57, 64, 73], [54, 61, 66, 69], [56, 59, 64, 71]]
    assert roll.shape == (36, 88)
    assert roll.sum() == 135
    assert "music21" not in sys.modules
