"""Segments of a recording -> what is said in them, and when."""

from collections.abc import Sequence

import numpy as np
import openvino
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.greedy import ctc_collapse, greedy_path, word_spans
from finetuning.decoding.inference import iter_log_probs
from finetuning.model.ctc_model import frame_duration_s, get_vocabulary, sample_rate
from finetuning.transcription.segmentation import Segment
from finetuning.transcription.subtitles import Word
from finetuning.transcription.transcripts import Passage


def transcribe_segments(
    model: EncDecCTCModel,
    network: openvino.CompiledModel | None,
    segments: Sequence[Segment],
    beam: tuple[BeamSearch, Settings] | None = None,
) -> list[Passage]:
    """What is said in each segment, by its best path or by `beam` search: nothing where there is nothing to hear.

    `model` is `ready`.
    """
    rate, frame_s, letters = sample_rate(model), frame_duration_s(model), get_vocabulary(model)
    audible = [segment for segment in segments if segment.is_audible(rate)]
    heard = iter_log_probs(model, network, [[segment.samples for segment in audible]])
    found = dict(zip(map(id, audible), heard, strict=True))
    passages = []
    for segment in segments:
        own = found.get(id(segment), np.zeros((0, len(letters) + 1)))  # (T, V + 1)
        path = beam[0].decode(own, beam[1]) if beam else greedy_path(own)
        start_s, duration_s = segment.start / rate, len(segment.samples) / rate
        spoken = [
            Word(text, start_s + first * frame_s, start_s + min(end * frame_s, duration_s))
            for text, first, end in word_spans(path, letters)
        ]
        text = " ".join(word.text for word in spoken) if beam else ctc_collapse(path, letters)  # as evaluate.py has it
        passages.append(Passage(round(start_s, 3), round(duration_s, 3), text, spoken))
    return passages
