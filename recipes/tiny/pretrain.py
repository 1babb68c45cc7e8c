"""Pretraining of a base model: `python -m recipes.tiny.pretrain big --seed 0`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.tiny import parallel
from recipes.tiny.models import make_model, save_model
from recipes.tiny.settings import BUILD, WINDOW, Recipe
from recipes.tiny.stage import command_line
from recipes.tiny.tokens import SHARD_TOKENS, VALIDATION_SEED, shard, train_tokenizer
from recipes.tiny.training import Batch, loss_of, train


class Text:
    """Rows of `WINDOW` tokens cut from the endless pretraining text, documents running on across rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int, rows: int) -> None:
        self._tokenizer, self._folder, self._seed, self._rows = tokenizer, folder, seed, rows
        self._index, self._shard = -1, np.empty(0, np.uint16)

    def __call__(self, step: int) -> Batch:
        per_batch = self._rows * WINDOW
        per_shard = (SHARD_TOKENS - 1) // per_batch
        index, place = divmod(step, per_shard)
        if index != self._index:
            self._index, self._shard = index, shard(self._tokenizer, self._folder, self._seed, index)
        start = place * per_batch
        tokens = torch.from_numpy(self._shard[start : start + per_batch + 1].astype(np.int64))
        return tokens[:-1].view(self._rows, WINDOW), tokens[1:].view(self._rows, WINDOW)


def load_tokenizer(build: Path = BUILD) -> PreTrainedTokenizerFast:
    folder = build / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, build: Path, steps: int = 16) -> float:
    """Nats per token on text that no training run reads."""
    text = Text(tokenizer, build / "shards", VALIDATION_SEED, 16)
    model.eval()
    return sum(loss_of(model, text(step)).item() for step in range(steps)) / steps


def pretrain(name: str, recipe: Recipe, seed: int, build: Path = BUILD) -> Path:
    """Train base model `name` and return its folder, `build/<name>-base-<seed>`."""
    tokenizer = load_tokenizer(build)
    folder = build / f"{name}-base-{seed}"
    model = make_model(recipe.size, tokenizer, seed)
    text = Text(tokenizer, build / "shards", seed, recipe.pretraining.rows)
    loss = train(model, text, recipe.pretraining, folder)
    if parallel.rank() == 0:
        figures = {"loss": loss, "validation_loss": validation_loss(model, tokenizer, build)}
        save_model(model, tokenizer, folder, figures, aligned=False)
    return folder


if __name__ == "__main__":
    command_line(pretrain, __doc__)
