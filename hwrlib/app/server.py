"""The app alone in the browser: Voila with a page of our own and a bound on its visitors."""

from pathlib import Path

HERE = Path(__file__).resolve().parent


def serve(arguments: list[str], visitors: int) -> None:
    """Serve the app until Ctrl-C; who comes when all places are taken is asked to come back later.

    Arguments:
        arguments: of Voila's command line.
        visitors: how many there can be at once, each with a kernel of its own.
    """
    from tornado.web import HTTPError
    from voila.app import Voila

    class Server(Voila):
        def setup_template_dirs(self) -> None:
            super().setup_template_dirs()
            self.template_paths.insert(0, str(HERE))  # index.html.j2, which fetches nothing from other servers
            self.voila_configuration.prelaunch_hook = self.let_in

        def let_in(self, handler, **_) -> None:
            if len(handler.kernel_manager.list_kernel_ids()) >= visitors:
                raise HTTPError(503, reason=f"All {visitors} places are taken. Please come back in a while.")
            _ = handler.xsrf_token  # sets a cookie; without it a page that is left could not end its kernel

    Server.launch_instance(argv=arguments)
