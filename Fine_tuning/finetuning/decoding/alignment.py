"""When the tokens of a text are said: their most probable path through the log-probabilities, and none in silence."""

from itertools import pairwise

import numpy as np

from finetuning.decoding.greedy import emissions
from finetuning.model.vocabulary import Vocabulary

NEVER = 1e4  # nats: a token is put into silence only where there are too few other frames
SILENCE_DB = 40.0  # below the loudest frame of a segment
CLICK_S = 0.1  # in all, of louder frames, which do not count


def forced_alignment(log_probs: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Return the most probable path that collapses to `tokens`, (T,): Viterbi over CTC's states (Graves et al. 2006).

    `log_probs`: (T, vocabulary + 1), the blank last; they may be anything that is to be maximised. Raise ValueError
    where there are fewer frames than the tokens need: one each, and one more between two that are the same.
    """
    needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))
    if needed > len(log_probs):
        raise ValueError(f"{len(tokens)} tokens need {needed} frames, and there are {len(log_probs)}")
    if not len(log_probs):
        return np.zeros(0, dtype=np.int64)
    states = np.full(2 * len(tokens) + 1, log_probs.shape[1] - 1)  # blank, token, blank, token … blank
    states[1::2] = tokens
    emitted = log_probs[:, states]  # (T, S)
    skips = np.zeros(len(states), dtype=bool)  # the blank between two tokens may be left out, unless they are the same
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = emitted[0, :2]
    steps = np.zeros(emitted.shape, dtype=np.int8)  # states passed on the way to each, 0 to 2
    reached = np.full((3, len(states)), -np.inf)
    for frame in range(1, len(emitted)):
        reached[0] = score
        reached[1, 1:] = score[:-1]
        reached[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        steps[frame] = reached.argmax(axis=0)
        score = reached.max(axis=0) + emitted[frame]
    state = len(states) - 1 - int(len(states) > 1 and score[-2] > score[-1])
    path = np.zeros(len(emitted), dtype=np.int64)
    for frame in range(len(emitted) - 1, -1, -1):
        path[frame] = states[state]
        state -= int(steps[frame, state])
    return path


def align_to_sound(
    path: np.ndarray,
    log_probs: np.ndarray,
    samples: np.ndarray,
    frame_samples: int,
    vocabulary: Vocabulary,
    click_frames: int = 0,
) -> np.ndarray:
    """Return the path, (T,), with the same tokens, none but spaces in silence.

    A model may write the first and the last letters of a recording anywhere in the silence around it: what it was
    trained on does not tell it when they are said. `samples`: (time,), `frame_samples` for each frame of `log_probs`,
    (T, vocabulary + 1). Silence is what is SILENCE_DB below the loudest frame but for `click_frames`.
    """
    silent = _silent_frames(samples, frame_samples, len(path), click_frames)
    words = np.array([bool(token.strip()) for token in vocabulary.tokens] + [False])  # not spaces, not the blank
    if not words[path[silent]].any():
        return path
    allowed = np.array(log_probs, dtype=np.float64)
    allowed[np.ix_(silent, words)] -= NEVER
    return forced_alignment(allowed, [token for token, _ in emissions(path, len(vocabulary))])


def _silent_frames(samples: np.ndarray, frame_samples: int, frames: int, click_frames: int) -> np.ndarray:
    """Return which of so many frames are silent, (frames,) of bool."""
    padded = np.zeros(frames * frame_samples)
    padded[: len(samples)] = samples[: len(padded)]
    energy = np.square(padded).reshape(frames, frame_samples).mean(axis=1)
    loud = np.sort(energy)[-1 - min(click_frames, frames - 1)] if frames else 0.0
    return energy < loud * 10 ** (-SILENCE_DB / 10)
