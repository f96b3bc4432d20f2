"""Logs in, goes into IDLE, says so, and prints every line that comes until the server closes.

usage: idle.py HOST PORT. Ends with 0 when the server closed TLS in order, with close_notify.
"""

import socket
import ssl
import sys

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE

raw = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
# Without this an end of TCP without close_notify would look like an orderly one.
stream = context.wrap_socket(raw, suppress_ragged_eofs=False)
lines = stream.makefile("rb")


def until(start):
    while not (line := lines.readline()).startswith(start):
        assert line, f"closed before {start}"


until(b"* OK")
for tag, command in ((b"a", b"LOGIN demo demo"), (b"b", b"SELECT INBOX")):
    stream.sendall(tag + b" " + command + b"\r\n")
    until(tag + b" OK")
stream.sendall(b"c IDLE\r\n")
until(b"+")
print("idling", flush=True)
for line in lines:
    print(line.decode().rstrip(), flush=True)
