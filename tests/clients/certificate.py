"""A login with a client certificate: certificate.py VERSION CA CERT KEY HOST:PORT; prints the result, or why TLS refused."""

import socket
import ssl
import sys

version, ca, cert, key, address = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(ca)
context.load_cert_chain(cert, key)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
host, port = address.split(":")
raw = socket.create_connection((host, int(port)), timeout=20)
try:
    with context.wrap_socket(raw, server_hostname="localhost") as tls:
        # With TLS 1.3 the client's handshake is done before anybody has looked at its certificate.
        file = tls.makefile("rwb")
        assert file.readline().startswith(b"* OK "), "no greeting"
        file.write(b"a LOGIN alice secret\r\n")
        file.flush()
        while not (line := file.readline()).startswith(b"a "):
            assert line, "closed"
        print(line.decode().split()[1])
except ssl.SSLError as error:
    print(error.reason)
