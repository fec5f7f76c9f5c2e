"""The page /docs."""


def test_documents_name_every_route_and_load_nothing_foreign(here):
    page = here.get("/docs").text
    for path in here.get("/openapi.json").json()["paths"]:
        assert path in page
    assert "://" not in page.replace("http://localhost", "")
    assert "<script" not in page
