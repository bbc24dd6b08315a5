import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.pixels import Pixels
from metalad.runtime.errors import RunError
from metalad.training import loop as gradient
from metalad.training.loop import Descent, Epoch, Learner, Objective, Training, epoch_seconds
from metalad.training.precision import Precision

SHORT = Training(learning_rate=0.01, batch_size=4, max_epochs=6)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 6, 3), dtype=np.uint8)
TRAINING, VALIDATION = IMAGES[:8], IMAGES[8:]


class Killed(BaseException):
    """As sudden as a signal: nothing in the package may catch it."""


class Small(Learner):
    """Learns to rebuild images through a dropout, so that chance has its part in every step."""

    def __init__(self, killed_at: int = 0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.is_main = nn.Linear(108, 7)
        self.layers = nn.Sequential(self.is_main, nn.Dropout(0.3), nn.Linear(7, 108))
        self.register_buffer("seen", torch.zeros(()))
        self.killed_at, self.calls = killed_at, 0

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        self.calls += 1
        if self.calls == self.killed_at:
            raise Killed
        if self.training:
            self.get_buffer("seen").add_(len(images))
        flat = images.flatten(1)
        error: Tensor = (self.layers(flat) - flat).square().mean()
        return error


class Scripted(Learner):
    """Its validation losses are given; its one weight grows by about the learning rate with each step."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.script = iter(losses)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        del images
        return -self.weight if self.training else torch.tensor(next(self.script))


class Watching(Learner):
    """Notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.shown: list[list[float]] = []

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        self.shown.append((images[:, 0, 0, 0] * 255).round().tolist())
        return images.mean() + 0 * self.weight


def backward(
    module: Learner,
    folder: Path,
    plan: Training = SHORT,
    *,
    training: np.ndarray = TRAINING,
    validation: np.ndarray = VALIDATION,
    seed: int = 0,
    precision: Precision = "fp32",
) -> Epoch:
    descent = Descent(module, plan, seed=seed, precision=precision, folder=folder)
    return descent.run(training, validation, progress=False)


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows, without their times."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same_bits(one: Learner, other: Learner) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(is_main, second) for is_main, second in pairs)


@pytest.fixture
def _checkpoint_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "CHECKPOINT_SECONDS", -1.0)


@pytest.mark.usefixtures("_checkpoint_each_epoch")
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("killed_at", [1, 2, 4, 9, 12, 18])
def test_a_killed_run_ends_in_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, killed_at: int, precision: Precision, schedule: Literal["constant", "cosine"]
) -> None:
    """An epoch is two steps and a validation: three calls."""
    plan = dataclasses.replace(SHORT, schedule=schedule)
    whole, resumed = Small(), Small()
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    best = backward(whole, tmp_path / "whole", plan, precision=precision)
    with pytest.raises(Killed):
        backward(Small(killed_at), tmp_path / "cut", plan, precision=precision)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists() == (killed_at > 3)
    again = backward(resumed, tmp_path / "cut", plan, precision=precision)
    assert same_bits(whole, resumed)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(best, seconds=0.0)
    assert resumed.calls == 18 - 3 * ((killed_at - 1) // 3)


@pytest.mark.usefixtures("_checkpoint_each_epoch")
def test_a_run_may_be_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, last = Small(), Small()
    backward(whole, tmp_path / "whole")
    for _ in range(4):
        with contextlib.suppress(Killed):
            backward(Small(killed_at=5), tmp_path)
    backward(last, tmp_path)
    assert same_bits(whole, last)


@pytest.mark.usefixtures("_checkpoint_each_epoch")
def test_the_best_weights_outlive_a_kill(tmp_path: Path) -> None:
    plan = Training(learning_rate=1.0, max_epochs=6)
    with pytest.raises(StopIteration):
        backward(Scripted([1.0, 0.25, 0.9, 0.8]), tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    resumed = Scripted([0.7, 0.6])
    best = backward(resumed, tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    assert (best.epoch, best.validation_loss) == (2, 0.25)
    assert resumed.weight.item() == pytest.approx(2, rel=1e-4)


def test_seeds_decide(tmp_path: Path) -> None:
    modules = [Small() for _ in range(3)]
    for module, seed in zip(modules, (0, 0, 1), strict=True):
        backward(module, tmp_path, seed=seed)
    assert same_bits(modules[0], modules[1])
    assert not same_bits(modules[0], modules[2])


@pytest.mark.usefixtures("_checkpoint_each_epoch")
def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        backward(Small(killed_at=5), tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged .* delete it"):
        backward(Small(), tmp_path)


def test_every_image_is_seen_once_an_epoch_in_an_order_drawn_anew(tmp_path: Path) -> None:
    watching = Watching()
    numbered = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1) * np.ones((1, 6, 6, 3), np.uint8)
    backward(watching, tmp_path, Training(batch_size=4, max_epochs=3), training=numbered, validation=numbered[:5])
    assert [len(batch) for batch in watching.shown] == [4, 4, 2, 4, 1] * 3
    epochs = [watching.shown[start : start + 3] for start in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(value for batch in epoch for value in batch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_losses_are_means_over_images(tmp_path: Path) -> None:
    """The last, smaller batch weighs less."""
    best = backward(Watching(), tmp_path, Training(batch_size=3, max_epochs=1), training=IMAGES, validation=IMAGES[:7])
    assert best.training_loss == pytest.approx(IMAGES.mean() / 255, rel=1e-5)
    assert best.validation_loss == pytest.approx(IMAGES[:7].mean() / 255, rel=1e-5)


def spec(losses: list[float], patience: int, patience_from: int) -> int:
    """The paper's section 4.2: the first epoch, from `patience_from` on, whose best is `patience` epochs old."""
    for epoch in range(max(1, patience_from), len(losses) + 1):
        best = 1 + losses.index(min(losses[:epoch]))
        if epoch - best >= patience:
            return epoch
    return len(losses)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=25), st.integers(1, 6), st.integers(0, 20))
def test_patience_ends_a_run(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], patience: int, patience_from: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    plan = Training(learning_rate=1.0, max_epochs=len(losses), patience=patience, patience_from=patience_from)
    module = Scripted(losses)
    best = backward(module, folder, plan, training=IMAGES[:1], validation=IMAGES[:1])
    found = [row["validation_loss"] for row in history(folder)]
    assert found == losses[: spec(losses, patience, patience_from)]
    # The first of the lowest is kept: its loss, its epoch and its weights.
    assert (best.validation_loss, best.epoch) == (min(found), 1 + found.index(min(found)))
    assert module.weight.item() == pytest.approx(best.epoch, rel=1e-4)


@pytest.mark.parametrize(("improved_at", "stopped_at"), [(1, 10), (6, 10), (7, 11), (9, 13), (10, 14), (12, 10)])
def test_patience_counts_from_the_best_epoch_but_stops_late_enough(
    tmp_path: Path, improved_at: int, stopped_at: int
) -> None:
    losses = [1.0] * (improved_at - 1) + [0.5] * 20
    plan = Training(max_epochs=14, patience=4, patience_from=10)
    backward(Scripted(losses), tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    assert len(history(tmp_path)) == stopped_at


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_an_error(tmp_path: Path, loss: float) -> None:
    with pytest.raises(RunError, match="never a finite number"):
        backward(Scripted([loss] * 6), tmp_path)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(1e-6, 1.0))
def test_a_cosine_schedule_rises_once_and_falls_to_nothing(total: int, rate: float) -> None:
    plan = Training(learning_rate=rate, schedule="cosine")
    rates = np.array([plan.rate(step, total) for step in range(total)])
    assert (rates > 0).all()
    assert rates.max() <= rate
    turns = np.diff(np.sign(np.diff(rates)))
    assert np.count_nonzero(turns) <= 1
    if total >= 100:
        assert rates.argmax() <= 0.06 * total
        assert rates.max() > 0.98 * rate
        assert rates[0] <= 1.001 * rate / (0.05 * total)
        assert rates[-1] < 1e-3 * rate
        assert rates[total // 2] == pytest.approx(rate / 2, rel=0.05)


def test_a_constant_schedule_is_constant() -> None:
    assert {Training(learning_rate=0.3).rate(step, 10) for step in range(10)} == {0.3}


def test_the_schedule_runs_over_all_epochs(tmp_path: Path) -> None:
    plan = dataclasses.replace(SHORT, schedule="cosine")
    backward(Small(), tmp_path, plan)
    assert [row["learning_rate"] for row in history(tmp_path)] == [plan.rate(step, 12) for step in (1, 3, 5, 7, 9, 11)]


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 300), st.integers(1, 5000))
def test_steps_become_the_fewest_epochs_that_hold_them(images: int, batch: int, steps: int) -> None:
    plan = Training(batch_size=batch, steps=steps)
    resolved, each = plan.resolved(images), plan.steps_per_epoch(images)
    assert (each - 1) * batch < images <= each * batch
    assert (resolved.max_epochs - 1) * each < steps <= resolved.max_epochs * each
    assert resolved.resolved(images) == resolved


def test_measuring_leaves_the_module_alone(tmp_path: Path) -> None:
    module, other = Small(), Small()
    assert epoch_seconds(module, SHORT, "fp32", TRAINING) > 0
    assert same_bits(module, other)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*history\.jsonl"):
        backward(Small(), tmp_path / "file")


def test_the_bar_counts_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Descent(Small(), SHORT, seed=0, precision="fp32", folder=tmp_path).run(TRAINING, VALIDATION, progress=True)
    shown = capsys.readouterr()
    assert "12/12" in shown.err
    assert shown.out == ""


class Rivals(Learner):
    """Two weights pulled to 1 by objectives of their own; notes which were stepped on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_main, self.second = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.turns: list[str] = []

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        del images
        return (self.is_main - 1).square() + (self.second - 1).square()

    def objectives(self) -> tuple[Objective, ...]:
        def noted(name: str) -> Callable[[Tensor], Tensor]:
            def loss(images: Tensor) -> Tensor:
                self.turns.append(name)
                return self.loss(images)

            return loss

        return Objective(noted("is_main"), (self.is_main,)), Objective(
            noted("second"), (self.second,), every=3, rate=0.5
        )


def test_objectives_take_turns_each_on_its_own_parameters(tmp_path: Path) -> None:
    rivals = Rivals()
    backward(rivals, tmp_path, Training(learning_rate=0.01, batch_size=4, max_epochs=4, keep="last"))
    assert "".join(name[0] for name in rivals.turns) == "fffsfffsff"  # 8 steps; every third the second's too
    # Adam moves a weight by about its rate in each step.
    assert rivals.is_main.item() == pytest.approx(8 * 0.01, rel=0.02)
    assert rivals.second.item() == pytest.approx(2 * 0.005, rel=0.02)


def test_the_last_weights_may_be_kept(tmp_path: Path) -> None:
    module = Scripted([1.0, 0.25, 0.9, 0.8])
    plan = Training(learning_rate=1.0, max_epochs=4, keep="last")
    kept = backward(module, tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    assert kept.epoch == 4
    assert kept.validation_loss == pytest.approx(0.8)
    assert module.weight.item() == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize(("images", "shown"), [(10, [4, 4]), (8, [4, 4]), (3, [3])])
def test_whole_batches_leave_out_the_rest(tmp_path: Path, images: int, shown: list[int]) -> None:
    watching = Watching()
    plan = Training(batch_size=4, max_epochs=1, whole_batches=True)
    backward(watching, tmp_path, plan, training=IMAGES[:images], validation=IMAGES[:1])
    assert [len(batch) for batch in watching.shown] == [*shown, 1]


class Staged(Learner):
    """A teacher, then a student who learns from it what it was prepared for: the teacher's mean, squared."""

    def __init__(self, killed_at: int = 0) -> None:
        super().__init__()
        self.teacher, self.student = Small(), Small()
        self.register_buffer("target", torch.zeros(()))
        self.killed_at, self.prepared = killed_at, list[str]()

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        del images
        raise AssertionError("its stages have losses of their own")

    def learner(self, stage: str) -> Learner:
        learner = self.teacher if stage == "teacher" else self.student
        learner.killed_at = self.killed_at if stage == "student" else 0
        return learner

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        self.prepared.append(stage)
        if stage == "student":
            self.target = self.teacher.is_main.weight.detach().mean() + len(pixels) + seed
            with torch.no_grad():
                self.student.is_main.weight.mul_(self.target)


STAGES = (dataclasses.replace(SHORT, stage="teacher"), dataclasses.replace(SHORT, max_epochs=4, stage="student"))


def descend_in_stages(module: Staged, folder: Path) -> list[Epoch]:
    folder.mkdir(exist_ok=True)
    return gradient.descend(
        module,
        STAGES,
        seed=1,
        precision="fp32",
        folder=folder,
        training=TRAINING,
        validation=VALIDATION,
        progress=False,
    )


@pytest.mark.usefixtures("_checkpoint_each_epoch")
@pytest.mark.parametrize("killed_at", [1, 3, 4, 8, 12])
def test_a_run_killed_in_a_later_stage_ends_in_the_same_bits(tmp_path: Path, killed_at: int) -> None:
    whole, resumed = Staged(), Staged()
    kept = descend_in_stages(whole, tmp_path / "whole")
    assert [epoch.stage for epoch in kept] == ["teacher", "student"]
    assert whole.prepared == ["teacher", "student"]
    with pytest.raises(Killed):
        descend_in_stages(Staged(killed_at), tmp_path / "cut")
    descend_in_stages(resumed, tmp_path / "cut")
    assert same_bits(whole, resumed)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert resumed.prepared == (["student"] if killed_at <= 3 else [])
    assert [row["stage"] for row in history(tmp_path / "whole")] == ["teacher"] * 6 + ["student"] * 4


def test_what_does_not_learn_is_in_evaluation_mode(tmp_path: Path) -> None:
    module, modes = Staged(), list[tuple[bool, bool]]()
    real = module.student.loss

    def watched(images: Tensor) -> Tensor:
        modes.append((module.teacher.training, module.student.training))
        return real(images)

    module.student.loss = watched  # type: ignore[method-assign]
    descend_in_stages(module, tmp_path)
    assert set(modes) == {(False, True), (False, False)}


@pytest.fixture(autouse=True)
def _chance_is_left_as_it_was() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
