"""The nginx configuration of the documentation, in front of the service."""

import re
import shutil
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serve_model import TOKENS, png, problem_of
from service_process import free_port, listens, process, until

CONFIGURATION = Path(__file__).resolve().parents[2] / "docs" / "nginx.conf"
pytestmark = [
    pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("openssl")), reason="needs nginx and openssl"),
    pytest.mark.skipif(not CONFIGURATION.exists(), reason="the documentation is not here"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1",
               "-keyout", "key.pem", "-out", "certificate.pem"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def adapted(certificate, folder, port, upstream):
    """The configuration with paths and ports of this test."""
    text = CONFIGURATION.read_text()
    for pattern, replacement in (
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (r"server 127\.0\.0\.1:8000;", f"server 127.0.0.1:{upstream};"),
        (r"server_name .*;", "server_name localhost;"),
        (r"ssl_certificate /.*;", f"ssl_certificate {certificate}/certificate.pem;"),
        (r"ssl_certificate_key /.*;", f"ssl_certificate_key {certificate}/key.pem;"),
        (r"http \{", "http {" + "".join(f" {name}_temp_path {folder}/{name};" for name in
                                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))),
    ):  # fmt: skip
        text, n = re.subn(pattern, replacement, text)
        assert n == 1, pattern
    (folder / "nginx.conf").write_text(text)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr",
            "-g", f"daemon off; pid {folder}/nginx.pid;"]  # fmt: skip


def test_nginx_accepts_the_configuration(certificate, tmp_path):
    command = adapted(certificate, tmp_path, free_port(), 8000)
    found = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "[warn]" not in found.stderr


def test_the_service_behind_nginx(model, token_file, certificate, tmp_path):
    headers = {"authorization": f"Bearer {TOKENS[0]}"}
    port = free_port()
    with process(model, "--token-file", str(token_file), "--window", "1.0") as (running, direct):
        command = adapted(certificate, tmp_path, port, direct.base_url.port)
        nginx = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        trusted = ssl.create_default_context(cafile=certificate / "certificate.pem")
        try:
            until(lambda: listens(port))
            with httpx.Client(base_url=f"https://localhost:{port}/tumorlens/", verify=trusted, timeout=30) as proxied:
                page = proxied.get("")
                assert "<title>tumorlens</title>" in page.text
                for path in re.findall(r'(?:src|href)="([\w.]+)"', page.text):  # the page works below a prefix
                    assert proxied.get(path).status_code == 200, path
                assert httpx.get(f"https://localhost:{port}/tumorlens", verify=trusted).status_code == 301
                assert problem_of(proxied.get("v1/model")) == (401, "unauthorized")
                assert proxied.post("v1/predict", content=png(), headers=headers).json()["rows"][0]["class"]
                lines = proxied.post("v1/batch", files=[("f", ("a.png", png()))], headers=headers).text.splitlines()
                assert len(lines) == 1
                assert proxied.post("v1/predict", content=bytes(68_000_000), headers=headers).status_code == 413
                with (
                    socket.create_connection(("127.0.0.1", direct.base_url.port)) as slow,
                    ThreadPoolExecutor(1) as one,
                ):
                    # A body that does not end keeps the service draining for seconds.
                    slow.sendall(
                        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                        b"Authorization: " + headers["authorization"].encode() + b"\r\n\r\nab"
                    )
                    active = one.submit(proxied.post, "v1/predict", content=png(), headers=headers)
                    until(lambda: "requests_in_work 1.0" in direct.get("/metrics", headers=headers).text)
                    running.terminate()
                    seen = []  # at once what is asked next: the drain lasts for seconds only
                    until(lambda: seen.append(proxied.get("readyz")) or seen[-1].status_code == 503)
                    late = proxied.post("v1/predict", content=png(), headers=headers)
                    assert problem_of(seen[-1]) == problem_of(late) == (503, "stopping")
                    assert active.result().status_code == 200
            assert running.wait(10) == 0
        finally:
            nginx.terminate()
            nginx.wait(10)
    assert not [path for path in tmp_path.glob("client_body/**/*") if path.is_file()]
