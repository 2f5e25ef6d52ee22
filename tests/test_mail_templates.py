"""Texts of mails: built-in ones, those of an app, and what values cannot do to them."""

from __future__ import annotations

import email
import email.policy
import html
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pylon.cli.main import cli
from pylon.config import load
from pylon.errors import PylonError, StartRefused
from pylon.mail.kinds import KIND_BY_NAME, KINDS, SAMPLES
from pylon.mail.message import Mail, decode, encode, mime_message
from pylon.mail.templates import Template, load_templates


def loaded(folder: Path | None = None, **environ: str) -> dict[str, Template]:
    if folder is not None:
        environ["PYLON_EMAIL_TEMPLATES"] = str(folder)
    return dict(load_templates(load(environ).config))


def refused(folder: Path | None = None, **environ: str) -> str:
    with pytest.raises(StartRefused) as caught:
        loaded(folder, **environ)
    return caught.value.message


@pytest.mark.parametrize("name", list(KIND_BY_NAME))
def test_each_built_in_text_shows_its_needed_values(name: str) -> None:
    rendered = loaded()[name].render(SAMPLES)
    assert "{{" not in rendered.text and "{{" not in rendered.subject
    assert SAMPLES["app"] in rendered.subject
    for variable in KIND_BY_NAME[name].needs:
        assert SAMPLES[variable] in rendered.text


def test_a_setting_wins_over_a_file_and_a_file_over_the_built_in_text(tmp_path: Path) -> None:
    (tmp_path / "magic_code.txt").write_text("Subject: From the file\n\nFile {{ code }}\n")
    (tmp_path / "magic_code.html").write_text("<b>{{code}}</b>")
    rendered = loaded(tmp_path)["MAGIC_CODE"].render(SAMPLES)
    assert (rendered.subject, rendered.text) == ("From the file", "File 123456\n")
    assert rendered.html == "<b>123456</b>"
    rendered = loaded(
        tmp_path, PYLON_EMAIL_TEMPLATE_MAGIC_CODE_SUBJECT="From the setting",
        PYLON_EMAIL_TEMPLATE_MAGIC_CODE_BODY="Setting {{code}}",
    )["MAGIC_CODE"].render(SAMPLES)
    assert (rendered.subject, rendered.text) == ("From the setting", "Setting 123456")
    assert loaded(tmp_path)["MAGIC_LINK"] == loaded()["MAGIC_LINK"]


@pytest.mark.parametrize("name", list(KIND_BY_NAME))
def test_each_mail_has_an_html_part_with_the_same_words(name: str) -> None:
    rendered = loaded(PYLON_AUTH_PAGE_ACCENT="#112233")[name].render(SAMPLES)
    assert rendered.html is not None and "{{" not in rendered.html
    shown = html.unescape(re.sub(r"<[^>]+>", " ", rendered.html)).replace("Open the link", "")
    text, url = rendered.text.split(), SAMPLES["url"]
    assert [word for word in shown.split() if word != url] == [w for w in text if w != url]
    assert "src=" not in rendered.html and "<script" not in rendered.html
    # All links are those of the text; the button stands above one that can be copied.
    links = re.findall(r'href="([^"]*)"', rendered.html)
    assert {html.unescape(link) for link in links} == ({url} if url in text else set())
    assert ("#112233" in rendered.html) == bool({"url", "code"} & set(KIND_BY_NAME[name].needs)
                                               or url in text)


def test_a_text_of_ones_own_becomes_the_html_part_unless_that_is_switched_off() -> None:
    own = {"PYLON_EMAIL_TEMPLATE_MAGIC_LINK_BODY": "Go <there>:\n{{ url }} & sign in"}
    rendered = loaded(**own)["MAGIC_LINK"].render({"url": 'https://a.example/?a=1&b="'})
    assert rendered.html is not None
    assert "Go &lt;there&gt;:<br><a href=\"https://a.example/?a=1&amp;b=&quot;\"" in rendered.html
    assert loaded(PYLON_EMAIL_HTML="false", **own)["MAGIC_LINK"].html is None


def test_a_text_with_an_unknown_variable_or_without_its_code_is_refused(tmp_path: Path) -> None:
    said = refused(PYLON_EMAIL_TEMPLATE_MAGIC_CODE_BODY="{{code}} {{password}}")
    assert "PYLON_EMAIL_TEMPLATE_MAGIC_CODE_BODY" in said and "'password'" in said
    assert "lacks {{code}}" in refused(PYLON_EMAIL_TEMPLATE_MAGIC_CODE_BODY="Hello")
    assert "no variable" in refused(PYLON_EMAIL_TEMPLATE_MAGIC_LINK_SUBJECT="{{code}}")
    assert "braces" in refused(PYLON_EMAIL_TEMPLATE_MAGIC_CODE_BODY="{{code}} {{#if x}")
    assert "names no kind" in refused(PYLON_EMAIL_TEMPLATE_MAGIC_CODES_BODY="{{code}}")
    (tmp_path / "magic_link.html").write_text("<a href='{{link}}'>")
    assert "magic_link.html" in refused(tmp_path)
    (tmp_path / "magic_link.html").unlink()
    (tmp_path / "magiclink.txt").write_text("{{url}}")
    assert "text of no mail" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / "missing")
    (tmp_path / "magiclink.txt").rename(tmp_path / "magic_link.txt")
    (tmp_path / "magic_link.txt").write_bytes(b"{{url}}\xff")
    assert "UTF-8" in refused(tmp_path)
    (tmp_path / "magic_link.txt").write_text("{{url}}" + "x" * 300_000)
    assert "262144" in refused(tmp_path)


def test_a_start_refuses_a_bad_template(tmp_path: Path) -> None:
    from pylon.startup import load_checked

    (tmp_path / "pylon.manifest.json").write_text(
        '{"name": "app", "version": "1", "manifest_version": 1, "entities": ['
        '{"name": "User", "fields": [{"name": "email", "type": "string"}]}]}'
    )
    found = load({
        "PYLON_MANIFEST": str(tmp_path / "pylon.manifest.json"),
        "PYLON_CORS_ORIGIN": "https://app.example.com",
        "PYLON_EMAIL_TEMPLATE_MAGIC_CODE_BODY": "{{nothing}}",
    })
    with pytest.raises(StartRefused, match="'nothing'"):
        load_checked(found)


def test_a_value_cannot_break_out_of_its_place() -> None:
    template = Template(
        "{{inviter}} for {{org_name}}", "{{inviter}}: {{url}}", "<p>{{inviter}}</p>"
    )
    rendered = template.render({
        "inviter": "Eve\r\nBcc: all@example.com\n\n<script>alert(1)</script>{{url}}",
        "org_name": "x" * 200, "url": "https://app.example.com/" + "y" * 200,
    })
    for part in (rendered.subject, rendered.text):
        assert "\n" not in part and "\r" not in part
    assert rendered.html is not None
    assert "<script>" not in rendered.html and "&lt;script&gt;" in rendered.html
    assert "x" * 79 + "\u2026" in rendered.subject and "x" * 80 not in rendered.subject
    # Links are made by the server; they are never cut, and no value fills in another.
    assert rendered.text.endswith("y" * 200)
    assert rendered.text.count("https://") == 1


def test_a_name_that_people_chose_begins_no_link() -> None:
    rendered = Template("s", "{{inviter}}").render(
        {"inviter": "Win at https://evil.example and www.evil.example now"}
    )
    assert "://" not in rendered.text and "www." not in rendered.text


def test_a_mime_message_has_the_headers_of_an_automatic_mail() -> None:
    mail = Mail(
        "ab12", "MAGIC_CODE", "ann@xn--bcher-kva.example", "Gr\u00fc\u00dfe", "Code 1\n",
        1_700_000_000, "<b>1</b>",
    )
    assert decode(encode(mail)) == mail
    raw = bytes(mime_message(mail, "My App <noreply@example.com>"))
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message["From"] == "My App <noreply@example.com>"
    assert message["To"] == "ann@xn--bcher-kva.example"
    assert message["Subject"] == "Gr\u00fc\u00dfe"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == "<ab12@example.com>"
    assert message["Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    text, page = message.get_body(("plain",)), message.get_body(("html",))
    assert text is not None and text.get_content() == "Code 1\r\n"
    assert page is not None and page.get_content().strip() == "<b>1</b>"
    assert "Code 1" not in repr(mail) and "ann" not in repr(mail)


def run(*args: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, ["mail", *args], env=environ)


def test_preview_shows_the_mail_with_sample_values() -> None:
    shown = run("preview", "magic-code", PYLON_EMAIL_FROM="App <a@example.com>")
    assert shown.exit_code == 0
    assert "From: App <a@example.com>" in shown.output and "123456" in shown.output
    shown = run("preview", "ORG_INVITE", "--set", "inviter=Eve <b>")
    assert "Eve <b> invites you" in shown.output


@pytest.mark.parametrize(("args", "says"), [
    (("preview", "NOTHING"), "no mail"), (("preview", "MAGIC_CODE", "--html"), "no HTML part"),
    (("preview", "MAGIC_CODE", "--set", "url=x"), "NAME=VALUE"),
    (("test", "nobody"), "not valid"), (("test", "a@example.com"), "dev mode"),
])
def test_mail_verbs_say_what_is_wrong(args: tuple[str, ...], says: str) -> None:
    answer = run(*args, PYLON_EMAIL_PROVIDER="console" if "a@example.com" in args else "file",
                 PYLON_EMAIL_FOLDER="/nonexistent", PYLON_EMAIL_HTML="false")
    assert isinstance(answer.exception, PylonError)
    assert says in answer.exception.message


def test_each_kind_has_samples_for_all_its_variables() -> None:
    assert {name for kind in KINDS for name in kind.variables} == set(SAMPLES)
