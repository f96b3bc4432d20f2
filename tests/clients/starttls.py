"""Python's imaplib on a port for STARTTLS: starttls.py HOST PORT CA USER PASSWORD

Is refused in plaintext, upgrades, sees other capabilities, logs in, selects and logs out. Prints "done" at the end;
anything else is a failure.
"""

import imaplib
import ssl
import sys

host, port, ca, user, password = sys.argv[1:]
client = imaplib.IMAP4(host, int(port), timeout=60)
assert "STARTTLS" in client.capabilities, client.capabilities
assert "LOGINDISABLED" in client.capabilities, client.capabilities
assert not [word for word in client.capabilities if word.startswith("AUTH=")], client.capabilities
try:
    client.login(user, "wrong and never sent on")
    raise SystemExit("logged in without TLS")
except imaplib.IMAP4.error as error:
    assert "PRIVACYREQUIRED" in str(error), error
status, data = client.starttls(ssl.create_default_context(cafile=ca))
assert status == "OK", data
assert "STARTTLS" not in client.capabilities, client.capabilities
assert "LOGINDISABLED" not in client.capabilities, client.capabilities
assert "AUTH=PLAIN" in client.capabilities, client.capabilities
client.login(user, password)
assert client.select("INBOX")[0] == "OK"
assert client.logout()[0] == "BYE"
print("done")
