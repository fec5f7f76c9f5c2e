"""The stages of ResNet18 and the boundaries between them, in one place."""

from __future__ import annotations

#: Boundaries between stages at which activations can be kept, and the stage that comes next.
BOUNDARIES = {"image": 0, "stem": 1, "layer1": 2, "layer2": 3, "layer3": 4, "avgpool": 5}
#: ResNet18 in the order in which data flows. `stem` is conv1, bn1, relu and maxpool.
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
#: Shape of one image's row at each boundary, channels last.
SHAPES: dict[str, tuple[int, ...]] = {
    "image": (224, 224, 3),  # readers.pixels.SIZE, which is not imported: --help must not wait for numpy
    "stem": (56, 56, 64),
    "layer1": (56, 56, 64),
    "layer2": (28, 28, 128),
    "layer3": (14, 14, 256),
    "avgpool": (512,),
}
