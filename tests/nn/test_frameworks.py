"""The layer and the optimizers in Lightning, skorch and scikit-learn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rnnkernels import ClippedAdamW, ClippedNesterov, LeakyRNN, MomentumSchedule

lightning = pytest.importorskip("pytorch_lightning")
skorch = pytest.importorskip("skorch")
sklearn = pytest.importorskip("sklearn")


class Network(nn.Module):
    def __init__(self, hidden=16, decay=0.5, dropout=0.0):
        super().__init__()
        self.rnn = LeakyRNN(2, hidden, 2, batch_first=True, dropout=dropout, decay=decay, learn_decay=True)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, x):
        self.rnn.flatten_parameters()  # code for nn.RNN calls it
        output, _ = self.rnn(x)
        return self.readout(output[:, -1])


def task():
    """The mean of the first of two inputs, after ten steps."""
    x = torch.randn(128, 10, 2)
    return x, x[..., :1].mean(1)


# --- Lightning ---------------------------------------------------------------------------------------


class Regression(lightning.LightningModule):  # type: ignore[name-defined]
    def __init__(self, optimizer="nesterov", dropout=0.0):
        super().__init__()
        self.save_hyperparameters()
        self.network = Network(dropout=dropout)
        self.losses = []

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, index):
        x, y = batch
        output = self(x)
        assert output.dtype == (torch.float32 if self.trainer.precision == "32-true" else torch.bfloat16)
        loss = nn.functional.mse_loss(output.float(), y.float())
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        if self.hparams.optimizer == "adamw":
            return ClippedAdamW(self.parameters(), lr=0.02)
        optimizer = ClippedNesterov(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fit(module, folder, epochs, precision="32-true", checkpoint=None):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        precision=precision,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*task()), batch_size=32), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_lightning_trains_at_every_precision(precision, optimizer, tmp_path):
    module = Regression(optimizer, dropout=0.1)
    trainer = fit(module, tmp_path, 15, precision)
    assert sum(module.losses[-4:]) < 0.5 * sum(module.losses[:4])
    assert isinstance(trainer.optimizers[0], ClippedAdamW if optimizer == "adamw" else ClippedNesterov)
    assert trainer.optimizers[0].skipped_steps == 0
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    for name, parameter in module.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith("decay_logit") else expected), name


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_lightning_resumes_exactly_from_a_checkpoint(optimizer, tmp_path):
    torch.manual_seed(1)
    whole = Regression(optimizer)
    stopped, resumed = Regression(optimizer), Regression(optimizer)
    stopped.load_state_dict(whole.state_dict())
    for module, epochs in ((whole, 7), (stopped, 3)):
        torch.manual_seed(2)
        trainer = fit(module, tmp_path, epochs)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    loaded = Regression.load_from_checkpoint(tmp_path / "stopped.ckpt", weights_only=True)
    x, _ = task()
    assert loaded.hparams.optimizer == optimizer
    assert torch.equal(loaded(x), stopped(x))
    torch.manual_seed(2)
    fit(resumed, tmp_path, 7, checkpoint=tmp_path / "stopped.ckpt")
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lightning_steps_the_momentum_schedule_through_its_hook(tmp_path):
    class Scheduled(Regression):
        def configure_optimizers(self):
            optimizer = ClippedNesterov(self.parameters(), lr=0.02)
            schedule = {"scheduler": MomentumSchedule(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step()

    trainer = fit(Scheduled(), tmp_path, 63)  # of 4 batches
    assert trainer.lr_scheduler_configs[0].scheduler.t == 252
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.75


# --- skorch ------------------------------------------------------------------------------------------


def regressor(**options):
    defaults = {"optimizer": ClippedNesterov, "lr": 0.1, "max_epochs": 15, "batch_size": 32, "verbose": 0}
    return skorch.NeuralNetRegressor(Network, **defaults | options)


def arrays():
    return tuple(values.numpy() for values in task())


def test_skorch_fits_and_predicts():
    x, y = arrays()
    for optimizer, options in ((ClippedNesterov, {}), (ClippedAdamW, {"lr": 0.02})):
        torch.manual_seed(1)
        net = regressor(optimizer=optimizer, optimizer__max_norm=0.5, **options).fit(x, y)
        assert net.optimizer_.param_groups[0]["max_norm"] == 0.5
        assert net.history[-1, "train_loss"] < 0.5 * net.history[0, "train_loss"]
        assert net.predict(x).shape == y.shape


def test_skorch_pickles_a_network_in_training_and_resumes():
    x, y = arrays()
    net = regressor(max_epochs=3, train_split=None).fit(x, y)
    other = pickle.loads(pickle.dumps(net))
    assert np.array_equal(other.predict(x), net.predict(x))
    for each in (net, other):
        torch.manual_seed(1)
        each.partial_fit(x, y)
    assert np.array_equal(other.predict(x), net.predict(x))
    assert len(other.history) == 6


def test_skorch_clones_and_sets_parameters_of_module_and_optimizer():
    x, y = arrays()
    net = regressor(max_epochs=1).fit(x, y)
    copied = sklearn.base.clone(net)
    assert not copied.initialized_
    copied.set_params(module__hidden=8, module__decay=0.25, optimizer__momentum=0.5)
    copied.fit(x, y)
    assert copied.module_.rnn.hidden_size == 8
    assert copied.optimizer_.param_groups[0]["momentum"] == 0.5
    velocity = copied.optimizer_.state[copied.module_.rnn.weight_hh_l0]["velocity"]
    copied.set_params(optimizer__max_norm=0.1, lr=0.01)  # in the middle of a training
    group = copied.optimizer_.param_groups[0]
    assert (group["max_norm"], group["lr"], group["momentum"]) == (0.1, 0.01, 0.5)
    assert copied.optimizer_.state[copied.module_.rnn.weight_hh_l0]["velocity"] is velocity


def test_scikit_learn_searches_over_decays():
    x, y = arrays()
    from sklearn.model_selection import GridSearchCV

    found = GridSearchCV(regressor(max_epochs=2), {"module__decay": [0.0, 0.9]}, cv=2).fit(x, y)
    assert found.best_estimator_.module_.rnn.decay.shape == (2, 16)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
