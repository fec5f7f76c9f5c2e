"""Fixtures shared by the tests of the service: one small classifier for all of them, as making it takes seconds."""

import pytest
from phantom_files import write_nifti
from serve_model import TOKENS, service, write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "classifier.onnx")


@pytest.fixture(scope="module")
def here(model):
    """The service in this process."""
    with service(model) as running:
        yield running


@pytest.fixture(scope="session")
def volume(tmp_path_factory):
    """A NIfTI file with a patient's name in its own."""
    path, _ = write_nifti(tmp_path_factory.mktemp("volume") / "Mueller_Anna.nii.gz", 0, "glioma", 0)
    return path


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# accepted tokens\n" + "\n".join(TOKENS) + "\n")
    return path
