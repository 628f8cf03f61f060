"""``python -m rnnkernels``: what was built. ``--json`` for machines."""

from __future__ import annotations

import argparse
import json

from rnnkernels import build_config


def main() -> None:
    """Print the build configuration."""
    parser = argparse.ArgumentParser(prog="python -m rnnkernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    config = build_config()
    if parser.parse_args().json:
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


if __name__ == "__main__":
    main()
