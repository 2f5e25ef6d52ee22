"""OWASP API8:2023, security misconfiguration."""

from __future__ import annotations

from tests.attacks.standards import check_items, not_applicable, proved
from tests.support.server import PylonServer
from tests.support.wire import Wire

C2 = "attacks/test_c2_browsers.py"
B7 = "attacks/test_b7_settings.py"
HERE = "attacks/test_owasp_api08_configuration.py"
ITEMS = {
    "cors": proved(
        "origins that look like a trusted one",
        f"{C2}::test_each_trusted_origin_is_named_alone", f"{C2}::test_a_trick_is_not_named",
        f"{B7}::test_an_origin_of_anybody_is_refused",
    ),
    "csrf": proved(
        "a write by a page of another site",
        f"{C2}::test_a_trick_sends_no_write", f"{C2}::test_a_form_with_a_cookie_sends_no_write",
        f"{C2}::test_the_fetch_metadata_of_another_site_sends_no_write",
        f"{C2}::test_no_get_has_an_effect",
    ),
    "cookies": proved(
        "cookies that another page or a subdomain plants",
        "attacks/test_b7_origins.py"
        "::test_two_session_cookies_that_differ_are_nobody_and_are_both_cleared",
        f"{C2}::test_a_start_refuses_what_browsers_would_not_keep_safe",
    ),
    "headers": proved(
        "an answer without the headers of security",
        f"{C2}::test_every_answer_has_the_security_headers",
        f"{C2}::test_a_defect_is_an_answer_with_the_security_headers",
    ),
    "defaults": proved(
        "a start with settings that are not safe",
        f"{B7}::test_settings_of_an_honest_operator_start",
        "attacks/test_b6_files.py::test_all_files_of_a_server_are_for_its_user_only",
    ),
    "errors": proved(
        "traces, paths and versions in answers",
        f"{C2}::test_a_defect_is_an_answer_with_the_security_headers",
        f"{HERE}::test_other_methods_are_refused_without_an_echo",
    ),
    "smuggling": proved(
        "a request that a proxy and the server read differently",
        "test_http_requests.py::test_whole",
        "test_net_head.py::test_both_ports_refuse_what_two_servers_could_read_differently",
    ),
    "files": proved(
        "files beside those that are served",
        "attacks/test_b6_files.py::test_static_files_end_at_the_folders_edge",
    ),
    "tls": not_applicable(
        "connections in clear", "TLS is the proxy's (docs/deploy.md); cookies are Secure and "
        "HSTS is sent where PYLON_PUBLIC_URL is https.",
    ),
}


def test_each_item_is_proved() -> None:
    check_items(
        ITEMS, "cors csrf cookies headers defaults errors smuggling files tls"
    )


def test_other_methods_are_refused_without_an_echo(server: PylonServer) -> None:
    for line in (
        "TRACE /api/auth/me HTTP/1.1", "TRACK / HTTP/1.1", "PROPFIND / HTTP/1.1",
        "CONNECT 169.254.169.254:80 HTTP/1.1", "DEBUG / HTTP/1.1",
    ):
        with Wire(server.port) as wire:
            wire.send(
                f"{line}\r\nHost: x\r\nX-Secret: sesame\r\nAuthorization: Bearer {'a' * 64}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            answer = wire.read_rest()
        assert int(answer.split(b" ", 2)[1]) in (400, 404, 405, 501), answer
        assert b"sesame" not in answer and b"aaaa" not in answer
        head = answer.partition(b"\r\n\r\n")[0].lower()
        for word in (b"python", b"gunicorn", b"gevent", b"x-powered-by", b"falcon"):
            assert word not in head, head
