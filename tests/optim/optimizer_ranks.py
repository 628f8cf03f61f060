"""The training in two processes for test_optimizer_distributed.py; torchrun runs it with a result folder.

torchrun --nproc-per-node 2 optimizer_ranks.py FOLDER
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rnnkernels import ClippedAdamW, ClippedNesterov

STEPS = 6
# By step: the parameter whose gradient is not finite, the index of the element, and the rank that holds it.
# Both ranks hold rows of parameter 0; parameter 2 has one row, so rank 1 holds no part of it.
BAD = {2: (0, (-1, 0), 1), 3: (2, (0, 3), 0), 4: (0, (0, 0), 0)}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "nesterov": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.5}),
    "largest": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.05, "norm_type": float("inf")}),
    "cubes": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.5, "norm_type": 3.0}),
    "powers beyond float64": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.05, "norm_type": 50000.0}),
    "adamw": (ClippedAdamW, {"lr": 0.02, "max_norm": 0.5}),
    "raise": (ClippedNesterov, {"lr": 0.1, "max_norm": 0.5, "nonfinite": "raise"}),
    "apply": (ClippedNesterov, {"lr": 0.1, "norm_type": float("inf"), "nonfinite": "apply"}),
}


MESHES = {"fully_shard": (2,), "fully_shard, replicated": (2, 1)}
# Ways in which a process does not know by itself that it has a part of the parameters only.
GROUPS = (
    "zero",
    "fsdp",
    "fsdp, original parameters",
    "fsdp, one layer not sharded",
    "by hand",
    "all in one process",
)


def make_model() -> nn.Module:
    torch.manual_seed(3)
    # 7 rows do not split evenly, and one bias has fewer elements than there are ranks.
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def batches() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(4)
    return [torch.randn(8, 5, generator=chance, dtype=torch.float64) for _ in range(STEPS)]


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    with contextlib.ExitStack() as stack:
        if isinstance(model, FullyShardedDataParallel):
            stack.enter_context(FullyShardedDataParallel.summon_full_params(model, writeback=False))
        values = dict(model.named_parameters())
        values = {name.replace("_fsdp_wrapped_module.", ""): value.detach() for name, value in values.items()}
        values = {name.removeprefix("module."): value for name, value in values.items()}
        return {name: v.full_tensor() if isinstance(v, DTensor) else v.clone() for name, v in values.items()}


def spoil(model: nn.Module, step: int, rank: int) -> None:
    """Make one element of the gradients infinite or NaN, in the rank that holds it."""
    number, place, holder = BAD[step]
    if isinstance(model, FullyShardedDataParallel):  # its shards are flat
        grads = [p.grad for p in model.parameters() if p.grad is not None and p.grad.numel() > 0]
        if rank == holder:
            grads[0].view(-1)[-1] = float("nan")
        return
    grad = list(model.parameters())[number].grad
    if not isinstance(grad, DTensor):
        grad[place] = float("nan")
    elif rank == holder or grad.to_local().shape == grad.shape:
        grad.to_local()[place] = float("nan")


def train(
    model: nn.Module,
    case: str,
    rank: int,
    ranks: int,
    make: Callable[..., Any] | None = None,
    share: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train on the mean over each rank's rows, averaged over ranks, which equals the mean over all rows.

    Args:
        model: The model.
        case: A key of ``CASES``.
        rank: Of this process.
        ranks: The number of processes.
        make: Makes the optimizer from the class and its settings.
        share: Called after each step, to share the parameters among the ranks.
    """
    cls, options = CASES[case]
    optimizer = make(cls, **options) if make else cls(list(model.parameters()), **options)
    own = getattr(optimizer, "optim", optimizer)  # that of this rank
    norms, errors = [], []
    for step, x in enumerate(batches()):
        optimizer.zero_grad()
        model.zero_grad()
        model(x.chunk(ranks)[rank]).square().sum(1).mean().backward()
        if step in BAD:
            spoil(model, step, rank)
        before = whole(model)
        try:
            optimizer.step()
        except FloatingPointError as error:
            errors.append(str(error))
            assert all(torch.equal(value, before[name]) for name, value in whole(model).items())
        share()
        norms.append(own.last_grad_norm)
    counts = torch.stack([own.taken_steps, own.skipped_steps])
    results: dict[str, Any] = whole(model)
    return results | {"norms": torch.stack(norms), "counts": counts, "errors": errors}


def train_in_group(how: str, case: str, rank: int, ranks: int) -> dict[str, Any]:
    """Train in one of the ways of ``GROUPS``."""
    if how.startswith("fsdp"):
        inner = make_model()
        unsharded = [inner[2]] if "not sharded" in how else None
        model = FullyShardedDataParallel(
            inner,
            device_id=torch.device("cpu"),
            use_orig_params="original" in how,
            ignored_modules=unsharded,
        )
        if unsharded:  # as DistributedDataParallel would do
            for param in inner[2].parameters():
                param.register_hook(functools.partial(average, ranks=ranks))

        def make(cls: Any, **options: Any) -> Any:
            return cls(list(model.parameters()), process_group=model.process_group, **options)

        return train(model, case, rank, ranks, make)
    replica = DistributedDataParallel(make_model())
    params = list(replica.parameters())
    if how == "zero":
        make = functools.partial(make_zero, params)
        return train(replica, case, rank, ranks, make)
    owners = [i % ranks if how == "by hand" else 1 for i in range(len(params))]
    mine = [param for param, owner in zip(params, owners, strict=True) if owner == rank]

    def make_own(cls: Any, **options: Any) -> Any:
        return cls([{"params": mine}], process_group=dist.group.WORLD, **options)

    def share() -> None:
        for param, owner in zip(params, owners, strict=True):
            dist.broadcast(param.data, owner)

    return train(replica, case, rank, ranks, make_own, share)


def average(grad: torch.Tensor, ranks: int) -> torch.Tensor:
    grad = grad.clone()
    dist.all_reduce(grad)
    return grad / ranks


def make_zero(params: list[nn.Parameter], cls: Any, **options: Any) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # the import warns of deprecations in torch

    return ZeroRedundancyOptimizer(params, optimizer_class=cls, **options)


# --- Further results ---------------------------------------------------------------------------------


def loss_scales(rank: int) -> dict[str, tuple[int, int, float]]:
    """Return the steps taken, those skipped and the norm, where one rank's loss scaler found an overflow."""
    results = {}
    for nonfinite in ("skip", "raise", "apply"):
        param = nn.Parameter(torch.ones(2))
        optimizer = ClippedNesterov([param], nonfinite=nonfinite, process_group=dist.group.WORLD)
        scaled: Any = optimizer
        scaled.grad_scale, scaled.found_inf = torch.tensor(4.0), torch.tensor(float(rank))
        param.grad = torch.tensor([12.0, 16.0])
        optimizer.step()
        counts = int(optimizer.taken_steps), int(optimizer.skipped_steps)
        results[nonfinite] = (*counts, float(optimizer.last_grad_norm))
    return results


def norm_of_stages(rank: int) -> float:
    """Return the norm over DTensors of two meshes, each of which has the parameters of one process."""
    alone = [dist.new_group([i]) for i in range(dist.get_world_size())][rank]
    mesh = DeviceMesh.from_group(alone, "cpu")
    param = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    param.grad = distribute_tensor(torch.full((4,), 3.0 + rank), mesh, [Shard(0)])
    optimizer = ClippedNesterov([param], process_group=dist.group.WORLD)
    optimizer.step()
    return float(optimizer.last_grad_norm)


def edits_of_shards() -> torch.Tensor:
    """Return parameters with master weights two steps after they were written, with gradients of zero."""
    model = make_model().bfloat16()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = ClippedNesterov(model.parameters(), lr=1e-3, master_weights=True)
    for value in (1.0, 0.0, 0.0):
        for param in model.parameters():
            param.grad = torch.full_like(param, value)
        optimizer.step()
        for param in model.parameters():
            if value == 1:
                param.detach().fill_(0.25)
                optimizer.state[param]["velocity"].zero_()
    return torch.cat([value.flatten() for value in whole(model).values()])


def message_of(call: Callable[..., Any], *args: Any, **options: Any) -> str | None:
    try:
        call(*args, **options)
    except ValueError as error:
        return str(error)
    return None


def refusals(rank: int) -> dict[str, str | None]:
    """Return the messages of optimizers that lack a process group."""
    messages: dict[str, str | None] = {}
    for original in (False, True):
        model = make_model()
        early = ClippedNesterov(model.parameters())
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=original)
        messages[f"constructor, {original}"] = message_of(ClippedNesterov, wrapped.parameters())
    wrapped(batches()[0]).sum().backward()
    messages["step"] = message_of(early.step)
    copied = copy.deepcopy(ClippedNesterov([nn.Parameter(torch.ones(2))], process_group=dist.group.WORLD))
    copied.param_groups[0]["params"][0].grad = torch.ones(2)
    messages["copy"] = message_of(copied.step)
    copied.process_group = dist.group.WORLD
    copied.step()
    messages["copy with a group"] = f"{float(copied.last_grad_norm):.3f}"
    first = dist.new_group([0])
    messages["member"] = message_of(ClippedNesterov, [nn.Parameter(torch.ones(2))], process_group=first)
    return messages


def zero_round_trip(rank: int) -> bool:
    """Return whether training with ZeroRedundancyOptimizer continues after its state was saved and loaded."""
    nets = [DistributedDataParallel(make_model()) for _ in "ab"]
    optimizers = [make_zero(list(net.parameters()), ClippedAdamW, lr=0.1, nonfinite="raise") for net in nets]
    for i, number in enumerate((0, 0, 0, 1)):
        if i == 2:
            optimizers[0].consolidate_state_dict(0)
            saved = [copy.deepcopy(optimizers[0].state_dict()) if rank == 0 else None]
            dist.broadcast_object_list(saved, 0)
            optimizers[1].load_state_dict(saved[0])
            nets[1].load_state_dict(nets[0].state_dict())
        nets[number].zero_grad()
        nets[number](batches()[min(i, 2)]).square().sum().backward()
        optimizers[number].step()
    values = [whole(net).values() for net in nets]
    return all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    results: dict[Any, Any] = {}
    for case in CASES:
        results["ddp", case] = train(DistributedDataParallel(make_model()), case, rank, ranks)
        for how, shape in MESHES.items():
            sharded = make_model()
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
            for layer in (sharded[0], sharded[2], sharded):
                fully_shard(layer, mesh=mesh)
            assert all(isinstance(p, DTensor) for p in sharded.parameters())
            results[how, case] = train(sharded, case, rank, ranks)
        for how in GROUPS:
            results[how, case] = train_in_group(how, case, rank, ranks)
    results["loss scales"] = loss_scales(rank)
    results["stages"] = norm_of_stages(rank)
    results["edits"] = edits_of_shards()
    results["refusals"] = refusals(rank)
    results["zero round trip"] = zero_round_trip(rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
