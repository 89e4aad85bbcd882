"""Screenshots of the status page and of the report of --check; scripts/screenshots starts it."""

import fcntl
import html
import os
import pty
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

from support import BINARY, MODEL, ROOT
from support.exporter import Exporter
from support.llama_server import LlamaServerProgram

IMAGES = ROOT / "docs" / "images"
BROWSER = ROOT / "tests" / "page" / "browser.js"
SECONDS = 960
# Where the page ends in the picture.
SIZE = ("1240", "670")
# The width of the terminal that --check prints to, and the lines of it that are shown.
COLUMNS = 130
LINES = 36
TOPICS = ("a lighthouse keeper", "how bread is made", "a walk through a forest", "buying a bicycle", "a train journey")
# ANSI colours as the style of a terminal.
COLORS = {"31": "#ff8a80", "32": "#57c98d", "33": "#f0c35e", "36": "#7dd3e0", "1": "bold", "2": "#9ba6b1"}


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "llama-server.log"
        model = Path(folder) / MODEL.name
        model.symlink_to(MODEL)
        options = ["--log-file", log, "--parallel", 3, "--ctx-size", 6144]
        server = LlamaServerProgram(Path(folder) / "llama.out", *options, model=model)
        exporter = None
        try:
            server.start().wait_until_loaded()
            exporter = Exporter(server.url, Path(folder) / "exporter.log", "--log-file", log, interval="5s", record_polls=False)
            end = time.monotonic() + seconds
            clients = [threading.Thread(target=send_requests, args=(server, number, end)) for number in range(4)]
            for client in clients:
                client.start()
            time.sleep(seconds - 5)
            for scheme, file in (("light", "status-page.png"), ("dark", "status-page-dark.png")):
                browse("screenshot", f"{exporter.url}/?refresh=off", *SIZE, scheme, IMAGES / file)
            for client in clients:
                client.join()
            screenshot_of_check(server, log, Path(folder))
        finally:
            if exporter:
                exporter.stop()
            server.kill()


def send_requests(server, number, end):
    """Chats of different lengths, with pauses, as of a few people."""
    choice = random.Random(number)
    while time.monotonic() < end:
        prompt = f"Question {choice.random()}. Tell me about {choice.choice(TOPICS)}. " * choice.randint(2, 40)
        server.stream(choice.randint(40, 400), prompt=prompt).wait()
        time.sleep(choice.choice((0, 1, 4, 12)))


def browse(*arguments):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    environment = {"CHROMIUM": chromium, "NODE_PATH": str(ROOT / "target" / "page" / "node_modules")}
    subprocess.run(["node", BROWSER, *arguments], env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)


def screenshot_of_check(server, log, folder):
    command = ["llamacpp-exporter", "--base-url", server.url, "--log-file", str(log), "--check"]
    text = f"\x1b[2m$ {' '.join(command)}\x1b[0m\n" + terminal_output([str(BINARY), *command[1:]])
    for real, shown in ((f"{folder}/", ""), (f"127.0.0.1:{server.port}", "localhost:8080")):
        text = text.replace(real, shown)
    lines = text.splitlines()[:LINES]
    page = folder / "check.html"
    page.write_text(
        '<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0;background:#161a1f;color:#e6e9ed}'
        "pre{margin:0;padding:16px 20px;font:13px/1.45 ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"white-space:pre-wrap}}</style><pre>{''.join(map(colored, lines))}</pre>"
    )
    height = str(20 * len(lines) + 20)
    browse("screenshot", page.as_uri(), SIZE[0], height, "dark", IMAGES / "check.png")


def terminal_output(command):
    """What it prints to a terminal."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdout=child, stderr=subprocess.DEVNULL, env=environment)
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    process.wait()
    os.close(parent)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def colored(line):
    """A line with its ANSI colours as HTML."""
    parts = re.split(r"\x1b\[([0-9;]*)m", line)
    text, is_open = html.escape(parts[0]), False
    for codes, part in zip(parts[1::2], parts[2::2]):
        styles = [COLORS[code] for code in codes.split(";") if code in COLORS]
        text += "</span>" * is_open
        is_open = bool(styles)
        if styles:
            rules = ["font-weight:bold" if style == "bold" else f"color:{style}" for style in styles]
            text += f'<span style="{";".join(rules)}">'
        text += html.escape(part)
    return text + "</span>" * is_open + "\n"


if __name__ == "__main__":
    main()
