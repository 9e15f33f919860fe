"""Boosted words and phrases: their file, and what weight turns a hypothesis, worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from test_beam_search import LETTERS, frames, language_model, pieces

from conftest import shipped
from finetuning.decoding import boosting
from finetuning.decoding.beam_search import WITHOUT_LM, BeamSearch, Settings
from finetuning.decoding.boosting import Phrase
from finetuning.decoding.greedy import greedy_decode
from finetuning.errors import UserError
from finetuning.model.vocabulary import Vocabulary

GAP = math.log((0.5 + 0.1 / 31) / (0.4 + 0.1 / 31))  # nats between the two letters of a frame that `frames` leaves open
ZUPPE = frames("la zup_pe e rosa", {6: "o", 8: "a", 10: "è"})  # 6 is the blank, nothing is open there


def test_a_file_holds_phrases_with_or_without_weights_normalised_by_the_rules(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffPerché no?\t4.5\r\n\nBinario sette\nL’ora\t\nl'ora\n", encoding="utf-8")
    phrases = boosting.read_phrases(tmp_path / "words.txt", shipped("demo").text)
    assert phrases == [Phrase("binario sette"), Phrase("l'ora"), Phrase("perché no", 4.5)]
    heavier = [*phrases[:2], Phrase("perché no", 5)]
    assert boosting.fingerprint(phrases) == boosting.fingerprint(phrases[:]) != boosting.fingerprint(heavier)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"cannot read the words to boost in .*words.txt \(.*No such file"),
        (b"citt\xe0\n", "cannot read the words to boost .* in UTF-8"),
        (b" \n\n", "words.txt holds no word to boost; write one a line"),
        (b"casa\theavy\n", "line 1: 'heavy' is no weight; after the tab, write a number above 0 and at most 20, or n"),
        (b"casa\n\ncosa\t0\n", "line 3: '0' is no weight"),
        (b"casa\tnan\n", "'nan' is no weight"),
        (b"casa\t20.5\n", "'20.5' is no weight"),
        (b"casa\t1\t2\n", "is no weight"),
        ("caжa\n".encode(), r"line 1: 'caжa' holds ж, outside text.alphabet, after the rules for texts"),
        (b"casa\n!?\n", r"line 2: '!\?' is empty after the rules for texts; change or remove it"),
        (b"casa\t2\nCasa\t3\n", "line 2: 'casa' has another weight above"),
    ],
)
def test_a_line_that_is_no_phrase_is_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        boosting.read_phrases(tmp_path / "words.txt", shipped("demo").text)
    assert "\n" not in str(refused.value)


def test_a_model_that_cannot_write_a_phrase_is_named_its_letters() -> None:
    with pytest.raises(UserError, match="cannot write à of 'la città'; remove it from the words to boost"):
        BeamSearch(None, {}, Vocabulary.of_characters(" abcdefghijklmnopqrstuvwxyz"), [Phrase("la città")])
    with pytest.raises(UserError, match=r"writes no spaces.* leave evaluation.boost or --boost out"):
        BeamSearch(None, {}, Vocabulary.of_characters("ab"), [Phrase("ab")])


def test_a_letter_that_only_the_model_knows_is_not_transliterated_in_silence(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Malmö\nmalmo\nKøge\nL’été\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 3: 'Køge' holds ø"):
        boosting.read_phrases(tmp_path / "words.txt", shipped("demo").text)
    (tmp_path / "words.txt").write_text("Malmö\nmalmo\nL’été\n", encoding="utf-8")
    phrases = boosting.read_phrases(tmp_path / "words.txt", shipped("demo").text)
    assert [(phrase.text, phrase.replaced) for phrase in phrases] == [("l'été", ""), ("malmo", "ö")]
    italian, swedish = (Vocabulary.of_characters(" 'abcdefghijklmnopqrstuvwxyzé" + more) for more in ("", "åäö"))
    BeamSearch(None, {}, italian, phrases)
    with pytest.raises(UserError, match=r"'malmo' was listed with ö, which .* after --config, or list it as 'malmo'"):
        BeamSearch(None, {}, swedish, phrases)


@pytest.mark.parametrize(
    ("phrase", "gaps", "text"),
    [
        ("zuppa", 1, "la zuppa e rosa"),
        ("zuppa è", 2, "la zuppa è rosa"),
        ("la zuppa è rosa", 2, "la zuppa è rosa"),
        ("rosa", 0, "la zuppe e rosa"),
    ],
)
@pytest.mark.parametrize("with_lm", [False, True])
def test_a_phrase_is_written_where_its_weights_make_up_for_the_acoustics(
    tmp_path: Path, phrase: str, gaps: int, text: str, with_lm: bool
) -> None:
    """In the language model the words of both readings are unknown, and equally improbable."""
    greedy = greedy_decode(ZUPPE, LETTERS)
    assert greedy == "la zuppe e rosa"
    sentences = [["la", "palla"], ["una", "casa"]] * 2
    given = language_model(tmp_path, sentences)[:2] if with_lm else (None, {})
    settings = Settings(lm_weight=2.0, word_score=1.3, unknown_score=0.0) if with_lm else WITHOUT_LM
    needed = gaps * GAP / len(phrase.split())
    for weight, expected in ((needed - 0.01, greedy), (needed + 0.01, text)):
        if weight > 0:
            search = BeamSearch(*given, LETTERS, [Phrase(phrase, weight), Phrase("gatto", 0.01)])
            assert search.text(ZUPPE, settings) == expected, weight


def test_a_phrase_that_is_not_finished_counts_nothing() -> None:
    search = BeamSearch(None, {}, LETTERS, [Phrase("zuppa verde", 5.0)])
    assert search.text(ZUPPE, WITHOUT_LM) == "la zuppe e rosa"
    assert search.text(frames("____"), WITHOUT_LM) == search.text(frames(""), WITHOUT_LM) == ""


def test_a_long_phrase_does_not_push_out_what_is_said() -> None:
    phrase = Phrase("la zuppa verde e rosa della nonna di una casa bianca", 20.0)
    search = BeamSearch(None, {}, LETTERS, [phrase])
    for said in ("la casa è rossa", "la zuppa è verde", "una cosa"):
        assert search.text(frames(said.replace("ss", "s_s").replace("pp", "p_p")), WITHOUT_LM) == said


def test_known_words_of_a_phrase_are_scored_by_the_language_model_one_by_one(tmp_path: Path) -> None:
    """Both readings are of known words; the weight that turns them is the difference of the module's formula."""
    from finetuning.language_model import kneser_ney

    path, words, model = language_model(tmp_path)
    heard, settings = frames("una casa ros_sa", {5: "o"}), Settings(lm_weight=1.5, word_score=0.7)

    def log10_p(text: str) -> float:
        told = ["<s>", *text.split(), "</s>"]
        return sum(kneser_ney.log_probability(model, told[:at], told[at]) for at in range(1, len(told)))

    needed = GAP + settings.lm_weight * (log10_p("una casa rossa") - log10_p("una cosa rossa"))
    assert needed > 0.1
    for phrase, share in (("cosa", 1), ("cosa rossa", 2)):
        for weight, text in ((needed - 0.01, "una casa rossa"), (needed + 0.01, "una cosa rossa")):
            search = BeamSearch(path, words, LETTERS, [Phrase(phrase, weight / share)])
            assert search.text(heard, settings) == text, (phrase, weight)


@pytest.mark.parametrize("with_lm", [False, True])
def test_words_of_a_model_of_pieces_are_boosted_as_its_tokenizer_spells_them(tmp_path: Path, with_lm: bool) -> None:
    """Of two words that the language model does not know, " a" is more probable than " ab"; "ba" is clear."""
    vocabulary = pieces()
    blank = len(vocabulary)
    path = [*vocabulary.encode("a"), blank, *vocabulary.encode("ba"), blank]
    log_probs = np.full((len(path), blank + 1), math.log(0.01))
    log_probs[range(len(path)), path] = math.log(0.5)
    log_probs[0, vocabulary.encode("ab")] = math.log(0.4)
    given = language_model(tmp_path, [["ba", "ba"], ["bab", "ba"]] * 2)[:2] if with_lm else (None, {})
    settings = Settings(2.0, 1.3, 0.0) if with_lm else WITHOUT_LM
    for phrase in ("ab", "ab ba"):
        needed = math.log(0.5 / 0.4) / len(phrase.split())
        for weight, text in ((needed - 0.01, "a ba"), (needed + 0.01, "ab ba")):
            assert BeamSearch(*given, vocabulary, [Phrase(phrase, weight)]).text(log_probs, settings) == text
