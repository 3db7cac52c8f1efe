"""A page in a real browser: it tells what it sees by `tell(value)`, and script errors are told by the browser."""

import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import tempfile
import threading

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
TELL = '<script>const tell = value => fetch("/tell", {method: "POST", body: JSON.stringify(value)})</script>'

needs_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


class Served(http.server.SimpleHTTPRequestHandler):
    """Hands out files, and takes what a page tells."""

    told: queue.Queue

    def do_POST(self):
        self.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def told_by(folder, page, dark=False):
    """What a page of a folder tells, and the errors of scripts."""
    told = queue.Queue()
    served = functools.partial(type("Told", (Served,), {"told": told}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("localhost", 0), served) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        command += [f"--user-data-dir={profile}", "--window-size=900,900", *["--force-dark-mode"] * dark]
        command += [f"http://localhost:{server.server_port}/{page}"]
        with tempfile.TemporaryFile("w+") as errors:
            browser = subprocess.Popen(command, stdout=errors, stderr=errors)
            try:
                value = told.get(timeout=100)
            except queue.Empty:
                value = None
            finally:
                browser.terminate()
                browser.wait()
                server.shutdown()
            errors.seek(0)
            said = errors.read()
    assert value is not None, said
    return value, re.findall(r"CONSOLE.*(?:Uncaught|Error).*", said)
