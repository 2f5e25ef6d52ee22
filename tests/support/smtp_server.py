"""An SMTP server of aiosmtpd in a process of its own, and its client side for tests.

    python -m tests.support.smtp_server MODE FILE [--user U --password P] [--certificate PEM]

It listens on a free port of all addresses, and prints the port. It appends each accepted mail to
FILE, as one line of JSON. `MODE` is one of:

    accept       accepts all
    no-mailbox   answers 550 to each recipient
    no-text      answers 554 to each text
    later        answers 451 to each recipient
    hang         accepts connections and never says a word
    trickle      sends its greeting one byte a second
    starttls     offers STARTTLS; needs --certificate
    tls          speaks TLS from the start; needs --certificate
"""

from __future__ import annotations

import argparse
import asyncio
import email
import email.policy
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.wait import WAIT_S, wait_until


class Recorder:
    """aiosmtpd's handler: answers by the mode, and writes down what it accepts."""

    def __init__(self, mode: str, file: Path) -> None:
        self._mode = mode
        self._file = file

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if self._mode == "no-mailbox":
            return f"550 5.1.1 no mailbox {address}"
        if self._mode == "later":
            return "451 4.3.0 try later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self._mode == "no-text":
            return "554 5.6.0 this looks like spam"
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        text = message.get_body(("plain",))
        page = message.get_body(("html",))
        line = {
            "from": envelope.mail_from, "to": envelope.rcpt_tos, "is_tls": session.ssl is not None,
            "user": getattr(session, "login_data", None) is not None,
            "headers": {name.lower(): str(value) for name, value in message.items()},
            "text": None if text is None else text.get_content().replace("\r\n", "\n"),
            "html": None if page is None else page.get_content().replace("\r\n", "\n"),
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return "250 OK"


async def serve(args: argparse.Namespace) -> None:
    """Serve until the process is ended."""
    from aiosmtpd.smtp import SMTP, AuthResult

    loop = asyncio.get_running_loop()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"220 slow.example ESMTP" * 10:
            await asyncio.sleep(1)
            if args.mode == "trickle":
                writer.write(bytes([byte]))
        await asyncio.sleep(3600)

    def authenticate(
        server: Any, session: Any, envelope: Any, mechanism: str, given: Any
    ) -> AuthResult:
        is_right = (given.login, given.password) == (args.user.encode(), args.password.encode())
        return AuthResult(success=is_right, handled=False)

    context = None
    if args.certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(args.certificate)

    def protocol() -> SMTP:
        return SMTP(
            Recorder(args.mode, Path(args.file)), enable_SMTPUTF8=True,
            tls_context=context if args.mode == "starttls" else None,
            require_starttls=args.mode == "starttls",
            authenticator=authenticate if args.user else None, auth_required=bool(args.user),
            auth_require_tls=False, loop=loop,
        )

    if args.mode in ("hang", "trickle"):
        server = await asyncio.start_server(silent, "0.0.0.0", 0)
    else:
        server = await loop.create_server(
            protocol, "0.0.0.0", args.port, ssl=context if args.mode == "tls" else None
        )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class SmtpStage:
    """A running server."""

    def __init__(self, port: int, file: Path, process: subprocess.Popen[str]) -> None:
        self.port = port
        self.process = process
        self._file = file

    @property
    def url(self) -> str:
        """Return the value for PYLON_EMAIL_SMTP_URL."""
        return f"smtp://127.0.0.1:{self.port}"

    def mails(self) -> list[dict[str, Any]]:
        """Return the accepted mails, in their order."""
        if not self._file.exists():
            return []
        return [json.loads(line) for line in self._file.read_text().splitlines()]

    def wait_for(self, count: int, timeout_s: float = WAIT_S) -> list[dict[str, Any]]:
        """Wait for so many mails; return them."""
        wait_until(f"{count} mails", lambda: len(self.mails()) >= count, timeout_s)
        return self.mails()


@contextmanager
def smtp_server(
    folder: Path, mode: str = "accept", *args: str, port: int = 0
) -> Iterator[SmtpStage]:
    """Run a server in a process; its mails are in `folder`."""
    file = folder / "mails.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.smtp_server", mode, str(file), "--port", str(port),
         *args],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        yield SmtpStage(int(process.stdout.readline()), file, process)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    parser.add_argument("--certificate")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
