"""`ifm demo`: a local page on which noise becomes samples in one step."""

import argparse
import ipaddress

from ifm.cli.options import at_least, hardware
from ifm.errors import UserError

MEND = "pip install 'ifm[demo]' (in a checkout: pip install -e '.[demo]' -c constraints.txt)"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model", action="append", default=[], metavar="DIR_OR_ID",
        help="a flow's folder, or a Hub id; may be repeated (default: the flows of this checkout, or digits)",
    )  # fmt: skip
    add(
        "--teacher", metavar="DIR_OR_ID", help="of the first model (default: models/teacher/... beside models/flow/...)"
    )
    add(
        "--host", default="127.0.0.1", metavar="NAME", help="where to listen (default: %(default)s, this machine alone)"
    )
    add("--port", type=at_least(1), default=7860, metavar="N", help="default: %(default)s")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")


def run(given: argparse.Namespace) -> None:
    """A local page on which noise becomes samples in one step, beside the teacher's."""
    try:
        import gradio  # noqa: F401 - asked for before models are loaded
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; {MEND}") from error
    from ifm.demo import page
    from ifm.demo.models import Models

    device, _ = hardware(given.device)
    models = Models(given.model, device=str(device), teacher=given.teacher)
    if not loopback(given.host):
        print(f"--host {given.host}: everybody who reaches this machine can use the page", flush=True)
    print(f"demo: http://{given.host}:{given.port}/ (Ctrl-C ends it)", flush=True)
    try:
        page.build(models).launch(
            server_name=given.host,
            server_port=given.port,
            share=False,
            quiet=True,
            theme=page.theme(),
            css=page.CSS,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
        )
    except OSError as error:
        raise UserError(f"--port {given.port}: cannot be opened on {given.host}; name another") from error


def loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
