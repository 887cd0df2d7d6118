"""The page on this machine's own address, where the choice of hypotheses can be saved beside them."""

import json
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from diffusion4d.atomic import replace_when_done
from diffusion4d.errors import UserError
from diffusion4d.export.choice import CHOICE, kept_of
from diffusion4d.export.recorded import REPORT, assumed, clock
from diffusion4d.export.report import report, write_report
from diffusion4d.hypotheses import Hypotheses

HOST = "127.0.0.1"
"""This machine alone: the page is nobody else's."""
KEPT = "kept"
LARGEST = 1 << 20
"""Bytes of a choice."""


def save_choice(hypotheses: Hypotheses, body: bytes, folder: Path) -> str:
    """Write choice.json, and into kept/ the hypotheses that were kept, alone; returns what was done.

    kept/ gets a summary.json of its own where `folder` has one: video, clock and assumptions are taken over, all that
    is of the hypotheses is theirs. Timings are not: nothing was sampled.

    Raises:
        UserError: no choice of these hypotheses, or nothing is kept.
    """
    kept, K = kept_of(body, hypotheses), hypotheses.num_hypotheses
    chosen = hypotheses.select(torch.tensor(kept))
    chosen.save(folder / KEPT)
    assumptions = assumed(folder)
    if assumptions is not None:
        own = {**assumptions, "kept": {"numbers": kept, "of": K}}
        seconds = clock(hypotheses, source=folder)
        content = report(chosen.to("cpu"), seconds=seconds, assumptions=own, timings={})
        write_report(content, folder / KEPT / REPORT)
    choice = {"kept": kept, "rejected": [k for k in range(K) if k not in kept]}
    choice["seeds"] = chosen.seeds.tolist()
    with replace_when_done(folder / CHOICE) as temporary:
        temporary.write_text(json.dumps(choice, indent=2) + "\n")
    return f"{len(kept)} of {K} kept: {folder / CHOICE}, {folder / KEPT}"


def server(html: str, save: Callable[[bytes], str], port: int = 0) -> ThreadingHTTPServer:
    """A server of one page; `serve_forever` runs it. Port 0 takes one that is free.

    Raises:
        UserError: the port is taken.
    """
    content = html.encode("utf-8")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._asked_for_us():
                return self._answer(HTTPStatus.FORBIDDEN, b"ask for this machine", "text/plain")
            if self.path.split("?")[0] != "/":
                return self._answer(HTTPStatus.NOT_FOUND, b"no such page", "text/plain")
            return self._answer(HTTPStatus.OK, content, "text/html; charset=utf-8")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            # A page of another site can send here too, but not with this type without asking first.
            ours = self.headers.get("Content-Type") == "application/json"
            ours = ours and self._asked_for_us()
            if self.path != "/choice" or not ours or not 0 < length <= LARGEST:
                return self._answer(HTTPStatus.BAD_REQUEST, b"need a choice as JSON", "text/plain")
            try:
                told, status = save(self.rfile.read(length)), HTTPStatus.OK
            except (UserError, OSError) as error:
                told, status = f"not saved: {error}", HTTPStatus.BAD_REQUEST
            return self._answer(status, told.encode(), "text/plain; charset=utf-8")

        def _asked_for_us(self) -> bool:
            """Whether the address that was asked for is ours; another site's name may have been pointed at it."""
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            return host in (HOST, "localhost")

        def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence: requests of one's own browser are no news."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"need a free port, got {port}: {error}") from error


def serve(running: ThreadingHTTPServer, *, browse: bool, say: Callable[[str], None]) -> None:
    """Run until Ctrl-C."""
    address = f"http://{HOST}:{running.server_address[1]}/"
    say(f"{address} shows the hypotheses; Ctrl-C ends it")
    if browse:
        webbrowser.open(address)
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        running.server_close()
