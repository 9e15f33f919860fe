"""What a CTC model writes: the text that each of its outputs adds, and how a text is spelt in them."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

WORD_START = "▁"  # how SentencePiece writes the space before a word


@dataclass(frozen=True)
class Vocabulary(Sequence[str]):
    """The texts of a model's outputs in their order; the CTC blank comes after them.

    A character model's output is a character. A sub-word model's is a piece: " cia", with the space before a word, or
    "o"; `sentencepiece` is its serialised tokenizer, which spells texts in pieces.
    """

    tokens: tuple[str, ...]
    sentencepiece: bytes = b""

    @classmethod
    def of_characters(cls, characters: Iterable[str]) -> Self:
        """Return the vocabulary of a character model."""
        return cls(tuple(characters))

    @classmethod
    def of_pieces(cls, sentencepiece: bytes) -> Self:
        """Return the vocabulary of a SentencePiece tokenizer; raise ValueError for one whose pieces are bytes."""
        processor = _processor(sentencepiece)
        numbers = range(processor.get_piece_size())
        if any(map(processor.is_byte, numbers)):
            raise ValueError("its tokenizer falls back to bytes, which this project does not read")
        return cls(tuple(_piece_text(processor, number) for number in numbers), sentencepiece)

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Return the vocabulary that `as_json` has written; raise ValueError for anything else."""
        if isinstance(content, dict):
            return cls.of_pieces(base64.b64decode(content.get("sentencepiece", ""), validate=True))
        if not isinstance(content, list) or not all(isinstance(token, str) for token in content):
            raise ValueError("it is no list of characters")
        return cls.of_characters(content)

    def as_json(self) -> Any:
        """Return a list of characters, or the tokenizer and, for the reader, its pieces."""
        if not self.sentencepiece:
            return list(self.tokens)
        return {"pieces": list(self.tokens), "sentencepiece": base64.b64encode(self.sentencepiece).decode()}

    def __len__(self) -> int:
        """Return the number of outputs without the blank, which is the index of the blank."""
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        """Return the text of an output."""
        return self.tokens[index]

    def __iter__(self) -> Iterator[str]:
        """Yield the texts of all outputs."""
        return iter(self.tokens)

    @cached_property
    def characters(self) -> frozenset[str]:
        """The characters that the model can write."""
        if not self.sentencepiece:
            return frozenset(self.tokens)
        processor = _processor(self.sentencepiece)
        named = (number for number in range(len(self)) if _is_written(processor, number))
        return frozenset("".join(self.tokens[number] for number in named)) | {" "}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        """Return the outputs that spell `text`; what the model cannot write is left out."""
        if not self.sentencepiece:
            return [self._index[character] for character in text if character in self._index]
        processor = _processor(self.sentencepiece)
        return [number for number in processor.encode(text) if number != processor.unk_id()]

    def decode(self, outputs: Iterable[int]) -> str:
        """Return the text of these outputs, without the space that a first piece begins with."""
        outputs = list(outputs)
        text = "".join(self.tokens[number] for number in outputs)
        if not self.sentencepiece or outputs[:1] == [_processor(self.sentencepiece).unk_id()]:
            return text
        return text.lstrip(" ")


@lru_cache(maxsize=4)
def _processor(sentencepiece: bytes) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(sentencepiece)
    except (RuntimeError, ValueError) as error:
        raise ValueError("its tokenizer is no SentencePiece model") from error
    return processor


def _is_written(processor: "SentencePieceProcessor", number: int) -> bool:
    return not (processor.is_control(number) or processor.is_unknown(number) or processor.is_unused(number))


def _piece_text(processor: "SentencePieceProcessor", number: int) -> str:
    """Return what SentencePiece's own decoding makes of a piece within a text."""
    if processor.is_control(number):
        return ""
    if processor.is_unknown(number):
        return processor.decode([number])
    return processor.id_to_piece(number).replace(WORD_START, " ")
