"""schemathesis against the service's own description: no fault, and no answer that is not described."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from serve_model import png

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
BOUNDS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
ROUTES = ("POST /v1/predict", "POST /v1/batch", "GET /v1/model", "GET /v1/sample", "GET /healthz", "GET /readyz",
          "GET /metrics")  # fmt: skip
WRONG = ("POST /v1/predict", "POST /v1/batch", "GET /v1/sample")


@pytest.fixture(scope="module")
def schema(here):
    return schemathesis.openapi.from_dict(here.get("/openapi.json").json())


def test_every_route_is_tried(schema):
    assert {operation.ok().label for operation in schema.get_all_operations()} == set(ROUTES)


@pytest.mark.parametrize(
    ("route", "mode"),
    # Routes without parameters have nothing that could be wrong.
    [*((route, GenerationMode.POSITIVE) for route in ROUTES), *((route, GenerationMode.NEGATIVE) for route in WRONG)],
)
def test_answers_are_as_described(here, schema, route, mode):
    method, path = route.split()
    operation = schema[path][method]

    @BOUNDS
    @given(case=operation.as_strategy(generation_mode=mode))
    def conforms(case):
        ask(here, case)

    conforms()


@BOUNDS
@given(data=st.data())
def test_answers_about_pictures_are_as_described(here, schema, data):
    case = data.draw(schema["/v1/predict"]["POST"].as_strategy())
    case.body = png(data.draw(st.integers(0, 3)))
    ask(here, case)


def ask(here, case):
    """Send it through httpx, and compare the answer with the description."""
    kwargs = case.as_transport_kwargs(base_url="http://localhost")
    sent = {key: kwargs[key] for key in ("method", "url", "params", "headers") if kwargs.get(key) is not None}
    body = {"content": kwargs["data"]} if isinstance(kwargs.get("data"), (bytes, str)) else {}
    answer: httpx.Response = here.run(here.client.request(**sent, **body))
    case.validate_response(schemathesis.Response.from_httpx(answer, verify=False), checks=CHECKS)
    assert answer.status_code < 500
