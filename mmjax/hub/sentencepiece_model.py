"""A tokenizer.model of sentencepiece as vocabulary and merges (transformers, convert_slow_tokenizer.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers

from mmjax.hub.tensors import CheckpointError

_UNIGRAM = 1  # of trainer_spec.model_type
_CONTROL, _USER_DEFINED = 3, 4  # of a piece


@dataclasses.dataclass(frozen=True)
class SentencePieceFile:
    """pieces: (piece, score), by id. unigram: whether pieces are chosen by their scores, else by merges.
    unknown: id. bytes: whether unknown characters become bytes. characters: a precompiled map of them, or b''.
    symbols: pieces that are never cut out of longer ones -> whether they control a conversation, by id."""

    pieces: tuple[tuple[str, float], ...]
    unigram: bool
    unknown: int
    bytes: bool
    characters: bytes
    symbols: dict[str, bool]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id."""
        return {piece: number for number, (piece, _) in enumerate(self.pieces)}

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of no class in particular: no space is put before a text."""
        if self.unigram:
            model = models.Unigram(list(self.pieces), unk_id=self.unknown, byte_fallback=self.bytes)
        else:
            vocabulary, unknown = self.vocabulary, self.pieces[self.unknown][0]
            merges = generate_merges(vocabulary)
            model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=self.bytes)
        made = tokenizers.Tokenizer(model)
        mapped = [normalizers.Precompiled(self.characters)] if self.characters else []
        made.normalizer = normalizers.Sequence([*mapped, normalizers.Replace(" ", "▁")])
        fallback = [decoders.ByteFallback(), decoders.Fuse()] if self.bytes else []
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), *fallback])
        return made


def read_sentencepiece(file: Path) -> SentencePieceFile:
    """Raises CheckpointError if the file is no sentencepiece model."""
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{file}: is no sentencepiece model: {error}") from error
    if not model.pieces:
        raise CheckpointError(f"{file}: is no sentencepiece model: it has no pieces.")
    return SentencePieceFile(
        pieces=tuple((piece.piece, piece.score) for piece in model.pieces),
        unigram=model.trainer_spec.model_type == _UNIGRAM,
        unknown=model.trainer_spec.unk_id,
        bytes=model.trainer_spec.byte_fallback,
        characters=model.normalizer_spec.precompiled_charsmap,
        symbols={p.piece: p.type == _CONTROL for p in model.pieces if p.type in (_CONTROL, _USER_DEFINED)},
    )


def generate_merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, in the order of the pieces' ids."""
    merges = []
    for piece, number in vocabulary.items():
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(number, len(a), len(b), a, b) for a, b in known]
    merges.sort(key=lambda merge: merge[:3])
    return [(a, b) for *_, a, b in merges]
