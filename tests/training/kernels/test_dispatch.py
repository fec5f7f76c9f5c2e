"""Convolutions of layers that learn: as exact as the processor's own, and in place in training alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from tumorlens.training.kernels.dispatch import convolve_strided, fast_convolutions
from tumorlens.training.kernels.winograd import Tiling, convolve, tiling


def direct(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.conv2d(x, weight, padding=1)


def passes(function: Any, x: Tensor, weight: Tensor, gradient: Tensor, kind: torch.dtype) -> tuple[Tensor, ...]:
    a, b = (t.detach().to(kind, copy=True).requires_grad_() for t in (x, weight))
    y = function(a, b)
    y.backward(gradient.to(kind))
    assert a.grad is not None
    assert b.grad is not None
    return y.detach(), a.grad, b.grad


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max() / truth.abs().max())


# 14 and 7 are ResNet18's; the others take one kind of tiles, end within one, and are smaller than one.
@pytest.mark.parametrize(
    ("c", "k", "h", "w"),
    [(256, 256, 14, 14), (512, 512, 7, 7), (128, 256, 9, 4), (256, 128, 5, 13), (128, 128, 1, 1), (128, 128, 2, 6)],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_output_and_gradients_are_the_definitions(c: int, k: int, h: int, w: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, c, h, w).to(memory_format=layout)
    weight = (torch.randn(k, c, 3, 3) / (3 * c**0.5)).to(memory_format=layout)
    gradient = torch.randn(3, k, h, w).to(memory_format=layout)
    truth = passes(direct, x, weight, gradient, torch.float64)
    # the processor's own convolution: up to 3e-6
    limit = {4: 5e-6, 5: 1.5e-5}[tiling(h, w).out]
    for found, true in zip(passes(convolve, x, weight, gradient, torch.float32), truth, strict=True):
        assert found.shape == true.shape
        assert error(found, true) < limit


def share(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


# A single output takes the middle weight alone, through sums that were made for a tile.
@pytest.mark.parametrize(
    ("c", "k", "h", "w", "limit"),
    [(128, 128, 14, 14, 0.025), (256, 128, 7, 7, 0.025), (128, 256, 9, 4, 0.025), (128, 128, 5, 13, 0.025),
     (128, 128, 1, 1, 0.06), (128, 128, 2, 6, 0.025)],
)  # fmt: skip
def test_in_bfloat16_a_few_hundredths_are_lost(c: int, k: int, h: int, w: int, limit: float) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(3, c, h, w), torch.randn(3, k, h, w)
    weight = torch.randn(k, c, 3, 3) / (3 * c**0.5)
    truth = passes(direct, x, weight, gradient, torch.float64)
    for found, true in zip(passes(convolve, x, weight, gradient, torch.bfloat16), truth, strict=True):
        assert found.dtype == torch.bfloat16
        assert share(found, true) < limit


@pytest.mark.parametrize(
    ("h", "w", "kind", "cut", "products"),
    [
        (14, 14, torch.float32, Tiling(5, 3, 2, 3, 2), (7 + 7 + 6) ** 2),
        (7, 7, torch.float32, Tiling(4, 2, 1, 2, 1), (6 + 5) ** 2),
        (14, 14, torch.bfloat16, Tiling(4, 4, 2, 4, 2), (6 + 6 + 5 + 5) ** 2),
        (9, 5, torch.float32, Tiling(5, 2, 1, 1, 1), (7 + 6) * 7),
        (1, 4, torch.bfloat16, Tiling(4, 1, 0, 1, 1), 5 * 6),
    ],
)
def test_a_side_is_cut_into_longer_and_shorter_tiles(
    h: int, w: int, kind: torch.dtype, cut: Tiling, products: int
) -> None:
    assert tiling(h, w, kind) == cut
    assert cut.products() == products


@pytest.mark.parametrize("frozen", ["activations", "weights"])
def test_what_learns_beside_what_is_frozen_gets_the_same_gradient(frozen: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 128, 7, 7), torch.randn(128, 128, 3, 3) / 34
    x.requires_grad_(frozen != "activations")
    weight.requires_grad_(frozen != "weights")
    (learns,) = (t for t in (x, weight) if t.requires_grad)
    (own,) = torch.autograd.grad(direct(x, weight).square().sum(), learns)
    (found,) = torch.autograd.grad(convolve(x, weight).square().sum(), learns)
    assert error(found, own.double()) < 2e-5


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_so(kind: torch.dtype) -> None:
    x = torch.zeros(1, 128, 7, 7, dtype=kind)
    x[0, 5, 3, 3] = torch.nan
    assert convolve(x, torch.ones(128, 128, 3, 3, dtype=kind))[0, :, 3, 3].isnan().all()


def test_gradients_of_gradients_are_refused() -> None:
    x, weight = torch.randn(1, 128, 4, 4), torch.randn(128, 128, 3, 3, requires_grad=True)
    (once,) = torch.autograd.grad(convolve(x, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="not 5×5"):
        convolve(torch.zeros(1, 128, 7, 7), torch.zeros(128, 128, 5, 5))


def test_channels_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiples of 128, not 130 and 256"):
        convolve(torch.zeros(1, 130, 7, 7), torch.zeros(256, 130, 3, 3))


# ResNet18's two kinds, and sides that a stride does not divide.
@pytest.mark.parametrize(
    ("c", "k", "h", "w", "side", "stride", "padding"),
    [(128, 256, 28, 28, 3, 2, 1), (128, 256, 28, 28, 1, 2, 0), (3, 5, 9, 6, 3, 2, 1), (2, 3, 11, 8, 5, 3, 2)],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_strided_ones_are_the_definition(
    c: int, k: int, h: int, w: int, side: int, stride: int, padding: int, layout: torch.memory_format
) -> None:
    def definition(x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.conv2d(x, weight, stride=stride, padding=padding)

    torch.manual_seed(0)
    x = torch.randn(3, c, h, w).to(memory_format=layout)
    weight = (torch.randn(k, c, side, side) / (side * c**0.5)).to(memory_format=layout)
    gradient = torch.randn_like(definition(x, weight))
    truth = passes(definition, x, weight, gradient, torch.float64)
    for kind, limit in ((torch.float32, 5e-6), (torch.bfloat16, 0.02)):  # bfloat16 keeps 8 bits
        ours = passes(lambda a, b: convolve_strided(a, b, stride, padding), x, weight, gradient, kind)
        for found, true in zip(ours, truth, strict=True):
            assert found.dtype == kind
            assert found.shape == true.shape
            assert error(found, true) < limit


def test_a_network_keeps_its_tensors_and_gets_its_own_convolutions_back() -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=4).to(memory_format=torch.channels_last).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, y = torch.randn(2, 128, 14, 14), torch.tensor([0, 3])

    def gradients() -> dict[str, Tensor]:
        model.load_state_dict(before)
        model.zero_grad()
        pooled = model.avgpool(model.layer4(model.layer3(x))).flatten(1)
        nn.functional.cross_entropy(model.fc(pooled), y).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def replaced() -> int:
        return sum("forward" in vars(m) for m in model.modules())

    own = gradients()
    with fast_convolutions([model.layer3, model.layer4]):
        fast = gradients()
        assert replaced() == 10  # 3×3 and the shortcut's 1×1
        assert list(model.state_dict()) == list(before)
    assert replaced() == 0
    with pytest.raises(KeyboardInterrupt), fast_convolutions([model.layer3]):  # as where a training is stopped
        raise KeyboardInterrupt
    assert replaced() == 0
    assert own.keys() == fast.keys()
    for name in own:
        assert error(fast[name], own[name].double()) < 1e-4, name
    assert any(not torch.equal(own[name], fast[name]) for name in own), "fast_convolutions() changed nothing"


def test_autocast_computes_by_winograd_what_learns_and_predicts_by_the_definition() -> None:
    torch.manual_seed(0)
    two = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.Conv2d(128, 8, 3, stride=2, bias=False)).to(
        memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    x = torch.randn(2, 128, 8, 8)

    def passed() -> tuple[Tensor, Tensor]:
        two.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = two(x)
        y.float().square().sum().backward()
        return y.detach(), two[0].weight.grad.clone()

    own, own_gradient = passed()
    with fast_convolutions([two]):
        learned, gradient = passed()
        two.eval()
        predicted = passed()[0]
    assert learned.dtype == own.dtype == torch.bfloat16
    assert gradient.dtype == torch.float32
    assert torch.equal(predicted, own)
    assert not torch.equal(learned, own)
    assert share(learned, own.double()) < 0.04
    assert share(gradient, own_gradient.double()) < 0.08


def test_float64_is_left_to_the_definition() -> None:
    two = nn.Sequential(
        nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.Conv2d(256, 8, 3, stride=2, bias=False)
    ).double()
    x = torch.randn(1, 256, 6, 6, dtype=torch.float64)
    own = two(x)
    with fast_convolutions([two]):
        assert torch.equal(two(x), own)


def test_other_convolutions_stay() -> None:
    others = nn.ModuleList(
        [
            nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False), nn.Conv2d(256, 256, 1, bias=False),
            nn.Conv2d(256, 256, 3, padding=1, stride=(2, 1), bias=False), nn.Conv2d(256, 256, 3, stride=2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.Conv2d(256, 256, 3, padding=1),
            nn.Conv2d(256, 256, 3, padding=1, groups=2, bias=False), nn.Conv2d(160, 256, 3, padding=1, bias=False),
            nn.Conv2d(256, 160, 3, padding=1, bias=False),
        ]
    )  # fmt: skip
    with fast_convolutions(others):
        assert not any("forward" in vars(m) for m in others)
