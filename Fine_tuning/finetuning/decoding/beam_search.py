"""Log-probabilities and an n-gram language model -> text, by flashlight's beam search over the words of a lexicon.

The hypothesis maximises, over paths of the acoustic model,

    ln p(path | audio) + lm_weight · log10 p(words) + word_score · number of words + unknown_score · unknown words

where p(words) is the language model's, the end of the sentence included (KenLM; Heafield 2011). Words are those of the
lexicon, which may hold several of one spelling, and, so that the vocabulary stays open, those that the best path spells
in the same utterance: a word that the language model does not know has the probability of its <unk>. Every word ends
with a space or with the utterance.
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

THRESHOLD = 25.0  # a hypothesis this much worse than the best of its frame is given up
TOKENS = 16  # letters tried in a frame, the most probable ones
MOST_WORDS = 6  # of one spelling, which is what flashlight's trie keeps
NEAR = 20  # hypotheses whose words are tried again beside an unknown one


@dataclass(frozen=True)
class Settings:
    """What is tuned on the validation set."""

    lm_weight: float = 2.0  # of log10 p(words)
    word_score: float = 0.0  # for each word; above 0 makes words shorter and more
    unknown_score: float = -5.0  # for each word the language model does not know
    beam: int = 50  # hypotheses kept in each frame


class BeamSearch:
    """A language model and the letters of one acoustic model."""

    def __init__(self, arpa: Path, lexicon: Mapping[str, str], letters: Sequence[str]) -> None:
        """`arpa`: ARPA or KenLM's binary; `lexicon`: the words it knows, and how each is spelt.

        Words that `letters` cannot spell are left out. Of one spelling up to MOST_WORDS words are tried, the most
        probable ones. UserError when KenLM cannot read the file, when no word can be spelt, or when the model writes
        no spaces.
        """
        self.letters, self.index = list(letters), {letter: number for number, letter in enumerate(letters)}
        if " " not in self.index:
            raise UserError(
                "this model writes no spaces, which a language model of words needs; type evaluation.decoder=greedy"
            )
        usable = {w: s for w, s in lexicon.items() if w and s and set(s) <= self.index.keys() - {" "}}
        if not usable:
            raise UserError(f"the model can spell no word of {arpa}; make it with the alphabet of this configuration")
        self.lm, self.dictionary = load_kenlm(arpa, usable)
        self.start = self.lm.start(False)
        self.known: dict[str, list[tuple[int, float]]] = {}  # numbers and scores of the words of each spelling
        for word, spelling in usable.items():
            number = self.dictionary.get_index(word)
            self.known.setdefault(spelling, []).append((number, self.lm.score(self.start, number)[1]))
        self.lexicon = self._trie(self.known)

    def decode(self, log_probabilities: np.ndarray, settings: Settings) -> np.ndarray:
        """The path of the best hypothesis, (T,), of log-probabilities (T, letters + 1): an index of a letter or the
        blank for each frame. A function of this utterance alone.
        """
        if not len(log_probabilities):
            return np.zeros(0, dtype=np.int64)
        clear = set(ctc_collapse(greedy_path(log_probabilities), self.letters).split())
        found = self._search(self.lexicon, log_probabilities, settings, TOKENS)
        if unknown := clear - self.known.keys():
            nearby = clear.union(*(ctc_collapse(path, self.letters).split() for path in found[:NEAR]))
            small = self._trie([*sorted(nearby & self.known.keys()), *sorted(unknown)])
            found = self._search(small, log_probabilities, settings, len(self.letters) + 2)
        return found[0]

    def text(self, log_probabilities: np.ndarray, settings: Settings) -> str:
        """The text of the best hypothesis."""
        return " ".join(ctc_collapse(self.decode(log_probabilities, settings), self.letters).split())

    def _trie(self, spellings: Iterable[str]) -> "Trie":
        """Each spelling with the space that ends it, its score that of the language model without a context.

        An unknown word ends with a space of its own, which `_search` charges unknown_score for.
        """
        from flashlight.lib.text.decoder import SmearingMode, Trie

        trie, unknown = Trie(len(self.letters) + 2, self.index[" "]), self.dictionary.get_index(UNKNOWN)
        score_of_unknown = self.lm.score(self.start, unknown)[1]
        for spelling in spellings:
            words = self.known.get(spelling)
            end = self.index[" "] if words else len(self.letters) + 1
            path = [*(self.index[letter] for letter in spelling), end]
            best_first = sorted(words or [(unknown, score_of_unknown)], key=lambda word: -word[1])
            for number, score in best_first[:MOST_WORDS]:
                trie.insert(path, number, score)
        trie.smear(SmearingMode.MAX)
        return trie

    def _search(self, trie: "Trie", log_probabilities: np.ndarray, settings: Settings, tokens: int) -> list[np.ndarray]:
        """Paths, the best first. A last frame is appended in which the space that ends the last word is free.

        A last column is appended for the space that ends an unknown word. flashlight's own unknown_score is for any
        beginning of a word in the trie, without a space behind it, so it is off.
        """
        from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions

        frames, blank, space = len(log_probabilities), len(self.letters), self.index[" "]
        given = np.full((frames + 1, blank + 2), -math.inf, dtype=np.float32)
        given[:frames, : blank + 1] = log_probabilities
        given[frames, space] = 0.0
        given[:, blank + 1] = given[:, space] + settings.unknown_score
        given = np.maximum(given, -1e4)
        options = LexiconDecoderOptions(
            settings.beam, min(tokens, blank + 2), THRESHOLD, settings.lm_weight, settings.word_score, -math.inf, 0.0,
            False, CriterionType.CTC,
        )  # fmt: skip
        unknown = self.dictionary.get_index(UNKNOWN)
        decoder = LexiconDecoder(options, trie, self.lm, space, blank, unknown, [], False)
        found = [result.tokens[1 : frames + 1] for result in decoder.decode(given.ctypes.data, frames + 1, blank + 2)]
        return [np.where(np.array(path) > blank, space, path) for path in found]


def load_beam_search(output: str, config_file: str, letters: Sequence[str], hashes: Mapping[str, str]) -> BeamSearch:
    """The beam search with the language model of these hashes, for a model with these letters.

    UserError when there is another one, also when it was replaced while it was read.
    """
    path, lexicon, _ = find_language_model(output, config_file)
    search = BeamSearch(path, lexicon, letters)
    *_, found = find_language_model(output, config_file)
    if found.items() - hashes.items():
        raise UserError(
            f"the language model in {resolve_path(output)} was made anew meanwhile; type the same command again"
        )
    return search
