"""What tests/method/test_hosts.py runs under `unshare --user --map-root-user --net`: one command on each of two hosts.

The hosts are two network namespaces, this process's own and a second one, joined by a pair of virtual Ethernet ends and
by nothing else. Each runs the same torchrun command with its own node rank: python two_hosts.py OUT SCRIPT ARGUMENTS.
It is a launcher too: IFM_LAUNCH="unshare --user --map-root-user --net python two_hosts.py OUT".
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
ENDS = ("ifm-node0", "ifm-node1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500  # nothing else listens in a namespace of one's own
SECONDS = 240


def ip() -> str | None:
    """Where iproute2's `ip` is: not in every user's PATH."""
    return shutil.which("ip", path=SBIN)


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def up(node: int) -> None:
    """This namespace's end of the pair gets its address."""
    run(ip(), "link", "set", "lo", "up")
    run(ip(), "address", "add", f"{ADDRESSES[node]}/24", "dev", ENDS[node])
    run(ip(), "link", "set", ENDS[node], "up")


def torchrun(node: int, words: list[str]) -> subprocess.Popen:
    """One process of the two, on this host; gloo talks over the pair."""
    nodes = ["--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1"]
    master = [f"--master_addr={ADDRESSES[0]}", f"--master_port={PORT}"]
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, *master, *words]
    return subprocess.Popen(command, env=os.environ | {"GLOO_SOCKET_IFNAME": ENDS[node]}, stdin=subprocess.DEVNULL)


def note(out: Path, node: int) -> None:
    """Which network this host was in, and how many bytes reached it from the other."""
    counted = json.loads(subprocess.check_output([ip(), "-json", "-statistics", "link", "show", "dev", ENDS[node]]))
    found = {"namespace": os.readlink("/proc/self/ns/net"), "received": counted[0]["stats64"]["rx"]["bytes"]}
    (out / f"host-{node}.json").write_text(json.dumps(found))


def host(node: int, out: Path, words: list[str]) -> int:
    """Runs the command as node 0 or 1 and gives its exit status."""
    up(node)
    process = torchrun(node, words)
    try:
        status = process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its workers then
        raise
    note(out, node)
    return status


def main(out: Path, words: list[str]) -> int:
    """Both hosts: the first here, the second in a child, which says when its namespace is there to be joined."""
    child = [sys.executable, __file__, "--second", str(out), *words]
    second = subprocess.Popen(["unshare", "--net", *child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        second.stdout.readline()
        run(ip(), "link", "add", ENDS[0], "type", "veth", "peer", "name", ENDS[1])
        run(ip(), "link", "set", ENDS[1], "netns", str(second.pid))
        second.stdin.write("joined\n")
        second.stdin.flush()
        first = host(0, out, words)
        second.stdin.close()
        return first or second.wait(timeout=SECONDS)
    finally:
        second.kill()


def second(out: Path, words: list[str]) -> int:
    """The second host: waits for its end of the pair, and for the first to be done: the pair ends with either."""
    print("ready", flush=True)
    sys.stdin.readline()
    status = host(1, out, words)
    sys.stdin.read()
    return status


if __name__ == "__main__":
    if sys.argv[1] == "--second":
        sys.exit(second(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
