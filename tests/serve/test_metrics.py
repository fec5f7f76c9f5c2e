"""Metrics for Prometheus."""

from serve_model import noise, png, service


def test_metrics_count_requests_and_verdicts(model):
    with service(model) as here:
        here.predict(png())
        here.predict(noise())
        here.predict(b"x")
        here.run(here.client.request("NAMEOFAPATIENT", "/healthz"))
        text = here.get("/metrics").text
    assert 'tumorlens_requests_total{method="POST",route="/v1/predict",status="200"} 2.0' in text
    assert "NAMEOFAPATIENT" not in text
    assert 'method="other"' in text
    assert 'tumorlens_requests_total{method="POST",route="/v1/predict",status="415"} 1.0' in text
    assert 'tumorlens_verdicts_total{verdict="refused"} 1.0' in text
    assert "tumorlens_distance_count 2.0" in text
    assert "tumorlens_batch_images_count 2.0" in text
    drift = next(line for line in text.splitlines() if line.startswith("tumorlens_distance_drift"))
    assert float(drift.split()[1]) > 1  # the noise is far away
