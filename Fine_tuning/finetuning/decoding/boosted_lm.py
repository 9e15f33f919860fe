"""A language model of flashlight's that also scores boosted phrases; imported only where flashlight is installed.

A phrase is one entry of the search's trie, whose words the language model scores one by one. Its weight counts from its
first token on, and is lost again where the rest of the phrase is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flashlight.lib.text.decoder import LM, LMState


@dataclass(frozen=True)
class Entry:
    """A phrase as the language model knows it."""

    words: Sequence[Sequence[int]]  # of each word its numbers, of which the most probable one counts
    bonus: float  # nats


class BoostedLM(LM):
    """A language model times its weight, in nats, and phrases, which are numbered after its words."""

    def __init__(self, lm: LM, lm_weight: float, entries: Sequence[Entry], first: int) -> None:
        """Take the number of the `first` of the `entries`; those below are of words."""
        super().__init__()
        self.lm, self.lm_weight, self.entries, self.first = lm, lm_weight, entries, first

    def start(self, start_with_nothing: bool) -> LMState:
        """Return the state at the beginning of a sentence."""
        return self.lm.start(start_with_nothing)

    def score(self, state: LMState, number: int) -> tuple[LMState, float]:
        """Return the state after a word or a phrase, and its score."""
        if number < self.first:
            state, score = self.lm.score(state, number)
            return state, self.lm_weight * score
        entry, total = self.entries[number - self.first], 0.0
        for numbers in entry.words:
            state, score = max((self.lm.score(state, each) for each in numbers), key=lambda scored: scored[1])
            total += score
        return state, self.lm_weight * total + entry.bonus

    def finish(self, state: LMState) -> tuple[LMState, float]:
        """Return the state after the end of the sentence, and its score."""
        state, score = self.lm.finish(state)
        return state, self.lm_weight * score
