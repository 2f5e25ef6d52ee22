"""Mail delivery: sends the mails of the outbox, by one greenlet and up to `MAILS_AT_ONCE` helpers.

It claims each mail by one conditional write, which moves the mail's next attempt `MAIL_CLAIM_S`
into the future. So one process of all nodes sends it at a time, and if that process is killed the
mail is due again. After the send it deletes the row; after a failure it sets the next attempt, 1 s
doubling to `MAIL_RETRY_S`, with full jitter.

Invariants: a mail is sent at least once, or refused by the other side, or its content has expired;
each end is counted. An attempt ends after `MAIL_SEND_S`, well before its claim. A mail that was
sent while the database is away is not sent again by this process. No log line has a recipient or a
text. An error of the store stops nothing: the greenlet tries again after `MAIL_POLL_S`.

Metrics: pylon_mails_total, pylon_mails_waiting, pylon_mails_oldest_age_seconds. Log: mail.failed,
mail.refused, mail.outbox_unavailable. Run by the identity process.
"""

from __future__ import annotations

from typing import Final

import gevent
from gevent.event import Event
from gevent.pool import Pool

from pylon import limits, log, metrics
from pylon.api.services import Writer
from pylon.auth.keys import Keys
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.errors import EmailRefused, EmailSendFailed, PylonError, SealBroken
from pylon.mail.message import Mail, decode
from pylon.mail.outbox import SEALED, TABLE, Mails
from pylon.mail.senders import Sender
from pylon.storage.auth_ops import Condition, DropRecords, SetRecords
from pylon.storage.auth_tables import Value
from pylon.storage.interface import Store

_SENT_KEPT: Final = 1_000  # ids of sent mails whose row could not be deleted
_MEASURE_S: Final = 1.0
_log = log.get_logger("mail")


class MailDelivery:
    """The delivery of one process."""

    def __init__(
        self, store: Store, writer: Writer, keys: Keys, mails: Mails, sender: Sender, clock: Clock,
        random: RandomSource, *, woken: Event | None = None, send_s: float = limits.MAIL_SEND_S,
    ) -> None:
        """Args: `woken`: set by flows when there may be a mail."""
        self._store = store
        self._writer = writer
        self._keys = keys
        self._mails = mails
        self._send = sender
        self._clock = clock
        self._random = random
        self._send_s = send_s
        self._pool = Pool(limits.MAILS_AT_ONCE)
        self._woken = woken or Event()
        self._is_stopped = False
        self._sent: dict[str, None] = {}  # ids of mails whose row is there still
        self._measure_s = 0.0  # when the outbox is measured next

    @property
    def sending(self) -> int:
        """Return the number of mails that are being sent."""
        return len(self._pool)

    def run(self) -> None:
        """Deliver until `stop`."""
        while not self._is_stopped:
            self._woken.clear()
            try:
                wait_s = self.deliver_due()
            except PylonError as ex:
                _log.warning("mail.outbox_unavailable", code=ex.code, message=ex.message)
                wait_s = limits.MAIL_POLL_S
            self._woken.wait(wait_s)

    def stop(self) -> None:
        """Claim no more mails."""
        self._is_stopped = True
        self._woken.set()

    def join(self) -> None:
        """Wait for the mails that are being sent."""
        self._pool.join()

    def deliver_due(self) -> float:
        """Claim what is due and begin to send it. Return the seconds until more is due.

        Raises:
            PylonError: the store or the writer does not answer.
        """
        self._pool.wait_available()
        self._measure()
        self._drop_expired()
        now_s = self._now_s()
        room = self._pool.free_count() or 1
        rows = self._store.point(lambda reader: reader.records(
            TABLE, [Condition("next_at", "<=", now_s)], order=("next_at",), limit=room
        ))
        claimed_at = now_s + limits.MAIL_CLAIM_S
        replies = self._writer.submit_all([
            SetRecords(
                TABLE, [Condition("id", "=", row["id"]), Condition("next_at", "=", row["next_at"])],
                {"next_at": claimed_at}, expected=1, add={"attempts": 1},
            ) for row in rows
        ])
        for row, reply in zip(rows, replies, strict=True):
            if reply.error is None:  # else another process was faster
                self._pool.spawn(self._deliver, row, claimed_at)
        return 0.0 if len(rows) == room else self._seconds_until_next()

    def _deliver(self, row: dict[str, Value], claimed_at: int) -> None:
        """Send one claimed mail, and settle its row."""
        mail_id, attempt = str(row["id"]), int(row["attempts"] or 0) + 1
        try:
            self._attempt(mail_id, str(row["sealed"]), attempt)
        except EmailRefused:
            self._settle(DropRecords(TABLE, _claim(mail_id, claimed_at)))
        except (EmailSendFailed, SealBroken):
            longest_s = min(limits.MAIL_RETRY_S, 2.0 ** min(attempt - 1, 16))
            delay_s = self._random.uniform(0.0, longest_s)
            next_at = self._now_s() + max(1, round(delay_s))
            self._settle(SetRecords(TABLE, _claim(mail_id, claimed_at), {"next_at": next_at}))
        else:
            if self._settle(DropRecords(TABLE, _claim(mail_id, claimed_at))):
                self._sent.pop(mail_id, None)
        self._woken.set()

    def _attempt(self, mail_id: str, sealed: str, attempt: int) -> None:
        """Send one mail, count the result, and log a failure.

        Raises:
            EmailRefused, EmailSendFailed, SealBroken
        """
        if mail_id in self._sent:
            return
        kind = ""
        try:
            mail = decode(self._keys.open(TABLE, SEALED, mail_id, sealed))
            kind = mail.kind
            self._send_within(mail)
        except (EmailRefused, EmailSendFailed, SealBroken) as ex:
            is_final = isinstance(ex, EmailRefused)
            metrics.MAILS.labels("refused" if is_final else "failed").inc()
            _log.warning(
                "mail.refused" if is_final else "mail.failed", mail=mail_id, kind=kind,
                attempt=attempt, message=ex.message,
            )
            raise
        metrics.MAILS.labels("sent").inc()
        while len(self._sent) >= _SENT_KEPT:
            del self._sent[next(iter(self._sent))]
        self._sent[mail_id] = None

    def _send_within(self, mail: Mail) -> None:
        too_late = EmailSendFailed(f"the mail was not accepted within {self._send_s:g} s")
        with gevent.Timeout(self._send_s, too_late):
            self._send(mail)

    def _settle(self, op: DropRecords | SetRecords) -> bool:
        """Write the end of an attempt. If that fails the mail is due again after its claim."""
        try:
            self._writer.submit(op)
        except PylonError as ex:
            _log.warning("mail.outbox_unavailable", code=ex.code, message=ex.message)
            return False
        return True

    def _drop_expired(self) -> None:
        where = [Condition("expires_at", "<=", self._now_s())]
        if self._store.point(lambda reader: reader.count_records(TABLE, where)):
            dropped = self._writer.submit(DropRecords(TABLE, where)).count
            metrics.MAILS.labels("expired").inc(dropped)
            _log.warning("mail.expired", mails=dropped)

    def _measure(self) -> None:
        """Set the gauges, and the number that `Mails.put` looks at, at most once a second."""
        if self._clock.monotonic_s() < self._measure_s:
            return
        self._measure_s = self._clock.monotonic_s() + _MEASURE_S
        waiting, oldest = self._store.point(lambda reader: (
            reader.count_records(TABLE, []),
            reader.records(TABLE, [], order=("created_at",), limit=1),
        ))
        self._mails.waiting = waiting
        metrics.MAILS_WAITING.set(waiting)
        metrics.MAILS_OLDEST.set(
            max(0, self._now_s() - int(oldest[0]["created_at"] or 0)) if oldest else 0
        )

    def _seconds_until_next(self) -> float:
        """Return in how many seconds a mail is due next, at most `MAIL_POLL_S`."""
        first = self._store.point(
            lambda reader: reader.records(TABLE, [], order=("next_at",), limit=1)
        )
        if not first:
            return limits.MAIL_POLL_S
        due_s = int(first[0]["next_at"] or 0) - self._clock.wall_ns() / NS_PER_S
        return min(limits.MAIL_POLL_S, max(0.0, due_s))

    def _now_s(self) -> int:
        return self._clock.wall_ns() // NS_PER_S


def _claim(mail_id: str, claimed_at: int) -> list[Condition]:
    """Return the conditions that hold while this process has the claim."""
    return [Condition("id", "=", mail_id), Condition("next_at", "=", claimed_at)]
