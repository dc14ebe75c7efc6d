"""An HTTP API on loopback for the programs of the book: api.py PORT.

It accepts the token that the daemon holds now, and no other. Once after POST /refuse, it has the daemon get a new token first, so
that it refuses the token that a caller already has.
"""

import http.server
import subprocess
import sys


def tokenctl(*arguments):
    return subprocess.run(["tokenctl", *arguments, "psb"], check=True, capture_output=True, text=True).stdout.strip()


class Handler(http.server.BaseHTTPRequestHandler):
    refuses = False

    def do_POST(self):
        Handler.refuses = True
        self.answer(204, b"")

    def do_GET(self):
        if Handler.refuses:
            Handler.refuses = False
            tokenctl("refresh")
        if self.headers["Authorization"] == "Bearer " + tokenctl("get"):
            self.answer(200, b'{"balance": 42}\n')
        else:
            self.answer(401, b'{"error": "invalid_token"}\n')

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
