"""Fixtures of the tests of inference."""

from __future__ import annotations

from pathlib import Path

import pytest
from classifier_fixture import grey, write_classifier

from tumorlens.inference.uncertainty import REFUSED, UNCERTAIN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_classifier(tmp_path_factory.mktemp("model") / "classifier.onnx"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files: ok, uncertain, refused, unreadable, ok."""
    root = tmp_path / "in"
    root.mkdir()
    grey("glioma").save(root / "a.png")
    grey("meningioma", UNCERTAIN).save(root / "b.png")
    grey("pituitary", REFUSED).save(root / "c.png")
    (root / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    grey("notumor").save(root / "e.png")
    return root
