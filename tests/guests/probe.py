"""Does in the guest what it is asked, one line for each connection, and answers how that went.

An error is answered by its name: ECONNREFUSED is what a guest is told whom the policy refuses.
"""

import errno
import hashlib
import http.client
import socket
import threading

PATIENCE_S = 280
# Of Linux; Python has no names for them.
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14

held = {}
accepted = []


def get(host, port="80"):
    """A page, by name or address."""
    return fetch(host, port)[0].decode()


def download(host):
    """A page's checksum, and who the guest is."""
    content, address = fetch(host, 80)
    mac = open("/sys/class/net/eth0/address").read().strip()
    return f"{hashlib.sha256(content).hexdigest()} {address} {mac}"


def fetch(host, port):
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    connection.connect()
    address = connection.sock.getsockname()[0]
    connection.request("GET", "/")
    return connection.getresponse().read(), address


def dns(server, name):
    """A resolver's answer: its code, and the address if there is one."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = b"\0\7\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    answer = datagram(server, 53, question)
    address = socket.inet_ntoa(answer[-4:]) if answer[7] else "none"
    return f"{answer[3] & 15} {address}"


def udp(host, port):
    return datagram(host, port, b"?").decode()


def datagram(host, port, content):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE_S)
        peer.connect((host, int(port)))
        peer.send(content)
        return peer.recv(9000)


def send_as(sender, host, port):
    """A datagram from an address that is not the guest's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((sender, 0))
        peer.sendto(b"it was another", (host, int(port)))
    return "sent"


def mtu(host, port):
    """Sends more than the way carries; what the guest is told that it does carry."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE_S)
        peer.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        peer.connect((host, int(port)))
        peer.send(bytes(1472))
        try:
            peer.recv(1)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
        return str(peer.getsockopt(socket.IPPROTO_IP, IP_MTU))


def hold(host, port):
    """A connection that stays open."""
    held[host] = socket.create_connection((host, int(port)), PATIENCE_S)
    return "held" if held[host].recv(1) else "closed"


def read_on(host, count):
    """So many bytes more of it."""
    left = int(count)
    while left > 0:
        left -= len(held[host].recv(1 << 16))
    return "read"


def read_to_end(host):
    """All of it."""
    while held[host].recv(1 << 16):
        pass
    return "closed"


def listen(port):
    server = socket.create_server(("0.0.0.0", int(port)))

    def accept():
        while True:
            connection, peer = server.accept()
            accepted.append(peer)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    return "listening"


def count_accepted():
    return str(len(accepted))


def answer(connection):
    with connection:
        name, *arguments = connection.makefile().readline().split()
        try:
            text = globals()[name](*arguments)
        except socket.gaierror as error:
            text = {-2: "EAI_NONAME", -3: "EAI_AGAIN", -4: "EAI_FAIL"}.get(error.errno, str(error))
        except OSError as error:
            text = errno.errorcode.get(error.errno, str(error))
        connection.sendall(text.encode())


server = socket.create_server(("127.0.0.1", 7000), backlog=16)
print("listening", flush=True)
while True:
    threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
