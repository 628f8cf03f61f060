"""The training in two processes for test_optimizer_distributed.py; torchrun runs it with a result folder.

torchrun --nproc-per-node 2 optimizer_ranks.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rnnkernels import ClippedAdamW, ClippedNesterov

STEPS = 6
# By step: the parameter whose gradient is not finite, the index of the element, and the rank that holds it.
# Both ranks hold rows of parameter 0; parameter 2 has one row, so rank 1 holds no part of it.
BAD = {2: (0, (-1, 0), 1), 3: (2, (0, 3), 0), 4: (0, (0, 0), 0)}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "nesterov": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.5}),
    "largest": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.05, "norm_type": float("inf")}),
    "powers beyond float64": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.05, "norm_type": 50000.0}),
    "adamw": (ClippedAdamW, {"lr": 0.02, "max_norm": 0.5}),
    "raise": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.5, "nonfinite": "raise"}),
    "apply": (ClippedNesterov, {"lr": 0.1, "norm_type": float("inf"), "nonfinite": "apply"}),
}


MESHES = {"fully_shard": (2,), "fully_shard, replicated": (2, 1)}


def make_model() -> nn.Module:
    torch.manual_seed(3)
    # 7 rows do not split evenly, and one bias has fewer elements than there are ranks.
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def batches() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(4)
    return [torch.randn(8, 5, generator=chance, dtype=torch.float64) for _ in range(STEPS)]


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    values = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    return {name: v.full_tensor() if isinstance(v, DTensor) else v.clone() for name, v in values.items()}


def train(model: nn.Module, case: str, rank: int, ranks: int) -> dict[str, Any]:
    """Train on the mean over each rank's rows, averaged over ranks, which equals the mean over all rows."""
    cls, options = CASES[case]
    params = list(model.parameters())
    optimizer = cls(params, **options)
    norms, errors = [], []
    for step, x in enumerate(batches()):
        optimizer.zero_grad()
        model(x.chunk(ranks)[rank]).square().sum(1).mean().backward()
        if step in BAD:  # one nonfinite element, which a single rank holds under fully_shard
            number, place, holder = BAD[step]
            grad = params[number].grad
            if not isinstance(grad, DTensor):
                grad[place] = float("nan")
            elif rank == holder or grad.to_local().shape == grad.shape:
                grad.to_local()[place] = float("nan")
        before = whole(model)
        try:
            optimizer.step()
        except FloatingPointError as error:
            errors.append(str(error))
            assert all(torch.equal(value, before[name]) for name, value in whole(model).items())
        norms.append(optimizer.last_grad_norm)
    counts = torch.stack([optimizer.taken_steps, optimizer.skipped_steps])
    results: dict[str, Any] = whole(model)
    return results | {"norms": torch.stack(norms), "counts": counts, "errors": errors}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    results = {}
    for case in CASES:
        results["ddp", case] = train(DistributedDataParallel(make_model()), case, rank, ranks)
        for how, shape in MESHES.items():
            sharded = make_model()
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
            for layer in (sharded[0], sharded[2], sharded):
                fully_shard(layer, mesh=mesh)
            assert all(isinstance(p, DTensor) for p in sharded.parameters())
            results[how, case] = train(sharded, case, rank, ranks)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
