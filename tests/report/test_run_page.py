"""The report as its reader's browser parses it: offline, whole, linked, escaped, and what it refuses."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fixture import build_run, change
from report_page import Element, parse

from tumorlens.core.run_folder import Run
from tumorlens.data.baselines import write_baselines
from tumorlens.data.index import read_index
from tumorlens.evaluation.summary import summary_text
from tumorlens.readers.pixels import read_image
from tumorlens.report import write_report
from tumorlens.report.data import read_report_data
from tumorlens.report.galleries import SIDE, make_galleries
from tumorlens.study.stages import compare_run

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def by_id(page: Element) -> dict[str, Element]:
    ids = [e.attributes["id"] for e in page.walk() if "id" in e.attributes]
    assert [name for name, n in Counter(ids).items() if n > 1] == []
    return {e.attributes["id"]: e for e in page.walk() if "id" in e.attributes}


def files_in(gallery: Element) -> list[str]:
    return [e.text for e in gallery.all("span", "file")]


def wrong_files(run: Run, name: str) -> dict[tuple[str, str], set[str]]:
    """File names of test errors by true and predicted class, straight from predictions.csv."""
    found: dict[tuple[str, str], set[str]] = {}
    with run.predictions(name).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] == "test" and row["label"] != row["predicted"]:
                found.setdefault((row["label"], row["predicted"]), set()).add(row["path"].rsplit("/", 1)[-1])
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return build_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run) -> Element:
    return parse(write_report(run))


SHAPES = {
    "pair": {},
    "alone": {"names": ("initial",)},
    "three of eight": {"names": ("initial", "finetuned", "layer4"), "classes": [f"kind {i}" for i in range(8)]},
    "two classes": {"classes": ("no", "yes")},
    "twelve classes": {"classes": [f"class-{i}" for i in range(12)], "test": 4},
    "no errors": {"error_rates": (0.0, 0.0)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_page_is_whole_offline_and_usable_without_a_mouse(shape, tmp_path):
    page = parse(write_report(build_run(tmp_path, **SHAPES[shape])))
    ids = by_id(page)
    assert not page.all("script")
    for element in page.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action", "srcset", "data", "poster"):
                assert re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", value) or value[1:] in ids, value
            if name in ("aria-labelledby", "aria-describedby", "for"):
                assert set(value.split()) <= set(ids)
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

    levels = [HEADINGS.index(e.tag) + 1 for e in page.walk() if e.tag in HEADINGS]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    first_link = page.all("a")[0]
    assert ids[first_link.attributes["href"][1:]].tag == "main"
    for table in page.all("table"):
        assert len(table.all("caption")) == 1
        assert all("scope" in th.attributes or "aria-hidden" in th.attributes for th in table.all("th"))
    for svg in page.all("svg"):
        inside = any(svg in other.children for other in page.all("svg"))
        assert inside or svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden") == "true"


@pytest.mark.parametrize("shape", ["pair", "alone", "three of eight"])
def test_each_error_cell_opens_exactly_its_images(shape, tmp_path):
    run = build_run(tmp_path, **SHAPES[shape])
    page = parse(write_report(run))
    ids, study = by_id(page), json.loads(run.study.read_text())
    classes, names = study["classes"], [c["name"] for c in study["configurations"]]
    opened = set()
    for place, name in enumerate(names):
        expected = wrong_files(run, name)
        assert expected
        body = ids[f"matrix-{place}"].all("tbody")[0].all("tr")
        assert len(body) == len(classes)
        for true, row in zip(classes, body, strict=True):
            for predicted, cell in zip(classes, row.all("td"), strict=True):
                links = cell.all("a")
                if true == predicted or (true, predicted) not in expected:
                    assert not links
                    assert true == predicted or cell.text == "0"
                    continue
                assert cell.text.split()[0] == str(len(expected[true, predicted]))
                target = links[0].attributes["href"][1:]
                gallery = ids[target]
                assert len(gallery.all("figure", "thumb")) == len(expected[true, predicted])
                assert set(files_in(gallery)) == expected[true, predicted]
                assert f"of {true} predicted as {predicted}" in gallery.all("h3")[0].text
                opened.add(target)
    cells = {name for name, e in ids.items() if name.startswith("cell-") and e.tag == "section"}
    assert cells == opened


def test_galleries_of_a_pair_hold_its_images_with_both_predictions(run, page):
    pair = json.loads(run.comparison.read_text())["pairs"][0]
    ids = by_id(page)
    assert pair["corrected"] > 2
    assert pair["introduced"] > 0
    assert pair["both_wrong"] > 0
    for kind in ("corrected", "introduced"):
        gallery = ids[f"pair-0-{kind}"]
        images = {image["path"].rsplit("/", 1)[-1]: image for image in pair[f"{kind}_images"]}
        assert sorted(files_in(gallery)) == sorted(images)
        for figure in gallery.all("figure", "thumb"):
            image = images[figure.all("span", "file")[0].text]
            marks = "✗✓" if kind == "corrected" else "✓✗"
            assert figure.all("figcaption")[0].text == (
                f"{image['label']} {marks[0]} initial: {image['first_predicted']} {image['first_probability']:.2f} "
                f"{marks[1]} finetuned: {image['second_predicted']} {image['second_probability']:.2f} "
                f"{figure.all('span', 'file')[0].text}"
            )
    assert len(ids["pair-0-both-wrong"].all("figure")) == pair["both_wrong"]
    numbers = [a.text for a in page.all("a") if a.attributes["href"].startswith("#pair-0-")]
    assert numbers == [str(pair[kind]) for kind in ("corrected", "introduced", "both_wrong")]


def test_each_image_is_embedded_once_and_is_the_right_one(run, page):
    root = Path(json.loads(run.study.read_text())["dataset"]["root"])
    embedded = {e.attributes["id"]: e.attributes["href"] for e in page.all("image")}
    shown: dict[str, str] = {}
    for figure in page.all("figure", "thumb"):
        path = figure.all("span", "file")[0].attributes["title"]
        reference = figure.all("use")[0].attributes["href"][1:]
        assert shown.setdefault(path, reference) == reference
    assert sorted(shown.values()) == sorted(embedded)
    assert len(set(embedded.values())) == len(embedded)
    for path, reference in shown.items():
        pixels = Image.open(io.BytesIO(base64.b64decode(embedded[reference].split(",")[1])))
        assert (pixels.format, pixels.size, pixels.mode) == ("JPEG", (SIDE, SIDE), "L")
        original = read_image(root / path, size=SIDE)[0][:, :, 0]
        assert np.abs(np.asarray(pixels, float) - original).mean() < 6


def test_long_galleries_are_cut_and_say_so(tmp_path, capsys):
    run = build_run(tmp_path, classes=("a", "b"), test=150, error_rates=(0.9, 0.1), images=False)
    page = parse(write_report(run))
    n = len(wrong_files(run, "initial")["a", "b"])
    gallery = by_id(page)["cell-0-0-1"]
    assert n > 100
    assert len(gallery.all("figure")) == 60
    assert f"and {n - 60} more, see predictions.csv" in gallery.text
    assert "tumorlens report" in capsys.readouterr().err


def test_cap_shrinks_before_the_file_grows_too_large(tmp_path, monkeypatch):
    run = build_run(tmp_path, error_rates=(0.9, 0.9), test=40, images=False)
    monkeypatch.setattr("tumorlens.report.galleries.BUDGET", 50)
    galleries = make_galleries(read_report_data(run), tmp_path)
    assert galleries.cap < 16
    assert len(galleries.thumbnails) <= 50
    largest = max(galleries.cells.values(), key=lambda gallery: gallery.total)
    assert len(largest.thumbnails) == galleries.cap


def test_text_from_files_is_escaped(tmp_path):
    names = ("initial", "finetuned")
    strange = "{label_number}\"'<i>&amp;{i:03}.jpg"
    run = build_run(tmp_path, names=names, classes=("<b>x", 'y"y', "<script>z"), file_name=strange)
    change(run.study, dataset__notes=["<script>alert(1)</script>"], dataset__name="<b>set", command="a <b> && 'c'")
    change(run.audit, unreadable=[{"path": "<b>.jpg", "label": "<b>x", "reason": "<b>ad"}], same_content=[["<b>", "&"]])
    change(run.comparison, verdict="<b>verdict</b>")
    page = parse(write_report(run))
    assert not page.all("script")
    assert not page.all("i", "")[12:]  # the legend's twelve swatches alone
    assert {e.text for e in page.all("b")} & {"ad", "set", "verdict"} == set()
    ids = by_id(page)
    assert page.all("title")[0].text == "initial and finetuned on <b>set: study report"
    assert page.all("p", "verdict")[0].text == "<b>verdict</b>"
    assert "<script>alert(1)</script>" in ids["verdict"].text
    assert "<b>.jpg : <b>ad" in ids["data"].text
    assert "a <b> && 'c'" in ids["repeat"].text
    assert [th.text for th in ids["matrix-0"].all("th")[1:4]] == ["<b>x", 'y"y', "<script>z"]
    figure = page.all("figure", "thumb")[0]
    file = figure.all("span", "file")[0].text
    assert re.fullmatch("[012]\"'<i>&amp;\\d{3}\\.jpg", file)
    assert file in figure.all("svg")[0].attributes["aria-label"]
    assert any("<script>z" in svg.attributes.get("aria-label", "") for svg in ids["probabilities"].all("svg"))


def test_same_run_gives_same_bytes(run):
    first = write_report(run).read_bytes()
    run.report.unlink()
    assert write_report(run).read_bytes() == first
    assert len(first) < 500_000


def test_unreadable_images_leave_named_frames_and_can_be_named_again(tmp_path, capsys):
    run = build_run(tmp_path)
    whole = write_report(run).read_bytes()
    assert capsys.readouterr().err == ""
    shutil.move(tmp_path / "data", tmp_path / "moved")
    page = parse(write_report(run))
    frames = page.all("div", "missing")
    assert len(frames) == len(page.all("figure", "thumb")) > 10
    assert not page.all("use")
    assert frames[0].text.endswith(".jpg: no such file")
    assert f"tumorlens report {run.root} --images FOLDER" in page.text
    assert f"cannot be read from {tmp_path / 'data'}" in capsys.readouterr().err
    assert write_report(run, images=tmp_path / "moved").read_bytes() == whole


def test_images_outside_the_data_set_are_not_embedded(tmp_path):
    run = build_run(tmp_path, names=("initial",))
    Image.new("L", (64, 64), 200).save(tmp_path / "secret.jpg")
    wrong = next(iter(next(iter(wrong_files(run, "initial").values()))))
    table = run.predictions("initial").read_text()
    path = next(line.split(",")[0] for line in table.splitlines() if wrong in line and ",test," in line)
    for outside in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        run.predictions("initial").write_text(table.replace(path, outside))
        frames = parse(write_report(run)).all("div", "missing")
        assert {frame.text for frame in frames} == {"secret.jpg: lies outside the data set's folder"}


def test_verdict_and_key_numbers_come_first(run, page):
    sections = [s.attributes["id"] for s in page.all("main")[0].children if isinstance(s, Element)]
    assert sections == [
        "verdict", "comparison", "confusion", "learning", "probabilities", "classes", "errors", "data", "repeat",
    ]  # fmt: skip
    links = [a.attributes["href"][1:] for a in page.all("nav")[0].all("a")]
    assert links == sections
    verdict = by_id(page)["verdict"]
    assert json.loads(run.comparison.read_text())["verdict"] in verdict.text
    assert not verdict.all("ul", "warnings")
    rows = verdict.all("tbody")[0].all("tr")
    for name, published, row in zip(("initial", "finetuned"), ("92.68 %", "98.70 %"), rows, strict=True):
        test = json.loads(run.metrics(name).read_text())["parts"]["test"]
        low, high = test["accuracy_interval"]
        assert [cell.text for cell in row.all("td")[:4]] == [
            f"{100 * test['accuracy']:.2f} %", f"{100 * low:.1f}–{100 * high:.1f} %", str(test["correct"]), published,
        ]  # fmt: skip
    assert "For research, not for diagnosis." in page.all("footer")[0].text


def test_per_class_tables_carry_the_metrics(run, page):
    tables = by_id(page)["classes"].all("table")
    for name, table in zip(("initial", "finetuned"), tables, strict=True):
        test = json.loads(run.metrics(name).read_text())["parts"]["test"]
        rows = {row.all("th")[0].text: [td.text for td in row.all("td")] for row in table.all("tr")[1:]}
        for label, m in test["per_class"].items():
            keys = ("precision", "recall", "f1", "support", "roc_auc", "average_precision")
            assert rows[label] == [str(m[k]) if k == "support" else f"{m[k]:.4f}" for k in keys]
        assert rows["accuracy"] == ["", "", f"{test['accuracy']:.4f}", str(test["n"]), "", ""]
        assert rows["macro avg"][0] == f"{test['macro']['precision']:.4f}"
        assert rows["weighted avg"][1] == f"{test['weighted']['recall']:.4f}"
        assert " ".join(test["text"].split()) in by_id(page)["classes"].text


@pytest.mark.parametrize(
    ("changes", "level", "expected"),
    [
        ({"weights__kind": "none", "weights__official": False}, "loud", "Random weights."),
        ({"weights__official": False, "weights__note": "Other file."}, "caution", "Not the official ImageNet weights."),
        ({"dataset__comparable_to_published": False}, "caution", "Not comparable with the published study."),
        ({"dataset__notes": ["Mirrored copies."]}, "note", "Mirrored copies."),
        ({"split__test_source": "split off"}, "caution", "28 images were split off with seed 0"),
        ({"dataset__excluded": 3}, "caution", "3 files could not be read and were left out"),
        ({"git__clean": False}, "note", "uncommitted changes"),
        ({"configurations": [{"name": "initial"}, {"name": "layer4"}]}, "caution", "layer4 belongs to the study"),
    ],
)
def test_what_weakens_the_numbers_is_shown_beside_the_verdict(changes, level, expected, tmp_path):
    run = build_run(tmp_path, images=False)
    change(run.study, **changes)
    (warning,) = by_id(parse(write_report(run)))["verdict"].all("ul", "warnings")[0].all("li")
    assert warning.attributes["class"] == level
    assert expected in warning.text


def test_data_set_and_how_to_repeat(tmp_path):
    run = build_run(tmp_path, images=False)
    change(
        run.audit,
        unreadable=[{"path": "Training/c0/bad.jpg", "label": "glioma", "reason": "empty file (0 bytes)"}],
        same_content=[["Training/c0/1.jpg", "Testing/c0/2.jpg"]],
    )
    change(run.study, git=None, timing={}, peak_memory_gb=None, dataset__licence="")
    ids = by_id(parse(write_report(run)))
    facts, repeat = ids["data"].text, ids["repeat"].text
    assert "Training/c0/bad.jpg : empty file (0 bytes)" in facts
    assert "Training/c0/1.jpg = Testing/c0/2.jpg" in facts
    assert "ab" * 32 in facts
    assert "Licence unknown" in facts
    assert "glioma 8 7 6 2 7" in facts
    assert "all 32 28 24 8 28" in facts
    for piece in (
        "tumorlens study --data slices.zip --seed 0", "f37072fd" * 8, "there is no CUDA device", "torch 2.15.0",
        "an installed package", "2026-03-04 05:06 UTC", "initial/best_0.pth",
    ):  # fmt: skip
        assert piece in repeat
    assert "Peak memory" not in repeat


def test_a_baseline_as_good_as_the_network_opens_report_comparison_and_terminal(tmp_path):
    run = build_run(tmp_path, images=False)
    test = [row for row in read_index(run.index) if row.split == "test"]
    write_baselines(run.baselines, [(row.path, *(row.label,) * 4) for row in test])
    change(run.study, dataset=run.read_study()["dataset"] | {"sheet": None})
    comparison = compare_run(run.root)
    opening = "A baseline that knows nothing about brains is as good as initial and finetuned: "
    assert comparison["openings"][0].startswith(opening)
    assert comparison["verdict"].startswith(opening)
    assert summary_text(comparison).split("\n\n")[-1].replace("\n", " ").startswith(opening)
    verdict = next(e for e in parse(write_report(run)).walk() if e.attributes.get("class") == "verdict")
    assert verdict.text.replace("\N{NO-BREAK SPACE}", " ").startswith(opening)
