"""`pylonctl mail test` and `pylonctl mail preview`: does mail leave, and what does it look like.

`test` sends one mail at once, with the settings of this shell, and shows what the mail server
replied. It does not use the outbox, so no server has to run. `preview` renders a text with sample
values. Invariant: neither reads or writes the database.
"""

from __future__ import annotations

import click

from pylon.auth.email_address import parse_email
from pylon.cli.output import json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import EmailNotConfigured, InvalidData
from pylon.mail.kinds import KIND_BY_NAME, SAMPLES
from pylon.mail.message import Mail
from pylon.mail.senders import make_sender, sender_address
from pylon.mail.templates import load_templates


@click.group()
@json_flag
def mail() -> None:
    """Send a test mail, or show the text of a mail."""


@mail.command("test")
@click.argument("address")
@dev_flag
@json_flag
def send_test(address: str, dev: bool) -> None:
    """Send a mail to ADDRESS now, and show the reply of the mail server.

    Exit code 1 if it was not accepted.
    """
    from pylon.clock import NS_PER_S, SystemClock, SystemRandom

    config = read_settings(dev=dev).config
    sender = make_sender(config)
    if sender is None:
        raise EmailNotConfigured(
            "PYLON_EMAIL_PROVIDER is not set"
            if config.email_provider is None else "PYLON_EMAIL_PROVIDER is console, which is for "
            "dev mode", hint="set it to smtp, webhook, resend, sendgrid or file",
        )
    to = parse_email(address, is_dev=config.dev_mode)
    load_templates(config)
    sender(Mail(
        SystemRandom().token_hex(16), "TEST", to.key, "Test mail of Pylon",
        "This is the test mail of pylonctl mail test.\n", SystemClock().wall_ns() // NS_PER_S,
    ))
    body = {"sent": True, "to": to.text, "provider": config.email_provider}
    result(body, f"{config.email_provider} accepted a mail from {sender_address(config)} to "
                 f"{to.text}")


@mail.command("preview")
@click.argument("template")
@click.option(
    "--set", "given", metavar="NAME=VALUE", multiple=True, help="The value of a variable."
)
@click.option("--html", "is_html", is_flag=True, help="Show the HTML part.")
@dev_flag
@json_flag
def preview(template: str, given: tuple[str, ...], is_html: bool, dev: bool) -> None:
    """Show the text of the mail TEMPLATE, for example MAGIC_CODE, with sample values."""
    config = read_settings(dev=dev).config
    name = template.upper().replace("-", "_")
    if name not in KIND_BY_NAME:
        raise InvalidData(
            f"There is no mail {template!r}", hint=f"the mails are {', '.join(KIND_BY_NAME)}"
        )
    rendered = load_templates(config)[name].render({**SAMPLES, **_values(name, given)})
    if is_html and rendered.html is None:
        raise InvalidData(
            f"The mail {name} has no HTML part",
            hint=f"set PYLON_EMAIL_HTML=true, or put {name.lower()}.html into the folder "
            "PYLON_EMAIL_TEMPLATES",
        )
    shown = rendered.html if is_html else rendered.text
    body = {
        "template": name, "from": sender_address(config), "subject": rendered.subject,
        "text": rendered.text, "html": rendered.html,
    }
    result(body, f"From: {sender_address(config)}\nSubject: {rendered.subject}\n\n{shown}")


def _values(kind: str, given: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or name not in KIND_BY_NAME[kind].variables:
            raise InvalidData(
                f"--set {pair}: expected NAME=VALUE",
                hint=f"the variables are {', '.join(sorted(KIND_BY_NAME[kind].variables))}",
            )
        values[name] = value
    return values
