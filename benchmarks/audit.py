"""What the audit finds and costs: recall per transformation, false pairs, and time and memory up to 100,000 images.

    python benchmarks/audit.py                    recall and false pairs, on generated slices (a minute)
    python benchmarks/audit.py --real DATA        also the whole audit of a real data set, cold
    python benchmarks/audit.py --scale 100000     also generated folders of up to that many images (15 minutes)

Updates docs/results/bench-audit.json; parts that are not run keep their numbers.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tumorlens.data.near_duplicates import find_near_duplicates
from tumorlens.data.phantom.generator import LABELS, make_slice
from tumorlens.readers.pixels import SIZE, THUMBNAIL

RESULT = Path(__file__).resolve().parents[1] / "docs" / "results" / "bench-audit.json"
SLICES = 240
THRESHOLDS = (0.95, 0.97, 0.98, 0.985, 0.99, 0.995)
BASES = 1000  # different slices behind the images of the large folders


def reencoded(quality: int) -> Callable[[Image.Image], Image.Image]:
    def work(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("L")

    return work


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """A share of the width and height is cut off, unevenly, and the rest scaled back up."""
    return lambda i: i.crop((int(i.width * share * 0.3), int(i.height * share * 0.7),
                             i.width - int(i.width * share * 0.7), i.height - int(i.height * share * 0.3))
                            ).resize(i.size, Image.Resampling.BILINEAR)  # fmt: skip


def shifted(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda i: i.transform(i.size, Image.Transform.AFFINE, (1, 0, share * i.width, 0, 1, 0))


def curved(gamma: float) -> Callable[[Image.Image], Image.Image]:
    return lambda i: i.point([round(255 * (v / 255) ** gamma) for v in range(256)])


def noisy(sd: float) -> Callable[[Image.Image], Image.Image]:
    def work(image: Image.Image) -> Image.Image:
        noise = np.random.default_rng(0).normal(0, sd, (image.height, image.width))
        return Image.fromarray(np.clip(np.asarray(image, float) + noise, 0, 255).astype(np.uint8))

    return work


TRANSFORMED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "flipped": ImageOps.flip,
    "rotated by 90°": lambda i: i.transpose(Image.Transpose.ROTATE_270),
    "rotated by 180°": lambda i: i.transpose(Image.Transpose.ROTATE_180),
    "rotated by 270°": lambda i: i.transpose(Image.Transpose.ROTATE_90),
    "mirrored, re-encoded at quality 50": lambda i: reencoded(50)(ImageOps.mirror(i)),
    "re-encoded at quality 75": reencoded(75),
    "re-encoded at quality 25": reencoded(25),
    "at half the size": lambda i: i.resize((i.width // 2, i.height // 2), Image.Resampling.BILINEAR),
    "brightness +30 %": lambda i: ImageEnhance.Brightness(i).enhance(1.3),
    "brightness −30 %": lambda i: ImageEnhance.Brightness(i).enhance(0.7),
    "contrast −40 %": lambda i: ImageEnhance.Contrast(i).enhance(0.6),
    "gamma 0.8": curved(0.8),
    "gamma 1.25": curved(1.25),
    "noise, 10 grey levels": noisy(10),
    "crop of 2 %": cropped(0.02),
    "crop of 5 %": cropped(0.05),
    "crop of 10 %": cropped(0.10),
    "shift of 1 %": shifted(0.01),
    "shift of 2 %": shifted(0.02),
    "shift of 4 %": shifted(0.04),
    "turn of 2°": lambda i: i.rotate(2, Image.Resampling.BILINEAR),
    "turn of 5°": lambda i: i.rotate(5, Image.Resampling.BILINEAR),
}


def slices(n: int) -> list[Image.Image]:
    """Grey slices, each of another patient."""
    return [
        Image.fromarray(np.asarray(make_slice(7, LABELS[i % 4], 50_000 + i, 0).pixels)).convert("L") for i in range(n)
    ]


def thumbnail(image: Image.Image) -> np.ndarray:
    """As the index makes it."""
    side = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("L")
    return np.array(side.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def recall() -> dict[str, Any]:
    """Share of transformed slices that are found as twins of their own slice; and pairs of different patients."""
    originals = slices(SLICES)
    known = np.stack([thumbnail(image) for image in originals])
    table: dict[str, dict[str, float]] = {}
    for name, transform in TRANSFORMED.items():
        both = np.concatenate([known, np.stack([thumbnail(transform(image)) for image in originals])])
        found = find_near_duplicates(both, np.ones(2 * SLICES, bool), floor=min(THRESHOLDS))
        own = np.zeros((SLICES,), np.float32)
        own[[np.array_equal(both[i], both[i + SLICES]) for i in range(SLICES)]] = 1
        image_of = {int(d): i for i, d in reversed(list(enumerate(found.distinct)))}
        for (a, b), similarity in zip(found.pairs.tolist(), found.similarities.max(1), strict=True):
            i, j = sorted((image_of[a], image_of[b]))
            if j == i + SLICES:
                own[i] = similarity
        table[name] = {f"{t:g}": float(np.mean(own >= t)) for t in THRESHOLDS}
    apart = find_near_duplicates(known, np.ones(SLICES, bool), floor=min(THRESHOLDS)).similarities.max(1, initial=-1)
    pairs = SLICES * (SLICES - 1) // 2
    return {
        "slices": SLICES,
        "thresholds": list(THRESHOLDS),
        "recall": table,
        "pairs_of_different_patients": pairs,
        "of_them_found": {f"{t:g}": int(np.sum(apart >= t)) for t in THRESHOLDS},
    }


def write_part(work: tuple[Path, int, int, list[bytes]]) -> None:
    """Write images `first` to `last` of a large folder: slices moved, turned, scaled and brightened at random."""
    root, first, last, bases = work
    sources = [Image.open(io.BytesIO(b)).convert("L") for b in bases]
    for i in range(first, last):
        random = np.random.default_rng(i)
        image = sources[i % len(sources)]
        angle, scale = random.uniform(-0.3, 0.3), random.uniform(0.8, 1.2)
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        dx, dy = random.uniform(-20, 20, 2)
        half = image.width / 2
        matrix = (c, -s, half - c * half + s * half + dx, s, c, half - s * half - c * half + dy)
        moved = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            moved = ImageOps.mirror(moved)
        label = LABELS[(i % len(sources)) % 4]
        part = "Testing" if i % 5 == 0 else "Training"
        ImageEnhance.Brightness(moved).enhance(random.uniform(0.7, 1.3)).save(
            root / part / label / f"{i}.jpg", quality=80
        )


def audited(data: str, cache: Path) -> dict[str, Any]:
    """`tumorlens data audit` as a process of its own: its JSON."""
    tool = Path(sys.executable).with_name("tumorlens")
    done = subprocess.run(
        [tool, "data", "audit", data, "--cache", str(cache), "--json"], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def scale(largest: int) -> list[dict[str, Any]]:
    """Time and memory of the whole audit on generated folders of growing size."""
    bases = []
    for image in slices(BASES):
        file = io.BytesIO()
        image.save(file, "PNG")
        bases.append(file.getvalue())
    curve = []
    with tempfile.TemporaryDirectory() as folder:
        root, done = Path(folder) / "data", 0
        for part in ("Training", "Testing"):
            for label in LABELS:
                (root / part / label).mkdir(parents=True)
        for n in sorted({largest // 10, largest // 3, largest}):
            cores = os.cpu_count() or 1
            edges = np.linspace(done, n, cores + 1).astype(int).tolist()
            with multiprocessing.get_context("spawn").Pool(cores) as pool:
                pool.map(write_part, [(root, a, b, bases) for a, b in pairwise(edges)])
            done = n
            found = audited(str(root), Path(folder) / f"cache-{n}")
            one = {
                "images": n, "seconds": found["timing"]["total_s"], "steps": found["timing"],
                "peak_memory_gb": found["peak_memory_gb"], "groups": found["audit"]["groups"],
            }  # fmt: skip
            print(json.dumps(one))
            curve.append(one)
    return curve


def main() -> None:
    """Run what was asked for and update the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--real", metavar="DATA")
    parser.add_argument("--scale", type=int, metavar="N")
    parser.add_argument("--no-recall", action="store_true")
    asked = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"figures": {}}
    if not asked.no_recall:
        result["recall"] = recall()
    if asked.real:
        with tempfile.TemporaryDirectory() as folder:
            found = audited(asked.real, Path(folder))
        result["real"] = {"images": found["dataset"]["n_images"], "timing": found["timing"],
                          "peak_memory_gb": found["peak_memory_gb"], "twins": found["audit"]["twins"]}  # fmt: skip
        # Fetching is not part of the audit: a zip is extracted once.
        result["figures"]["audit.seconds_7023"] = round(found["timing"]["total_s"] - found["timing"]["fetch_s"], 2)
    if asked.scale:
        result["scale"] = scale(asked.scale)
        result["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        last = result["scale"][-1]
        if last["images"] >= 100_000:
            result["figures"]["audit.minutes_100k"] = round(last["seconds"] / 60, 3)
            result["figures"]["audit.peak_gb_100k"] = last["peak_memory_gb"]
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(RESULT)


if __name__ == "__main__":
    main()
