"""Beam search with small language models: over log-probabilities made by hand, and against trying every path."""

import math
from collections.abc import Collection, Sequence
from io import BytesIO
from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest

from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.greedy import ctc_collapse, greedy_decode, greedy_path, word_tokens
from finetuning.errors import UserError
from finetuning.language_model import arpa, kneser_ney
from finetuning.language_model.kenlm import load_kenlm
from finetuning.language_model.kneser_ney import NgramModel
from finetuning.model.vocabulary import Vocabulary

LETTERS = Vocabulary.of_characters(" abcdefghijklmnopqrstuvwxyzàèù")  # the blank, written _ below, comes after them
SENTENCES = [
    text.split()
    for text in ("la casa è rossa", "la cosa è chiara", "una casa rossa", "la palla è rossa", "il gatto e la palla")
] * 2
ACOUSTICS_ALONE = Settings(lm_weight=0, word_score=0, unknown_score=0)


def frames(path: str, instead: dict[int, str] | None = None) -> np.ndarray:
    """Log-probabilities whose best path is `path`, a character a frame; `instead`: nearly as probable in that frame."""
    columns = [*LETTERS, "_"]
    probabilities = np.full((len(path), len(columns)), 0.1 / len(columns))
    for number, character in enumerate(path):
        other = (instead or {}).get(number, character)
        probabilities[number, columns.index(character)] += 0.5
        probabilities[number, columns.index(other)] += 0.4
    return np.log(probabilities)


def language_model(
    folder: Path, sentences: Sequence[Sequence[str]] = SENTENCES, order: int = 2
) -> tuple[Path, dict[str, str], NgramModel]:
    """An ARPA file of these sentences, its words with their spelling, and the same model in memory."""
    made = kneser_ney.estimate_model(sentences, order)
    arpa.write_arpa(folder / "lm.arpa", made)
    return folder / "lm.arpa", {word: word for word in made.words[len(kneser_ney.SPECIAL) :]}, made


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> BeamSearch:
    path, words, _ = language_model(tmp_path_factory.mktemp("lm"))
    return BeamSearch(path, words, LETTERS)


@pytest.mark.parametrize(
    ("path", "instead", "heard", "text"),
    [
        ("una cosa ros_sa", {5: "a"}, "una cosa rossa", "una casa rossa"),
        ("la casa è chiara", {4: "o"}, "la casa è chiara", "la cosa è chiara"),
        ("il gattto", {6: "_"}, "il gato", "il gatto"),  # a letter that is not doubled
        ("la palla è rossa", {6: "_", 13: "_"}, "la pala è rosa", "la pala è rosa"),  # l or blank, but no second l
        ("la pal_la e ros_sa", {10: "è"}, "la palla e rossa", "la palla è rossa"),
        ("la casaè ros_sa", {7: " "}, "la casaè rossa", "la casa rossa"),  # no frame is left for the è
        ("la casa_è ros_sa", {7: " "}, "la casaè rossa", "la casa è rossa"),
    ],
)  # fmt: skip
def test_the_context_decides_what_the_acoustics_leave_open(
    search: BeamSearch, path: str, instead: dict[int, str], heard: str, text: str
) -> None:
    assert greedy_decode(frames(path, instead), LETTERS) == heard
    assert search.text(frames(path, instead), Settings()) == text


@pytest.mark.parametrize(
    "path",
    [
        "la_ pal_la__ è ros_s_aa",
        "la_ pal_la",  # ends without a space
        "  la__  pal_la _ ",
        "gat_to",
        "a",
        "zuu _u b ca",  # words that the lexicon lacks, beginnings of words that it has
        "la zuz_za è ros_sa ù",
        "____",
        " _ ",
        "",
    ],
)
def test_where_only_the_acoustics_count_it_is_the_greedy_text(search: BeamSearch, path: str) -> None:
    text = " ".join(greedy_decode(frames(path), LETTERS).split())
    assert search.text(frames(path), ACOUSTICS_ALONE) == text
    decoded = search.decode(frames(path), ACOUSTICS_ALONE)
    assert decoded.shape == (len(path),) and all(0 <= index <= len(LETTERS) for index in decoded)


def test_a_word_that_the_lexicon_lacks_is_written_where_it_is_clear_and_not_too_dear(search: BeamSearch) -> None:
    spoken = frames("la zup_pa è ros_sa")
    assert search.text(spoken, Settings()) == "la zuppa è rossa"
    words = search.text(spoken, Settings(unknown_score=-1000)).split()
    assert words[0] == "la" and words[-2:] == ["è", "rossa"]
    assert set(words) <= set(search.known), "and no beginning of a known word either"


@pytest.mark.parametrize("path", ["zup_pa la casa", "la zup_pa casa", "una zup_pa è la casa ros_sa"])
def test_beside_an_unknown_word_the_known_ones_that_are_clear_stay(search: BeamSearch, path: str) -> None:
    """Also where the beam is so narrow that the search without the unknown word has lost them."""
    assert search.text(frames(path), Settings(beam=1)) == greedy_decode(frames(path), LETTERS)


def test_a_text_does_not_depend_on_what_was_decoded_before(search: BeamSearch, tmp_path: Path) -> None:
    spoken = [
        frames("la zup_pa è ros_sa"),
        frames("una cosa ros_sa", {5: "a"}),
        frames("zup_pe", {5: "a"}),  # zuppa is not in its best path
        frames(""),
        *np.log(np.random.default_rng(0).dirichlet(np.full(len(LETTERS) + 1, 0.1), (20, 15)) + 1e-9),
    ]
    path, words, _ = language_model(tmp_path)
    alone = [BeamSearch(path, words, LETTERS).text(own, Settings()) for own in spoken]
    assert alone[:4] == ["la zuppa è rossa", "una casa rossa", "zuppe", ""]
    assert [search.text(own, Settings()) for own in reversed(spoken)] == alone[::-1]
    assert [search.text(own, Settings()) for own in spoken] == alone


TINY = [sentence.split() for sentence in ("a ab", "ab ba", "ab ab a", "ba a", "bab ab")]


def best_of_all_paths(
    log_probabilities: np.ndarray, model: NgramModel, words: Collection[str], settings: Settings
) -> tuple[str, float]:
    """The text that the module's formula gives the highest score, over all paths; and by how much it is ahead."""
    acoustic: dict[tuple[str, ...], float] = {}
    for path in product(range(4), repeat=len(log_probabilities)):
        letters = "".join("ab _"[index] for index, _ in groupby(path)).replace("_", "")
        score = sum(frame[index] for frame, index in zip(log_probabilities, path, strict=True))
        text = tuple(letters.split())
        if set(text) <= set(words):
            acoustic[text] = max(score, acoustic.get(text, -math.inf))
    scores = {}
    for text, score in acoustic.items():
        told = ["<s>", *text, "</s>"]
        p = sum(kneser_ney.log_probability(model, told[:number], told[number]) for number in range(1, len(told)))
        unknown = sum(word not in model.words for word in text)
        total = settings.lm_weight * p + settings.word_score * len(text) + settings.unknown_score * unknown
        scores[" ".join(text)] = score + total
    first, second = sorted(scores.values(), reverse=True)[:2]
    return max(scores, key=scores.__getitem__), first - second


@pytest.mark.parametrize(
    ("order", "settings", "open_"),
    [
        (2, Settings(1.0, 0.0, -3.0, 1000), False),
        (3, Settings(2.0, 2.5, 2.0, 1000), True),
        (3, Settings(0.5, -1.5, 1.0, 1000), True),
        (2, Settings(1.5, 4.0, -6.0, 1000), False),
    ],
)
@pytest.mark.slow
def test_it_finds_the_best_of_all_paths(tmp_path: Path, order: int, settings: Settings, open_: bool) -> None:
    """`open_`: whether words that the lexicon lacks are among the texts."""
    path, words, model = language_model(tmp_path, TINY, order)
    search = BeamSearch(path, words, Vocabulary.of_characters("ab "))
    found, unknown, ahead = set(), 0, []
    for seed in range(25):
        values = np.random.default_rng(seed).normal(0, 2, (6, 4))
        spoken = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        clear = set(greedy_decode(spoken, Vocabulary.of_characters("ab ")).split())
        text, by = best_of_all_paths(spoken, model, clear | set(words), settings)
        ahead.append(by)
        assert search.text(spoken, settings) == text, f"seed {seed}"
        found.add(text)
        unknown += not set(text.split()) <= set(words)
    assert len(found) > 5, "the test would pass on a search that always says the same"
    assert min(ahead) > 1e-6, "no tie"
    assert (unknown > 0) == open_


def pieces() -> Vocabulary:
    """<unk>, the space, a, b, ab and others with a space before them."""
    from sentencepiece import SentencePieceTrainer

    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words) for words in TINY] * 20), model_writer=model, vocab_size=6,
        hard_vocab_limit=False, bos_id=-1, eos_id=-1, minloglevel=2,
    )  # fmt: skip
    return Vocabulary.of_pieces(model.getvalue())


def best_of_all_paths_in_pieces(
    log_probs: np.ndarray, model: NgramModel, spelt: dict[str, list[list[int]]], settings: Settings,
    vocabulary: Vocabulary,
) -> tuple[str, float]:  # fmt: skip
    """As best_of_all_paths, of words spelt in pieces; the last piece of a word lasts a frame, or a blank follows."""
    blank, acoustic = len(vocabulary), {}
    for path in product(range(blank + 1), repeat=len(log_probs)):
        text, tokens = ctc_collapse(np.array(path), vocabulary), word_tokens(np.array(path), vocabulary)
        if any(tokens[word] not in spelt.get(word, ()) for word in text.split()) or text != " ".join(text.split()):
            continue
        runs, ends = [(token, len([*run])) for token, run in groupby(path)], True
        for (token, length), (after, _) in zip(runs, [*runs[1:], (blank, 1)], strict=True):
            following = next((t for t, _ in runs[runs.index((token, length)) + 1 :] if t != blank), None)
            is_last = following is None or vocabulary[following].startswith(" ")
            ends &= token == blank or length == 1 or after == blank or not is_last
        if ends and sum(map(len, map(tokens.get, text.split()))) == sum(token != blank for token, _ in runs):
            score = sum(frame[index] for frame, index in zip(log_probs, path, strict=True))
            acoustic[text] = max(score, acoustic.get(text, -math.inf))
    scores = {}
    for text, score in acoustic.items():
        said = ["<s>", *text.split(), "</s>"]
        p = sum(kneser_ney.log_probability(model, said[:number], said[number]) for number in range(1, len(said)))
        unknown = sum(word not in model.words for word in said[1:-1])
        total = settings.lm_weight * p + settings.word_score * (len(said) - 2) + settings.unknown_score * unknown
        scores[text] = score + total
    first, second = sorted(scores.values(), reverse=True)[:2]
    return max(scores, key=scores.__getitem__), first - second


@pytest.mark.parametrize(
    "settings", [Settings(1.0, 0.0, -3.0, 1000), Settings(2.0, 2.5, -1.0, 1000), Settings(0.5, -1.5, -0.5, 1000)]
)
@pytest.mark.slow
def test_it_finds_the_best_of_all_paths_in_pieces(tmp_path: Path, settings: Settings) -> None:
    vocabulary = pieces()
    path, words, model = language_model(tmp_path, TINY, 2)
    search, found = BeamSearch(path, words, vocabulary), set()
    for seed in range(8):
        values = np.random.default_rng(seed).normal(0, 2, (4, len(vocabulary) + 1))
        values[:, 0] = -50  # <unk>
        spoken = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        spelt = {word: [vocabulary.encode(word)] for word in words}
        for word, tokens in word_tokens(greedy_path(spoken), vocabulary).items():
            if word not in words or vocabulary[tokens[0]].startswith(" "):
                spelt.setdefault(word, []).append(tokens)  # a known word is also heard as the greedy text has it
        text, by = best_of_all_paths_in_pieces(spoken, model, spelt, settings, vocabulary)
        assert by > 1e-6, "no tie"
        assert search.text(spoken, settings) == text, f"seed {seed}"
        found.add(text)
    assert len(found) > 3, "the test would pass on a search that always says the same"


def test_a_known_word_is_heard_in_other_pieces_than_the_tokenizers(tmp_path: Path) -> None:
    vocabulary = pieces()
    path, words, _ = language_model(tmp_path, TINY, 2)
    heard = [vocabulary.tokens.index(piece) for piece in (" a", "b", " ", "b", "a")]
    assert vocabulary.encode("ab") == [vocabulary.tokens.index(" ab")]
    log_probs = np.full((len(heard), len(vocabulary) + 1), -12.0)
    log_probs[range(len(heard)), heard] = -0.01
    assert greedy_decode(log_probs, vocabulary) == "ab ba"
    assert BeamSearch(path, words, vocabulary).text(log_probs, Settings(2.0, 0.0, -3.0)) == "ab ba"


def test_words_with_letters_that_the_model_lacks_are_left_out(tmp_path: Path) -> None:
    path, words, _ = language_model(tmp_path)
    search = BeamSearch(path, words, Vocabulary.of_characters(" abcdefghijklmnopqrstuvwxyz"))
    assert set(words) - set(search.known) == {"è"}
    english = np.delete(frames("la casa è ros_sa"), [LETTERS.index(letter) for letter in "àèù"], axis=1)
    assert search.text(english, Settings(unknown_score=-1000)) == "la casa rossa"


def test_a_word_is_written_as_it_is_spelt_and_two_of_one_spelling_are_both_heard(tmp_path: Path) -> None:
    """Roma stands behind a, roma behind la; rosa is as frequent as both: without one of the two it would win there."""
    given = [text.split() for text in ("a Roma", "la roma", "una rosa", "una rosa", "la citta\u0300")] * 3
    path, words, model = language_model(tmp_path, given, 3)
    lexicon = words | {"Roma": "roma", "citta\u0300": "città"}
    search = BeamSearch(path, lexicon, Vocabulary.of_characters(" abcdefghijklmnopqrstuvwxyzàèù"))
    spoken = [("a rosa", {4: "m"}, "a roma"), ("la rosa", {5: "m"}, "la roma"), ("una roma", {6: "s"}, "una rosa")]
    for heard, instead, text in [*spoken, ("la cit_ta", {8: "à"}, "la città")]:
        assert search.text(frames(heard, instead), Settings()) == text
    for left_out, heard in (("Roma", 0), ("roma", 1)):
        poorer = BeamSearch(path, {word: lexicon[word] for word in lexicon if word != left_out}, LETTERS)
        assert poorer.text(frames(*spoken[heard][:2]), Settings()) != spoken[heard][2]
    assert kneser_ney.log_probability(model, ["<s>", "a"], "Roma") > kneser_ney.log_probability(
        model, ["<s>", "a"], "roma"
    )


def test_of_many_words_of_one_spelling_the_most_probable_ones_are_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    same = ["casa", "Casa", "CASA", "caSa", "cAsa", "casA", "CaSa", "CAsa", "CASa"]
    path, words, _ = language_model(tmp_path, [["la", word] for n, word in enumerate(same) for _ in range(n + 1)])
    search = BeamSearch(path, {word: word.lower() for word in words}, LETTERS)
    assert len(search.known["casa"]) == 9 and search.text(frames("la casa"), Settings()) == "la casa"
    assert capfd.readouterr() == ("", ""), "flashlight says where its limit is passed"


def test_models_that_cannot_write_its_words_are_refused(tmp_path: Path) -> None:
    path, words, _ = language_model(tmp_path)
    with pytest.raises(UserError, match=r"writes no spaces.* evaluation.decoder=greedy"):
        BeamSearch(path, words, Vocabulary.of_characters("abc"))
    with pytest.raises(UserError, match=r"can spell no word of .*lm.arpa; make it with the alphabet"):
        BeamSearch(path, words, Vocabulary.of_characters(" абв"))


def damaged(path: Path, damage: str) -> None:
    text = path.read_text(encoding="utf-8")
    if damage == "cut short":
        path.write_text(text[: len(text) // 2], encoding="utf-8")
    elif damage == "empty":
        path.write_text("")
    elif damage.startswith("order"):
        language_model(path.parent, [Vocabulary.of_characters("abcdefgh")] * 3, int(damage.split()[1]))
    else:
        path.unlink()


@pytest.mark.parametrize("damage", ["cut short", "empty", "order 7", "order 1", "gone"])
def test_what_kenlm_cannot_read_is_one_sentence(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, words, _ = language_model(tmp_path)
    damaged(path, damage)
    with pytest.raises(UserError, match=r"KenLM cannot read .*lm.arpa \(.+\); make it again") as refused:
        BeamSearch(path, words | {letter: letter for letter in "abc"}, LETTERS)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", ""), "KenLM's own progress bar"


def test_kenlm_says_what_the_arpa_file_does(tmp_path: Path) -> None:
    """Also of a word that is in neither, which is <unk>."""
    path, words, model = language_model(tmp_path, order=3)
    lm, dictionary = load_kenlm(path, words)
    for text in ("la casa è rossa", "il gatto è una palla", "la zuppa è rossa", ""):
        state, told = lm.start(False), ["<s>"]
        for word in text.split():
            state, score = lm.score(state, dictionary.get_index(word if word in words else "<unk>"))
            assert score == pytest.approx(kneser_ney.log_probability(model, told, word), abs=1e-5)
            told.append(word)
        assert lm.finish(state)[1] == pytest.approx(kneser_ney.log_probability(model, told, "</s>"), abs=1e-5)
