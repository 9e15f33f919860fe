"""The shipped languages: sentences with texts worked out by hand, and what holds for any sentence whatever."""

import dataclasses
import json
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, Script, assert_refused, shipped
from finetuning.config.schema import Config, Foreign
from finetuning.data.listing import Clip, RejectedRow
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from finetuning.data.row_filters import ForeignCharacter, filter_by_text
from finetuning.data.text_normalization import NUMBER_WORDS, TRANSLITERATION, Language
from finetuning.errors import UserError
from finetuning.export import model_card
from releases import good_rows, release_files, sample_files, write_folder

CODES = {
    "italian": "it",
    "spanish": "es",
    "french": "fr",
    "german": "de",
    "portuguese": "pt",
    "russian": "ru",
    "turkish": "tr",
    "catalan": "ca",
    "polish": "pl",
    "ukrainian": "uk",
    "welsh": "cy",
}
SHIPPED = {*CODES, "demo", "demo_domain", "demo_english"}  # what their rules have made they leave as it is
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
CONFIGS = {name: shipped(name) for name in NAMES}
LANGUAGES = {name: Language.of(config.text) for name, config in CONFIGS.items()}
CYRILLIC = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"

TEXTS = {
    "italian": {
        "Perché l’università è così lontana?": "perché l'università è così lontana",
        "«C'è un po’ di caffè», disse Zoë.": "c'è un po' di caffè disse zoe",
        "Gli anni ’60: “bellissimi”…": None,
        "Il Málaga e l’Škoda di François": "il malaga e l'skoda di francois",
    },
    "spanish": {
        "¿Dónde está el baño, señor?": "dónde está el baño señor",
        "¡Vergüenza! —gritó Íñigo—. ¡Adiós!": "vergüenza gritó íñigo adiós",
        "El “Niño” y la «Niña»; Bernardo O’Higgins.": "el niño y la niña bernardo o'higgins",
        "El alcalde de Curaçao": None,
    },
    "french": {
        "Qu’est-ce que c’est ? L’œuf d’Æthelred !": "qu'est ce que c'est l'oeuf d'aethelred",
        "« Où est l'Haÿ-les-Roses ? » dit-il à Noël.": "où est l'haÿ les roses dit il à noël",
        "Les “élèves” ont reçu, hélas, l‘aïeule…": "les élèves ont reçu hélas l'aïeule",
        "Il dit 'oui' « non » à l’« Auberge »": "il dit oui non à l'auberge",
        "São Paulo": None,
    },
    "german": {
        "„Grüß Gott!“, sagte die Ärztin Österreichs.": "grüß gott sagte die ärztin österreichs",
        "Hast du’s eilig? – Nö, ’s geht so.": "hast dus eilig nö s geht so",
        "Die E-Mail von »Weißmüller & Söhne«": None,
        "WEIẞE MÄUSE; Nord-/Südkorea (geteilt)": "weiße mäuse nord südkorea geteilt",
    },
    "portuguese": {
        "Não, João: às três põem-se os pães!": "não joão às três põem se os pães",
        "“Você é avó?”, perguntou o avô à mãe…": "você é avó perguntou o avô à mãe",
        "Santa Bárbara d’Oeste — coração de açúcar": "santa bárbara d oeste coração de açúcar",
        "O señor": None,
    },
    "russian": {
        "Ёжик спросил: «Где моё варенье?»": "ёжик спросил где моё варенье",
        "Кто-нибудь, во\u0301время откро\u0301йте дверь — пожалуйста…": "кто нибудь вовремя откройте дверь пожалуйста",
        "„Объявление“ об отъезде (срочно!)": "объявление об отъезде срочно",
        "Мой iPhone": None,
    },
    "turkish": {
        "“Iğdır’ın İncesu köyü nerede?”": "ığdırın incesu köyü nerede",
        "KIŞIN ÇOCUKLAR ÜŞÜDÜ — Hâlâ soğuk!": "kışın çocuklar üşüdü hala soğuk",
        "Gül-ü rana (şiir)": "gül ü rana şiir",
        "Windows kullanıyorum": None,
    },
    "catalan": {
        "L’home s’estimava l'aŀlot d’“Il·lusions”…": "l'home s'estimava l'al·lot d'il·lusions",
        "—Què fas? —va dir-li l''amic, l`any passat.": "què fas va dir li l'amic l'any passat",
        "El ‘COL•LEGI’ de la plaça; l'òpera 'Güell'": "el col·legi de la plaça l'òpera güell",
        "Les cel.les · Els pingüins d'«Avui»": "les cel·les els pingüins d'avui",
        "Això és el final.Lluny, IL.LÍCIT i b.o.l.l.": "això és el final lluny il·lícit i b o l l",
        "Begoña": None,
    },
    "polish": {
        "„Zażółć gęślą jaźń” – powiedział Łukasz.": "zażółć gęślą jaźń powiedział łukasz",
        "Książka Kennedy’ego; ‚północno-zachodni’ wiatr…": "książka kennedyego północno zachodni wiatr",
        '»Ćma« i "żółw" (śpi)': "ćma i żółw śpi",
        "Xawery i Violetta": None,
    },
    "ukrainian": {
        "П’ять об'єктів, сімʼя й подвір`я": "п'ять об'єктів сім'я й подвір'я",
        "«Ґанок» — це за\u0301мок чи замо\u0301к? Її\u0301 ‘дім’!": "ґанок це замок чи замок її дім",
        "Невже вiн i вона — у КИЄВI, з ïхнiх iсторiй, ïï мрiï…": "невже він і вона у києві з їхніх історій її мрії",
        'I все-таки, на здоров"я!': "і все таки на здоров'я",
        "За часів Карла I було інакше": None,
        "Мій iPhone": None,
    },
    "welsh": {
        "Mae’r gŵr o’r tŷ ’ma wedi’i weld yng Nghymru.": "mae'r gŵr o'r tŷ 'ma wedi'i weld yng nghymru",
        "Dwi ‘di bod i’r siop, y peth cynta’ bore ‘ma!": "dwi 'di bod i'r siop y peth cynta' bore 'ma",
        "Dywedodd ‘Dydw i ddim’ – ‘na’ eto – a 'croeso' wedyn": "dywedodd dydw i ddim na eto a croeso wedyn",
        "Sgïo, caniatáu, mẁg, CÔR; ydi 'r llên-gwerin": "sgïo caniatáu mẁg côr ydi'r llên gwerin",
        "Dvořák": None,
    },
}
FOREIGN = {  # the characters that reject a sentence
    "italian": {"Søren ha 8 anni @ casa": "8@ø", "Привет": "веипрт", "東京": "京東"},
    "spanish": {"Françoise tiene 3": "3ç", "la 1ª": "1ª", "Zürich à gogo": "à"},
    "french": {"Mañana à Łódź": "ñółź", "le 1ᵉʳ": "1ʳᵉ"},
    "german": {"Café": "é", "§ 5 & 6": "&56§"},
    "portuguese": {"Citroën, n.º 5": "5ºë"},
    "turkish": {"Citroën ile 8 taxi": "8xë"},
    "russian": {"Жанна д’Арк": "’", "cтол": "c", "Київ": "ї", "фо\u0302н": "\u0302"},
    "catalan": {"Núñez, 3 ŀ": "3ñŀ", "Sánchez @": "@á"},
    "polish": {"Quo vadis, 5 × x": "5qvx×", "Müller": "ü"},
    "ukrainian": {"Людовік I": "ⅰ", "cтіл": "c", "Объект № 5": "5ъ№", "Google": "eglo"},
    "welsh": {"£5 i Dvořák": "5£ř"},
}
# Signs that rules look for, letters of several languages, marks, spaces, digits: what makes rules meet.
TRICKY = "abil zŀ·ŵіїяIàéíúñüßøłœæçyаеиӧ'’‘´`''\"“«»‚ʼ-–_/.,;…¿?!(&80\u0301\u0300\u0302\u00ad\u200b\u00a0\tİıſΣǅÅ"
sentences = st.text(max_size=40) | st.text(st.sampled_from(TRICKY), max_size=16)
thoroughly = settings(max_examples=400, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(("name", "sentence"), [(name, sentence) for name in TEXTS for sentence in TEXTS[name]])
def test_sentences_have_the_texts_worked_out_by_hand(name: str, sentence: str) -> None:
    language, text = LANGUAGES[name], TEXTS[name][sentence]
    for form in ("NFC", "NFD"):
        normalised = language.normalise(unicodedata.normalize(form, sentence))
        assert language.foreign(normalised) if text is None else normalised == text


@pytest.mark.parametrize(("name", "sentence"), [(name, sentence) for name in FOREIGN for sentence in FOREIGN[name]])
def test_foreign_characters_are_named(name: str, sentence: str) -> None:
    language = LANGUAGES[name]
    assert language.foreign(language.normalise(sentence)) == FOREIGN[name][sentence]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_normalised_once_and_what_is_foreign_is_named(name: str) -> None:
    language = LANGUAGES[name]

    @thoroughly
    @given(sentences)
    def holds(sentence: str) -> None:
        text, names = language.trace(sentence)
        assert name not in SHIPPED or TRANSLITERATION in names or language.normalise(text) == text
        assert set(language.foreign(text)) == set(text) - set(language.alphabet)
        assert text == " ".join(text.split())

    holds()


def one_rule_after_the_other(config: Config, sentence: str) -> tuple[str, list[str]]:
    """The rules of a config read plainly, and those that did something."""
    if Language.of(config.text).fault(sentence):
        return "", []
    text, changed = unicodedata.normalize("NFC", sentence), []
    for rule in (*config.text.before_lower_case, None, *config.text.rules):
        if rule is None:
            text = unicodedata.normalize("NFC", text.lower())
            continue
        pattern = rule.pattern or "|".join(map(re.escape, rule.letters))
        if rule.letters:
            after = "".join(
                rule.letters.get(part, part) if i % 2 else part for i, part in enumerate(re.split(f"({pattern})", text))
            )
        else:
            after = re.sub(pattern, rule.replace, text)
        changed += [rule.name] * (after != text)
        text = after
    return unicodedata.normalize("NFC", " ".join(text.split())), changed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_text_becomes_what_the_rules_read_plainly_make_of_it(name: str) -> None:
    config = shipped(name, "text.foreign=reject")
    language = Language.of(config.text)

    @thoroughly
    @given(sentences)
    def holds(sentence: str) -> None:
        assert language.trace(sentence) == one_rule_after_the_other(config, sentence)

    holds()


@pytest.mark.parametrize("name", CODES)
def test_a_language_is_an_experiment_of_its_own(name: str) -> None:
    config, code = CONFIGS[name], CODES[name]
    assert re.search(rf"-{code}[-.]", config.dataset.source)
    assert config.training.name == f"Model-{code.upper()}-finetuned"
    ours = [config.dataset.output, config.training.output, config.evaluation.predictions, config.evaluation.results]
    assert all(f"/{name}" in path for path in ours)
    rows = config.evaluation.models
    assert f"{config.training.output}/{config.training.name}.nemo" in rows
    others = {row for row in rows if "/" not in row}
    assert others <= config.model.registry.keys()
    assert others <= {"stt_en_quartznet15x5", f"stt_{code}_quartznet15x5"}
    urls = {model: download.url for model, download in config.model.registry.items()}
    assert all(f"/{model}/" in url and url.endswith(f"/{model}.nemo") for model, url in urls.items())
    assert bool(config.evaluation.published) == bool(config.evaluation.published_on) == (name == "italian")
    assert model_card.LANGUAGES[code].lower() == name
    assert config.text.numbers is None


def test_alphabets() -> None:
    latin = "abcdefghijklmnopqrstuvwxyz"
    own = {name: set(CONFIGS[name].text.alphabet) - set(latin) for name in CODES}
    assert own["turkish"] == set(" çğıöşü") and not set(CONFIGS["turkish"].text.alphabet) & set("qwx")
    assert own["italian"] == set(" 'àéèíìîóòúù")
    assert own["spanish"] == set(" 'áéíóúñü")
    assert own["french"] == set(" 'çéâêîôûàèùëïüÿ")
    assert own["german"] == set(" äöüß")
    assert own["portuguese"] == set(" ãáàâçéêíõóôúü")
    assert own["russian"] == {" ", *CYRILLIC}
    assert own["catalan"] == set(" '·àçéèíïóòúü")
    assert own["polish"] == set(" ąćęłńóśźż") and not set(CONFIGS["polish"].text.alphabet) & set("qvx")
    assert own["ukrainian"] == {" ", "'", *CYRILLIC, *"ґєії"} - set("ёъыэ")
    marked = {unicodedata.normalize("NFC", vowel + mark) for vowel in "aeiouwy" for mark in "\u0300\u0301\u0302\u0308"}
    assert own["welsh"] == {" ", "'", *marked}
    for name in ("russian", "ukrainian"):
        assert not set(CONFIGS[name].text.alphabet) & set(latin)


@pytest.mark.parametrize(
    ("name", "sentence", "text"),
    [
        ("italian", "Citroën, El Niño, Phœnix, Strauß, Łódź, Đoković", "citroen el nino phoenix strauss lódz dokovic"),
        ("italian", "Nguyễn e İstanbul e Diyarbakır", "nguyen e istanbul e diyarbakir"),
        ("italian", "x\u0300 e m\u0303\u0301a", "x e ma"),
        ("german", "Café à la Citroën, Škoda", "cafe a la citroen skoda"),
        ("french", "El Niño à Kraków", "el nino à krakow"),
        ("spanish", "Barça, façana, à São", "barca facana a sao"),
        ("portuguese", "Señor Citroën", "senor citroen"),
        ("turkish", "Citroën, São İstanbul", "citroen sao istanbul"),
        ("catalan", "Núñez, São Paulo", "núnez sao paulo"),
        ("polish", "Café Müller à Paris", "cafe muller a paris"),
        ("welsh", "Dvořák, São Paulo", "dvorák sao paulo"),
    ],
)
def test_transliteration(name: str, sentence: str, text: str) -> None:
    language = Language.of(shipped(name, "text.foreign=transliterate").text)
    normalised, rules = language.trace(sentence)
    assert normalised == text and not language.foreign(normalised) and TRANSLITERATION in rules


@pytest.mark.parametrize(
    ("name", "foreigners"),
    [
        ("russian", {"Київ": "ї", "cтол": "c", "été": "té"}),  # ї would be і, which is foreign too
        ("ukrainian", {"объект": "ъ", "cтіл": "c", "été": "té"}),
    ],
)
def test_scripts_are_not_transliterated_into_each_other(name: str, foreigners: dict[str, str]) -> None:
    language = Language.of(shipped(name, "text.foreign=transliterate").text)
    for sentence, foreign in foreigners.items():
        text, rules = language.trace(sentence)
        assert text == sentence.lower() and language.foreign(text) == foreign and TRANSLITERATION not in rules


@pytest.mark.parametrize("sentence", ["Søren", "Þór", "Привет", "ё", "'\u0300a", "ñ8", "東京", "ﬁn", "½", "²"])
def test_what_cannot_be_transliterated_stays_foreign(sentence: str) -> None:
    language = LANGUAGES["italian"]
    assert language.foreign(language.normalise(sentence))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transliteration_makes_nothing_foreign(name: str) -> None:
    rejecting, transliterating = (
        Language.of(shipped(name, f"text.foreign={foreign.name}").text) for foreign in Foreign
    )

    @thoroughly
    @given(sentences)
    def holds(sentence: str) -> None:
        text = transliterating.normalise(sentence)
        assert set(transliterating.foreign(text)) <= set(rejecting.foreign(rejecting.normalise(sentence)))

    holds()


@pytest.mark.parametrize(
    ("name", "numbers", "sentence", "text"),
    [
        ("italian", "it", "Ho 23 anni, lui 101.", "ho ventitré anni lui centouno"),
        ("italian", "it", "L’8 marzo alle (7)", "l'otto marzo alle sette"),
        ("italian", "it", "Nel 1999", "nel millenovecentonovantanove"),
        ("spanish", "es", "¿22 o 0?", "veintidós o cero"),
        ("french", "fr", "Il a 97 ans", "il a quatre vingt dix sept ans"),
        ("german", "de", "Er ist 30.", "er ist dreißig"),
        ("portuguese", "pt", "São 123 pães", "são cento e vinte e três pães"),
        ("russian", "ru", "Мне 45 лет", "мне сорок пять лет"),
        ("turkish", "tr", "Saat 5 mi?", "saat beş mi"),
        ("catalan", "ca", "Tinc 21 anys", "tinc vint i un anys"),
        ("polish", "pl", "Mam 45 lat", "mam czterdzieści pięć lat"),
        ("ukrainian", "uk", "Мені 45 років", "мені сорок п'ять років"),
        ("welsh", "cy", "Mae 21 yma", "mae un ar hugain yma"),
    ],
)
def test_numbers_become_words_where_that_is_wanted(name: str, numbers: str, sentence: str, text: str) -> None:
    language = Language.of(shipped(name, f"text.numbers={numbers}").text)
    assert language.trace(sentence)[0] == text
    assert NUMBER_WORDS in language.trace(sentence)[1]
    assert not language.foreign(text)
    off = LANGUAGES[name]
    assert set(off.foreign(off.normalise(sentence))) == set(re.findall("[0-9]", sentence))


@pytest.mark.parametrize(
    "sentence",
    ["3,5 litri", "1.000 lire", "10 000 lire", "10\u00a0000", "007", "50 %", "50%", "5' dopo", "alle 8:30", "2020-2021",
     "-3 gradi", "il 3. maggio", "1º", "B12", "12b", "covid-19", "1234567", "5 €", "½", "٣", "+39",
     "gli anni '60", "’68"],
)  # fmt: skip
def test_numbers_that_need_reading_are_left_and_reject_the_row(sentence: str) -> None:
    language = Language.of(shipped("italian", "text.numbers=it").text)
    text, rules = language.trace(sentence)
    assert language.foreign(text) and NUMBER_WORDS not in rules


def test_a_language_without_number_words_is_refused_in_a_sentence(run_script: Script, tmp_path: Path) -> None:
    refused = run_script("dataset_creation.py", "text.numbers=xx", f"dataset.output={tmp_path / 'data'}")
    assert_refused(refused, "text.numbers=xx", "null or one of", "it, ")
    assert not (tmp_path / "data").exists()


def test_num2words_is_imported_only_where_it_is_wanted() -> None:
    code = """
import sys
from finetuning.config.schema import Text
from finetuning.data.text_normalization import Language
from finetuning.model.vocabulary import Vocabulary
Language.of(Text(alphabet=" a"))
assert "num2words" not in sys.modules
Language.of(Text(alphabet=" a", numbers="it"))
assert "num2words" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "Fine_tuning", check=True, timeout=60)


def test_two_rules_of_one_name_are_refused() -> None:
    text = CONFIGS["spanish"].text
    with pytest.raises(UserError, match="two rules are called 'dashes'"):
        Language.of(dataclasses.replace(text, rules=[*text.rules, text.rules[1]]))


def clips(*sentences: str) -> list[Clip]:
    return [Clip(f"{i}.mp3", sentence) for i, sentence in enumerate(sentences)]


def test_the_report_counts_rows_by_rule_and_by_foreign_character() -> None:
    rows = clips("Sì, certo", "L’8 e l’8.", "Emilia-Romagna", "Málaga", "8 ø 8!", "ciao", "Oggi ø", "?!")
    rejected: list[RejectedRow] = []
    candidates, report = filter_by_text(rows, LANGUAGES["italian"], rejected)
    assert {candidate.clip.path: candidate.text for candidate in candidates} == {
        "0.mp3": "sì certo", "2.mp3": "emilia romagna", "3.mp3": "malaga", "5.mp3": "ciao"
    }  # fmt: skip
    assert {r.path: (r.reason, r.detail) for r in rejected} == {
        "1.mp3": ("foreign_character", "8"),
        "4.mp3": ("foreign_character", "8ø"),
        "6.mp3": ("foreign_character", "ø"),
        "7.mp3": ("empty_sentence", "?!"),
    }
    assert list(report.rules) == [rule.name for rule in CONFIGS["italian"].text.rules] + [TRANSLITERATION]
    assert {rule: count for rule, count in report.rules.items() if count} == {
        "dashes": 1, "apostrophes": 1, "punctuation": 4, TRANSLITERATION: 1
    }  # fmt: skip
    assert report.foreign_characters == [ForeignCharacter("8", 2, "8 ø 8!"), ForeignCharacter("ø", 2, "8 ø 8!")]


def test_the_report_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = clips("è 8", "c'è 8", "È 9", "é 9", "ø", "Perché – no?", "Perché – no?", "9 8 ø")
    reports = []
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        reports.append(filter_by_text(rows, LANGUAGES["italian"], [])[1])
    assert all(report == reports[0] for report in reports)
    assert [(f.character, f.rows, f.sentence) for f in reports[0].foreign_characters] == [
        ("8", 3, "è 8"), ("9", 3, "È 9"), ("ø", 2, "ø"),
    ]  # fmt: skip


RUSSIAN = [  # sentence, text
    ("Где моя книга?", "где моя книга"),
    ("Ёлка — это дерево.", "ёлка это дерево"),
    ("«Да», — сказал он.", "да сказал он"),
    ("По-русски, пожалуйста!", "по русски пожалуйста"),
    ("за\u0301мок на горе", "замок на горе"),
    ("СЪЁМКА ИДЁТ", "съёмка идёт"),
    ("Он купил хлеб", "он купил хлеб"),
    ("Моя семья", "моя семья"),
    ("Чай и молоко", "чай и молоко"),
    ("Мне 8 лет", None),
    ("Это Windows", None),
    ("Ему 8", None),
]


def test_a_russian_release_from_rows_to_manifests(run_script: Script, tmp_path: Path) -> None:
    good = good_rows(len(RUSSIAN))
    rows = [row | {"sentence": sentence} for row, (sentence, _) in zip(good, RUSSIAN, strict=True)]
    files = release_files(rows, {row["path"]: sample_files()[row["path"]] for row in rows})
    made = []
    for order in (1, -1):
        source = write_folder(tmp_path / f"release{order}" / "ru", files)
        lines = files["validated.tsv"].decode().splitlines(keepends=True)
        (source / "validated.tsv").write_text("".join([lines[0], *lines[1:][::order]]), encoding="utf-8")
        output = tmp_path / f"data{order}"
        arguments = ("--config", "configs/russian.yaml", f"dataset.source={source}", f"dataset.output={output}")
        done = run_script("dataset_creation.py", *arguments, "dataset.workers=1", "dataset.split.by=clip")
        assert done.returncode == 0, done.stderr[-2000:]
        made.append((output / "dataset.json").read_bytes())
    assert made[0] == made[1]
    found = {u.audio_filepath: u.text for split in SPLITS for u in read_manifest(manifest_path(output, split))}
    expected = zip(good, RUSSIAN, strict=True)
    assert found == {f"wavs/{Path(row['path']).stem}.wav": text for row, (_, text) in expected if text}
    about = json.loads(made[0])
    assert about["alphabet"] == f" {CYRILLIC}"
    assert about["rules"] == {
        "characters nobody sees": 0,
        "stress marks": 1,
        "stressed vowels that are one character": 0,
        "dashes": 3,
        "punctuation": 4,
    }
    assert about["foreign_characters"][0] == {"character": "8", "rows": 2, "sentence": "Ему 8"}
    assert {one["character"]: one["rows"] for one in about["foreign_characters"]} == {"8": 2} | dict.fromkeys(
        "dinosw", 1
    )
    assert "8 U+0038       2 rows  Ему 8" in done.stdout
    assert "foreign characters, 5 of 7; all in dataset.json" in done.stdout
    assert re.search("^  dashes +3$", done.stdout, re.MULTILINE)
    assert len(done.stdout.splitlines()) < 45


@pytest.mark.nemo
def test_an_english_model_learns_to_write_russian(tmp_path: Path) -> None:
    """The decoder is new, has an output for each Cyrillic letter, learns a text by heart and comes back from a file."""
    import torch

    from finetuning.decoding.greedy import greedy_decode
    from finetuning.model.ctc_model import change_vocabulary, get_vocabulary, restore_model, save_model
    from finetuning.model.vocabulary import Vocabulary
    from small import ENGLISH, lively_model

    alphabet, text = CONFIGS["russian"].text.alphabet, "съёмка идёт"
    model = lively_model(ENGLISH)
    torch.manual_seed(0)  # of the new decoder
    change_vocabulary(model, Vocabulary.of_characters(alphabet))
    assert list(get_vocabulary(model)) == list(alphabet)
    sound, length = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) / 10, torch.tensor([16000])
    target = torch.tensor([[alphabet.index(letter) for letter in text]])

    def log_probabilities(model: Any) -> torch.Tensor:  # (1, T, 35)
        found, frames, _ = model.eval()(input_signal=sound, input_signal_length=length)
        return found[:, : int(frames)]

    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=1e-2)
    for _ in range(300):
        found = log_probabilities(model)
        loss = torch.nn.functional.ctc_loss(
            found.transpose(0, 1), target, torch.tensor([found.shape[1]]), torch.tensor([len(text)]), len(alphabet)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:  # a letter
            break
    save_model(model, tmp_path / "ru.nemo")
    restored = restore_model(tmp_path / "ru.nemo")
    with torch.no_grad():
        frames = log_probabilities(restored)
    assert frames.shape[2] == len(alphabet) + 1 == 35
    assert greedy_decode(frames[0].numpy(), get_vocabulary(restored)) == text
