"""Print the build configuration, or with ``--plan`` the launch plans of a recurrence on GPUs."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from rnnkernels import _C, build_config


def main(arguments: list[str] | None = None) -> None:
    """Print the build configuration, or the launch plans that ``--plan`` asks for.

    An invalid argument ends the program with status 2 and a message that names it.
    """
    parser = argparse.ArgumentParser(prog="python -m rnnkernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plan",
        nargs=3,
        metavar=("H", "B", "DTYPE"),
        help="print the launch plan of a recurrence of H units and B rows, with the modelled cost of a step",
    )
    parser.add_argument("--device", help="for --plan: one GPU; default: all known GPUs")
    parser.add_argument("--networks", type=int, default=1, help="for --plan: G, the number of networks")
    parser.add_argument(
        "--team",
        default="",
        help="for --plan: the requested team (block, cluster2 to cluster16, grid or steps), as in "
        "RNNKERNELS_TEAM; default: the one with the lowest modelled cost",
    )
    options = parser.parse_args(arguments)
    if options.plan is None:
        _print_config(build_config(), options.json)
        return
    try:
        hidden, batch, dtype = options.plan
        if not (hidden.isdecimal() and batch.isdecimal()):
            raise ValueError(f"H and B must be whole numbers, got {hidden} and {batch}")
        plans = _plans(int(hidden), int(batch), dtype, options.networks, options.device, options.team)
    except ValueError as error:
        parser.error(str(error))
    _print_plans(plans, options.json)


def _print_config(config: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(config, indent=2))
        return
    sets = config["instruction_sets"]
    active = config["active_instruction_set"] or "none: RNNKERNELS_ISA names one that cannot run"
    names = ", ".join(f"{name}{'' if runs else ' (not on this processor)'}" for name, runs in sets.items())
    print(f"rnnkernels        {config['version']}")
    print(f"compiler          {config['compiler']}")
    print(f"instruction sets  {names}")
    print(f"  active          {active}")
    print(f"CUDA              {', '.join(config['cuda_architectures']) or 'not built'}")
    print(f"torch             {config['torch']} (built against {config['built_against_torch']})")
    print(f"threads           {config['threads']}")
    print(f"nonlinearities    {', '.join(config['nonlinearities'])}")


def _plans(
    hidden: int, batch: int, dtype: str, networks: int, device: str | None, team: str
) -> dict[str, dict[str, Any]]:
    """Return the plan for each device, or a message if the team does not fit one of several devices."""
    names = [device] if device is not None else list(_C.known_devices())
    plans: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            plans[name] = _C.plan(hidden, batch, dtype, networks, name, team)
        except ValueError as error:
            if len(names) == 1 or "does not fit" not in str(error):
                raise
            plans[name] = {"text": str(error)}
    return plans


def _print_plans(plans: dict[str, dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(plans, indent=2))
        return
    width = max(map(len, plans))
    for name, plan in plans.items():
        model = f"; {plan['cycles']:.0f} cycles per step by the model" if "cycles" in plan else ""
        registers = plan.get("matrix_registers", 0)
        on_chip = plan.get("team") not in (None, "steps")
        held = f", {registers} registers per thread for W_hh" if on_chip else ""
        own = f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda:") else ""
        print(f"{name:{width}}  {plan['text']}{held}{model}{own}")


if __name__ == "__main__":
    main()
