"""ResNet18 as one table: its stages in forward order, and the boundary after each stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A part of the network that is trained or frozen as a whole."""

    name: str
    modules: tuple[str, ...]
    """Names of the torchvision modules that hold its parameters."""
    boundary: str
    """Name of the boundary at its output."""
    shape: tuple[int, ...]
    """Shape of its output for one image, channels last."""


TABLE = (
    Stage("stem", ("conv1", "bn1"), "stem", (56, 56, 64)),  # with ReLU and max pooling
    Stage("layer1", ("layer1",), "layer1", (56, 56, 64)),
    Stage("layer2", ("layer2",), "layer2", (28, 28, 128)),
    Stage("layer3", ("layer3",), "layer3", (14, 14, 256)),
    Stage("layer4", ("layer4",), "avgpool", (512,)),  # with average pooling
    Stage("fc", ("fc",), "logits", ()),
)
STAGES = tuple(stage.name for stage in TABLE)
#: Maps each boundary to the index of the stage after it.
BOUNDARIES = {"image": 0} | {stage.boundary: i for i, stage in enumerate(TABLE, start=1)}
#: Shape of one image at each boundary where features can be cached, channels last. 224 is `readers.pixels.SIZE`,
#: which is not imported because it loads NumPy and would slow down --help; a test compares the two.
SHAPES: dict[str, tuple[int, ...]] = {"image": (224, 224, 3)} | {s.boundary: s.shape for s in TABLE[:-1]}


def parameter_prefixes(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prefixes of these stages' parameters and buffers in a state dict."""
    return tuple(f"{module}." for stage in TABLE if stage.name in stages for module in stage.modules)
