"""Logs in by one SASL mechanism: sasl.py HOST PORT CA MECHANISM INITIAL USER SECRET

INITIAL is "initial" (RFC 4959: the first message goes with the command) or "waits". SECRET is a password,
or a bearer token for XOAUTH2. Prints "done" when the login succeeded and a NOOP was answered, or
"refused: ..." with the server's tagged line. SCRAM also checks that the server knows the password.
"""

import base64
import hashlib
import hmac
import os
import socket
import ssl
import sys

host, port, ca, mechanism, initial, user, secret = sys.argv[1:]
user, secret = user.encode(), secret.encode()


def plain():
    yield b"\0" + user + b"\0" + secret


def login():
    yield user
    yield secret


def cram_md5():
    challenge = yield None
    yield user + b" " + hmac.new(secret, challenge, hashlib.md5).hexdigest().encode()


def xoauth2():
    yield b"user=" + user + b"\x01auth=Bearer " + secret + b"\x01\x01"
    yield b""  # after a refusal: the error was read (the server says NO next)


def scram_sha_256():
    nonce = base64.b64encode(os.urandom(18))
    bare = b"n=" + user + b",r=" + nonce
    challenge = yield b"n,," + bare
    fields = dict(field.split(b"=", 1) for field in challenge.split(b","))
    assert fields[b"r"].startswith(nonce), challenge
    salt, rounds = base64.b64decode(fields[b"s"]), int(fields[b"i"])
    salted = hashlib.pbkdf2_hmac("sha256", secret, salt, rounds)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    final = b"c=biws,r=" + fields[b"r"]
    signed = bare + b"," + challenge + b"," + final
    signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature))
    answer = yield final + b",p=" + base64.b64encode(proof)
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    expected = b"v=" + base64.b64encode(hmac.digest(server_key, signed, "sha256"))
    assert answer == expected, answer
    yield b""


context = ssl.create_default_context(cafile=ca)
tls = context.wrap_socket(socket.create_connection((host, int(port)), 60), server_hostname=host)
lines = tls.makefile("rb")


def send(line):
    tls.sendall(line + b"\r\n")


greeting = lines.readline()
assert greeting.startswith(b"* OK"), greeting
assert b"AUTH=" + mechanism.encode() in greeting, greeting

exchange = globals()[mechanism.lower().replace("-", "_")]()
message = next(exchange)
command = b"a AUTHENTICATE " + mechanism.encode()
if initial == "initial" and message is not None:
    send(command + b" " + base64.b64encode(message))
    message = "sent"
else:
    send(command)

while True:
    line = lines.readline()
    if line.startswith(b"* "):
        continue
    if not line.startswith(b"+"):
        break
    challenge = base64.b64decode(line[1:].strip())
    # An opening that waits for its turn answers the first, empty challenge.
    if message not in (None, "sent"):
        answer, message = message, "sent"
    else:
        answer = exchange.send(challenge)
        message = "sent"
    send(base64.b64encode(answer))

if not line.startswith(b"a OK"):
    print("refused:", line.decode().strip())
    sys.exit()
send(b"b NOOP")
while not (line := lines.readline()).startswith(b"b "):
    assert line, "closed"
assert line.startswith(b"b OK"), line
print("done")
