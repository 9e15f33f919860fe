"""Log-probabilities and an n-gram language model -> text, by flashlight's beam search over the words of a lexicon.

The hypothesis maximises, over paths of the acoustic model,

    ln p(path | audio) + lm_weight · log10 p(words) + word_score · number of words + unknown_score · unknown words
    + weight of each word of a boosted phrase, of one phrase at most MAX_WEIGHT

where p(words) is the language model's, the end of the sentence included (KenLM; Heafield 2011), or 1 without one. Words
are those of the lexicon, which may hold several of one spelling, and, so that the vocabulary stays open, those of the
greedy text of the same utterance, in its own pieces: a word that the language model does not know has the probability
of its <unk>. Words of boosted phrases are charged no unknown_score.

The words of a character model end with a space or with the utterance. Those of a sub-word model are spelt as its
tokenizer spells them and end with their last piece: flashlight completes a word in the first frame of that piece or,
where the piece lasts longer, in the blank that follows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetuning.config.schema import resolve_path
from finetuning.decoding.boosting import MAX_WEIGHT, Phrase, check_phrases
from finetuning.decoding.greedy import ctc_collapse, greedy_path, word_tokens
from finetuning.errors import UserError
from finetuning.language_model.kenlm import UNKNOWN, find_language_model, load_kenlm
from finetuning.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from flashlight.lib.text.decoder import Trie

    from finetuning.decoding.boosted_lm import BoostedLM

BEAM_THRESHOLD = 25.0  # a hypothesis this much worse than the best of its frame is dropped
MAX_TOKENS = 16  # tokens tried in a frame, the most probable ones
MAX_HOMOGRAPHS = 6  # words of one spelling, as many as flashlight's trie holds
ENDING, NEVER, COPIES = 1, 2, 3  # where a search's own columns begin, counted from the blank's
NEARBY = 20  # hypotheses whose words are searched again together with unknown words


@dataclass(frozen=True)
class Settings:
    """The settings that are tuned on the validation set."""

    lm_weight: float = 2.0  # of log10 p(words)
    word_score: float = 0.0  # for each word; above 0 there are more and shorter words
    unknown_score: float = -5.0  # for each word unknown to the language model
    beam: int = 50  # hypotheses after each frame


WITHOUT_LM = Settings(lm_weight=0.0, word_score=0.0, unknown_score=0.0)  # the greedy text, but for boosted phrases


class BeamSearch:
    """The beam search with one language model, or none, for the vocabulary of one acoustic model."""

    def __init__(
        self, arpa: Path | None, lexicon: Mapping[str, str], vocabulary: Vocabulary, phrases: Sequence[Phrase] = ()
    ) -> None:
        """Load the language model `arpa`, ARPA or KenLM's binary; `lexicon`: its words and the spelling of each.

        Words that the `vocabulary` cannot spell are left out. Of one spelling up to MAX_HOMOGRAPHS words are tried, the
        most probable ones. `phrases` are boosted. Raise UserError when KenLM cannot read the file, when no word can be
        spelt, or when the model writes no spaces.
        """
        self.vocabulary, self.blank, self.phrases = vocabulary, len(vocabulary), {each.text: each for each in phrases}
        self.known: dict[str, list[tuple[int, float]]] = {}  # numbers and scores of the words of each spelling
        check_phrases(phrases, vocabulary)
        if arpa:
            self._load(arpa, lexicon)
        else:
            self._load_nothing()

    def _load(self, arpa: Path, lexicon: Mapping[str, str]) -> None:
        """Load a language model, and make the trie of all of its words."""
        vocabulary = self.vocabulary
        if " " not in vocabulary.characters:
            raise UserError(
                "this model writes no spaces, which a language model of words needs; type evaluation.decoder=greedy"
            )
        written = vocabulary.characters - {" "}
        spellings = {w: s for w, s in lexicon.items() if w and s and set(s) <= written}
        if not spellings:
            raise UserError(f"the model can spell no word of {arpa}; make it with the alphabet of this configuration")
        self.lm, self.dictionary = load_kenlm(arpa, spellings)
        self.start = self.lm.start(False)
        for word, spelling in spellings.items():
            number = self.dictionary.get_index(word)
            self.known.setdefault(spelling, []).append((number, self.lm.score(self.start, number)[1]))
        self.trie, _ = self._make_trie([(spelling, vocabulary.encode(spelling)) for spelling in self.known], {})

    def _load_nothing(self) -> None:
        """Take a language model that tells no words apart, and no trie."""
        from flashlight.lib.text.decoder import ZeroLM
        from flashlight.lib.text.dictionary import Dictionary

        self.lm, self.dictionary, self.trie = ZeroLM(), Dictionary(), None
        self.dictionary.add_entry(UNKNOWN)
        self.start = self.lm.start(False)

    def decode(self, log_probs: np.ndarray, settings: Settings) -> np.ndarray:
        """Return the path of the best hypothesis, (T,): the index of a token or the blank for each frame.

        `log_probs`: (T, vocabulary + 1) of one utterance, on which alone the path depends.
        """
        if not len(log_probs):
            return np.zeros(0, dtype=np.int64)
        greedy_words = word_tokens(greedy_path(log_probs), self.vocabulary)
        paths = self._search(self.trie, log_probs, settings, MAX_TOKENS) if self.trie else []
        unknown = {word: tokens for word, tokens in sorted(greedy_words.items()) if word not in self.known}
        heard = [  # in other pieces than the tokenizer's, the first of which begins a word
            (word, tokens)
            for word, tokens in sorted(greedy_words.items())
            if word in self.known
            and tokens != self.vocabulary.encode(word)
            and self.vocabulary[tokens[0]].startswith(" ")
        ]
        if unknown or heard or self.phrases:
            texts = (ctc_collapse(path, self.vocabulary) for path in paths[:NEARBY])
            nearby = {*greedy_words, *(word for text in texts for word in text.split())} & self.known.keys()
            words = [(word, self.vocabulary.encode(word)) for word in sorted(nearby - self.phrases.keys())]
            words += [(word, tokens) for word, tokens in heard if word not in self.phrases]
            boosted = {text: greedy_words.get(text, self.vocabulary.encode(text)) for text in self.phrases}
            lm = self._boosted_lm(settings) if boosted else None
            small, copied = self._make_trie(words, unknown, boosted, lm)
            paths = self._search(small, log_probs, settings, self.blank + COPIES + len(copied), copied, lm)
        return paths[0]

    def text(self, log_probs: np.ndarray, settings: Settings) -> str:
        """Return the text of the best hypothesis; `log_probs`: (T, vocabulary + 1)."""
        return " ".join(ctc_collapse(self.decode(log_probs, settings), self.vocabulary).split())

    def _boosted_lm(self, settings: Settings) -> "BoostedLM":
        """Return the language model that also scores the phrases; the search counts each as one word."""
        from finetuning.decoding.boosted_lm import BoostedLM, Entry

        unknown, entries = [self.dictionary.get_index(UNKNOWN)], []
        for phrase in self.phrases.values():
            numbers = [[number for number, _ in self.known.get(word, ())] or unknown for word in phrase.words]
            bonus = min(len(numbers) * phrase.weight, MAX_WEIGHT) + (len(numbers) - 1) * settings.word_score
            entries.append(Entry(numbers, bonus))
        return BoostedLM(self.lm, settings.lm_weight, entries, self.dictionary.index_size())

    def _make_trie(
        self,
        known: Sequence[tuple[str, Sequence[int]]],
        unknown: Mapping[str, Sequence[int]],
        boosted: Mapping[str, Sequence[int]] | None = None,
        lm: "BoostedLM | None" = None,
    ) -> tuple["Trie", list[int]]:
        """Return a trie of the spellings, with the scores of their words without context, and the tokens copied in it.

        `known`, `unknown`: to the language model, with the tokens of each; `boosted`: all phrases, which `lm` scores.
        One token of an unknown word is replaced by a copy of its own, which `_search` charges unknown_score for: the
        space that ends it, or its first piece.
        """
        from flashlight.lib.text.decoder import SmearingMode, Trie

        unknown_word = self.dictionary.get_index(UNKNOWN)
        unknown_lm_score = self.lm.score(self.start, unknown_word)[1]
        pieces = bool(self.vocabulary.sentencepiece)
        copied = sorted({tokens[0] for tokens in unknown.values()}) if pieces else [self._space]
        trie = Trie(self.blank + COPIES + len(copied), self.blank)
        scale = lm.lm_weight if lm else 1.0
        entries = [(tokens, self.known[spelling], False) for spelling, tokens in known]
        entries += [(tokens, [(unknown_word, unknown_lm_score)], True) for tokens in unknown.values()]
        for tokens, words, is_unknown in entries:
            scored = sorted(((number, scale * score) for number, score in words), key=lambda word: -word[1])
            for path in self._trie_paths(tokens, copied if is_unknown else ()):
                for number, score in scored[:MAX_HOMOGRAPHS]:
                    trie.insert(path, number, score)
        for number, tokens in enumerate((boosted or {}).values(), start=self.dictionary.index_size()):
            for path in self._trie_paths(tokens):
                trie.insert(path, number, lm.score(self.start, number)[1])
        trie.smear(SmearingMode.MAX)
        return trie, copied

    def _trie_paths(self, tokens: Sequence[int], copied: Sequence[int] = ()) -> list[list[int]]:
        """Return the paths of a word in the trie; `copied`: of an unknown word, the tokens that have copies."""
        if not self.vocabulary.sentencepiece:
            return [[*tokens, self.blank + COPIES if copied else self._space]]
        first = self.blank + COPIES + copied.index(tokens[0]) if copied else tokens[0]
        return [[first, *tokens[1:]], [first, *tokens[1:], self.blank + ENDING]]

    @property
    def _space(self) -> int:
        return self.vocabulary.tokens.index(" ")

    def _search(
        self,
        trie: "Trie",
        log_probs: np.ndarray,
        settings: Settings,
        max_tokens: int,
        copied: Sequence[int] = (),
        lm: "BoostedLM | None" = None,
    ) -> list[np.ndarray]:
        """Return paths, (T,), the best first; `copied`: the tokens of which unknown words have copies.

        `lm` takes the place of the language model and its weight.

        The columns after the blank's are that of the blank that ends a word of pieces, one that is never taken, and the
        copies. A frame is appended in which the space or the blank that ends the last word is free. flashlight's own
        unknown_score would apply to any beginning of a word in the trie, without a space behind it, so it is off.
        """
        from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions

        frames, blank, pieces = len(log_probs), self.blank, bool(self.vocabulary.sentencepiece)
        copied = copied or ([] if pieces else [self._space])
        padded = np.full((frames + 1, blank + COPIES + len(copied)), -math.inf, dtype=np.float32)
        padded[:frames, : blank + 1] = log_probs
        padded[frames, blank if pieces else self._space] = 0.0
        if pieces:
            padded[:, blank + ENDING] = padded[:, blank]
        padded[:, blank + COPIES :] = padded[:, copied] + settings.unknown_score
        padded = np.maximum(padded, -1e4)
        options = LexiconDecoderOptions(
            settings.beam, min(max_tokens, padded.shape[1]), BEAM_THRESHOLD, 1.0 if lm else settings.lm_weight,
            settings.word_score, -math.inf, 0.0, False, CriterionType.CTC,
        )  # fmt: skip
        unknown, between_words = self.dictionary.get_index(UNKNOWN), blank + NEVER if pieces else self._space
        decoder = LexiconDecoder(options, trie, lm or self.lm, between_words, blank, unknown, [], False)
        tokens = np.array([*range(blank + 1), blank, blank, *copied])  # of each column
        return [tokens[result.tokens[1 : frames + 1]] for result in decoder.decode(padded.ctypes.data, *padded.shape)]


def load_beam_search(
    output: str, config_file: str, vocabulary: Vocabulary, hashes: Mapping[str, str], phrases: Sequence[Phrase] = ()
) -> BeamSearch:
    """Return the beam search with the language model of these `hashes`, for a model with this `vocabulary`.

    Raise UserError when there is another language model, also when it was replaced while it was read.
    """
    path, lexicon, _ = find_language_model(output, config_file)
    search = BeamSearch(path, lexicon, vocabulary, phrases)
    *_, hashes_after = find_language_model(output, config_file)
    if hashes_after.items() - hashes.items():
        raise UserError(f"the language model in {resolve_path(output)} was replaced meanwhile; rerun the same command")
    return search
