"""A real Ceph object gateway: one monitor, one daemon that keeps objects in memory, radosgw, one user.

Needs Debian's ceph-mon, ceph-osd and radosgw. Starts in about 12 s, needs no manager and no root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers.processes import end, free_port, wait_for_port
from tests.waiting import PATIENCE_SECONDS

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
ACCESS_KEY, SECRET_KEY = "TUNESMITHTEST", "tunesmith-test-secret"

CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor_port}]
ms bind msgr1 = false
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file =
mon data = {folder}/mon
mon allow pool size one = true
mon osd crush smoke test = false
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd memory target = 1073741824
mon max pg per osd = 1000
public addr = 127.0.0.1
cluster addr = 127.0.0.1
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw lc debug interval = -1
rgw enable usage log = false
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def ceph_gateway(folder: Path) -> Generator[str]:
    """The URL of a new gateway whose user has ACCESS_KEY and SECRET_KEY."""
    fsid, monitor_port, gateway_port = str(uuid.uuid4()), free_port(), free_port()
    config = folder / "ceph.conf"
    config.write_text(CONFIG.format(fsid=fsid, folder=folder, monitor_port=monitor_port, gateway_port=gateway_port))
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    environment = {**os.environ, "CEPH_CONF": str(config)}
    log = folder / "output.log"

    def run(*command: str) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE_SECONDS, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace')[-2000:]}")

    with ExitStack() as stack, log.open("ab") as output:

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(end, process)
            return process

        address = f"[v2:127.0.0.1:{monitor_port}]"
        monitor_map = str(folder / "monmap")
        run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, monitor_map)
        run("ceph-mon", "-c", str(config), "--mkfs", "-i", "a", "--monmap", monitor_map)
        monitor = start("ceph-mon", "-c", str(config), "-i", "a", "-f")
        wait_for_port(monitor_port, monitor, log=log)
        identity = str(uuid.uuid4())
        run("ceph", "-c", str(config), "--connect-timeout", "120", "osd", "new", identity)
        run("ceph-osd", "-c", str(config), "-i", "0", "--mkfs", "--osd-uuid", identity)
        start("ceph-osd", "-c", str(config), "-i", "0", "-f")
        gateway = start("radosgw", "-c", str(config), "-n", "client.rgw", "-f")
        wait_for_port(gateway_port, gateway, log=log)
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        run("radosgw-admin", "-c", str(config), "user", "create", "--uid=test", "--display-name=test", *keys)
        yield f"http://127.0.0.1:{gateway_port}"
