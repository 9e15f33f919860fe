"""Log-probabilities and an n-gram language model -> text, by flashlight's beam search over the words of a lexicon.

The hypothesis maximises, over paths of the acoustic model,

    ln p(path | audio) + lm_weight · log10 p(words) + word_score · number of words + unknown_score · unknown words

where p(words) is the language model's, the end of the sentence included (KenLM; Heafield 2011). Words are those of the
lexicon, which may hold several of one spelling, and, so that the vocabulary stays open, those of the greedy text of the
same utterance: a word that the language model does not know has the probability of its <unk>. Every word ends with a
space or with the utterance.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.config.schema import resolve_path
from finetuning.decoding.greedy import ctc_collapse, greedy_path
from finetuning.errors import UserError
from finetuning.language_model.kenlm import UNKNOWN, find_language_model, load_kenlm

if TYPE_CHECKING:
    from flashlight.lib.text.decoder import Trie

BEAM_THRESHOLD = 25.0  # a hypothesis this much worse than the best of its frame is dropped
MAX_TOKENS = 16  # tokens tried in a frame, the most probable ones
MAX_HOMOGRAPHS = 6  # words of one spelling, as many as flashlight's trie holds
NEARBY = 20  # hypotheses whose words are searched again together with unknown words


@dataclass(frozen=True)
class Settings:
    """The settings that are tuned on the validation set."""

    lm_weight: float = 2.0  # of log10 p(words)
    word_score: float = 0.0  # for each word; above 0 there are more and shorter words
    unknown_score: float = -5.0  # for each word unknown to the language model
    beam: int = 50  # hypotheses after each frame


class BeamSearch:
    """The beam search with one language model, for the vocabulary of one acoustic model."""

    def __init__(self, arpa: Path, lexicon: Mapping[str, str], vocabulary: Sequence[str]) -> None:
        """Load the language model `arpa`, ARPA or KenLM's binary; `lexicon`: its words and the spelling of each.

        Words that the `vocabulary` cannot spell are left out. Of one spelling up to MAX_HOMOGRAPHS words are tried, the
        most probable ones. Raise UserError when KenLM cannot read the file, when no word can be spelt, or when the
        model writes no spaces.
        """
        self.vocabulary = list(vocabulary)
        self.index = {character: number for number, character in enumerate(vocabulary)}
        if " " not in self.index:
            raise UserError(
                "this model writes no spaces, which a language model of words needs; type evaluation.decoder=greedy"
            )
        spellings = {w: s for w, s in lexicon.items() if w and s and set(s) <= self.index.keys() - {" "}}
        if not spellings:
            raise UserError(f"the model can spell no word of {arpa}; make it with the alphabet of this configuration")
        self.lm, self.dictionary = load_kenlm(arpa, spellings)
        self.start = self.lm.start(False)
        self.known: dict[str, list[tuple[int, float]]] = {}  # numbers and scores of the words of each spelling
        for word, spelling in spellings.items():
            number = self.dictionary.get_index(word)
            self.known.setdefault(spelling, []).append((number, self.lm.score(self.start, number)[1]))
        self.trie = self._make_trie(self.known)

    def decode(self, log_probs: np.ndarray, settings: Settings) -> np.ndarray:
        """Return the path of the best hypothesis, (T,): the index of a character or the blank for each frame.

        `log_probs`: (T, vocabulary + 1) of one utterance, on which alone the path depends.
        """
        if not len(log_probs):
            return np.zeros(0, dtype=np.int64)
        greedy_words = set(ctc_collapse(greedy_path(log_probs), self.vocabulary).split())
        paths = self._search(self.trie, log_probs, settings, MAX_TOKENS)
        if unknown := greedy_words - self.known.keys():
            nearby = greedy_words.union(*(ctc_collapse(path, self.vocabulary).split() for path in paths[:NEARBY]))
            small = self._make_trie([*sorted(nearby & self.known.keys()), *sorted(unknown)])
            paths = self._search(small, log_probs, settings, len(self.vocabulary) + 2)
        return paths[0]

    def text(self, log_probs: np.ndarray, settings: Settings) -> str:
        """Return the text of the best hypothesis; `log_probs`: (T, vocabulary + 1)."""
        return " ".join(ctc_collapse(self.decode(log_probs, settings), self.vocabulary).split())

    def _make_trie(self, spellings: Iterable[str]) -> "Trie":
        """Return a trie of the spellings, each with the space that ends it and the score of its words without context.

        An unknown word ends with a space of its own, which `_search` charges unknown_score for.
        """
        from flashlight.lib.text.decoder import SmearingMode, Trie

        trie, unknown = Trie(len(self.vocabulary) + 2, self.index[" "]), self.dictionary.get_index(UNKNOWN)
        unknown_lm_score = self.lm.score(self.start, unknown)[1]
        for spelling in spellings:
            words = self.known.get(spelling)
            end = self.index[" "] if words else len(self.vocabulary) + 1
            path = [*(self.index[character] for character in spelling), end]
            best_first = sorted(words or [(unknown, unknown_lm_score)], key=lambda word: -word[1])
            for number, score in best_first[:MAX_HOMOGRAPHS]:
                trie.insert(path, number, score)
        trie.smear(SmearingMode.MAX)
        return trie

    def _search(self, trie: "Trie", log_probs: np.ndarray, settings: Settings, max_tokens: int) -> list[np.ndarray]:
        """Return paths, (T,), the best first.

        A frame is appended in which the space that ends the last word is free, and a column for the space that ends an
        unknown word. flashlight's own unknown_score would apply to any beginning of a word in the trie, without a space
        behind it, so it is off.
        """
        from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions

        frames, blank, space = len(log_probs), len(self.vocabulary), self.index[" "]
        padded = np.full((frames + 1, blank + 2), -math.inf, dtype=np.float32)
        padded[:frames, : blank + 1] = log_probs
        padded[frames, space] = 0.0
        padded[:, blank + 1] = padded[:, space] + settings.unknown_score
        padded = np.maximum(padded, -1e4)
        options = LexiconDecoderOptions(
            settings.beam, min(max_tokens, blank + 2), BEAM_THRESHOLD, settings.lm_weight, settings.word_score,
            -math.inf, 0.0, False, CriterionType.CTC,
        )  # fmt: skip
        unknown = self.dictionary.get_index(UNKNOWN)
        decoder = LexiconDecoder(options, trie, self.lm, space, blank, unknown, [], False)
        paths = [result.tokens[1 : frames + 1] for result in decoder.decode(padded.ctypes.data, *padded.shape)]
        return [np.where(np.array(path) > blank, space, path) for path in paths]


def load_beam_search(output: str, config_file: str, vocabulary: Sequence[str], hashes: Mapping[str, str]) -> BeamSearch:
    """Return the beam search with the language model of these `hashes`, for a model with this `vocabulary`.

    Raise UserError when there is another language model, also when it was replaced while it was read.
    """
    path, lexicon, _ = find_language_model(output, config_file)
    search = BeamSearch(path, lexicon, vocabulary)
    *_, hashes_after = find_language_model(output, config_file)
    if hashes_after.items() - hashes.items():
        raise UserError(f"the language model in {resolve_path(output)} was replaced meanwhile; rerun the same command")
    return search
