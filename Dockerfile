# The service alone: no torch, no compiler, no shell needed. See docs/serving.md.
FROM python:3.11-slim-bookworm AS packages
COPY requirements-serve.lock /
# By hash and with nothing to resolve: what is installed is what was locked.
RUN python -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps \
    -r /requirements-serve.lock
COPY src/tumorlens /opt/app/tumorlens
RUN /opt/venv/bin/python -m compileall -q /opt/app

FROM python:3.11-slim-bookworm
COPY --from=packages /opt /opt
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tumorlens
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "tumorlens", "serve"]
CMD ["--model", "/model/classifier.onnx", "--host", "0.0.0.0", "--token-file", "/run/secrets/tokens"]
