"""Segments of a recording -> their texts, and times and confidence of their words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.decoding.alignment import CLICK_S, align_to_sound
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.confidence import Calibration
from finetuning.decoding.greedy import ctc_collapse, greedy_path, word_confidences, word_spans
from finetuning.decoding.inference import iter_log_probs
from finetuning.model.ctc_model import frame_duration_s, get_vocabulary, sample_rate
from finetuning.transcription.segmentation import Segment
from finetuning.transcription.subtitles import Word
from finetuning.transcription.transcripts import Passage

if TYPE_CHECKING:
    import openvino


def transcribe_segments(
    model: EncDecCTCModel,
    network: "openvino.CompiledModel | None",
    segments: Sequence[Segment],
    beam: tuple[BeamSearch, Settings] | None = None,
    calibration: Calibration | None = None,
) -> list[Passage]:
    """Return the passage of each segment, greedily or by `beam` search; its text is empty where nothing is audible.

    `model` must be prepared for inference. Without a `calibration` the confidence of a word is the model's own.
    """
    rate, frame_s, vocabulary = sample_rate(model), frame_duration_s(model), get_vocabulary(model)
    audible = [segment for segment in segments if segment.is_audible(rate)]
    outputs = iter_log_probs(model, network, [[segment.samples for segment in audible]])
    by_segment = dict(zip(map(id, audible), outputs, strict=True))
    passages = []
    for segment in segments:
        log_probs = by_segment.get(id(segment), np.zeros((0, len(vocabulary) + 1)))  # (T, V + 1)
        path = beam[0].decode(log_probs, beam[1]) if beam else greedy_path(log_probs)
        start_s, duration_s = segment.start / rate, len(segment.samples) / rate
        frame, click = round(frame_s * rate), round(CLICK_S / frame_s)
        aligned = align_to_sound(path, log_probs, segment.samples, frame, vocabulary, click)
        confidences = word_confidences(path, log_probs, vocabulary)
        words = [
            Word(
                text,
                start_s + first * frame_s,
                start_s + min(end * frame_s, duration_s),
                calibration.of(confidence) if calibration else confidence,
            )
            for (text, first, end), confidence in zip(word_spans(aligned, vocabulary), confidences, strict=True)
        ]
        text = " ".join(word.text for word in words) if beam else ctc_collapse(path, vocabulary)  # as in evaluate.py
        passages.append(Passage(round(start_s, 3), round(duration_s, 3), text, words, segment.speaker))
    return passages
