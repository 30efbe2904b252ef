"""A home's router that speaks NAT-PMP: what it grants it lets through, by iptables.

router.py INNER-ADDRESS OUTER-ADDRESS
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

OPS = {1: "udp", 2: "tcp"}


def let_through(change: str, protocol: str, outer: str, port: int, home: str) -> None:
    subprocess.run(
        ["iptables", "-t", "nat", change, "PREROUTING", "-d", outer, "-p", protocol,
         "--dport", str(port), "-j", "DNAT", "--to-destination", f"{home}:{port}"],
        check=True,
    )  # fmt: skip


def main(inner: str, outer: str) -> None:
    open_: set[tuple[str, int, str]] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((inner, 5351))
        print("ready", flush=True)
        while True:
            raw, (home, source) = sock.recvfrom(2048)
            if raw[:1] != b"\0":
                reply = struct.pack(">BBHI", 0, 128, 1, 1)  # PCP: another version
            elif len(raw) == 2:
                reply = struct.pack(">BBHI", 0, 128, 0, 1) + socket.inet_aton(outer)
            else:
                _, op, _, port, _, lease = struct.unpack(">BBHHHI", raw)
                wanted = (OPS[op], port, home)
                if (wanted in open_) != bool(lease):
                    let_through("-A" if lease else "-D", OPS[op], outer, port, home)
                    open_ ^= {wanted}
                reply = struct.pack(">BBHIHHI", 0, 128 + op, 0, 1, port, port, lease)
            sock.sendto(reply, (home, source))


main(*sys.argv[1:])
