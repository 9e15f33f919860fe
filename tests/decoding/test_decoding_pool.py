"""The beam search in several processes, which are killed, interrupted and left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from test_beam_search import LETTERS, SENTENCES, frames

from conftest import ROOT
from finetuning.decoding import decoding_pool
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.errors import UserError
from finetuning.language_model import arpa, kneser_ney

MANY = [frames(f"{'la ' * (number % 7)}casa ros_sa", {}) for number in range(40)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process decodes")


class Slow(BeamSearch):
    """A beam search that takes its time and says which process runs it."""

    def text(self, log_probs, settings):
        time.sleep(0.05)
        return f"{os.getpid()} {super().text(log_probs, settings)}"


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    path = tmp_path / "lm.arpa"
    arpa.write_arpa(path, kneser_ney.estimate_model(SENTENCES, 2))
    words = sorted({word for sentence in SENTENCES for word in sentence})
    return Slow(path, dict(zip(words, words, strict=True)), LETTERS)


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_pool, "available_cpus", lambda: 3)


def test_several_processes_return_the_texts_of_one_in_order(slow: Slow, three_processes: None) -> None:
    with decoding_pool.decoding_pool(slow, MANY) as decode:
        numbers = list(reversed(range(len(MANY))))
        pids, texts = zip(*(text.split(" ", 1) for text in decode(Settings(), numbers)), strict=True)
    assert list(texts) == [BeamSearch.text(slow, MANY[number], Settings()) for number in numbers]
    assert len(set(pids)) == 3
    assert str(os.getpid()) not in pids


def test_one_processor_decodes_without_another_process(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_pool, "available_cpus", lambda: 1)
    with decoding_pool.decoding_pool(slow, MANY) as decode:
        (text,) = decode(Settings(), [3])
    assert text.startswith(f"{os.getpid()} ")


def test_a_killed_process_is_one_sentence(slow: Slow, three_processes: None) -> None:
    with (
        pytest.raises(UserError, match="lack of memory"),
        decoding_pool.decoding_pool(slow, MANY) as decode,
    ):
        for text in decode(Settings(), range(len(MANY))):
            os.kill(int(text.split()[0]), signal.SIGKILL)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_no_process_outlives_its_parent(tmp_path: Path, sent: int) -> None:
    script = tmp_path / "decode.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal, sys, time
            sys.path[:0] = [{str(ROOT / "Fine_tuning")!r}]
            from finetuning.decoding import decoding_pool
            from finetuning.errors import run_script

            class Endless:
                def text(self, log_probs, settings):
                    if not log_probs:
                        time.sleep(600)
                    return str(os.getpid())

            signal.signal(signal.SIGINT, signal.default_int_handler)  # also when the tests run in the background

            def main():
                decoding_pool.available_cpus = lambda: 2
                with decoding_pool.decoding_pool(Endless(), [1] * 8 + [0] * 8) as decode:
                    for number, text in enumerate(decode(None, range(16))):
                        print(text, flush=True)

            run_script(main)
        """)
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        workers = {int(parent.stdout.readline()) for _ in range(8)}
        if sent == signal.SIGINT:
            os.killpg(parent.pid, sent)  # as a terminal does
        else:
            parent.send_signal(sent)
        try:
            _, stderr = parent.communicate(timeout=30)
        finally:
            parent.kill()
    assert "Traceback" not in stderr, stderr
    deadline = time.monotonic() + 10
    while alive := {pid for pid in workers if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, f"{alive} of {workers} are left"
        time.sleep(0.1)
