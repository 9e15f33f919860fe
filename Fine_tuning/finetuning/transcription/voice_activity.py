"""In which parts of a recording somebody speaks, by Silero's voice activity detector (MIT), a small network.

Music, noise and the silence of one side of a call are told from speech by what they sound like, not by their loudness.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr

from finetuning.decoding.openvino_runtime import compile_network

if TYPE_CHECKING:
    import openvino

    from finetuning.transcription.segmentation import Listener

RATE = 16000  # Hz, of its input
FRAME, CONTEXT = 512, 64  # samples of a frame, and of the one before that are given with it
FRAMES = 32  # at a time, about a second: always as many, so that no result depends on the blocks
STATE = (1, 1, 128)  # of its LSTM
SPEECH, NO_SPEECH = 0.5, 0.35  # probabilities from which on speech begins, and below which it has ended


def make_listener(rate: int) -> "Listener":
    """Return a function of the blocks of one recording, (time,) at `rate` Hz, in their order, and whether it ends.

    It returns whether there is speech in each frame of SPEECH_FRAME_S that it has not answered for yet; as long as the
    recording goes on, it may be two seconds late.
    """
    network = _load_network().create_infer_request()
    resampler = soxr.ResampleStream(rate, RATE, 1, "float32") if rate != RATE else None
    pending, hidden, cell = np.zeros(CONTEXT, np.float32), np.zeros(STATE, np.float32), np.zeros(STATE, np.float32)
    is_speech = False

    def listen(block: np.ndarray, is_last: bool) -> list[bool]:
        nonlocal pending, hidden, cell, is_speech
        samples = resampler.resample_chunk(block, last=is_last) if resampler else block
        pending, found = np.concatenate([pending, samples]), []
        whole = FRAMES * FRAME
        if is_last:
            pending = np.pad(pending, (0, -(len(pending) - CONTEXT) % whole))
        while len(pending) >= CONTEXT + whole:
            frames = np.lib.stride_tricks.sliding_window_view(pending[: CONTEXT + whole], CONTEXT + FRAME)[::FRAME]
            network.infer({"input": np.ascontiguousarray(frames), "h": hidden, "c": cell})
            probabilities, hidden, cell = (network.get_output_tensor(n).data.copy() for n in range(3))
            for probability in probabilities.ravel():
                is_speech = probability >= (NO_SPEECH if is_speech else SPEECH)
                found.append(bool(is_speech))
            pending = pending[whole:]
        return found

    return listen


@cache
def _load_network() -> "openvino.CompiledModel":
    import silero_vad

    return compile_network(Path(silero_vad.__file__).parent / "data" / "silero_vad_16k_sequence.onnx")
