"""A provider that only counts: it answers as Vambe does, at once, and remembers who asked for what."""

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Sink:
    """Listens on a free port of 127.0.0.1; `arrived` holds the credential and the title of every task that was made."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, str]] = []
        arrived = self.arrived

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                arrived.append((self.headers["x-api-key"], task["title"]))
                self._answer(201, {"id": str(uuid.uuid4()), "priority": 2})

            def do_GET(self) -> None:
                self._answer(200, {"success": True, "data": []})

            def _answer(self, status: int, document: object) -> None:
                body = json.dumps(document).encode()
                head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                """A client that went away is no fault of ours."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
