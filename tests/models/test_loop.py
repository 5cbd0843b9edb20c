import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from pullback import io
from pullback.models import loop

SAMPLES = torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
CHECKPOINT = {"format": loop.FORMAT, "version": loop.VERSION}


class Toy:
    """A regression with noise, batch norm and two optimizers: every kind of state that a training has."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        for parameter in self.net.parameters():
            nn.init.uniform_(parameter, -1, 1, generator=self.generator)
        self.other = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.other.weight)
        self.adam = torch.optim.Adam(self.net.parameters(), lr=0.01, amsgrad=True)
        self.sgd = torch.optim.SGD(self.other.parameters(), lr=0.01)  # without momentum: a slot that is no tensor
        self.seen, self.calls, self.stop_at, self.error = [], 0, None, KeyboardInterrupt

    def step(self, x, epoch):
        self.calls += 1
        noise = torch.randn(len(x), 1, generator=self.generator)
        loss = (self.net(x) - self.other(x).detach() - noise).square().mean()
        other = (self.other(x) - x.sum(1, keepdim=True) * epoch).square().mean()
        self.adam.zero_grad()
        self.sgd.zero_grad()
        (loss + other).backward()
        self.adam.step()
        self.sgd.step()
        if self.calls == self.stop_at:  # in the middle: the weights have changed already
            raise self.error
        self.seen.append((epoch, x))
        return loss.item()

    def fit(self, folder=None, *, epochs=5, **keywords):
        arguments = {
            "modules": {"net": self.net, "generator": self.other},  # a name that could be mistaken
            "optimizers": {"net": self.adam, "generator": self.sgd},
            "generator": self.generator,
            "batch_size": 8,
            "run": {"seed": 0, "settings": {"hidden": (4, 1)}},
            **keywords,
        }
        return loop.fit(SAMPLES, self.step, epochs=epochs, folder=folder, **arguments)

    def state(self):
        """Everything that a later epoch depends on, as one list of tensors."""
        slots = [v for o in (self.adam, self.sgd) for s in o.state_dict()["state"].values() for v in s.values()]
        tensors = [*self.net.state_dict().values(), *self.other.state_dict().values(), self.generator.get_state()]
        return [*tensors, *(v for v in slots if isinstance(v, torch.Tensor))]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("call", [1, 2, 3, 4, 8, 9, 15])  # an epoch has three steps
def test_an_interrupted_and_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, call):
    whole, parts, resumed = Toy(), Toy(), Toy(seed=5)  # what a resumed one began with does not matter
    history = whole.fit(tmp_path / "whole")
    parts.stop_at = call
    with pytest.raises(KeyboardInterrupt):
        parts.fit(tmp_path / "parts")
    assert resumed.fit(tmp_path / "parts") == history
    assert same(whole.state(), resumed.state())
    names = ("checkpoint.safetensors", "checkpoint.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "parts" / n).read_bytes() for n in names)


@pytest.mark.parametrize("folder", [True, False], ids=["checkpoint", "memory"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_interruption_everything_is_as_the_last_finished_epoch_left_it(tmp_path, folder, error):
    short, stopped = Toy(), Toy()
    short.fit(epochs=2)
    stopped.stop_at, stopped.error = 8, error
    with pytest.raises(error):
        stopped.fit(tmp_path if folder else None)
    assert same(short.state(), stopped.state())
    if folder:
        assert len(io.load_tensors(tmp_path / loop.CHECKPOINT, **CHECKPOINT)[1]["history"]) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_and_batch_and_the_last_good_checkpoint_stays(tmp_path, value):
    short, stopped = Toy(), Toy()
    short.fit(epochs=2)
    step = stopped.step
    stopped.step = lambda x, epoch: (step(x, epoch), value if stopped.calls == 8 else 0.5)[1]
    with pytest.raises(
        ValueError, match=rf"loss is {value} in epoch 3, batch 2: lower `learning_rate`.* 2 epochs is kept"
    ):
        stopped.fit(tmp_path)
    assert same(short.state(), stopped.state())
    tensors, record = io.load_tensors(tmp_path / loop.CHECKPOINT, **CHECKPOINT)
    assert record["history"] == [0.5, 0.5]
    assert all(torch.equal(tensors[f"module.net.{name}"], x) for name, x in short.net.state_dict().items())


def test_what_to_lower_can_be_said_by_the_caller():
    toy = Toy()
    toy.step = lambda x, epoch: float("nan")
    with pytest.raises(ValueError, match="lower `rate_of_the_critic`"):
        toy.fit(advice="`rate_of_the_critic`")


def test_each_epoch_visits_every_sample_once_in_an_order_of_its_own():
    toy = Toy()
    toy.fit(epochs=2)
    epochs = [torch.cat([x for epoch, x in toy.seen if epoch == k]) for k in (0, 1)]
    assert [len(x) for _, x in toy.seen] == [8, 8, 7] * 2
    assert all(torch.equal(x.sort(0).values, SAMPLES.sort(0).values) for x in epochs)
    assert not torch.equal(*epochs)


def test_the_history_is_the_mean_over_samples_not_over_batches():
    toy = Toy()
    toy.step = lambda x, epoch: float(len(x) == 7)  # the last, smaller batch
    assert toy.fit(epochs=2) == [7 / 23, 7 / 23]


def test_a_finished_run_is_not_trained_again_and_more_epochs_go_on(tmp_path):
    first, again, longer, whole = Toy(), Toy(seed=3), Toy(seed=3), Toy()
    history = first.fit(tmp_path, epochs=3)
    assert again.fit(tmp_path, epochs=3) == history
    assert again.calls == 0
    assert same(first.state(), again.state())
    assert longer.fit(tmp_path, epochs=5) == whole.fit(epochs=5)
    assert longer.calls == 6
    assert same(whole.state(), longer.state())
    with pytest.raises(ValueError, match=r"`epochs` is 2, but `folder` .* holds 5 of them: raise `epochs`"):
        Toy().fit(tmp_path, epochs=2)


def test_another_run_in_the_folder_is_refused_naming_what_differs_and_nothing_changes(tmp_path):
    Toy().fit(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other, fresh = Toy(seed=2), Toy(seed=2)
    with pytest.raises(
        ValueError, match=r"other seed 0 there, 1 now; settings: hidden \[4, 1\] there, \[4, 2\] now: choose"
    ):
        other.fit(tmp_path, run={"seed": 1, "settings": {"hidden": (4, 2)}})
    assert same(other.state(), fresh.state())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_resume_a_run_begins_anew(tmp_path):
    Toy().fit(tmp_path, run={"seed": 7})
    anew, fresh = Toy(), Toy()
    anew.fit(tmp_path, resume=False)
    fresh.fit()
    assert same(anew.state(), fresh.state())


@pytest.mark.parametrize(
    "lost", ["run", "history", "optimizers", "generator", "module.net.1.running_mean", "optimizer."]
)
def test_a_checkpoint_that_lacks_something_is_one_clear_error(tmp_path, lost):
    Toy().fit(tmp_path)
    path = tmp_path / loop.CHECKPOINT
    kept = [{n: v for n, v in part.items() if not n.startswith(lost)} for part in io.load_tensors(path, **CHECKPOINT)]
    io.save_tensors(path, *kept, **CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint .* resume=False"):
        Toy().fit(tmp_path, epochs=6)


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    toy = Toy()
    with pytest.raises(OSError, match=r"cannot write .* choose a folder you can write to"):
        toy.fit(tmp_path / "file" / "run")
    assert toy.calls == 0


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Toy().fit()
    assert os.listdir() == []


def test_checkpoints_are_written_as_time_goes_by_and_at_the_end(tmp_path, monkeypatch):
    written, save = [], io.save_tensors
    monkeypatch.setattr(
        io, "save_tensors", lambda p, t, r, **k: (written.append(len(r["history"])), save(p, t, r, **k))
    )
    Toy().fit(tmp_path / "seldom")
    assert written == [0, 5]
    written.clear()
    monkeypatch.setattr(loop, "_SECONDS", 0.0)
    Toy().fit(tmp_path / "often")
    assert written == [0, 1, 2, 3, 4, 5]


def test_the_global_random_state_is_not_touched(tmp_path):
    toy = Toy()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    toy.fit(tmp_path)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("epochs", 2.0), ("batch_size", 0), ("batch_size", -3), ("epochs", True)]
)
def test_impossible_counts_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value!r}: wanted a whole number of at least 1"):
        Toy().fit(**{name: value})


def test_progress_is_shown_on_request_only(capfd):
    Toy().fit()
    assert capfd.readouterr() == ("", "")
    Toy().fit(progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "5/5" in shown.err
