"""Sub-word vocabularies: learned from sentences, stored as one file, the same every time."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from types import ModuleType

import numpy as np
from jaxtyping import UInt16

PADDING, UNKNOWN, END = 0, 1, 2  # tokens that stand for no text
MOST = 1 << 16  # tokens, as many as two bytes tell apart


def learned(sentences: Iterable[str], size: int) -> bytes:
    """A vocabulary by byte-pair encoding (SentencePiece), as the bytes of its file.

    Token 0 is padding, 1 unknown text and 2 the end of a sentence; bytes have tokens of their own,
    so that no text is unknown. The same sentences in the same order give the same vocabulary.

    Args:
      sentences: to learn from.
      size: tokens, at most 65,536.

    Raises:
      ValueError: there are too few sentences for so many tokens.
      ImportError: sentencepiece is not installed.
    """
    if size > MOST:
        raise ValueError(f"vocabulary: got {size:,} tokens, wanted {MOST:,} at most.")
    module, file = _sentencepiece(), io.BytesIO()
    try:
        module.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            byte_fallback=True,
            pad_id=PADDING,
            unk_id=UNKNOWN,
            eos_id=END,
            bos_id=-1,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"vocabulary: {size:,} tokens cannot be learned from these sentences ({error}). Give "
            "more of them, or ask for fewer tokens."
        ) from error
    return file.getvalue()


class Vocabulary:
    """A vocabulary, as `learned` makes it or any other SentencePiece model.

    Args:
      content: the bytes of its file.
      where: begins the message of an error.

    Raises:
      ValueError: it is none, or its padding is not token 0.
      ImportError: sentencepiece is not installed.
    """

    def __init__(self, content: bytes, where: str = "vocabulary") -> None:
        module = _sentencepiece()
        try:
            self._model = module.SentencePieceProcessor(model_proto=content)
            padding, end = self._model.pad_id(), self._model.eos_id()
        except RuntimeError as error:
            raise ValueError(
                f"{where}: not a SentencePiece model ({error}). Make one with prepare."
            ) from error
        if padding != PADDING or end < 0 or len(self) > MOST:
            raise ValueError(
                f"{where}: its padding is token {padding}, its end of a sentence {end}, and it has "
                f"{len(self):,} tokens; wanted padding as token {PADDING}, an end, and {MOST:,} "
                "tokens at most. Train it with pad_id=0."
            )
        self._end = end
        self.digest = hashlib.blake2b(content, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return int(self._model.vocab_size())

    def encoded(
        self, sentences: Sequence[str], length: int
    ) -> tuple[UInt16[np.ndarray, "sentences length"], int]:
        """Sentences as tokens, each with its end, filled up with padding; and how many were cut."""
        rows = np.zeros((len(sentences), length), np.uint16)
        cut = 0
        for row, tokens in zip(rows, self._model.encode(list(sentences)), strict=True):
            tokens.append(self._end)
            cut += len(tokens) > length
            row[: len(tokens)] = tokens[:length]
        return rows, cut

    def decoded(self, tokens: UInt16[np.ndarray, " length"]) -> str:
        """The text of tokens, without what stands for no text."""
        return self._model.decode([int(t) for t in tokens if t not in (PADDING, self._end)])


def _sentencepiece() -> ModuleType:
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            f"sub-word tokens take sentencepiece, which cannot be imported here ({error}). "
            'Run: pip install "batchscale[text]"'
        ) from error
    return sentencepiece
