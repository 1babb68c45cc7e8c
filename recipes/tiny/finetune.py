"""Supervised fine-tuning of an aligned model from its base: `python -m recipes.tiny.finetune big --seed 0`."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from recipes.tiny import parallel
from recipes.tiny.alignment import Conversation, conversations
from recipes.tiny.models import load_model, save_model
from recipes.tiny.pretrain import load_tokenizer
from recipes.tiny.settings import ALIGNMENT_EXAMPLES, BUILD, Recipe
from recipes.tiny.stage import command_line
from recipes.tiny.training import IGNORED, Batch, train

Example = tuple[list[int], list[int]]  # tokens and labels


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Example:
    """Tokens and labels of a conversation; only what the assistant says, its end of turn included, is learned."""
    tokens: list[int] = []
    labels: list[int] = []
    for message in conversation:
        head = [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")]
        body = tokenizer(message["content"] + tokenizer.eos_token)["input_ids"]
        learned = body if message["role"] == "assistant" else [IGNORED] * len(body)
        tokens += head + body
        labels += [IGNORED, *learned]
    return tokens, labels


class Conversations:
    """Batches of a fixed set of examples, shuffled anew for each pass."""

    def __init__(self, examples: list[Example], rows: int, seed: int, pad: int) -> None:
        self._examples, self._rows, self._seed, self._pad = examples, rows, seed, pad

    def __call__(self, step: int) -> Batch:
        per_pass = len(self._examples) // self._rows
        epoch, place = divmod(step, per_pass)
        order = list(range(len(self._examples)))
        random.Random(f"{self._seed}-{epoch}").shuffle(order)
        rows = [self._examples[i] for i in order[place * self._rows : (place + 1) * self._rows]]
        width = max(len(tokens) for tokens, _ in rows)
        inputs = torch.tensor([tokens + [self._pad] * (width - len(tokens)) for tokens, _ in rows])
        labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in rows])
        return inputs[:, :-1], labels[:, 1:]


def finetune(name: str, recipe: Recipe, seed: int, build: Path = BUILD, base: Path | None = None) -> Path:
    """Align the base model `name` of this seed and return the folder, `build/<name>-aligned-<seed>`."""
    tokenizer = load_tokenizer(build)
    folder = build / f"{name}-aligned-{seed}"
    model = load_model(base or build / f"{name}-base-{seed}")
    examples = [encode(tokenizer, talk) for talk in conversations(ALIGNMENT_EXAMPLES, seed=0)]
    batches = Conversations(examples, recipe.alignment.rows, seed, tokenizer.pad_token_id)
    loss = train(model, batches, recipe.alignment, folder)
    if parallel.rank() == 0:
        save_model(model, tokenizer, folder, {"loss": loss}, aligned=True)
    return folder


if __name__ == "__main__":
    command_line(finetune, __doc__)
