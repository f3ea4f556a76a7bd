"""nginx as Debian sets it up (workers for every core, sendfile, tcp_nopush), serving a directory and taking DAV PUT."""

from __future__ import annotations

import os
import signal

from bench.install import program
from bench.peers.server import Server

CONFIGURATION = """\
daemon off;
{user}
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
    }}
}}
"""


class Nginx(Server):
    """Files are below `root`; what is put comes there too."""

    name = "nginx"

    def _start(self) -> None:
        self.root = self.directory / "root"
        self.root.mkdir(exist_ok=True)
        configuration = self.directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        configuration.write_text(
            CONFIGURATION.format(directory=self.directory, root=self.root, port=self.port, user=user)
        )
        self._run(
            "nginx",
            [program("nginx"), "-p", self.directory, "-e", self.directory / "error.log", "-c", configuration],
            stop_signal=signal.SIGQUIT,
        )
