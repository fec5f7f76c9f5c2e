"""Settings of the service."""

import pytest

from tumorlens.core.errors import ConfigError
from tumorlens.serve.settings import Settings


class TestSettings:
    @pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
    def test_beyond_this_machine_only_with_tokens_or_in_the_open(self, host, token_file):
        with pytest.raises(ConfigError, match="token-file"):
            Settings(host=host)
        Settings(host=host, insecure=True)
        Settings(host=host, token_file=token_file)

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
    def test_loopback(self, host):
        assert Settings(host=host).is_loopback

    @pytest.mark.parametrize(
        "wrong",
        [{"port": -1}, {"port": 65536}, {"workers": 0}, {"queue": 0}, {"max_megabytes": 0}, {"window": 2},
         {"max_seconds": 0}, {"per_client": 0}, {"cors": ("*",)}, {"cors": ("https://a.org/",)}],
    )  # fmt: skip
    def test_wrong_values_name_the_option(self, wrong):
        with pytest.raises(ConfigError, match="--" + next(iter(wrong)).replace("_", "-")) as found:
            Settings(**wrong)
        assert found.value.cure

    @pytest.mark.parametrize("content", [None, "", "# nothing\n", "short\n", "ä" * 20])
    def test_unusable_token_files(self, content, tmp_path):
        path = tmp_path / "tokens"
        if content is not None:
            path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="token-file") as found:
            Settings(token_file=path).tokens()
        assert content is None or not content.strip() or content.strip() not in str(found.value)
