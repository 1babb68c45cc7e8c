"""The tokenizer all four models share, and the pretraining text as token shards on disk."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recipes.tiny.alignment import conversations
from recipes.tiny.corpus import DOCUMENT_END, ROLES, TURN_END, shard_documents
from recipes.tiny.settings import MAX_POSITIONS, VOCABULARY

SHARD_TOKENS = 1 << 20
VALIDATION_SEED = -1
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def train_tokenizer(documents: int = 20000) -> PreTrainedTokenizerFast:
    """Byte-level BPE over corpus and alignment text; digits stand alone, chat markers are special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[DOCUMENT_END, TURN_END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = itertools.islice(shard_documents(0, 0), documents)
    turns = (turn["content"] for talk in conversations(2000, seed=0) for turn in talk)
    tokenizer.train_from_iterator(itertools.chain(text, turns), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=DOCUMENT_END,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def shard(tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int, index: int) -> NDArray[np.uint16]:
    """`SHARD_TOKENS` tokens of pretraining text, made once and then read from `folder`."""
    path = folder / f"shard-{seed}-{index:03d}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, make_shard(tokenizer, seed, index))
        partial.replace(path)
    return np.load(path)


def make_shard(tokenizer: PreTrainedTokenizerFast, seed: int, index: int) -> NDArray[np.uint16]:
    documents = shard_documents(seed, index)
    tokens: list[int] = []
    while len(tokens) < SHARD_TOKENS:
        for ids in tokenizer(list(itertools.islice(documents, 1000)))["input_ids"]:
            tokens.extend(ids)
    return np.array(tokens[:SHARD_TOKENS], dtype=np.uint16)
