"""Connections with one TLS session: resume.py VERSION CA HOST:PORT…; prints which of them resumed.

An address that is `-` is read from standard input when its turn comes.
"""

import socket
import ssl
import sys

version, ca, *addresses = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(ca)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
session = None
for address in addresses:
    address = sys.stdin.readline().strip() if address == "-" else address
    host, port = address.split(":")
    raw = socket.create_connection((host, int(port)), timeout=20)
    tls = context.wrap_socket(raw, server_hostname="localhost", session=session)
    with tls, tls.makefile("rwb") as file:
        assert file.readline().startswith(b"* OK "), "no greeting"
        file.write(b"a LOGIN alice secret\r\n")
        file.flush()
        while not (line := file.readline()).startswith(b"a "):
            assert line, "closed"
        assert line.startswith(b"a OK"), line
        session = tls.session  # TLS 1.3: the tickets came before the greeting
        print("has_ticket", session.has_ticket, "hint", session.ticket_lifetime_hint)
        print("reused", tls.session_reused)
