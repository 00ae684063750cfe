"""Prune a network while a plain PyTorch loop trains it.

A small convolutional network learns scikit-learn's handwritten digits. Meanwhile FGGP prunes 95 % of its weights.

    python examples/prune_while_training.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fggp

EPOCHS, BATCH = 10, 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 1,797 images [n, 1, 8, 8], scaled to [0, 1], and their classes [n], in random order."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target))
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(bunch.target)[order]


torch.manual_seed(0)
images, classes = digits()
train_images, test_images = images[:1400], images[1400:]
train_classes, test_classes = classes[:1400], classes[1400:]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

# Pruning starts after a tenth of the steps and ends after three quarters. The last quarter trains what is kept.
steps = EPOCHS * -(-len(train_images) // BATCH)
pruner = fggp.Pruner(model, optimizer, sparsity=0.95, begin=steps // 10, end=3 * steps // 4, every=5)

for epoch in range(EPOCHS):
    for batch in torch.randperm(len(train_images)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train_images[batch]), train_classes[batch]).backward()
        optimizer.step()  # the pruner acts inside this call
    print(f"epoch {epoch + 1:2}: {pruner.sparsity:.1%} of the weights are pruned")

model.eval()
with torch.no_grad():
    accuracy = (model(test_images).argmax(1) == test_classes).float().mean().item()
weights = [model.get_parameter(name) for name in pruner.masks]
total = sum(weight.numel() for weight in weights)
zeros = sum(int((weight == 0).sum()) for weight in weights)

print(pruner)
print(f"{zeros:,} of {total:,} weights are zero ({zeros / total:.2%})")
print(f"test accuracy: {accuracy:.1%}")
