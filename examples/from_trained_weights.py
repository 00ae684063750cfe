"""Start from trained weights: fine-tune an image classifier, and prune it meanwhile.

The trained weights are those of a small network for scikit-learn's digits, trained here. Yours are in a file.

    python examples/from_trained_weights.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fggp

BATCH = 64
torch.manual_seed(0)
bunch = load_digits()
order = torch.randperm(len(bunch.target))
images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)[order] / 16
classes = torch.tensor(bunch.target)[order]

layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4 * 4, 10)]
model = nn.Sequential(*layers)


def train(epochs: int, lr: float, sparsity: float = 0.0) -> float:
    """Train with a warm-up and a cosine, prune if asked to, and return the percentage of right test images."""
    steps = epochs * -(-1400 // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    if sparsity:  # in the first half of the steps; the second half trains what is left
        fggp.Pruner(model, optimizer, sparsity, begin=0, end=steps // 2, every=max(1, steps // 62))
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(1400).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return 100 * (model.eval()(images[1400:]).argmax(1) == classes[1400:]).float().mean().item()


print(f"trained:              {train(10, lr=0.1):.1f} %")
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

model.load_state_dict(state)  # your file: torch.load("net.pt", weights_only=True)
print(f"fine-tuned and pruned: {train(10, lr=0.05, sparsity=0.95):.1f} %")
weights = [p for p in model.parameters() if p.dim() > 1]
print(f"{sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights):.2%} of the weights are zero")
