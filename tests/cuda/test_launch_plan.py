"""Launch plans of the recurrence: the choice of a team for known GPUs. No test needs a GPU."""

import json

import pytest

from rnnkernels import _C
from rnnkernels.__main__ import main

DEVICES = ("A100", "RTX 4090", "H100", "H200", "B200")
WITH_CLUSTERS = ("H100", "H200", "B200")
TEAMS = ("block", "cluster2", "cluster4", "cluster8", "cluster16", "grid", "steps")
ON_CHIP = ("float32", "bfloat16", "float16")
HIDDEN = (*range(1, 300), *range(300, 5001, 47), 5000)
BATCHES = (1, 8, 64, 1000)


def plan(hidden, batch, dtype="float32", device="H100", team="", networks=1):
    return _C.plan(hidden, batch, dtype, networks, device, team)


def fitting(hidden, batch, dtype, device):
    """The plans of all teams that fit, by team."""
    plans = {}
    for team in TEAMS:
        try:
            plans[team] = plan(hidden, batch, dtype, device, team)
        except ValueError as error:
            assert "does not fit" in str(error)  # noqa: PT017  (others may be planned)
    return plans


def test_properties_of_the_known_devices() -> None:
    known = _C.known_devices()
    assert set(DEVICES) <= set(known)
    assert all(known[name]["largest_cluster"] == 16 for name in WITH_CLUSTERS)
    assert all(known[name]["largest_cluster"] == 1 for name in ("A100", "RTX 4090"))
    assert known["A100"]["capability"] == (8, 0)
    assert known["B200"]["capability"] == (10, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_every_size_has_a_plan_that_fits_the_device(device: str) -> None:
    facts = _C.known_devices()[device]
    for batch in BATCHES:
        for i, hidden in enumerate(HIDDEN):
            found = plan(hidden, batch, ON_CHIP[i % 3], device)
            assert found["cycles"] > 0
            assert found["shared_bytes"] <= facts["shared_bytes"]
            if found["team"] == "steps":
                continue
            assert 1 <= found["warps"] <= 8
            assert found["matrix_registers"] < 255
            if found["team"] == "cluster":
                assert found["blocks"] <= facts["largest_cluster"]
            if found["team"] == "grid":  # all blocks run at once
                assert found["blocks"] * found["teams"] <= facts["multiprocessors"]


@pytest.mark.parametrize("device", DEVICES)
def test_the_choice_is_the_fastest_team_that_fits(device: str) -> None:
    for hidden in (1, 50, 128, 200, 256, 512, 1000, 2048, 4096):
        for batch in BATCHES:
            for dtype in ON_CHIP:
                best = min(fitting(hidden, batch, dtype, device).values(), key=lambda p: p["cycles"])
                assert plan(hidden, batch, dtype, device)["cycles"] == best["cycles"]


@pytest.mark.parametrize("device", ["A100", "RTX 4090"])
def test_gpus_without_clusters_use_no_clusters(device: str) -> None:
    chosen = {plan(hidden, batch, device=device)["team"] for hidden in HIDDEN for batch in BATCHES}
    assert chosen == {"block", "grid", "steps"}
    with pytest.raises(ValueError, match="cluster2 does not fit H 64, B 8"):
        plan(64, 8, device=device, team="cluster2")


@pytest.mark.parametrize("device", WITH_CLUSTERS)
@pytest.mark.parametrize("dtype", ON_CHIP)
def test_gpus_with_clusters_use_them_where_a_block_is_too_small(device: str, dtype: str) -> None:
    chosen = [plan(hidden, 8, dtype, device)["team"] for hidden in HIDDEN]
    assert chosen[0] == "block"
    assert chosen[-1] == "steps"
    order = {"block": 0, "cluster": 1, "grid": 2, "steps": 3}
    assert set(chosen) >= {"block", "cluster", "steps"}
    assert chosen == sorted(chosen, key=order.__getitem__)  # the team never becomes smaller as H grows


@pytest.mark.parametrize("device", DEVICES)
def test_float64_and_huge_networks_use_steps(device: str) -> None:
    for batch in BATCHES:
        assert plan(8, batch, "float64", device)["team"] == "steps"
        assert plan(100_000, batch, "float32", device)["team"] == "steps"


def test_networks_add_work_but_do_not_change_the_team() -> None:
    one, many = (plan(128, 8, networks=networks, team="block") for networks in (1, 1000))
    assert many["cycles"] > one["cycles"]
    assert many["blocks"] == one["blocks"] == 1


@pytest.mark.parametrize("team", TEAMS)
def test_a_requested_team_is_used(team: str) -> None:
    found = plan(64, 8, team=team)
    assert found["team"] == team.rstrip("0123456789")
    if team.startswith("cluster"):
        assert found["blocks"] == int(team[len("cluster") :])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"team": "warp"}, "team must be block, cluster2, .* grid or steps, got warp"),
        ({"team": "block", "hidden": 3000}, "team block does not fit H 3000, B 8 with this dtype"),
        ({"team": "grid", "dtype": "float64"}, "team grid does not fit H 64, B 8 with this dtype"),
        ({"dtype": "int8"}, "dtype must be float32, float64, bfloat16 or float16, got int8"),
        ({"device": "abacus"}, "device must be one of A100, .*, got abacus"),
        ({"hidden": 0}, "hidden, batch and networks must be at least 1, got 0, 8 and 1"),
    ],
)
def test_wrong_arguments_raise_with_a_message(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**({"hidden": 64, "batch": 8} | arguments))


def test_the_command_prints_a_line_for_each_device(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--plan", "128", "16", "bfloat16", "--networks", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("H100 ")]
    assert len(lines) >= len(DEVICES)
    assert all("cycles per step by the model" in line for line in lines)


def test_the_command_for_one_device_as_json_and_for_a_team(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--plan", "128", "16", "float32", "--device", "A100", "--json"])
    assert json.loads(capsys.readouterr().out) == {"A100": plan(128, 16, "float32", "A100")}
    main(["--plan", "128", "16", "float32", "--team", "cluster4"])
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "cluster4 does not fit" in lines["A100"]
    assert "cluster of 4" in lines["H100"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["many", "1", "float32"], "H and B must be whole numbers, got many and 1"),
        (["64", "1", "float8"], "dtype must be float32"),
        (["64", "1", "float32", "--device", "abacus"], "device must be one of"),
        (["64", "1", "float32", "--team", "warp"], "must be block, cluster2"),
        (["64", "1", "float32", "--device", "A100", "--team", "cluster2"], "cluster2 does not fit"),
    ],
)
def test_the_command_rejects_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--plan", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("team", ["", *TEAMS])
def test_sizes_beyond_the_limit_are_refused(team: str) -> None:
    message = r"networks \* hidden \* max\(batch, hidden\) must be at most 2\^48, got"
    sizes = ((2**36, 1, 1), (1, 2**62, 1), (1, 1, 2**62), (2**62, 2**62, 2**62), (2**20, 2**30, 2**10))
    for hidden, batch, networks in sizes:
        with pytest.raises(ValueError, match=message):
            plan(hidden, batch, team=team, networks=networks)


def test_the_largest_sizes_have_a_plan() -> None:
    for hidden, batch, networks in ((2**24, 1, 1), (1, 2**48, 1), (1, 1, 2**48)):
        assert plan(hidden, batch, networks=networks)["team"] == "steps"
    for team in TEAMS[:-1]:
        with pytest.raises(ValueError, match=f"{team} does not fit H 16777216"):
            plan(2**24, 1, team=team)
