"""The usual notebook loop, written fairly: what the speed of tumorlens is measured against.

    python benchmarks/notebook_baseline.py DATA WEIGHTS [--configuration finetuned] [--epochs 60]

DATA is a folder with Training/ and Testing/, WEIGHTS a ResNet18 state dict. ImageFolder, Resize, ToTensor,
Normalize, a DataLoader with a worker a core, batches of 32, the whole network forward in every epoch, Adam, early
stopping on the validation loss. BatchNorm of frozen layers stays in eval mode, as the study that is reproduced
needs it; most notebooks forget that, which makes no difference to the time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from torchvision.models import resnet18

LEARNS = {"initial": ("fc",), "finetuned": ("layer3", "layer4", "fc")}
LEARNING_RATE = {"initial": 1e-3, "finetuned": 1e-4}
PATIENCE = 5
TRANSFORM = transforms.Compose(
    [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
)


class Notebook:
    """The cells of the notebook; `limit` images of Training only, where given."""

    def __init__(self, data: Path, weights: Path, configuration: str, *, limit: int | None = None, seed: int = 0):
        torch.manual_seed(seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        images = datasets.ImageFolder(data / "Training", TRANSFORM)
        order = torch.randperm(len(images))[:limit].tolist()
        cut = round(len(order) * 0.85)
        self.train, self.validation = Subset(images, order[:cut]), Subset(images, order[cut:])
        self.test = datasets.ImageFolder(data / "Testing", TRANSFORM)
        self.model = resnet18()
        self.model.load_state_dict({k: v.float() for k, v in torch.load(weights, weights_only=True).items()
                                    if not k.startswith("fc.")}, strict=False)  # fmt: skip
        self.model.fc = nn.Linear(512, len(images.classes))
        self.model.to(self.device)
        self.learns = LEARNS[configuration]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = name.startswith(self.learns)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=LEARNING_RATE[configuration])
        self.loss = nn.CrossEntropyLoss()

    def loader(self, images: Any, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(images, batch_size=32, shuffle=shuffle, num_workers=os.cpu_count() or 1)

    def epoch(self) -> tuple[float, float]:
        """Train on every image once, then validate; returns validation loss and accuracy."""
        self.model.eval()
        for name in self.learns:
            getattr(self.model, name).train()
        for images, labels in self.loader(self.train, shuffle=True):
            self.optimizer.zero_grad()
            loss = self.loss(self.model(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
        return self.evaluate(self.validation)

    def evaluate(self, part: Any) -> tuple[float, float]:
        """Mean loss and accuracy."""
        self.model.eval()
        total, correct = 0.0, 0
        with torch.no_grad():
            for images, labels in self.loader(part):
                labels = labels.to(self.device)
                logits = self.model(images.to(self.device))
                total += float(self.loss(logits, labels)) * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
        return total / len(part), correct / len(part)

    def fit(self, epochs: int) -> list[dict[str, float]]:
        """Epochs until early stopping; leaves the best ones' weights in the model."""
        best, state, waited, history = float("inf"), None, 0, []
        for _ in range(epochs):
            began = time.perf_counter()
            loss, accuracy = self.epoch()
            history.append({"loss": loss, "accuracy": accuracy, "seconds": time.perf_counter() - began})
            print(json.dumps(history[-1]), flush=True)
            if loss < best:
                best, state, waited = loss, copy.deepcopy(self.model.state_dict()), 0
            else:
                waited += 1
            if waited == PATIENCE:
                break
        if state is not None:
            self.model.load_state_dict(state)
        return history


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the notebook from top to bottom and print its test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--configuration", choices=list(LEARNS), default="finetuned")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the record to this JSON file")
    asked = parser.parse_args(arguments)
    notebook = Notebook(asked.data, asked.weights, asked.configuration, seed=asked.seed)
    history = notebook.fit(asked.epochs)
    accuracy = notebook.evaluate(notebook.test)[1]
    record = {"configuration": asked.configuration, "seed": asked.seed, "test_accuracy": accuracy, "history": history}
    print(json.dumps({"test_accuracy": accuracy}))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
