"""Fine-tune a text classifier with the Hugging Face Trainer, prune it meanwhile, and run it without PyTorch.

    pip install 'fggp[transformers]'
    python examples/text/prune_classifier.py
    python examples/text/prune_classifier.py --model google-bert/bert-base-uncased --sparsity 0.9

The task: which package is a docstring from? With ``--model`` the start is a model of the Hugging Face hub. Without, it
is a small BERT that is first trained here, so that nothing is downloaded. Put your own texts into `examples`.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from docstrings import PACKAGES, docstrings, tokenizer_of, without_names
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import fggp
from fggp.transformers import Pruning


class Logits(nn.Module):
    """The classifier with its logits as the only output: what is shipped."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def small_bert(vocabulary: int, length: int) -> PreTrainedModel:
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    config = BertConfig(vocab_size=vocabulary, max_position_embeddings=length, num_labels=len(PACKAGES), **sizes)
    return BertForSequenceClassification(config)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": 100 * float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a text classifier while it is fine-tuned.")
    parser.add_argument("--model", metavar="NAME", help="of the Hugging Face hub, or a folder; default: a small BERT")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=float, default=3.0, help="of the fine-tuning")
    parser.add_argument("--texts", type=int, default=1000, help="of each package, at most")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text; what is longer is cut")
    parser.add_argument("--out", type=Path, default=Path("text-classifier"))
    given = parser.parse_args()
    set_seed(0)
    data = docstrings(given.texts)
    texts = [without_names(each.text) for each in data]
    if given.model:
        tokenizer = AutoTokenizer.from_pretrained(given.model)
        start = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(PACKAGES))
    else:
        seen = [text for text, each in zip(texts, data, strict=True) if not each.held_out]
        tokenizer = tokenizer_of(seen, 4096)
        start = small_bert(len(tokenizer), given.length)

    def examples(held_out: bool) -> list[dict]:
        chosen = [(text, each.package) for text, each in zip(texts, data, strict=True) if each.held_out == held_out]
        encoded = tokenizer([t for t, _ in chosen], padding="max_length", truncation=True, max_length=given.length)
        keys = ("input_ids", "attention_mask")
        return [{**{key: encoded[key][i] for key in keys}, "labels": label} for i, (_, label) in enumerate(chosen)]

    train, test = examples(held_out=False), examples(held_out=True)

    def fine_tuned(model: PreTrainedModel, rate: float, *callbacks) -> tuple[PreTrainedModel, float]:
        """A copy of the model, trained; and its accuracy on the held-out texts."""
        arguments = TrainingArguments(
            output_dir=str(given.out / "trainer"),
            num_train_epochs=given.epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=rate,
            warmup_steps=20,
            weight_decay=0.01,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            copy.deepcopy(model),
            arguments,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=accuracy,
            callbacks=[*callbacks],
        )
        trainer.train()
        return trainer.model, trainer.evaluate()["eval_accuracy"]

    rate = 5e-5 if given.model else 5e-4
    if not given.model:
        start, _ = fine_tuned(start, rate)
    dense, dense_accuracy = fine_tuned(start, rate)
    # Embeddings are not pruned by default: each row is used by few texts, so its gradients say little.
    # The gradients of attention's queries and keys are small: the floor keeps a hundredth of each layer.
    pruning = Pruning(given.sparsity, floor=0.01)
    pruned, pruned_accuracy = fine_tuned(start, rate, pruning)

    model = Logits(pruned.cpu().eval())
    inputs = {key: torch.tensor([each[key] for each in test]) for key in ("input_ids", "attention_mask")}
    fast = fggp.compile(model, {key: value[:1] for key, value in inputs.items()})
    fast.save(given.out / "net.fggp")
    fggp.save(pruned, given.out / "small.safetensors")
    torch.save(dense.state_dict(), given.out / "dense.pt")

    # What ships is measured: the compiled network, on all held-out texts.
    logits = torch.cat(
        [fast(**{key: value[i : i + 32] for key, value in inputs.items()}) for i in range(0, len(test), 32)]
    )
    labels = torch.tensor([each["labels"] for each in test])
    record = {
        "model": given.model or "small BERT",
        "sparsity": given.sparsity,
        "texts": {"training": len(train), "test": len(test)},
        "epochs": given.epochs,
        "accuracy": {
            "dense": dense_accuracy,
            "pruned": pruned_accuracy,
            "pruned, net.fggp": 100 * (logits.argmax(1) == labels).float().mean().item(),
        },
        "bytes": {name: (given.out / name).stat().st_size for name in ("dense.pt", "small.safetensors", "net.fggp")},
    }
    (given.out / "record.json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record, indent=2))
    print(pruning.pruner)


if __name__ == "__main__":
    main()
