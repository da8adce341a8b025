"""The app alone in the browser: Voila with a page of our own and a bound on its visitors."""

import argparse
import importlib.util
import os
import secrets
import socket
from pathlib import Path

HERE = Path(__file__).resolve().parent


def app(options: argparse.Namespace) -> int:
    """Open the app in the browser until Ctrl-C; each visitor has an own kernel and an own folder of kept lines."""
    if not importlib.util.find_spec("voila"):
        raise RuntimeError('the app needs Voila: pip install "voila>=0.5.5"')
    from tornado.web import HTTPError
    from voila.app import Voila

    class Server(Voila):
        def setup_template_dirs(self) -> None:
            super().setup_template_dirs()
            self.template_paths.insert(0, str(HERE))  # index.html.j2, which fetches nothing from other servers
            self.voila_configuration.prelaunch_hook = self.let_in

        def let_in(self, handler, **_) -> None:
            if len(handler.kernel_manager.list_kernel_ids()) >= options.visitors:
                raise HTTPError(503, reason=f"All {options.visitors} places are taken. Please come back in a while.")
            _ = handler.xsrf_token  # sets a cookie; without it a page that is left could not end its kernel

    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *filter(None, paths)])
    os.environ["HWR_LINES"] = str(options.lines.resolve())
    os.environ["HWR_WEIGHTS"] = str(options.weights)
    arguments = [str(HERE / "app.ipynb"), f"--port={options.port}", f"--Voila.ip={options.host}"]
    culling = {"idle_timeout": 3600, "interval": 300, "connected": True}  # a forgotten page keeps no place
    arguments += [f"--MappingKernelManager.cull_{name}={value}" for name, value in culling.items()]
    arguments += [] if options.browser else ["--no-browser"]
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        token = f"token={secrets.token_hex(24)}"
        arguments += [f"--{token}", "--Voila.port_retries=0"]  # on another port, the address would lead elsewhere
        host = socket.gethostname() if options.host in ("0.0.0.0", "::") else options.host
        address = f"http://{host}:{options.port}/?{token}"
        print(f"Open this address; without its token nobody gets in: {address}", flush=True)
    Server.launch_instance(argv=arguments)
    return 0
