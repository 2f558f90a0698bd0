"""`python WORDS...` in a fork of the warm server at ADDRESS: its output, signals and exit status (ADDRESS WORDS...).

Light: run without the site packages.
"""

import json
import os
import signal
import socket
import sys


def main(address: str, words: list[str]) -> int:
    if words[:1] == ["-u"]:  # as torchrun starts its processes
        words = words[1:]
        os.environ["PYTHONUNBUFFERED"] = "1"
    if not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
        real = os.environ["WARM_PYTHON_REAL"]
        os.execv(real, [real, *words])  # options of Python's: a process of its own
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = json.dumps({"words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(request)
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda n, _: connection.sendall(bytes([n])))
    told = connection.recv(8)
    status = int.from_bytes(told, "big", signed=True) if told else 1
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
