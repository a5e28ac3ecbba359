"""Train two small sequence classifiers in PyTorch and store them with cases: run by hand.

    python tests/recurrent/make_models.py

The task: sequences of noise of 3 channels in which one channel has a bump; which one is the class.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
STEPS, CHANNELS, HIDDEN = 12, 3, 8


class Classifier(nn.Module):
    """A recurrent layer, and a dense layer on its last output or on the mean of all."""

    def __init__(self, cell, bidirectional):
        super().__init__()
        self.cell = cell(CHANNELS, HIDDEN, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(HIDDEN * (1 + bidirectional), CHANNELS)

    def forward(self, x):
        y = self.cell(x)[0]
        return self.head(y.mean(1) if self.cell.bidirectional else y[:, -1])


def draw(n, seed):
    rng = np.random.default_rng(seed)
    x, labels = 0.3 * rng.normal(size=(n, STEPS, CHANNELS)), rng.integers(0, CHANNELS, n)
    for row, (label, start) in enumerate(zip(labels, rng.integers(0, STEPS - 4, n), strict=True)):
        x[row, start : start + 4, label] += 1.5
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def train(model, steps=300):
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(steps):
        x, labels = draw(64, step)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
    x, labels = draw(500, steps)
    return (model(x).argmax(1) == labels).float().mean().item()


def store(name, model):
    accuracy = train(model)
    x, _ = draw(4, 10_000)
    torch.onnx.export(
        model.eval(), (x,), HERE / f"{name}.onnx", dynamo=False, opset_version=17,
        input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip
    model, x = model.double(), x.double().requires_grad_()
    y = model(x)
    gradient = [
        torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0] for k in range(CHANNELS)
    ]
    np.savez(
        HERE / f"{name}.npz",
        x=x.detach().numpy(), y=y.detach().numpy(), gradient=torch.stack(gradient, -1).numpy(),
    )  # fmt: skip
    print(f"{name}: accuracy {accuracy:.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    store("lstm", Classifier(nn.LSTM, False))
    store("bidirectional_gru", Classifier(nn.GRU, True))
