"""What a training run shows: a bar on a terminal, lines in a log, and in both the time left."""

import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from conftest import ROOT, Script
from finetuning.config import loading

pytestmark = pytest.mark.nemo
SHORT = ["training.max_epochs=2", "training.frozen_epochs=1", "training.batch_size=1", "training.workers=0"]  # 56 steps
FIGURES = r"loss=\d+\.\d\d, lr=\d\.\de-\d\d"
LEFT = r"\d:\d\d:\d\d"


def test_the_time_left_is_worked_out_from_steps_of_both_phases_and_ends_of_epochs():
    from finetuning.training.time_left import MIN_STEPS, Pace

    pace = Pace(unfrozen_ratio=1.5)
    for _ in range(MIN_STEPS - 1):
        pace.add_step(2.0, frozen=True)
    assert pace.seconds_left(10, 10, 2, 4) is None
    pace.add_step(2.0, frozen=True)
    assert pace.seconds_left(10, 0, 0, 4) == 20
    assert pace.seconds_left(0, 10, 0, 4) == 30  # 3 s each, as none is measured
    assert pace.seconds_left(0, 0, 2, 4) == 8  # 4 batches of 1 s each, as none is measured
    pace.add_step(5.0, frozen=False)
    pace.epoch_ends_s += [20.0, 40.0]
    assert pace.seconds_left(10, 10, 2, 4) == 20 + 50 + 2 * 30


def test_the_time_left_leaves_out_a_slow_start_and_counts_validation():
    """A training whose durations are known: the first step 3 s, the others 0.01 s; each validation 8 times 0.1 s."""
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader

    from finetuning.training.time_left import TimeLeft

    class Sleeper(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.ends: list[tuple[float, float | None]] = []

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            time.sleep(0.01 if self.global_step else 3)
            return self.weight.sum()

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            time.sleep(0.1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    class Estimates(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, model: Sleeper) -> None:
            model.ends.append((time.monotonic(), time_left.seconds(trainer)))

    time_left, model = TimeLeft(0, "train"), Sleeper()
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[time_left, Estimates()], accelerator="cpu", logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.zeros(30)), DataLoader(torch.zeros(8)))
    end = model.ends[-1][0]
    for now, estimate in model.ends[:-1]:
        assert estimate == pytest.approx(end - now, rel=0.5)
    assert model.ends[-1][1] == 0
    assert time_left.text(trainer) == ""


def test_a_terminal_shows_a_bar_with_loss_learning_rate_and_time_left(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path
):
    script = str(ROOT / "Fine_tuning" / "train.py")
    command = [sys.executable, script, "--config", str(tiny_config), *SHORT, f"training.output={tmp_path}"]
    terminal, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    process = subprocess.Popen(command, stdout=child, stderr=child)
    os.close(child)
    output = b""
    while True:
        try:
            output += os.read(terminal, 4096)
        except OSError:  # the terminal is closed
            break
    os.close(terminal)
    text = output.decode()
    assert process.wait() == 0, text[-2000:]
    bars = [bar for bar in re.split(r"[\r\n]", text) if bar.startswith("epoch ") and "|" in bar]
    assert any(re.search(rf"^epoch 1 of 2: .*\| 25/28, {FIGURES}, left={LEFT}$", bar) for bar in bars), bars
    assert any(re.search(rf"^epoch 2 of 2: .*\| 28/28, {FIGURES}$", bar) for bar in bars), bars
    assert max(map(len, bars)) <= 80
    assert re.search(rf"epoch   1 frozen .* {LEFT} left\r\n", text)


def test_a_log_holds_whole_lines_and_few(tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script):
    trained = run_script("train.py", "--config", str(tiny_config), *SHORT, f"training.output={tmp_path}")
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "\r" not in trained.stdout + trained.stderr
    assert len(trained.stdout.splitlines()) < 20
    first, second = re.findall(r"^epoch .*", trained.stdout, re.MULTILINE)
    assert re.search(rf" {LEFT} left$", first)
    assert not second.endswith("left")


def test_within_an_epoch_a_log_gets_a_line_when_the_last_is_old_enough(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    from finetuning.training import fine_tuning, progress

    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    config = loading.load_config(str(tiny_config), [*SHORT, f"training.output={tmp_path}", "training.keep_best=0"])
    model = fine_tuning.load_starting_model(config, ROOT / "models/demo/quartznet_small_en.nemo")
    fine_tuning.fit(model, config, tmp_path)
    lines = re.findall(r"^epoch .* step .*", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == 56
    figures = r"loss \d+\.\d\d, learning rate \d\.\de-\d\d"
    assert re.fullmatch(rf"epoch   1 step 2 of 28: {figures}", lines[1])
    assert re.fullmatch(rf"epoch   1 step 28 of 28: {figures}, {LEFT} left", lines[27])
