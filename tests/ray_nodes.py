"""A ray cluster of several nodes on this machine, on the loopback interface, for tests.

As a script it is the process that the nodes belong to: they end when it does, in any way. Every
line on its stdin adds a node of one CPU; it answers when the node is there.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import tempfile

OBJECT_STORE_BYTES = 80 * 2**20


class Nodes:
    """A cluster whose head has no CPU, so that runs take place on the others.

    Attributes:
        address: of the cluster.
        environment: that everybody needs who wants to talk to it.
    """

    def __init__(self, folder, n_nodes):
        self.environment = {
            # ray's processes bind to the loopback interface only where it cannot have more nodes
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()
        for _ in range(n_nodes):
            self.add()

    def add(self):
        """One more node of one CPU."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._answer()

    def close(self):
        self._process.kill()
        self._process.communicate()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the process of the nodes has ended"
        return line.strip()


@contextlib.contextmanager
def cluster(n_nodes):
    folder = pathlib.Path(tempfile.mkdtemp())  # short: it has sockets
    (folder / "ray").mkdir()
    nodes = Nodes(folder, n_nodes)
    try:
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": OBJECT_STORE_BYTES}
    head = {**options, "num_cpus": 0, "include_dashboard": False, "temp_dir": f"{sys.argv[1]}/ray"}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    sys.stdout.write(f"{nodes.address}\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        nodes.add_node(num_cpus=1, **options)
        sys.stdout.write("added\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
