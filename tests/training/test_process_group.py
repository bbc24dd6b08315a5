"""Data-parallel training: shares, sums, and runs with torchrun that are killed, resumed and compared."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metalad.pipelines.train import train
from metalad.storage.model_file import read_model
from metalad.training.loop import _epoch_seed
from metalad.training.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group
from tests.tiny import TINY, TINY_SETTINGS, tiny_category

NO_AUGMENTATION = ["degrees=0", "shift=0", "photometric=0"]
"""Augmentation is disabled, because its random values differ between processes."""

LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4
"""Relative to the largest weight of a tensor: the order of summation differs, and Adam divides small numbers."""

# Rank 1 is killed at the start of the third epoch, after the checkpoint of the second.
SCRIPT = """
import os, signal, sys
from metalad.cli import main as cli
from metalad.training import loop as gradient
import metalad.pipelines.train
metalad.pipelines.train.fastest_precision = lambda device="cpu": "fp32"
gradient.CHECKPOINT_SECONDS = 0.0
epoch = gradient.Descent._epoch
def killed(descent, *arguments):
    if "KILL" in os.environ and descent.state.epoch == 2 and descent.group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return epoch(descent, *arguments)
gradient.Descent._epoch = killed
sys.exit(cli.main(sys.argv[1:]))
"""


@given(st.integers(0, 40), st.integers(1, 7))
def test_shares_are_disjoint_and_cover_the_batch(images: int, size: int) -> None:
    batch = np.arange(images)
    shares = [ProcessGroup(rank, size).shard(batch) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_single_process_communicates_nothing() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    assert float(SINGLE_PROCESS.backward((weight**2).sum(), [weight], 1.0)) == 9.0
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0]
    value = {"a": (1, 2)}
    assert SINGLE_PROCESS.broadcast(value) is value
    assert SINGLE_PROCESS.total(0.1) == 0.1
    with join_process_group(torch.device("cpu")) as process_group:
        assert process_group is SINGLE_PROCESS


def test_ranks_have_different_seeds_and_rank_0_that_of_a_single_process() -> None:
    assert _epoch_seed(5, 3, 0) == int(np.random.SeedSequence([5, 3]).generate_state(1)[0])
    assert len({_epoch_seed(5, 3, rank) for rank in range(8)}) == 8


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 17 images are used for training: the second batch is one image, and one share of it is empty.
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie", train=19)


def torchrun(category: Path, out: Path, *options: str, kill: bool = False) -> subprocess.CompletedProcess[str]:
    script = out.parent / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = [part for setting in (*TINY_SETTINGS, *NO_AUGMENTATION) for part in ("--set", setting)]
    command = [str(script), "train", str(category), "--method", "metal", "--out", str(out), *settings]
    command += ["--device", "cpu", "--quiet", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if kill:
        environment["KILL"] = "1"
    return subprocess.run(
        [*launcher, *command], capture_output=True, text=True, check=False, env=environment, timeout=300
    )


def losses(run: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[row["training_loss"], row["validation_loss"]] for row in rows]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch lacks the gloo backend")
def test_two_killed_and_resumed_processes_match_a_single_process(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalad.pipelines.train.fastest_precision", lambda _="cpu": "fp32")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = dataclasses.replace(TINY, degrees=0.0, shift=0.0, photometric=0.0)
    train(category, tmp_path / "one", method=config, epochs=5, device="cpu")
    torch.set_num_threads(threads)
    killed = torchrun(category, tmp_path / "two", "--epochs", "5", kill=True)
    assert killed.returncode != 0
    assert len(losses(tmp_path / "two")) == 2
    assert not (tmp_path / "two" / "model.safetensors").exists()
    resumed = torchrun(category, tmp_path / "two", "--epochs", "5", "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["method"] == "metal"  # printed by rank 0 only
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=LOSS_TOLERANCE)
    one, two = (read_model(tmp_path / name).detector.state_dict() for name in ("one", "two"))
    assert set(one) == set(two)
    for name in one:
        if name.startswith(("encoders", "decoder")):
            assert float((one[name] - two[name]).abs().max()) <= WEIGHT_TOLERANCE * float(one[name].abs().max()), name
    assert (tmp_path / "two" / "train.log").read_text(encoding="utf-8").count("2 processes") == 2
    assert json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))["processes"] == 2
