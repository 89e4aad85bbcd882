import json
import os
import shutil
import subprocess

import pytest

from support import ROOT

BROWSER = ROOT / "tests" / "page" / "browser.js"
MODULES = ROOT / "target" / "page" / "node_modules"


class Browser:
    """Chromium, and the checkers of pages."""

    def __init__(self, chromium, node):
        self.node = node
        self.environment = os.environ | {"CHROMIUM": chromium, "NODE_PATH": str(MODULES)}

    def run(self, command, *arguments):
        """What browser.js prints. Its time-outs are those of one page."""
        done = subprocess.run(
            [self.node, BROWSER, command, *arguments], env=self.environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def invalid_html(self, file):
        """What html-validate finds."""
        program = MODULES / "html-validate" / "bin" / "html-validate.mjs"
        config = ROOT / "tests" / "page" / "htmlvalidate.json"
        command = [self.node, program, "--config", config, "--formatter", "json", file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 1), done.stderr
        results = json.loads(done.stdout)
        return [(message["ruleId"], message["message"]) for result in results for message in result["messages"]]


@pytest.fixture(scope="session")
def browser():
    """Skips where there is no Chromium: only root can install it, and not everywhere."""
    setup = subprocess.run([ROOT / "scripts" / "setup", "page"], capture_output=True, text=True)
    if setup.returncode:
        pytest.skip(setup.stderr.strip().splitlines()[-1])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    return Browser(chromium, shutil.which("node"))
