"""A whole session of Python's imaplib: session.py HOST PORT CA USER PASSWORD

Logs in, appends 5 MB and reads them back octet for octet, searches, waits in IDLE for a message that a
second connection appends, and logs out. Prints "done" at the end; anything else is a failure.
"""

import imaplib
import random
import ssl
import sys

host, port, ca, user, password = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)


def connect():
    client = imaplib.IMAP4_SSL(host, int(port), ssl_context=context, timeout=60)
    client.login(user, password)
    return client


def ok(answer):
    status, data = answer
    assert status == "OK", answer
    return data


client = connect()
assert "STARTTLS" not in client.capabilities, client.capabilities
assert ok(client.select("INBOX")) == [b"0"]

noise = random.Random(1)
lines = [b"%0100x" % noise.getrandbits(400) for _ in range(5_000_000 // 102)]
message = b"Subject: five megabytes\r\n\r\n" + b"\r\n".join(lines) + b"\r\n"
assert len(message) > 4_900_000
ok(client.append("INBOX", None, None, message))
ok(client.append("INBOX", r"(\Seen)", None, b"Subject: small\r\n\r\nneedle\r\n"))
assert ok(client.noop()) is not None

assert ok(client.search(None, "SUBJECT", '"five"')) == [b"1"]
assert ok(client.search(None, "BODY", '"needle"')) == [b"2"]
assert ok(client.search(None, "SEEN")) == [b"2"]
fetched = ok(client.fetch("1", "(BODY.PEEK[])"))[0][1]
assert fetched == message, (len(fetched), len(message))
ok(client.uid("STORE", "1", "+FLAGS", r"(\Flagged)"))
ok(client.create("Archive"))
ok(client.copy("2", "Archive"))
assert any(b"Archive" in name for name in ok(client.list()))

# imaplib of this age knows no IDLE: by hand.
tag = client._new_tag()
client.send(tag + b" IDLE\r\n")
while not (line := client.readline()).startswith(b"+"):
    assert line.startswith(b"*"), line
other = connect()
ok(other.append("INBOX", None, None, b"Subject: news\r\n\r\nnews\r\n"))
other.logout()
while not (line := client.readline()).startswith(b"* 3 EXISTS"):
    assert line.startswith(b"*"), line
client.send(b"DONE\r\n")
while not (line := client.readline()).startswith(tag):
    assert line.startswith(b"*"), line
assert line.startswith(tag + b" OK"), line

ok(client.close())
assert client.logout()[0] == "BYE"
print("done")
