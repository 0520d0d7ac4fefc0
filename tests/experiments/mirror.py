"""A web server on 127.0.0.1 that sends what a test tells it to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(BaseHTTPRequestHandler):
    """Answers with server.bodies[path], bytes (their rest, where that is asked for) or a function of this request.

    Notes in server.asked the paths, in server.starts from which byte on, in server.sent how many bytes went out.
    """

    def do_GET(self):
        self.server.asked.append(self.path)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.starts.append(start)
        body = self.server.bodies.get(self.path)
        try:
            if callable(body):
                body(self)
            elif body is None:
                self.send_error(404)
            elif start >= len(body):
                self.send_error(416)
            elif start:
                self.begin("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}", 206)
                self.wfile.write(body[start:])
            else:
                self.begin("Content-Length", len(body))
                self.wfile.write(body)
        except ConnectionError:  # the other side has had enough
            pass

    def begin(self, header, value, status=200):
        self.send_response(status)
        self.send_header(header, str(value))
        self.end_headers()

    def endlessly(self, chunk):
        """Send the same bytes until the other side goes, 200 MB at most."""
        for _ in range(200_000_000 // len(chunk)):
            self.wfile.write(chunk)
            self.server.sent += len(chunk)

    def log_message(self, *_):
        pass


@contextmanager
def serving(bodies: dict) -> Iterator[ThreadingHTTPServer]:
    """A server of these bodies by path, whose `url` is its root."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.bodies, server.asked, server.starts, server.sent = dict(bodies), [], [], 0
        server.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
