"""One run: training, selection of the best weights on the validation split, scores on the test split.

With u the fraction of the updates that is done, the learning rate is

    lr (1 - momentum) min(1, 20 u + 0.05) (1 + cos(pi u)) / 2

that is, it rises over the first twentieth and then follows half a cosine to 0. All random numbers of an epoch
depend on the seed and the number of the epoch only, so a run that was killed continues from its last
checkpoint with the same bits.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyphonic_music import limits
from polyphonic_music.batches import Batch, training_batches, whole_batches
from polyphonic_music.files import (
    UnusableError,
    parse_tensors,
    read_if_usable,
    sealed,
    tensor_bytes,
    unsealed,
    write_bytes,
)
from polyphonic_music.forms import Each, check_finite, check_form
from polyphonic_music.model import Predictor
from polyphonic_music.recipes import Settings
from polyphonic_music.rolls import Rolls, key_frequency
from polyphonic_music.scores import Scale, log_likelihood, score_test
from rnnkernels import ClippedNesterov, activity_penalty, sparsity

VALIDATIONS = 40  # in a run of full length
PATIENCE = 12  # validations without a new best value before a run ends
CHECKPOINT_SECONDS = 20.0
CHECKPOINT_FORMAT = 2  # increase it when the content of a checkpoint or the course of a run changes
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Everything that a run depends on."""

    data: str  # name and digest of the data set
    model: str
    technique: str
    settings: Settings
    seed: int
    updates: int
    test: bool  # whether the test split is scored
    scale: Scale = field(default_factory=Scale)


def check_origin(content: Any, version: int, job: Job) -> None:
    """Raise UnusableError unless the content of a file has this version and belongs to this job."""
    check_form(content, dict, "the content")
    for name, own, what in (("format", version, "version of the study"), ("job", repr(job), "run")):
        if content.get(name) != own:
            raise UnusableError(f"belongs to another {what}")


@dataclass
class State:
    """The progress of a run."""

    epoch: int = 0
    updates: int = 0
    best: float = -math.inf  # validation log-likelihood in nats per step
    best_epoch: int = 0
    validations_since: int = 0  # the best one
    seconds: float = 0.0  # of training and validation
    curve: dict[str, list[float]] = field(default_factory=lambda: {"epoch": [], "train": [], "valid": []})
    ended: bool = False


STATE_FORM = {
    **dict.fromkeys(("epoch", "updates", "best_epoch", "validations_since"), int),
    **dict.fromkeys(("best", "seconds"), float),
    "curve": {"epoch": Each(int), "train": Each(float), "valid": Each(float)},
    "ended": bool,
}


class Restored(NamedTuple):
    """What a checkpoint holds of a trainer."""

    model: Predictor
    optimizer: ClippedNesterov
    best_weights: dict[str, Tensor]
    state: State
    random: Tensor  # of torch's global generator


Watcher = Callable[[State], object]


class Trainer:
    """The network, the optimizer and the progress of a job, restored from the checkpoint if there is one.

    A checkpoint that cannot be used is reported in the log, and the run begins again.
    """

    def __init__(self, job: Job, data: Rolls, checkpoint: Path | None = None) -> None:
        self.job, self.data, self.checkpoint = job, data, checkpoint
        torch.manual_seed(job.seed)
        self.model = Predictor(job.model, job.settings, key_frequency(data.train))
        self.optimizer = self._optimizer_of(self.model)
        self.best_weights = _copies(self.model)
        self.state = State()
        self.valid = whole_batches(data.valid)
        self._saved = time.monotonic()
        if checkpoint is not None:
            self._load(checkpoint)

    def _optimizer_of(self, model: Predictor) -> ClippedNesterov:
        settings = self.job.settings
        return ClippedNesterov(model.parameters(), 0.0, settings.momentum, settings.clip, nonfinite="apply")

    def run(self, watch: Watcher = lambda state: None) -> dict[str, Any]:
        """Train to the end. Return the entry of the results file."""
        while not self.state.ended:
            begin = time.perf_counter()
            self._epoch()
            self.state.seconds += time.perf_counter() - begin
            watch(self.state)
            if self.checkpoint is not None and time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self._save(self.checkpoint)
        return self._result()

    def _epoch(self) -> None:
        """Train for one epoch, and validate if it is due."""
        state, job = self.state, self.job
        torch.manual_seed(job.seed + 1_000_003 * (state.epoch + 1))
        rng = np.random.default_rng([job.seed, state.epoch])
        self.model.train()
        total = rows = 0.0
        batches = list(training_batches(self.data.train, job.settings, rng))
        for batch in batches:
            if state.updates == job.updates:
                break
            total += float(self._update(batch)) * len(batch.targets)
            rows += len(batch.targets)
        state.epoch += 1
        every = max(1, job.updates // (VALIDATIONS * len(batches)))
        if state.epoch % every == 0 or state.updates == job.updates:
            self._validate(-total / rows)
        if state.updates == job.updates:
            state.ended = True

    def _update(self, batch: Batch) -> Tensor:
        """Make one update. Return the loss without its penalty, in nats per step."""
        settings, done = self.job.settings, self.state.updates / self.job.updates
        schedule = min(1.0, 20 * done + 0.05) * (0.5 + 0.5 * math.cos(math.pi * done))
        self.optimizer.param_groups[0]["lr"] = settings.lr * (1 - settings.momentum) * schedule
        states = self.model(batch.inputs)
        loss = self.model.output.loss(batch.targets, states.data).mean()
        penalized = loss + activity_penalty(states, l1=settings.l1) if settings.l1 else loss
        self.optimizer.zero_grad()
        penalized.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.state.updates += 1
        return loss.detach()

    def _validate(self, train: float) -> None:
        """Score the validation split, keep the weights if they are the best, and decide whether to end."""
        state = self.state
        self.model.eval()
        valid = log_likelihood(self.model, self.valid, self.job.scale.watched).mean
        for name, value in (("epoch", state.epoch), ("train", train), ("valid", valid)):
            state.curve[name].append(value)
        state.validations_since += 1
        if valid > state.best:
            state.best, state.best_epoch, state.validations_since = valid, state.epoch, 0
            self.best_weights = _copies(self.model)
        if not math.isfinite(valid) or state.validations_since >= PATIENCE:
            state.ended = True

    def _result(self) -> dict[str, Any]:
        state, job = self.state, self.job
        result = {
            "seed": job.seed,
            "valid": state.best if math.isfinite(state.best) else None,  # None: the run diverged
            "seconds": state.seconds,
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "updates": state.updates,
            "curve": state.curve,
        }
        if job.test and math.isfinite(state.best):
            self.model.load_state_dict(self.best_weights)
            self.model.eval()
            result |= score_test(self.model, self.data.test, job.scale)
            result |= self._sparsity()
        return result

    def _sparsity(self) -> dict[str, float]:
        """The fractions of active units and of nonzero entries in the gradient of the weighted sums."""
        batch = self.valid[-1]
        drive = torch.zeros(len(batch.targets), self.job.settings.hidden, requires_grad=True)
        states = self.model(batch.inputs, drive)
        self.model.output.loss(batch.targets, states.data).mean().backward()  # type: ignore[no-untyped-call]
        assert drive.grad is not None
        return sparsity(states, drive.grad)._asdict()

    def _content(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {
            "format": CHECKPOINT_FORMAT,
            "job": repr(self.job),
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best_weights,
            "random": torch.get_rng_state(),  # scoring after the last epoch draws from it
        }

    def _save(self, path: Path) -> None:
        write_bytes(path, sealed(tensor_bytes(self._content())))
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        """Restore a checkpoint as a whole, if there is one that can be used."""
        restored = read_if_usable(
            path,
            limits.MAX_TENSOR_BYTES,
            self._restored,
            lambda why: LOG.warning("%s; the run begins again", why),
        )
        if restored is not None:
            self.model, self.optimizer, self.best_weights, self.state, random = restored
            torch.set_rng_state(random)

    def _restored(self, data: bytes) -> Restored:
        """Make a network, an optimizer and a state from the content of a checkpoint of this job."""
        content, own = parse_tensors(unsealed(data)), self._content()
        check_origin(content, CHECKPOINT_FORMAT, self.job)
        optimizer_form = {**own["optimizer"], "state": dict}  # the fresh optimizer has no states yet
        check_form(content, own | {"state": STATE_FORM, "optimizer": optimizer_form}, "the checkpoint")
        state = State(**content["state"])
        if not 0 <= state.updates <= self.job.updates:
            raise UnusableError(f"has made {state.updates} of {self.job.updates} updates")
        check_finite(content["best"], "best")
        model = copy.deepcopy(self.model)
        model.load_state_dict(content["model"])
        optimizer = self._optimizer_of(model)
        optimizer.load_state_dict(content["optimizer"])
        for i, (parameter, found) in enumerate(optimizer.state.items()):
            check_form(found, {"velocity": parameter.detach()}, f"state {i} of the optimizer")
        torch.Generator().set_state(content["random"])  # raises an error if it is no state of a generator
        return Restored(model, optimizer, content["best"], state, content["random"])


def _copies(model: Predictor) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
