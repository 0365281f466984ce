"""Small networks, the ways to train their weights that are compared, and the training itself."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import say
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from nola_codec.training import parametrize_network, parametrize_weights, save
from nola_codec.training.coded import near_square_shape


def mlp() -> nn.Module:
    """784-256-10 without biases: of 64 coefficients 266 biases would be the greater part."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256, bias=False), nn.ReLU(), nn.Linear(256, 10, bias=False)
    )  # fmt: skip


class _Block(nn.Module):
    """Two convolutions and a way around them, which has no parameters (He et al., option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 2 if outputs != inputs else 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.added = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, inputs, h, w) -> (b, outputs, h', w')."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        around = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return torch.relu(out + around)


def resnet20(width: int = 16) -> nn.Module:
    """ResNet20 for one channel; its first convolution has a stride of 2, a quarter of the time."""
    widths = [width] * 3 + [2 * width] * 3 + [4 * width] * 3
    blocks = [_Block(a, b) for a, b in zip([width, *widths], widths, strict=False)]
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


class _LowRank(nn.Module):
    """A weight as a product of two trained factors: LoRA of the near-square matrix, without a frozen weight."""

    def __init__(self, shape: torch.Size, rank: int) -> None:
        super().__init__()
        self.shape = shape
        self.rows, self.columns = shape if len(shape) == 2 else near_square_shape(shape)
        self.rank = min(rank, self.rows, self.columns)

    def forward(self, lora_B: torch.Tensor, lora_A: torch.Tensor) -> torch.Tensor:
        """(rows, r), (r, columns) -> the weight."""
        return (lora_B @ lora_A).reshape(self.shape)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Random factors of a product as large as the weight."""
        std = math.sqrt(float(weight.square().mean().sqrt()) / math.sqrt(self.rank))
        return std * torch.randn(self.rows, self.rank), std * torch.randn(self.rank, self.columns)


def low_rank(network: nn.Module, rank: int) -> None:
    """Train linear and convolution weights as two factors of this rank."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", _LowRank(layer.weight.shape, rank))


@dataclass
class Way:
    """One way to train a network.

    Attributes:
        name: For people.
        network: Made by `build`.
        lr: The highest learning rate of Adam.
        coded: True if `save` can write it.
    """

    name: str
    network: nn.Module
    lr: float
    coded: bool
    losses: list[float] = field(default_factory=list)

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)

    def bytes(self) -> int:
        """The size of its file: a `.nola` file, or safetensors with all floats in fp16."""
        if self.coded:
            with tempfile.TemporaryDirectory() as folder:
                return save(self.network, Path(folder) / "network.nola")
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.network.state_dict().items()}
        return len(safetensors_bytes({key: value.contiguous() for key, value in state.items()}))


def build(make: Callable[[], nn.Module], seed: int, name: str, lr: float, *, start: bool = False, **coding: Any) -> Way:
    """A network, its weights plain (no `coding`), low-rank (``rank`` alone) or coded (as `parametrize_network`).

    With `start` its weights are frozen as PyTorch draws them, and a coded change is trained (`parametrize_weights`).
    """
    torch.manual_seed(seed)
    network = make()
    if start:
        parametrize_weights(network, seed=seed, **coding)
    elif coding.keys() == {"rank"}:
        low_rank(network, coding["rank"])
    elif coding:
        parametrize_network(network, seed=seed, **coding)
    return Way(name, network, lr, coded="num_basis" in coding)


@dataclass(frozen=True)
class Images:
    """Images (n, 1, 28, 28) float32, about of variance 1, and labels (n,) int64."""

    x: torch.Tensor
    y: torch.Tensor


def step(way: Way, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    """One step of training; the loss before it."""
    loss = functional.cross_entropy(way.network(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(way: Way, data: Images, epochs: int, batch: int, seed: int) -> float:
    """Adam, warmed up over 50 steps and then down to zero as a cosine; returns median seconds a step."""
    optimizer = torch.optim.Adam([p for p in way.network.parameters() if p.requires_grad], way.lr)
    per_epoch = len(data.y) // batch
    total = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * i / total))
    )
    order = np.random.default_rng(seed)  # the same batches for each way
    seconds = []
    way.network.train()
    for epoch in range(epochs):
        shuffled = torch.from_numpy(order.permutation(len(data.y)))
        for at in range(per_epoch):
            picked = shuffled[at * batch : (at + 1) * batch]
            start = time.perf_counter()
            way.losses.append(step(way, optimizer, data.x[picked], data.y[picked]))
            schedule.step()
            seconds.append(time.perf_counter() - start)
        recent = float(np.mean(way.losses[-per_epoch:]))
        say(f"{way.name}: epoch {epoch + 1} of {epochs}, loss {recent:.4f}, {sum(seconds):.0f} s")
    return float(np.median(seconds))


@torch.no_grad()
def evaluate(network: nn.Module, data: Images) -> tuple[float, float]:
    """Mean loss and accuracy, in evaluation: of what the file decodes to."""
    network.eval()
    loss = right = 0.0
    for x, y in zip(data.x.split(1000), data.y.split(1000), strict=True):
        logits = network(x)
        loss += functional.cross_entropy(logits, y, reduction="sum").item()
        right += (logits.argmax(1) == y).sum().item()
    return loss / len(data.y), right / len(data.y)
