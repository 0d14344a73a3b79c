"""Sentences as tokens of one length, made once and kept in a folder; read without a tokenizer."""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from batchscale.datasets.sentences import Sentences, key
from batchscale.datasets.vocabulary import Vocabulary, learned
from batchscale.files import local_path, replacing, sync_folder, told
from batchscale.numeric import integer

# Choices.
LENGTH = 128  # tokens a sentence; what is beyond is cut
VOCABULARY = 32_000
LEARNED_FROM = 1_000_000  # sentences
_BUCKETS = 32  # of held-out sentences, one of which is the validation split and one the test split
_AT_ONCE = 8_192
_MANIFEST, _MODEL = "tokens.json", "vocabulary.model"
_SPLITS = "train", "validation", "test"


def prepare(
    train: Sentences,
    held_out: Sentences,
    folder: str | os.PathLike[str],
    *,
    name: str,
    length: int = LENGTH,
    vocabulary: int | str | os.PathLike[str] = VOCABULARY,
    learned_from: int = LEARNED_FROM,
) -> Path:
    """Turns sentences into tokens and stores them, for `load`.

    Whatever order the sentences come in, they are stored in that of the MD5 of their text, so that
    the same sentences from another source are the same data. The vocabulary is learned from the
    first million of the training sentences in that order. Of the sentences that are held out, those
    whose MD5 begins with five bits 00000 are the validation split, 00001 the test split, and the
    others are not used: choices. Equal sentences are always in the same split.

    Args:
      train: sentences to train with.
      held_out: sentences that are held out.
      folder: to be made; it appears when it is whole.
      name: what the data are called.
      length: tokens a sentence, its end counted; longer ones are cut.
      vocabulary: how many tokens, or a SentencePiece model of one's own.
      learned_from: how many sentences the vocabulary is learned from, at most.

    Returns:
      The folder.

    Raises:
      FileExistsError: there is one already.
      ValueError: a split is empty, or the vocabulary cannot be learned.
      ImportError: sentencepiece is not installed.
    """
    target = local_path(folder, "folder")
    length = integer("length", length, 2, others=" tokens a sentence")
    if target.exists():
        raise FileExistsError(f"{target}: it is there already. Name another folder, or remove it.")
    places = _places(_keys(train))
    if not len(places):
        raise ValueError(f"{name}: there is no sentence to train with. Name other files.")
    unfinished = target.with_name(f".unfinished-{uuid.uuid4().hex}-{target.name}")
    with told(target):
        unfinished.mkdir(parents=True)
    try:
        model = _model(train, places, vocabulary, learned_from)
        words = Vocabulary(model)
        stored = {"train": _write(unfinished / "train.npy", train, places, words, length)}
        for split, kept in zip(_SPLITS[1:], (0, 1), strict=True):
            part = _bucket(held_out, kept)
            of = _places(_keys(part))
            if not len(of):
                raise ValueError(
                    f"{name}: no sentence is held out for the split {split!r}. Hold out more than "
                    f"{_BUCKETS}, of which each split takes one in {_BUCKETS}."
                )
            stored[split] = _write(unfinished / f"{split}.npy", part, of, words, length)
        manifest = {
            "name": name,
            "length": length,
            "vocabulary": len(words),
            "vocabulary_digest": words.digest,
            "splits": stored,
        }
        with replacing(unfinished / _MODEL) as file:
            file.write(model)
        with replacing(unfinished / _MANIFEST) as file:
            file.write(json.dumps(manifest, indent=2).encode())
        try:
            os.replace(unfinished, target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(
                    f"{target}: it has been made by another process meanwhile, and is kept."
                ) from error
            raise
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def load(
    folder: str | os.PathLike[str], *, verify: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """The splits of a folder that `prepare` has made, as memory maps: read as they are needed.

    Args:
      folder: as `prepare` returned it.
      verify: reads all of it, and compares with the checksums.

    Returns:
      `train`, `validation` and `test`, each with `tokens`, uint16 [n, length], 0 where a sentence
      has ended.

    Raises:
      FileNotFoundError: it is no such folder.
      ValueError: it is damaged.
    """
    at = local_path(folder, "folder")
    said = manifest(at)
    splits = {}
    for split in _SPLITS:
        path, of = at / f"{split}.npy", said["splits"][split]
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: it cannot be read ({error}). Prepare it again.") from error
        wanted = (of["sentences"], said["length"])
        if tokens.shape != wanted or tokens.dtype != np.uint16:
            raise ValueError(
                f"{path}: {tokens.dtype} of shape {tokens.shape}, wanted uint16 of {wanted}. "
                "Prepare it again."
            )
        if verify and (got := _digest(tokens)) != of["digest"]:
            raise ValueError(
                f"{path}: its checksum is {got}, wanted {of['digest']}. Prepare it again."
            )
        splits[split] = {"tokens": tokens}
    return splits


def manifest(folder: Path) -> dict[str, Any]:
    """What `prepare` has written down of a folder.

    Raises:
      FileNotFoundError: it has written nothing there.
      ValueError: it is damaged.
    """
    path = folder / _MANIFEST
    try:
        said = json.loads(path.read_bytes())
        whole = isinstance(said, dict) and {"length", "vocabulary", "splits"} <= set(said)
        if not whole or not {*_SPLITS} <= set(said["splits"]):
            raise ValueError("parts of it are missing")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: no {_MANIFEST}. Make the folder with datasets.prepare."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: it is damaged ({error}). Prepare it again.") from error
    return said


def _model(
    train: Sentences,
    places: Int[np.ndarray, " sentences"],
    vocabulary: int | str | os.PathLike[str],
    learned_from: int,
) -> bytes:
    if not isinstance(vocabulary, int):
        return local_path(vocabulary, "vocabulary").read_bytes()
    first = np.empty(min(learned_from, len(places)), object)
    for place, sentence in zip(places, train(), strict=True):
        if place < len(first):
            first[place] = sentence
    return learned(first, vocabulary)


def _keys(sentences: Sentences) -> UInt64[np.ndarray, " sentences"]:
    return np.frombuffer(array.array("Q", map(key, sentences())), np.uint64)


def _places(keys: UInt64[np.ndarray, " sentences"]) -> Int[np.ndarray, " sentences"]:
    """Where each sentence is stored. Those with the same key are equal, but for a rare chance."""
    places = np.empty(len(keys), np.int64)
    places[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return places


def _bucket(sentences: Sentences, number: int) -> Sentences:
    def some() -> Iterator[str]:
        return (s for s in sentences() if key(s) * _BUCKETS >> 64 == number)

    return some


def _write(
    path: Path,
    sentences: Sentences,
    places: Int[np.ndarray, " sentences"],
    words: Vocabulary,
    length: int,
) -> dict[str, Any]:
    """Stores the tokens of sentences, each at its place, and says what they are."""
    stored = np.lib.format.open_memmap(path, "w+", np.dtype(np.uint16), (len(places), length))
    cut, done, found = 0, 0, iter(sentences())
    while some := list(itertools.islice(found, _AT_ONCE)):
        rows, of_these = words.encoded(some, length)
        stored[places[done : done + len(some)]] = rows
        cut, done = cut + of_these, done + len(some)
    stored.flush()
    real = sum(int(np.count_nonzero(part)) for part in _parts(stored))
    return {"sentences": done, "cut": cut, "tokens": real, "digest": _digest(stored)}


def _digest(tokens: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(tokens):
        digest.update(np.ascontiguousarray(part, "<u2").data)
    return digest.hexdigest()


def _parts(tokens: np.ndarray) -> Iterator[np.ndarray]:
    return (tokens[i : i + _AT_ONCE] for i in range(0, len(tokens), _AT_ONCE))
