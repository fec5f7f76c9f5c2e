"""Records as dictionaries, JSON, CSV, table rows and pandas data frames."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace

import pytest
from classifier_fixture import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st

from tumorlens.core.errors import TumorlensError
from tumorlens.inference.records import Predictions, Record, format_record, header, parse_record
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN

MODEL = "finetuned-fp32-01234567 axial 0.95"
FAILED = Record("image", "b.png", verdict="error: cannot be decoded as PNG", reason="Export it again.", model=MODEL)
SLICE = Record(
    "slice", "dicoms/IM-0007.dcm", series="series-1", slice=6, instance=7, label="glioma",
    probabilities=dict(zip(CLASSES, (0.87654321, 0.1, 0.02, 0.00345679), strict=True)), set=("glioma", "meningioma"),
    verdict=UNCERTAIN, reason="may be glioma or meningioma", score=0.123456789, seconds=0.0123456, model=MODEL,
)  # fmt: skip
REFUSED_ONE = Record("image", "c.png", verdict=REFUSED, reason="content unlike the training images", score=9.0)
VOLUME = Record(
    "volume", "dicoms", series="series-1", label="glioma", probabilities=SLICE.probabilities, verdict=OK,
    reason="3 neighbours of 4 slices",
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    st.text(min_size=1).filter(lambda t: t.isprintable()), st.sampled_from([None, 0, 7]),
    st.floats(0, 1), st.sampled_from(["json", "csv"]), st.booleans(),
)  # fmt: skip
def test_what_is_written_can_be_read(name, number, p, form, refused):
    fields = {"verdict": REFUSED} if refused else {
        "label": "glioma", "probabilities": dict(zip(CLASSES, (p, 1 - p, 0, 0), strict=True)),
        "set": ("glioma", "notumor"), "verdict": OK,
    }  # fmt: skip
    record = Record(
        "slice", name, series="series-2", slice=number, instance=number and number + 1, score=0.5, seconds=0.01,
        model=MODEL, **fields,
    )  # fmt: skip
    back = parse_record(format_record(record, form, CLASSES), form, CLASSES)
    assert back.model == MODEL
    assert replace(back, probabilities={}) == replace(record, probabilities={})
    assert back.probabilities == pytest.approx(record.probabilities, abs=1e-5)


@pytest.mark.parametrize("chosen", [(), ("no tumour",), ("no tumour", "glial tumour")])
def test_names_of_classes_may_hold_spaces(chosen):
    names = ("glial tumour", "no tumour")
    record = Record(
        "image", "a.png", label="no tumour", probabilities=dict(zip(names, (0.4, 0.6), strict=True)), set=chosen,
        verdict=OK, score=0.5, seconds=0.01,
    )  # fmt: skip
    written = format_record(record, "csv", names)
    assert next(csv.DictReader([header("csv", names), written]))["set"] == "|".join(chosen)
    assert parse_record(written, "csv", names) == record


@pytest.mark.parametrize("name", ["=1+1.png", "-x.png", "@x", "'=x", "''+x", "\tx"])
def test_no_name_is_a_formula_in_csv(name):
    record = Record("image", name, verdict="error: x", score=-0.5, seconds=0.1)
    text = format_record(record, "csv", CLASSES)
    cells = next(csv.DictReader([header("csv", CLASSES), text]))
    assert cells["file"] == f"'{name}"
    assert cells["score"] == "-0.5", "a number is none"
    assert parse_record(text, "csv", CLASSES) == record


def test_header_of_json_is_empty():
    assert header("json", CLASSES) == ""


def test_a_dictionary_has_rounded_numbers_and_none_for_what_is_empty():
    assert SLICE.to_dict() == {
        "kind": "slice", "file": "dicoms/IM-0007.dcm", "series": "series-1", "slice": 6, "instance": 7,
        "class": "glioma", "set": ["glioma", "meningioma"], "verdict": "uncertain",
        "reason": "may be glioma or meningioma", "score": 0.123457, "seconds": 0.01235, "model": MODEL,
        "probabilities": {"glioma": 0.876543, "meningioma": 0.1, "notumor": 0.02, "pituitary": 0.00345679},
    }  # fmt: skip
    assert json.loads(format_record(SLICE, "json", CLASSES)) == SLICE.to_dict()
    empty = ("series", "slice", "instance", "class", "score", "probabilities")
    assert [FAILED.to_dict()[name] for name in empty] == [None] * 6
    assert FAILED.to_dict()["set"] == []


def test_the_columns_of_csv():
    assert header("csv", CLASSES) == (
        "kind,file,series,slice,instance,class,set,verdict,reason,score,seconds,model,"
        "p_glioma,p_meningioma,p_notumor,p_pituitary\n"
    )
    assert format_record(SLICE, "csv", CLASSES) == (
        "slice,dicoms/IM-0007.dcm,series-1,6,7,glioma,glioma|meningioma,uncertain,may be glioma or meningioma,"
        f"0.123457,0.01235,{MODEL},0.876543,0.1,0.02,0.00345679\n"
    )


class TestTable:
    def test_it_is_aligned_and_shows_reasons_and_cures(self):
        table = header("table", CLASSES) + "".join(
            format_record(record, "table", CLASSES) for record in (SLICE, REFUSED_ONE, FAILED, VOLUME)
        )
        assert (
            table
            == """\
file                   slice inst.  class       prob.  verdict    set
dicoms/IM-0007.dcm         6     7  glioma      0.877  uncertain
    set: glioma,meningioma
    may be glioma or meningioma
c.png                                                  refused: not a brain MRI
    content unlike the training images
b.png                                                  error
    cannot be decoded as PNG. Export it again.
dicoms                   all        glioma      0.877  ok
    3 neighbours of 4 slices
"""
        )

    def test_no_line_is_longer_than_80_columns(self):
        long = {"file": "folder/" * 20 + "slice.dcm", "slice": 65534, "instance": 65535}
        classes = ("astrocytoma with oligodendroglial components", "no tumour of any kind whatsoever")
        labelled = {"label": classes[0], "probabilities": dict.fromkeys(classes, 0.5), "set": classes}
        records = [
            replace(SLICE, **long),
            replace(SLICE, **long, **labelled, reason=f"may be {' or '.join(classes)}"),
            replace(FAILED, **long, verdict="error: " + "cannot be decoded, " * 9, reason="Export it again. " * 9),
            replace(FAILED, verdict="error: " + "x" * 200),
            replace(REFUSED_ONE, **long),
            replace(VOLUME, file=long["file"], **labelled),
        ]
        for record in records:
            text = format_record(record, "table", classes)
            assert max(map(len, text.splitlines())) <= 80
            if record.failed:
                assert record.reason.split()[-1] in text
            elif record.label:
                assert record.label.split()[-1] in text.replace("\n   ", "")
        assert max(map(len, header("table", classes).splitlines())) <= 80
        assert format_record(records[0], "table", classes).startswith("…lder/folder/slice.dcm 65534 65535")


class TestPandas:
    def test_columns_are_those_of_csv(self):
        frame = Predictions([SLICE, FAILED]).to_pandas()
        assert [*frame.columns] == header("csv", CLASSES).strip().split(",")
        assert frame["class"].tolist()[0] == "glioma"
        assert frame["class"].isna().tolist() == [False, True]
        assert frame["set"].tolist() == [["glioma", "meningioma"], []]
        assert frame["p_glioma"].tolist()[0] == 0.876543
        assert frame["p_glioma"].isna().tolist() == [False, True]
        assert frame["instance"].tolist()[0] == 7

    def test_no_records_make_an_empty_frame(self):
        frame = Predictions().to_pandas()
        assert len(frame) == 0
        assert "verdict" in frame.columns

    def test_without_pandas_the_cure_names_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(TumorlensError, match="needs the Python package 'pandas'") as caught:
            Predictions([SLICE]).to_pandas()
        assert caught.value.cure == "Install it: pip install pandas"
