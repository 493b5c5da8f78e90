"""Train the language model that ships with the package, on the text that ships with it.

    python -m experiments.language_models.embedded_lm                # the shipped model
    python -m experiments.language_models.embedded_lm --steps 200    # a quick, worse one

A GPT-NeoX of Pythia's architecture with its own byte-level BPE, both trained on the ``train``
split of embedded/text/books.parquet alone. Writes embedded/model, an ordinary `save_pretrained`
folder, with the losses on the held-out text in evaluation.json; embedded/README.md is its card.
The number of steps, not the clock, ends the training.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

EMBEDDED = Path(__file__).parents[2] / "dictionary_learning_ext" / "embedded"
END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 4096
CONTEXT = 256
BATCH = 8
STEPS = 4200
WARMUP_STEPS = 100
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
CLIP_NORM = 1.0
SEED = 0
EVALUATIONS = 5
WATCHED_PASSAGES = 40
SCORED_ROWS = 16


def train_tokenizer(passages: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE without normalisation: any text comes back as it went in."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        padding_side="right",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPTNeoXForCausalLM:
    """An untrained model of Pythia's kind; a quarter of each head is rotated, the default."""
    ids = tokenizer.get_vocab()
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=ids[END_OF_TEXT],
        eos_token_id=ids[END_OF_TEXT],
        pad_token_id=ids[PAD],
    )
    return GPTNeoXForCausalLM(config)


def packed(passages: list[torch.Tensor], end_of_text: int) -> torch.Tensor:
    """One row of token ids: end-of-text before every passage and after the last."""
    separator = torch.tensor([end_of_text])
    return torch.cat([part for p in passages for part in (separator, p)] + [separator])


def batches(
    passages: list[torch.Tensor], end_of_text: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Batches [BATCH, CONTEXT + 1] without end; passages' order and the cuts differ by epoch."""
    while True:
        order = torch.randperm(len(passages), generator=generator).tolist()
        stream = packed([passages[i] for i in order], end_of_text)
        stream = stream[int(torch.randint(CONTEXT, (1,), generator=generator)) :]
        # Neighbouring sequences share one token: the last target is the next one's first input.
        sequences = stream.unfold(0, CONTEXT + 1, CONTEXT)
        shuffled = sequences[torch.randperm(len(sequences), generator=generator)]
        yield from (b for b in shuffled.split(BATCH) if len(b) == BATCH)


def optimizer_of(model: GPTNeoXForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays the matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)


def rate_at(step: int, steps: int) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to a hundredth."""
    warmup = min(WARMUP_STEPS, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def rows_of(stream: torch.Tensor) -> Iterator[torch.Tensor]:
    """`stream` as rows of CONTEXT + 1 tokens that share their ends, then the shorter rest."""
    whole = (len(stream) - 1) // CONTEXT
    if whole:
        yield from stream[: whole * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT).split(SCORED_ROWS)
    if len(stream) - 1 > whole * CONTEXT:
        yield stream[whole * CONTEXT :].unsqueeze(0)


@torch.no_grad()
def evaluate(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, passages: list[str]
) -> dict[str, float]:
    """Loss on `passages`, packed into contexts of CONTEXT tokens, every token scored once.

    End-of-text tokens are read but not scored. ``bits_per_character`` is the sum of the nats of
    all the text's tokens / ln 2 / the text's characters.
    """
    model.eval()
    end_of_text = tokenizer.get_vocab()[END_OF_TEXT]
    nats, tokens = 0.0, 0
    for rows in rows_of(packed(tokenized(tokenizer, passages), end_of_text)):
        targets = rows[:, 1:].flatten()
        logits = model(rows[:, :-1], use_cache=False).logits.flatten(0, 1)
        scored = targets.ne(end_of_text)
        nats += F.cross_entropy(logits[scored], targets[scored], reduction="sum").item()
        tokens += int(scored.sum())
    model.train()
    characters = sum(map(len, passages))
    return {
        "characters": characters,
        "tokens": tokens,
        "nats_per_token": round(nats / tokens, 4),
        "bits_per_character": round(nats / math.log(2) / characters, 4),
    }


def tokenized(tokenizer: PreTrainedTokenizerFast, passages: list[str]) -> list[torch.Tensor]:
    """Token ids of every passage; passages longer than a context are meant (they are packed)."""
    return [torch.tensor(ids) for ids in tokenizer(passages, verbose=False)["input_ids"]]


def train(
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    passages: list[str],
    watched: list[str],
    steps: int,
) -> None:
    """Train in place; prints the loss on the held-out passages `watched` a few times."""
    end_of_text = tokenizer.get_vocab()[END_OF_TEXT]
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    generator = torch.Generator().manual_seed(SEED)
    source = batches(tokenized(tokenizer, passages), end_of_text, generator)
    started = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        batch = next(source)
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            rate = step * BATCH * CONTEXT / (time.perf_counter() - started)
            print(f"step {step}/{steps}: loss {loss.item():.3f}, {rate:,.0f} tokens/s", flush=True)
        if step % max(1, steps // EVALUATIONS) == 0:
            print(f"step {step}: held out {evaluate(model, tokenizer, watched)}", flush=True)


def save(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, evaluation: dict, folder: Path
) -> None:
    """Write a folder beside `folder`, then put it in its place, so that none is half written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        # Versions 4 and 5 of transformers call the same class differently; both know this name.
        path = new / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        text = json.dumps(evaluation, indent=2) + "\n"
        (new / "evaluation.json").write_text(text, encoding="utf-8")
        for file in new.iterdir():
            file.chmod(0o644)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the language model of the package.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=EMBEDDED / "model")
    parser.add_argument("--threads", type=int, help="1 is fastest on a busy machine of few cores")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows = pq.read_table(EMBEDDED / "text" / "books.parquet").to_pylist()
    passages = [row["text"] for row in rows if row["split"] == "train"]
    heldout: dict[str, list[str]] = {}
    for row in rows:
        if row["split"] == "heldout":
            heldout.setdefault(row["author"], []).append(row["text"])

    torch.manual_seed(SEED)
    started = time.perf_counter()
    tokenizer = train_tokenizer(passages)
    model = new_model(tokenizer)
    watched = heldout["Jane Austen"][:WATCHED_PASSAGES]
    train(model, tokenizer, passages, watched, arguments.steps)
    minutes = (time.perf_counter() - started) / 60
    evaluation = {
        "parameters": model.num_parameters(),
        "steps": arguments.steps,
        "tokens_trained": arguments.steps * BATCH * CONTEXT,
        "train_tokens": sum(map(len, tokenized(tokenizer, passages))),
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round(minutes, 1),
        "held_out": {author: evaluate(model, tokenizer, p) for author, p in heldout.items()},
    }
    save(model, tokenizer, evaluation, arguments.output)
    print(json.dumps(evaluation, indent=2))


if __name__ == "__main__":
    main()
