"""Delivery of mails: each is sent, retried, refused or expired, and never by two at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from pylon import config as settings
from pylon import limits, metrics
from pylon.app import build_app
from pylon.auth.keys import Keys
from pylon.clock import ManualClock, SeededRandom, SystemRandom
from pylon.errors import (
    EmailNotConfigured,
    EmailRefused,
    EmailSendFailed,
    PylonError,
    StoreUnavailable,
    Unavailable,
)
from pylon.mail.message import Mail
from pylon.mail.outbox import Mails
from pylon.mail.templates import load_templates
from pylon.manifest_loader import parse_manifest
from pylon.storage.ops import WriteOp
from tests.support.api import DirectWriter
from tests.support.database import Database
from workers.identity.mail_delivery import MailDelivery

pytestmark = pytest.mark.stores

MANIFEST = {
    "name": "app", "version": "1", "manifest_version": 1,
    "entities": [{"name": "User", "fields": [{"name": "email", "type": "string"}]}],
}


class Post:
    """An outbox, its delivery, and a sender that records mails and raises what `error` says."""

    def __init__(self, folder: Path) -> None:
        config = settings.load({}).config
        self.clock = ManualClock()
        app = build_app(
            config, parse_manifest(json.dumps(MANIFEST), "test.json"), clock=self.clock,
            random=SystemRandom(),
        )
        self.database = Database(folder / "test.db", app, self.clock)
        self.writer = DirectWriter(self.database.engine)
        self.keys = Keys([bytes(32)])
        self.mails = Mails(
            load_templates(config), "app", self.keys, self.clock, SystemRandom(),
            is_configured=True,
        )
        self.sent: list[Mail] = []
        self.attempts = 0
        self.error: PylonError | None = None
        self.delivery = self.make_delivery()

    def make_delivery(self, **more: float) -> MailDelivery:
        return MailDelivery(
            self.database.pool, self.writer, self.keys, self.mails, self.send, self.clock,
            SeededRandom(1), **more,
        )

    def send(self, mail: Mail) -> None:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        self.sent.append(mail)

    def put(self, to: str = "ann@example.com", life_s: int = 600, code: str = "123456") -> None:
        self.writer.submit(self.mails.put("MAGIC_CODE", to, life_s, code=code))

    def run(self) -> float:
        """Deliver what is due now; return the seconds until more is due."""
        wait_s = self.delivery.deliver_due()
        while wait_s == 0.0 and self.waiting():
            self.delivery.join()
            wait_s = self.delivery.deliver_due()
        self.delivery.join()
        return wait_s

    def waiting(self) -> int:
        return self.database.pool.point(lambda reader: reader.count_records("outbox", []))


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    metrics.reset()
    made = Post(tmp_path)
    yield made
    made.database.close()


def counted(result: str) -> float:
    return float(metrics.MAILS.labels(result)._value.get())


def test_a_mail_is_sent_once_and_its_row_deleted(post: Post) -> None:
    before = counted("sent")
    post.put("Ann@B\u00fccher.example")
    post.run()
    (mail,) = post.sent
    assert (mail.to, mail.kind) == ("ann@xn--bcher-kva.example", "MAGIC_CODE")
    assert "123456" in mail.text and "10 minutes" in mail.text
    assert post.waiting() == 0
    post.run()
    assert len(post.sent) == 1 and counted("sent") == before + 1


def test_the_row_tells_a_reader_of_the_database_nothing(post: Post) -> None:
    post.put()
    (row,) = post.database.pool.point(lambda reader: reader.records("outbox", []))
    assert not any(
        word in str(value) for value in row.values() for word in ("123456", "ann", "example")
    )


def test_many_mails_are_sent_eight_at_a_time(post: Post) -> None:
    at_once = most = 0

    def slow(mail: Mail) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        gevent.sleep(0)
        at_once -= 1
        post.sent.append(mail)

    post.delivery._send = slow
    for number in range(30):
        post.put(f"user{number}@example.com")
    post.run()
    assert len({mail.to for mail in post.sent}) == len(post.sent) == 30
    assert most == limits.MAILS_AT_ONCE


def test_a_failed_mail_is_tried_again_later_and_later(post: Post) -> None:
    post.put(life_s=3600)
    post.error = EmailSendFailed("no route")
    waits = []
    for _ in range(12):
        before = post.attempts
        assert post.run() > 0
        assert post.attempts == before + 1
        (row,) = post.database.pool.point(lambda reader: reader.records("outbox", []))
        waits.append(int(row["next_at"] or 0) - post.clock.wall_ns() // 10**9)
        assert post.run() > 0 and post.attempts == before + 1, "not before it is due"
        post.clock.advance(waits[-1])
    assert all(1 <= wait <= limits.MAIL_RETRY_S for wait in waits)
    assert all(wait <= 2 ** number for number, wait in enumerate(waits))
    assert max(waits) > 8
    post.error = None
    post.run()
    assert len(post.sent) == 1 and post.waiting() == 0


def test_a_refused_mail_is_dropped_at_once(post: Post) -> None:
    before = counted("refused")
    post.put()
    post.error = EmailRefused("no mailbox")
    post.run()
    assert post.waiting() == 0 and counted("refused") == before + 1


def test_a_mail_is_not_sent_after_its_content_has_expired(post: Post) -> None:
    before = counted("expired")
    post.put(life_s=600)
    post.error = EmailSendFailed("no route")
    post.run()
    post.clock.advance(600)
    post.error = None
    post.run()
    assert post.sent == [] and post.waiting() == 0 and counted("expired") == before + 1


def test_a_mail_whose_sender_was_killed_is_sent_after_the_claim(post: Post) -> None:
    post.put()
    killed = post.make_delivery()
    killed._send = lambda mail: gevent.sleep(3600)
    killed.deliver_due()
    gevent.sleep(0)
    killed._pool.kill()
    post.run()
    assert post.sent == [], "the claim holds"
    post.clock.advance(limits.MAIL_CLAIM_S)
    post.run()
    assert len(post.sent) == 1 and post.waiting() == 0


def test_of_two_processes_one_sends_a_mail(post: Post) -> None:
    others = [post.make_delivery() for _ in range(4)]
    for number in range(20):
        post.put(f"user{number}@example.com")
    for _ in range(20):
        greenlets = [gevent.spawn(each.deliver_due) for each in (*others, post.delivery)]
        gevent.joinall(greenlets, raise_error=True)
        for each in (*others, post.delivery):
            each.join()
    assert len({mail.to for mail in post.sent}) == len(post.sent) == 20


def test_a_server_that_hangs_is_left_and_the_mail_kept(post: Post) -> None:
    post.put()
    post.delivery = post.make_delivery(send_s=0.05)
    post.delivery._send = lambda mail: gevent.sleep(3600)
    post.run()
    assert post.waiting() == 1
    post.clock.advance(1)
    post.delivery._send = post.send
    post.run()
    assert len(post.sent) == 1


def test_a_sent_mail_is_not_sent_again_when_its_row_could_not_be_deleted(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post.put()

    def fail(op: WriteOp) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(post.writer, "submit", fail)
    post.delivery.deliver_due()
    post.delivery.join()
    monkeypatch.undo()
    assert len(post.sent) == 1 and post.waiting() == 1
    post.clock.advance(limits.MAIL_CLAIM_S)
    post.run()
    assert len(post.sent) == 1 and post.waiting() == 0


def test_a_mail_that_does_not_open_waits_until_it_expires(post: Post) -> None:
    post.put()
    post.keys = Keys([bytes([1]) * 32])
    post.delivery = post.make_delivery()
    post.run()
    assert post.sent == [] and post.waiting() == 1


def test_without_a_sender_codes_are_refused_and_notices_left_out(post: Post) -> None:
    post.mails.is_configured = False
    with pytest.raises(EmailNotConfigured):
        post.put()
    assert post.mails.notices("PASSWORD_CHANGED", "ann@example.com") == []
    post.mails.is_configured = True
    assert len(post.mails.notices("PASSWORD_CHANGED", "ann@example.com")) == 1
    assert post.mails.notices("PASSWORD_CHANGED", "an old row without an address") == []


def test_a_full_outbox_refuses_codes(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAILS_WAITING", 2)
    post.error = EmailSendFailed("no route")
    for _ in range(2):
        post.put()
    post.run()
    with pytest.raises(Unavailable, match="Too many mails"):
        post.put()
    assert post.mails.notices("PASSWORD_CHANGED", "ann@example.com") == []
