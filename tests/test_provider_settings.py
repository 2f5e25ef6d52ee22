"""pylon.provider_settings: providers from variables and a TOML file, and every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon import config
from pylon.errors import SettingsRefused
from pylon.provider_settings import ProviderSettings
from pylon.setting_checks import unsafe_settings

SECRET = "s3cr3t-of-the-client"
GOOGLE = {"PYLON_OAUTH_GOOGLE_CLIENT_ID": "id1", "PYLON_OAUTH_GOOGLE_CLIENT_SECRET": SECRET}


def providers(
    env: dict[str, str], dotenv: dict[str, str] | None = None
) -> dict[str, ProviderSettings]:
    found = config.load(env, dotenv).config.sign_in_providers
    return {each.provider: each for each in found}


def refusal(env: dict[str, str]) -> str:
    with pytest.raises(SettingsRefused) as refused:
        config.load(env)
    assert SECRET not in refused.value.message
    return refused.value.message


def test_google_and_github_need_an_id_and_a_secret_only() -> None:
    found = providers(GOOGLE | {
        "PYLON_OAUTH_GITHUB_CLIENT_ID": "id2", "PYLON_OAUTH_GITHUB_CLIENT_SECRET": "x",
        "PYLON_OAUTH_GITHUB_STORE_TOKENS": "true",
    })
    assert list(found) == ["github", "google"]
    assert found["google"].is_oidc and found["google"].issuer == "https://accounts.google.com"
    assert found["github"].scopes == "read:user user:email" and found["github"].store_tokens
    assert not found["github"].is_oidc and not found["google"].store_tokens


def test_no_variable_means_no_provider() -> None:
    assert providers({}) == {}
    assert providers({"PYLON_OAUTH_GOOGLE_CLIENT_ID": ""}) == {}


@pytest.mark.parametrize("suffix", ["ISSUER", "OIDC_ISSUER"])
def test_any_issuer_is_a_provider(suffix: str) -> None:
    (found,) = providers({
        f"PYLON_OAUTH_MY_KEYCLOAK_{suffix}": "https://id.example.com/realms/main",
        "PYLON_OAUTH_MY_KEYCLOAK_CLIENT_ID": "pylon",
        "PYLON_OAUTH_MY_KEYCLOAK_CLIENT_SECRET": SECRET,
    }).values()
    assert found.provider == "my_keycloak"
    assert found.issuer == "https://id.example.com/realms/main"
    assert found.scopes == "openid email profile"


def test_a_microsoft_tenant_is_a_part_of_the_issuer() -> None:
    env = {"PYLON_OAUTH_MICROSOFT_CLIENT_ID": "a", "PYLON_OAUTH_MICROSOFT_CLIENT_SECRET": "b"}
    base = "https://login.microsoftonline.com"
    assert providers(env)["microsoft"].issuer == f"{base}/common/v2.0"
    env["PYLON_OAUTH_MICROSOFT_TENANT"] = "contoso.example"
    assert providers(env)["microsoft"].issuer == f"{base}/contoso.example/v2.0"
    env["PYLON_OAUTH_MICROSOFT_TENANT"] = "../evil"
    assert "PYLON_OAUTH_MICROSOFT_TENANT" in refusal(env)


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(
        '[providers.chat]\nclient_id = "from-file"\nscopes = "identify email"\n'
        'authorization_endpoint = "https://chat.example/authorize"\n'
        'token_endpoint = "https://chat.example/token"\n'
        'userinfo_endpoint = "https://chat.example/me"\n'
        'subject = "id"\nemail_verified = "verified"\nstore_tokens = true\n'
    )
    (found,) = providers({
        "PYLON_OAUTH_FILE": str(file), "PYLON_OAUTH_CHAT_CLIENT_SECRET": SECRET,
        "PYLON_OAUTH_CHAT_CLIENT_ID": "from-env",
    }).values()
    assert (found.client_id, found.client_secret, found.subject) == ("from-env", SECRET, "id")
    assert (found.email_verified, found.store_tokens, found.is_oidc) == ("verified", True, False)


def test_an_oauth_provider_vouches_for_no_address_unless_the_file_says_where(
    tmp_path: Path,
) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(
        '[providers.chat]\nclient_id = "a"\nclient_secret = "b"\n'
        'authorization_endpoint = "https://c.example/a"\ntoken_endpoint = "https://c.example/t"\n'
        'userinfo_endpoint = "https://c.example/me"\n'
    )
    assert providers({"PYLON_OAUTH_FILE": str(file)})["chat"].email_verified is None


def test_secrets_are_in_no_repr() -> None:
    loaded = config.load(GOOGLE)
    assert SECRET not in repr(loaded.config)
    assert SECRET not in repr(loaded.config.sign_in_providers)


def test_workers_get_the_variables_of_the_environment_and_of_env_files() -> None:
    loaded = config.load({"PYLON_OAUTH_GOOGLE_CLIENT_ID": "env"}, GOOGLE, "app/.env")
    assert loaded.raw["PYLON_OAUTH_GOOGLE_CLIENT_ID"] == "env"
    assert loaded.raw["PYLON_OAUTH_GOOGLE_CLIENT_SECRET"] == SECRET
    assert loaded.origin["PYLON_OAUTH_GOOGLE_CLIENT_SECRET"] == "app/.env"
    assert not [line for line in loaded.warnings if "OAUTH" in line]


@pytest.mark.parametrize(("env", "words"), [
    ({"PYLON_OAUTH_GOOGLE_CLIENT_ID": "a"}, ("google", "PYLON_OAUTH_GOOGLE_CLIENT_SECRET")),
    ({"PYLON_OAUTH_GOOGLE_CLIENT_SECRET": SECRET}, ("google", "PYLON_OAUTH_GOOGLE_CLIENT_ID")),
    ({"PYLON_OAUTH_ACME_CLIENT_ID": "a", "PYLON_OAUTH_ACME_CLIENT_SECRET": SECRET},
     ("acme", "PYLON_OAUTH_ACME_ISSUER", "PYLON_OAUTH_FILE")),
    (GOOGLE | {"PYLON_OAUTH_GOOGLE_REDIRECT": "http://app.example/x"}, ("https://", "google")),
    (GOOGLE | {"PYLON_OAUTH_GOOGLE_REDIRECT": "/callback"}, ("PYLON_OAUTH_GOOGLE_REDIRECT",)),
    (GOOGLE | {"PYLON_OAUTH_GOOGLE_STORE_TOKENS": "yes"}, ("STORE_TOKENS", "true")),
    (GOOGLE | {"PYLON_OAUTH_GOOGLE_CLIENT_SECRET": f"{SECRET}\n"}, ("CLIENT_SECRET",)),
    ({"PYLON_OAUTH_APPLE_CLIENT_ID": "a"}, ("apple", "PYLON_OAUTH_APPLE_TEAM_ID", "KEY_ID")),
    ({"PYLON_OAUTH_FILE": "/nowhere/p.toml"}, ("PYLON_OAUTH_FILE", "/nowhere/p.toml")),
])
def test_a_bad_provider_is_refused_by_name(env: dict[str, str], words: tuple[str, ...]) -> None:
    message = refusal(env)
    for word in words:
        assert word in message


@pytest.mark.parametrize(("text", "words"), [
    ("[providers.Acme]\n", ("providers.Acme", "lower-case")),
    ("[providers.a]\nclientid = 'x'\n", ("providers.a.clientid", "client_id")),
    (f"[providers.a\nclient_secret = '{SECRET}'\n", ("no TOML",)),
    ("[google]\n", ("[providers.<name>]",)),
    ("[providers.a]\nclient_id = 5\n", ("providers.a.client_id", "text")),
])
def test_a_bad_file_is_refused_by_key(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    message = refusal({"PYLON_OAUTH_FILE": str(file)})
    for word in words:
        assert word in message


def test_http_is_for_dev_mode() -> None:
    env = {
        "PYLON_OAUTH_LOCAL_ISSUER": "http://127.0.0.1:9000", "PYLON_OAUTH_LOCAL_CLIENT_ID": "a",
        "PYLON_OAUTH_LOCAL_CLIENT_SECRET": "b",
    }
    assert "outside dev mode" in refusal(env)
    assert providers(env | {"PYLON_DEV_MODE": "1"})["local"].issuer == "http://127.0.0.1:9000"


def test_production_needs_a_url_to_come_back_to() -> None:
    def problems(**more: str) -> list[str]:
        loaded = config.load({**GOOGLE, "PYLON_CORS_ORIGIN": "https://app.example", **more})
        return [text for text in unsafe_settings(loaded.config) if "google" in text]

    assert "PYLON_PUBLIC_URL" in problems()[0] and "PYLON_OAUTH_GOOGLE_REDIRECT" in problems()[0]
    assert not problems(PYLON_PUBLIC_URL="https://api.example")
    assert not problems(PYLON_OAUTH_GOOGLE_REDIRECT="https://api.example/cb")
