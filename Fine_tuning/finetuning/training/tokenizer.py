"""The vocabulary a model is trained with: the alphabet, a tokenizer made from the training texts, or the base's own."""

import io
from collections.abc import Sequence
from pathlib import Path

from finetuning.config import schema as experiment
from finetuning.config.schema import VocabularyKind
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from finetuning.errors import UserError
from finetuning.files import atomic_path, ensure_writable_dir, exclusive_lock
from finetuning.model.vocabulary import Vocabulary

FOLDER = "tokenizer"  # below training.output
MODEL = "tokenizer.model"


def training_vocabulary(config: experiment.Config, base: Vocabulary | None, output: Path | None = None) -> Vocabulary:
    """Return the vocabulary of `model.vocabulary`; `base`: that of the base model, None from scratch.

    A new tokenizer is kept in the folder `output` and read from there by a resumed run and by other processes. Raise
    UserError where the vocabulary cannot spell the texts of training and validation.
    """
    kind = config.model.vocabulary
    if kind is VocabularyKind.characters:
        return Vocabulary.of_characters(config.text.alphabet)
    texts = [[u.text for u in read_manifest(_manifest(config, split), check_audio=False)] for split in SPLITS[:2]]
    if kind is VocabularyKind.base:
        if base is None:
            raise UserError("model.vocabulary=base, and there is no model.base; type model.vocabulary=subwords")
        vocabulary, remedy = base, "type model.vocabulary=subwords"
    else:
        vocabulary = _stored_tokenizer(texts[0], config.model.vocabulary_size, output)
        remedy = "the training texts lack them: take more data, or correct text.alphabet and run step 1 again"
    if lacking := sorted({*"".join(map("".join, texts))} - vocabulary.characters):
        raise UserError(f"model.vocabulary={kind.value} cannot spell {' '.join(lacking)}; {remedy}")
    return vocabulary


def _manifest(config: experiment.Config, split: str) -> Path:
    return manifest_path(experiment.manifest_folder(config), split)


def _stored_tokenizer(texts: Sequence[str], size: int, output: Path | None) -> Vocabulary:
    """Return the tokenizer that is kept in `output`, or make and keep it; without a folder nothing is written."""
    if output is None:
        return Vocabulary.of_pieces(train_tokenizer(texts, size))
    path = ensure_writable_dir(output / FOLDER) / MODEL
    with exclusive_lock(path.parent, wait=True):  # the processes of one run make it once
        if not path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_bytes(train_tokenizer(texts, size))
        try:
            return Vocabulary.of_pieces(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or delete {output} to start over") from error


def train_tokenizer(texts: Sequence[str], size: int) -> bytes:
    """Return a SentencePiece unigram model (Kudo 2018) of at most `size` pieces, among them all characters of `texts`.

    The same texts give the same model. Raise UserError where there are more characters than `size`.
    """
    from sentencepiece import SentencePieceTrainer

    characters = "".join(sorted(set("".join(texts)) - {" "}))
    if size < len(characters) + 2:  # and <unk> and the space
        raise UserError(
            f"model.vocabulary_size={size} is less than the {len(characters)} letters of the training texts, <unk> and "
            "the space; type a larger one"
        )
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=size,
        hard_vocab_limit=False, character_coverage=1.0, required_chars=characters, normalization_rule_name="identity",
        bos_id=-1, eos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
