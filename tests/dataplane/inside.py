"""What runs inside a namespace: `ip netns exec NS python inside.py COMMAND ...`. Standard library only.

Each command prints one JSON line when it is ready or done; `capture` and `udp-receive` end when
their standard input does.
"""

import array
import contextlib
import hashlib
import itertools
import json
import select
import socket
import sys
import time

ETH_P_ALL = 3


def say(**what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def capture(device):
    """Count the frames that leave or arrive on a device, by EtherType."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    packets.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    packets.bind((device, ETH_P_ALL))
    counts = {}
    say(ready=True)
    while True:
        ready, _, _ = select.select([packets, sys.stdin], [], [])
        if packets in ready:
            frame = packets.recv(64)
            kind = frame[12:14].hex()
            counts[kind] = counts.get(kind, 0) + 1
        elif sys.stdin in ready:
            say(counts=counts)
            return


def packet_numbers(device):
    """Take down the packet numbers of the MACsec frames that arrive on a device."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    packets.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    packets.bind((device, ETH_P_ALL))
    numbers, frame = array.array("Q"), bytearray(64)
    say(ready=True)
    while True:
        ready, _, _ = select.select([packets, sys.stdin], [], [])
        if packets in ready:
            _, (_, protocol, kind, _, _) = packets.recvfrom_into(frame, 64)
            if protocol == 0x88E5 and kind != socket.PACKET_OUTGOING:
                numbers.append(frame[14] % 4 << 32 | int.from_bytes(frame[16:20]))  # AN and PN
        elif sys.stdin in ready:
            late = sum(b < a for a, b in itertools.pairwise(numbers))
            say(frames=len(numbers), different=len(set(numbers)), steps_back=late)
            return


def noise(megabytes):
    """Yield the same octets in every run: a keyed stream, so that a lost or moved block shows."""
    for block in range(megabytes):
        seed = hashlib.sha256(b"%d" % block).digest()
        yield hashlib.shake_128(seed).digest(1 << 20)


def listen(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, port), family=family)
    say(ready=True)
    connection, _ = server.accept()
    return connection


def tcp_receive(address, port="9000"):
    """Take a stream to its end and tell its hash."""
    digest, size = hashlib.sha256(), 0
    with listen(address, int(port)) as connection:
        while data := connection.recv(1 << 18):
            digest.update(data)
            size += len(data)
    say(size=size, sha256=digest.hexdigest())


def tcp_send(address, megabytes, port="9000"):
    """Send a stream of known content and tell its hash."""
    digest = hashlib.sha256()
    with socket.create_connection((address, int(port)), timeout=20) as connection:
        for block in noise(int(megabytes)):
            connection.sendall(block)
            digest.update(block)
    say(sha256=digest.hexdigest())


def udp_echo(address):
    """Send every datagram back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    echo = socket.socket(family, socket.SOCK_DGRAM)
    echo.bind((address, 9001))
    say(ready=True)
    while True:
        ready, _, _ = select.select([echo, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        data, sender = echo.recvfrom(1 << 16)
        echo.sendto(data, sender)


def udp_ask(address, sizes):
    """Send datagrams of these sizes; tell which came back as they were."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.settimeout(2)
    client.connect((address, 9001))
    good = []
    for size in json.loads(sizes):
        data = hashlib.shake_128(b"%d" % size).digest(size)
        client.send(data)
        with contextlib.suppress(TimeoutError):
            if client.recv(1 << 16) == data:
                good.append(size)
    say(good=good)


def udp_send(address, rate, size, seconds):
    """Send numbered datagrams at a steady rate (`rate` a second); tell how many."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect((address, 9002))
    rate, padding = int(rate), b"x" * (int(size) - 8)
    start = time.monotonic()
    number = refused = 0
    while (now := time.monotonic() - start) < float(seconds):
        while number < now * rate:
            try:
                client.send(number.to_bytes(8) + padding)
            except OSError:
                refused += 1  # no carrier, no route: the kernel says so at once
            number += 1
        time.sleep(0.0005)
    say(sent=number, refused=refused)


def udp_receive(address):
    """Take numbered datagrams; tell how many there were, and how many came late or twice."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
    server.bind((address, 9002))
    seen, highest, disorder, octets = set(), -1, 0, 0
    say(ready=True)
    while True:
        ready, _, _ = select.select([server, sys.stdin], [], [])
        if server in ready:
            data = server.recv(1 << 16)
            number = int.from_bytes(data[:8])
            disorder += number <= highest
            highest = max(highest, number)
            seen.add(number)
            octets += len(data)
        elif sys.stdin in ready:
            say(received=len(seen), disorder=disorder, highest=highest, octets=octets)
            return


def macsec(device):
    """Print each MACsec frame that arrives on a device as hex; put lines of hex on it as frames."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88E5))
    packets.bind((device, 0x88E5))
    lines = open(0, "rb", buffering=0)  # noqa: SIM115 - select must see what is not read yet
    say(ready=True)
    while True:
        ready, _, _ = select.select([packets, lines], [], [])
        if packets in ready:
            say(frame=packets.recv(1 << 16).hex())
        if lines in ready:
            line = lines.readline()
            if not line:
                return
            packets.send(bytes.fromhex(line.decode()))


COMMANDS = {
    "capture": capture,
    "packet-numbers": packet_numbers,
    "tcp-receive": tcp_receive,
    "tcp-send": tcp_send,
    "udp-echo": udp_echo,
    "udp-ask": udp_ask,
    "udp-send": udp_send,
    "udp-receive": udp_receive,
    "macsec": macsec,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
