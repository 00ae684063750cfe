"""Models, data and trainings for the tests in Transformers."""

import copy

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import helpers

TARGET = 0.9
EXAMPLES, BATCH = 40, 4  # ten batches an epoch


def bert(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16))


def mixtral(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, max_position_embeddings=16))


class Plain(nn.Module):
    """A model that is not of the library: it returns its loss itself."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Embedding(40, 6), nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 2))

    def forward(self, input_ids, labels=None):
        logits = self.layers(input_ids)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Examples(torch.utils.data.Dataset):
    def __init__(self, causal=False, size=EXAMPLES):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(40, (size, 8), generator=generator)
        self.labels = self.ids if causal else (self.ids[:, 0] % 2)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def trainer_for(model, folder, callbacks, data=None, optimizers=(None, None), model_init=None, **options):
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            **options,
        }
    )
    data = data or Examples()
    return Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        model_init=model_init,
        callbacks=callbacks,
        optimizers=optimizers,
    )


def everything(trainer, pruner):
    """Model, optimizer and pruner, to the bit."""
    return copy.deepcopy(
        [trainer.model.state_dict(), trainer.optimizer.state_dict(), pruner.state_dict(), dict(pruner.masks)]
    )


def zeros_of(weights):
    """The share of zeros in tensors."""
    weights = list(weights)
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def assert_pruned(pruner, target=TARGET):
    """The share of zeros is exact, in the masks and in the weights."""
    weights = helpers.pruned_parameters(pruner).values()
    total = sum(w.numel() for w in weights)
    assert sum(int(m.sum()) for m in pruner.masks.values()) == round((1 - target) * total)
    for weight, mask in zip(weights, pruner.masks.values(), strict=True):
        assert not weight[~mask].any()


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
