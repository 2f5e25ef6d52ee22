"""Mail: the texts that sign-in sends, and the services that carry them.

    kinds       the table of kinds of mail, with the variables and the built-in text of each
    templates   the texts of an app, checked at the start; rendering
    message     one rendered mail, and its form as a MIME message
    senders     the choice of a sender; the senders `console` and `file`
    smtp        the sender `smtp`
    services    the senders `webhook`, `resend` and `sendgrid`
    outbox      the operations that put a mail into the table `outbox`

The identity process sends what the outbox holds; `pylonctl mail`
sends a test and shows a text.
"""
