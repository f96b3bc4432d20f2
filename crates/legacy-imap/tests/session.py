"""Drives the embedded demo server with imaplib. Argument: the port. Exits 0 if all is as it should be."""

import imaplib
import sys

PORT = int(sys.argv[1])


def connect():
    client = imaplib.IMAP4("127.0.0.1", PORT, timeout=20)
    client.authenticate("PLAIN", lambda _challenge: b"\0demo\0demo")
    return client


def ok(answer):
    status, data = answer
    assert status == "OK", answer
    return data


def raw(client, command):
    """Sends a line and returns all responses up to the tagged one."""
    client.send(b"raw " + command + b"\r\n")
    lines = []
    while not lines or not lines[-1].startswith(b"raw "):
        lines.append(client.readline().rstrip(b"\r\n"))
    return lines


def is_refused(call, *arguments):
    try:
        call(*arguments)
    except imaplib.IMAP4.error:
        return True
    return False


stranger = imaplib.IMAP4("127.0.0.1", PORT, timeout=20)
assert {"IMAP4REV1", "STARTTLS", "AUTH=PLAIN"} <= set(stranger.capabilities)
assert is_refused(stranger.starttls), "nothing here knows TLS"
assert is_refused(stranger.login, "demo", "wrong")
ok(stranger.login("demo", "demo"))
assert stranger.logout()[0] == "BYE"

one, two = connect(), connect()
assert len(ok(one.list())) == 3 and len(ok(one.lsub())) == 3
ok(one.create("Work/2026"))
assert [line.split()[-1] for line in ok(one.list('""', "Work*"))] == [b'"Work"', b'"Work/2026"']
assert one.create("inbox")[0] == "NO"

# Structure, sections and partial fetches.
assert ok(one.select("INBOX")) == [b"8"] and ok(two.select("INBOX")) == [b"8"]
structure = ok(one.fetch("3", "(BODYSTRUCTURE)"))[0]
assert b'"image" "png"' in structure and b'("attachment" ("filename" "envelope.png"))' in structure
sections = ok(one.fetch("8", "(BODY.PEEK[2.HEADER.FIELDS (SUBJECT)] BODY.PEEK[2.1]<5.7>)"))
assert sections[0][1] == b"Subject: Certificate renewed\r\n\r\n" and sections[1][1] == b"example"

# Search: charsets, sets, dates, logic.
one.literal = "übermorgen".encode()
assert ok(one.search("UTF-8", "TEXT")) == [b"4"]
assert ok(one.search(None, "OR FROM wanda (SINCE 9-Mar-2026 UNSEEN)")) == [b"6 7 8"]
assert one.search("KOI8-R", "ALL")[0] == "NO"

# A large message, octet for octet.
# Without line ends of its own, which imaplib would change.
big = b"Subject: big\r\n\r\n" + bytes(14 + i % 242 for i in range(5_000_000))
assert b"APPENDUID" in ok(one.append("Work/2026", r"(\Seen work)", '" 1-Feb-2026 03:04:05 -0500"', big))[0]
ok(one.select("Work/2026"))
fetched = ok(one.fetch("1", "(FLAGS INTERNALDATE BODY.PEEK[])"))
assert fetched[0][1] == big and rb"(\Seen work \Recent)" in fetched[0][0]
assert b'" 1-Feb-2026 03:04:05 -0500"' in fetched[0][0]
assert raw(one, b"APPEND INBOX {25000001}") == [b"raw NO [TOOBIG] Longer than this server takes"]

# Message numbers of one session across the expunges of another.
ok(one.select("INBOX"))
ok(one.copy("1:2", "Archive"))
assert one.copy("1", "nowhere")[0] == "NO" and b"TRYCREATE" in one.copy("1", "nowhere")[1][0]
ok(one.store("2:3", "+FLAGS.SILENT", r"\Deleted"))
assert ok(one.expunge()) == [b"2", b"2"]
assert ok(two.fetch("4", "(UID)")) == [b"4 (UID 4)"], "not told yet, so nothing has moved"
assert raw(two, b"NOOP")[:2] == [b"* 2 EXPUNGE", b"* 2 EXPUNGE"]
assert ok(two.fetch("2", "(UID)")) == [b"2 (UID 4)"]
assert raw(two, b"FETCH 7 FLAGS")[-1].startswith(b"raw BAD")

# IDLE sees what the other session does.
two.send(b"idle IDLE\r\n")
assert two.readline().startswith(b"+ ")
ok(one.append("INBOX", None, None, b"Subject: new\r\n\r\nhello\r\n"))
assert two.readline() == b"* 7 EXISTS\r\n"
assert two.readline().endswith(b" RECENT\r\n"), "of one session or the other, whichever was told first"
ok(one.store("1", "+FLAGS", r"\Flagged"))
assert two.readline() == b"* 1 FETCH (UID 1 FLAGS (\\Flagged \\Seen))\r\n"
assert raw(one, b"UID MOVE 1 Archive")[1:] == [b"* 1 EXPUNGE", b"raw OK MOVE completed"]
assert two.readline() == b"* 1 EXPUNGE\r\n"
two.send(b"DONE\r\n")
assert two.readline() == b"idle OK IDLE completed\r\n"

ok(one.rename("Work", "Play"))
assert one.delete("Play")[0] == "NO", "it has a mailbox below it"
ok(one.delete("Play/2026"))
ok(one.delete("Play"))
assert one.logout()[0] == "BYE" and two.logout()[0] == "BYE"
