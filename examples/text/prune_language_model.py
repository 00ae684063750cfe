"""Prune a causal language model with the Hugging Face Trainer, and compare its perplexity with the dense one's.

    pip install 'fggp[transformers]'
    python examples/text/prune_language_model.py
    python examples/text/prune_language_model.py --model HuggingFaceTB/SmolLM2-135M --sparsity 0.5

The text: docstrings of installed packages. With ``--model`` the start is a model of the Hugging Face hub. Without, it
is a small Llama that is first trained here, so that nothing is downloaded. Put your own texts into `blocks`.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from docstrings import docstrings, tokenizer_of
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import fggp
from fggp.transformers import Pruning


class Logits(nn.Module):
    """The language model with its logits as the only output, and without a cache: what is shipped."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def small_llama(vocabulary: int, length: int) -> PreTrainedModel:
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=length, tie_word_embeddings=True, pad_token_id=0, **sizes
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def perplexity(model, blocks: list[Tensor]) -> float:
    """Return the perplexity of blocks of tokens: how many tokens the next one is as hard to guess among."""
    losses = []
    for some in torch.stack(blocks).split(16):
        logits = model(some)[:, :-1]
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(losses).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a causal language model while it is fine-tuned.")
    parser.add_argument("--model", metavar="NAME", help="of the Hugging Face hub, or a folder; default: a small Llama")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--epochs", type=float, default=2.0, help="of the fine-tuning")
    parser.add_argument("--texts", type=int, default=400, help="docstrings of each package, at most")
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--out", type=Path, default=Path("language-model"))
    given = parser.parse_args()
    set_seed(0)
    data = docstrings(given.texts)
    if given.model:
        tokenizer = AutoTokenizer.from_pretrained(given.model)
        start = AutoModelForCausalLM.from_pretrained(given.model)
    else:
        tokenizer = tokenizer_of([each.text for each in data if not each.held_out], 2048)
        start = small_llama(len(tokenizer), given.length)

    def blocks(held_out: bool) -> list[Tensor]:
        """All texts one behind the other, cut into blocks of the same length."""
        texts = [each.text + tokenizer.eos_token for each in data if each.held_out == held_out]
        tokens = torch.tensor([t for own in tokenizer(texts, add_special_tokens=False)["input_ids"] for t in own])
        return [*tokens[: len(tokens) // given.length * given.length].view(-1, given.length)]

    train, test = blocks(held_out=False), blocks(held_out=True)

    def fine_tuned(model: PreTrainedModel, rate: float, *callbacks) -> PreTrainedModel:
        """A copy of the model, trained."""
        arguments = TrainingArguments(
            output_dir=str(given.out / "trainer"),
            num_train_epochs=given.epochs,
            per_device_train_batch_size=16,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        examples = [{"input_ids": block, "labels": block} for block in train]
        trainer = Trainer(copy.deepcopy(model), arguments, train_dataset=examples, callbacks=[*callbacks])
        trainer.train()
        return trainer.model.cpu().eval()

    rate = 5e-5 if given.model else 1e-3
    if not given.model:
        start = fine_tuned(start, rate)
    dense = Logits(fine_tuned(start, rate))
    # Embeddings are not pruned by default, and neither is an output layer that shares their weight. Where it has a
    # weight of its own, this leaves it alone too.
    pruning = Pruning(given.sparsity, exclude="lm_head.*", floor=0.01)
    pruned = Logits(fine_tuned(start, rate, pruning))

    fast = fggp.compile(pruned, test[0][None])
    fast.save(given.out / "net.fggp")
    fggp.save(pruned.model, given.out / "small.safetensors")
    torch.save(dense.model.state_dict(), given.out / "dense.pt")
    record = {
        "model": given.model or "small Llama",
        "sparsity": given.sparsity,
        "tokens": {"training": len(train) * given.length, "test": len(test) * given.length},
        "epochs": given.epochs,
        "perplexity": {
            "dense": perplexity(dense, test),
            "pruned": perplexity(pruned, test),
            "pruned, net.fggp": perplexity(fast, test),
        },
        "bytes": {name: (given.out / name).stat().st_size for name in ("dense.pt", "small.safetensors", "net.fggp")},
    }
    (given.out / "record.json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record, indent=2))
    print(pruning.pruner)


if __name__ == "__main__":
    main()
