"""The root of the error tree, and the error that stands for a defect. See `pylon.errors`."""

from __future__ import annotations

from typing import Any, ClassVar, Final

SHOWN_CHARS: Final = 100  # of a client's value in the text of an error

_BY_CODE: dict[str, type[PylonError]] = {}


class PylonError(Exception):
    """Base of all errors of Pylon. Not raised itself."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            known = _BY_CODE.setdefault(cls.code, cls)
            if known is not cls:
                raise TypeError(f"error code {cls.code} is used by {known} and {cls}")

    def body(self) -> dict[str, Any]:
        """The wire form: ``{"error": {"code", "message", "hint"?, ...details}}``."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, **self.details}
        if self.hint is not None:
            error["hint"] = self.hint
        return {"error": error}

    @property
    def retry_after_s(self) -> int:
        """Seconds until a retryable request may be sent again: the value of Retry-After."""
        return int(self.details.get("retry_after_secs", 1))

    def to_wire(self) -> tuple[str, str, str | None, dict[str, Any]]:
        """Return the form that the bus carries: code, message, hint, details."""
        return self.code, self.message, self.hint, self.details

    @staticmethod
    def classes() -> list[type[PylonError]]:
        """Every class with a code that has been loaded, by code."""
        return [_BY_CODE[code] for code in sorted(_BY_CODE)]

    @staticmethod
    def from_wire(
        code: str, message: str, hint: str | None, details: dict[str, Any]
    ) -> PylonError:
        """The error that `to_wire` described; an unknown code becomes an `InternalError`."""
        cls = _BY_CODE.get(code, InternalError)
        return cls(message, hint=hint, **details)


class InternalError(PylonError):
    """A defect of Pylon: the request met an exception that nobody expected. The details are in the
    log, not in the answer.

    Remedy: look for the request id of the hint (or of X-Request-Id) in the server's log and report
    what it says.
    """

    code = "INTERNAL"
    status = 500
