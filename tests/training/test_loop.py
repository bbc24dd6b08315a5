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
from metalad.training import loop
from metalad.training.loop import Descent, Epoch, Learner, Objective, Training, TrainingStep
from metalad.training.precision import Precision
from metalad.training.timing import epoch_seconds

SHORT = Training(learning_rate=0.01, batch_size=4, max_epochs=6)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 6, 3), dtype=np.uint8)
TRAINING, VALIDATION = IMAGES[:8], IMAGES[8:]


class Killed(BaseException):
    """Simulates a signal: no code in the package catches it."""


class Small(Learner):
    """An autoencoder with dropout, so that every step uses random numbers."""

    def __init__(self, killed_at: int = 0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(108, 7)
        self.layers = nn.Sequential(self.first, nn.Dropout(0.3), nn.Linear(7, 108))
        self.register_buffer("images_seen", torch.zeros(()))
        self.killed_at, self.calls = killed_at, 0

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        self.calls += 1
        if self.calls == self.killed_at:
            raise Killed
        if self.training:
            self.get_buffer("images_seen").add_(len(images))
        flat = images.flatten(1)
        error: Tensor = (self.layers(flat) - flat).square().mean()
        return error


class Scripted(Learner):
    """Has given validation losses; its only weight increases by about the learning rate in each step."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.script = iter(losses)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        del images
        return -self.weight if self.training else torch.tensor(next(self.script))


class Recorder(Learner):
    """Records the images of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[list[float]] = []

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        self.batches.append((images[:, 0, 0, 0] * 255).round().tolist())
        return images.mean() + 0 * self.weight


def train(
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
    return descent.run(training, validation)


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the history, without their times."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def identical_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


@pytest.fixture
def _checkpoint_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)


@pytest.mark.usefixtures("_checkpoint_each_epoch")
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("killed_at", [1, 2, 4, 9, 12, 18])
def test_killed_and_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, killed_at: int, precision: Precision, schedule: Literal["constant", "cosine"]
) -> None:
    """An epoch has two steps and one validation: three calls of the loss."""
    plan = dataclasses.replace(SHORT, schedule=schedule)
    uninterrupted, resumed = Small(), Small()
    (tmp_path / "uninterrupted").mkdir()
    (tmp_path / "killed").mkdir()
    best = train(uninterrupted, tmp_path / "uninterrupted", plan, precision=precision)
    with pytest.raises(Killed):
        train(Small(killed_at), tmp_path / "killed", plan, precision=precision)
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists() == (killed_at > 3)
    again = train(resumed, tmp_path / "killed", plan, precision=precision)
    assert identical_weights(uninterrupted, resumed)
    assert history(tmp_path / "killed") == history(tmp_path / "uninterrupted")
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(best, seconds=0.0)
    assert resumed.calls == 18 - 3 * ((killed_at - 1) // 3)


@pytest.mark.usefixtures("_checkpoint_each_epoch")
def test_run_killed_several_times_is_bit_identical(tmp_path: Path) -> None:
    (tmp_path / "uninterrupted").mkdir()
    uninterrupted, last = Small(), Small()
    train(uninterrupted, tmp_path / "uninterrupted")
    for _ in range(4):
        with contextlib.suppress(Killed):
            train(Small(killed_at=5), tmp_path)
    train(last, tmp_path)
    assert identical_weights(uninterrupted, last)


@pytest.mark.usefixtures("_checkpoint_each_epoch")
def test_best_weights_are_restored_after_a_kill(tmp_path: Path) -> None:
    plan = Training(learning_rate=1.0, max_epochs=6)
    with pytest.raises(StopIteration):
        train(Scripted([1.0, 0.25, 0.9, 0.8]), tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    resumed = Scripted([0.7, 0.6])
    best = train(resumed, tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    assert (best.epoch, best.validation_loss) == (2, 0.25)
    assert resumed.weight.item() == pytest.approx(2, rel=1e-4)


def test_result_depends_only_on_the_seed(tmp_path: Path) -> None:
    modules = [Small() for _ in range(3)]
    for module, seed in zip(modules, (0, 0, 1), strict=True):
        train(module, tmp_path, seed=seed)
    assert identical_weights(modules[0], modules[1])
    assert not identical_weights(modules[0], modules[2])


@pytest.mark.usefixtures("_checkpoint_each_epoch")
def test_damaged_checkpoint_raises_run_error(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(Small(killed_at=5), tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged .* delete it"):
        train(Small(), tmp_path)


def test_every_image_is_used_once_per_epoch_in_random_order(tmp_path: Path) -> None:
    recorder = Recorder()
    numbered = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1) * np.ones((1, 6, 6, 3), np.uint8)
    train(recorder, tmp_path, Training(batch_size=4, max_epochs=3), training=numbered, validation=numbered[:5])
    assert [len(batch) for batch in recorder.batches] == [4, 4, 2, 4, 1] * 3
    epochs = [recorder.batches[start : start + 3] for start in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(value for batch in epoch for value in batch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_losses_are_means_over_images(tmp_path: Path) -> None:
    """The last batch is smaller and gets less weight."""
    best = train(Recorder(), tmp_path, Training(batch_size=3, max_epochs=1), training=IMAGES, validation=IMAGES[:7])
    assert best.training_loss == pytest.approx(IMAGES.mean() / 255, rel=1e-5)
    assert best.validation_loss == pytest.approx(IMAGES[:7].mean() / 255, rel=1e-5)


def expected_epochs(losses: list[float], patience: int, patience_from: int) -> int:
    """Return the last epoch by section 4.2 of the paper.

    It is the first one, from `patience_from` on, at which the best epoch is at least `patience` epochs ago.
    """
    for epoch in range(max(1, patience_from), len(losses) + 1):
        best = 1 + losses.index(min(losses[:epoch]))
        if epoch - best >= patience:
            return epoch
    return len(losses)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=25), st.integers(1, 6), st.integers(0, 20))
def test_patience_stops_training(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], patience: int, patience_from: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    plan = Training(learning_rate=1.0, max_epochs=len(losses), patience=patience, patience_from=patience_from)
    module = Scripted(losses)
    best = train(module, folder, plan, training=IMAGES[:1], validation=IMAGES[:1])
    recorded = [row["validation_loss"] for row in history(folder)]
    assert recorded == losses[: expected_epochs(losses, patience, patience_from)]
    # The first epoch with the lowest loss is selected: its loss, number and weights.
    assert (best.validation_loss, best.epoch) == (min(recorded), 1 + recorded.index(min(recorded)))
    assert module.weight.item() == pytest.approx(best.epoch, rel=1e-4)


@pytest.mark.parametrize(("improved_at", "stopped_at"), [(1, 10), (6, 10), (7, 11), (9, 13), (10, 14), (12, 10)])
def test_patience_counts_from_the_best_epoch_and_stops_not_before_patience_from(
    tmp_path: Path, improved_at: int, stopped_at: int
) -> None:
    losses = [1.0] * (improved_at - 1) + [0.5] * 20
    plan = Training(max_epochs=14, patience=4, patience_from=10)
    train(Scripted(losses), tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    assert len(history(tmp_path)) == stopped_at


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_never_finite_raises_run_error(tmp_path: Path, loss: float) -> None:
    with pytest.raises(RunError, match="never a finite number"):
        train(Scripted([loss] * 6), tmp_path)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(1e-6, 1.0))
def test_cosine_schedule_rises_once_and_decays_to_0(total: int, rate: float) -> None:
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


def test_constant_schedule_is_constant() -> None:
    assert {Training(learning_rate=0.3).rate(step, 10) for step in range(10)} == {0.3}


def test_multistep_schedule_decays_after_80_and_90_percent_of_the_steps() -> None:
    plan = Training(learning_rate=1.0, schedule="multistep")
    rates = [plan.rate(step, 10) for step in range(10)]
    assert rates == pytest.approx([1.0] * 8 + [0.4, 0.16])


def test_schedule_covers_all_epochs(tmp_path: Path) -> None:
    plan = dataclasses.replace(SHORT, schedule="cosine")
    train(Small(), tmp_path, plan)
    assert [row["learning_rate"] for row in history(tmp_path)] == [plan.rate(step, 12) for step in (1, 3, 5, 7, 9, 11)]


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 300), st.integers(1, 5000))
def test_steps_are_rounded_up_to_whole_epochs(images: int, batch: int, steps: int) -> None:
    plan = Training(batch_size=batch, steps=steps)
    resolved, per_epoch = plan.resolved(images), plan.steps_per_epoch(images)
    assert (per_epoch - 1) * batch < images <= per_epoch * batch
    assert (resolved.max_epochs - 1) * per_epoch < steps <= resolved.max_epochs * per_epoch
    assert resolved.resolved(images) == resolved


def test_epoch_seconds_does_not_change_the_module(tmp_path: Path) -> None:
    module, other = Small(), Small()
    state = torch.random.get_rng_state()
    assert epoch_seconds(module, SHORT, "fp32", TRAINING, VALIDATION, at_least=0.01) > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert identical_weights(module, other)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_raises_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*history\.jsonl"):
        train(Small(), tmp_path / "file")


def test_callback_is_called_after_each_step(tmp_path: Path) -> None:
    steps: list[TrainingStep] = []
    descent = Descent(Small(), SHORT, seed=0, precision="fp32", folder=tmp_path, callback=steps.append)
    descent.run(TRAINING, VALIDATION)
    assert [(step.stage, step.step, step.steps) for step in steps] == [("train", index, 12) for index in range(1, 13)]
    assert [(step.epoch, step.epochs) for step in steps] == [(1 + index // 2, 6) for index in range(12)]
    expected = [None, None, *(row["validation_loss"] for row in history(tmp_path)[:-1] for _ in range(2))]
    assert [step.validation_loss for step in steps] == expected


def test_without_a_folder_no_file_is_written_and_results_are_identical(tmp_path: Path) -> None:
    with_folder, without_folder = Small(), Small()
    train(with_folder, tmp_path)
    Descent(without_folder, SHORT, seed=0, precision="fp32", folder=None).run(TRAINING, VALIDATION)
    assert identical_weights(with_folder, without_folder)


class TwoObjectives(Learner):
    """Two weights with separate objectives that pull them to 1; records the order of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.order: list[str] = []

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        del images
        return (self.first - 1).square() + (self.second - 1).square()

    def objectives(self) -> tuple[Objective, ...]:
        def recorded(name: str) -> Callable[[Tensor], Tensor]:
            def loss(images: Tensor) -> Tensor:
                self.order.append(name)
                return self.loss(images)

            return loss

        first = Objective(recorded("first"), (self.first,))
        return first, Objective(recorded("second"), (self.second,), every=3, rate=0.5)


def test_objectives_alternate_on_their_own_parameters(tmp_path: Path) -> None:
    module = TwoObjectives()
    train(module, tmp_path, Training(learning_rate=0.01, batch_size=4, max_epochs=4, keep="last"))
    assert "".join(name[0] for name in module.order) == "fffsfffsff"  # 8 steps; the second objective in every third
    # Adam changes a weight by about the learning rate in each step.
    assert module.first.item() == pytest.approx(8 * 0.01, rel=0.02)
    assert module.second.item() == pytest.approx(2 * 0.005, rel=0.02)


class TwoRates(TwoObjectives):
    """One objective, whose parameters have different learning rates; the third has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(()))

    def objectives(self) -> tuple[Objective, ...]:
        return (Objective(self.loss, (self.first, self.second, self.unused), rate=0.5, rates=(1.0, 0.2, 1.0)),)


def test_parameters_have_their_own_learning_rates(tmp_path: Path) -> None:
    module = TwoRates()
    train(module, tmp_path, Training(learning_rate=0.01, batch_size=4, max_epochs=4, keep="last"))
    assert module.first.item() == pytest.approx(8 * 0.005, rel=0.02)
    assert module.second.item() == pytest.approx(8 * 0.001, rel=0.02)
    assert module.unused.item() == 1


@pytest.mark.parametrize(("optimizer", "expected"), [("adam", 1 - 0.1), ("adamw", 1 - 0.1 * 0.5)])
def test_weight_decay_of_adamw_is_not_scaled_by_the_gradient(
    optimizer: Literal["adam", "adamw"], expected: float
) -> None:
    """Adam takes the penalty for a gradient, whose size does not count; AdamW shrinks a weight by rate × decay."""
    module = TwoObjectives()
    descent = Descent(
        module,
        Training(learning_rate=0.1, weight_decay=0.5, optimizer=optimizer),
        seed=0,
        precision="fp32",
        folder=None,
    )
    with torch.no_grad():
        module.first.fill_(1.0)  # the minimum: the gradient of the loss is 0
    descent.step(IMAGES[:1], 0.1)
    assert module.first.item() == pytest.approx(expected, rel=1e-4)


def test_last_weights_are_kept_on_request(tmp_path: Path) -> None:
    module = Scripted([1.0, 0.25, 0.9, 0.8])
    plan = Training(learning_rate=1.0, max_epochs=4, keep="last")
    last = train(module, tmp_path, plan, training=IMAGES[:1], validation=IMAGES[:1])
    assert last.epoch == 4
    assert last.validation_loss == pytest.approx(0.8)
    assert module.weight.item() == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize(("images", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, [3])])
def test_whole_batches_skip_the_partial_batch(tmp_path: Path, images: int, sizes: list[int]) -> None:
    recorder = Recorder()
    plan = Training(batch_size=4, max_epochs=1, whole_batches=True)
    train(recorder, tmp_path, plan, training=IMAGES[:images], validation=IMAGES[:1])
    assert [len(batch) for batch in recorder.batches] == [*sizes, 1]


class Staged(Learner):
    """A teacher and a student in two stages; the student's weights are prepared from the teacher's."""

    def __init__(self, killed_at: int = 0) -> None:
        super().__init__()
        self.teacher, self.student = Small(), Small()
        self.register_buffer("target", torch.zeros(()))
        self.killed_at, self.prepared = killed_at, list[str]()

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        del images
        raise AssertionError("not used: each stage has its own loss")

    def learner(self, stage: str) -> Learner:
        learner = self.teacher if stage == "teacher" else self.student
        learner.killed_at = self.killed_at if stage == "student" else 0
        return learner

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        self.prepared.append(stage)
        if stage == "student":
            self.target = self.teacher.first.weight.detach().mean() + len(pixels) + seed
            with torch.no_grad():
                self.student.first.weight.mul_(self.target)


STAGES = (dataclasses.replace(SHORT, stage="teacher"), dataclasses.replace(SHORT, max_epochs=4, stage="student"))


def train_stages(module: Staged, folder: Path) -> list[Epoch]:
    folder.mkdir(exist_ok=True)
    return loop.descend(
        module,
        STAGES,
        seed=1,
        precision="fp32",
        folder=folder,
        training=TRAINING,
        validation=VALIDATION,
    )


@pytest.mark.usefixtures("_checkpoint_each_epoch")
@pytest.mark.parametrize("killed_at", [1, 3, 4, 8, 12])
def test_run_killed_in_a_later_stage_is_bit_identical(tmp_path: Path, killed_at: int) -> None:
    uninterrupted, resumed = Staged(), Staged()
    selected = train_stages(uninterrupted, tmp_path / "uninterrupted")
    assert [epoch.stage for epoch in selected] == ["teacher", "student"]
    assert uninterrupted.prepared == ["teacher", "student"]
    with pytest.raises(Killed):
        train_stages(Staged(killed_at), tmp_path / "killed")
    train_stages(resumed, tmp_path / "killed")
    assert identical_weights(uninterrupted, resumed)
    assert history(tmp_path / "killed") == history(tmp_path / "uninterrupted")
    assert resumed.prepared == (["student"] if killed_at <= 3 else [])
    assert [row["stage"] for row in history(tmp_path / "uninterrupted")] == ["teacher"] * 6 + ["student"] * 4


def test_modules_that_are_not_trained_are_in_evaluation_mode(tmp_path: Path) -> None:
    module, modes = Staged(), list[tuple[bool, bool]]()
    original = module.student.loss

    def recorded(images: Tensor) -> Tensor:
        modes.append((module.teacher.training, module.student.training))
        return original(images)

    module.student.loss = recorded  # type: ignore[method-assign]
    train_stages(module, tmp_path)
    assert set(modes) == {(False, True), (False, False)}


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
