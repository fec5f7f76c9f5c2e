"""How well heatmaps point at lesions of known position, for both configurations, compared with a central blob.

    python benchmarks/pointing.py --phantom RUN [--n 120]
    python benchmarks/pointing.py --volume T1.nii.gz --mask MASK.nii.gz --real RUN

The first RUN was trained on generated slices; the slices measured come from another seed. The second was trained on
real slices. Updates benchmarks/results/pointing.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import command, keep
from pointing_game import Case, measure_pointing, phantom_cases

from tumorlens.export.export import export_run
from tumorlens.inference.classifier import Classifier, load_classifier
from tumorlens.readers import Slice, read_inputs

CONFIGURATIONS = ("initial", "finetuned")
LEAST = 100  # pixels of 224 x 224 that a lesion must cover to count


def volume_cases(volume: Path, mask: Path, label: str) -> Iterator[Case]:
    """Slices of a NIfTI volume on which its mask shows the lesion."""
    masks = {s.index: s.pixels[..., 0] >= 128 for s in read_inputs([str(mask)]) if isinstance(s, Slice)}
    for one in read_inputs([str(volume)]):
        if isinstance(one, Slice) and masks[one.index].sum() >= LEAST:
            yield Case(one.pixels, masks[one.index], label)


def exported(run: Path, configuration: str) -> Classifier:
    """A configuration of a run as its file would be."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classifier.onnx"
        export_run(run, configuration, out=file)
        return load_classifier(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--phantom", type=Path, help="run on generated slices")
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--volume", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--real", type=Path, help="run trained on real data, for the volume")
    parser.add_argument("--label", default="glioma", help="what the volume shows")
    asked = parser.parse_args(arguments)
    detail: dict[str, Any] = {}
    if asked.phantom:
        cases = list(phantom_cases(asked.n))
        detail["phantom"] = {name: measure_pointing(exported(asked.phantom, name), cases) for name in CONFIGURATIONS}
    if asked.volume:
        cases = list(volume_cases(asked.volume, asked.mask, asked.label))
        detail["volume"] = {name: measure_pointing(exported(asked.real, name), cases) for name in CONFIGURATIONS}
    rates = detail.get("phantom", {})
    figures = {f"pointing.phantom.{name}": one["heatmap"]["rate"] for name, one in rates.items()}
    keep("pointing", command(), figures, detail)
    print(json.dumps({"figures": figures, **detail}, indent=1))


if __name__ == "__main__":
    main()
