"""Runs a program that finds no IPv6, as under a kernel that was started with ipv6.disable=1.

    python3 no_ipv6.py PROGRAM ARGUMENT...

Of socket() with AF_INET6 a seccomp filter makes EAFNOSUPPORT. Takes no root.
"""
import ctypes
import os
import platform
import struct
import sys

# Architecture in the audit's numbers, and the number of socket().
ARCHITECTURE, SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}[platform.machine()]
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL, EAFNOSUPPORT, AF_INET6 = 0x7FFF0000, 0x00050000, 97, 10
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2

program = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in [
        (LOAD, 0, 0, 4),
        (EQUAL, 0, 5, ARCHITECTURE),
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 3, SOCKET),
        (LOAD, 0, 0, 16),
        (EQUAL, 0, 1, AF_INET6),
        (RETURN, 0, 0, FAIL | EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
)
code = ctypes.create_string_buffer(program, len(program))
header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0, "no_new_privs is refused"
assert libc.prctl(SET_SECCOMP, FILTER, header, 0, 0) == 0, "seccomp filters are refused"
os.execv(sys.argv[1], sys.argv[1:])
