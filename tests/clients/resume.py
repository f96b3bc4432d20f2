"""Two connections with one TLS session: resume.py VERSION CA HOST:PORT HOST:PORT; prints whether the second resumed."""

import socket
import ssl
import sys

version, ca, *addresses = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(ca)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
session = None
for address in addresses:
    host, port = address.split(":")
    raw = socket.create_connection((host, int(port)), timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost", session=session) as tls:
        file = tls.makefile("rwb")
        assert file.readline().startswith(b"* OK "), "no greeting"
        file.write(b"a LOGIN alice secret\r\n")
        file.flush()
        while not (line := file.readline()).startswith(b"a "):
            assert line, "closed"
        assert line.startswith(b"a OK"), line
        session = tls.session  # TLS 1.3: the tickets came before the greeting
        print("has_ticket", session.has_ticket, "hint", session.ticket_lifetime_hint)
        print("reused", tls.session_reused)
