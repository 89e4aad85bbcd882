"""The Debian package of scripts/debian-package: installed, upgraded and removed in a clean Debian that is booted
in a container, and its man page and completions in the programs that read them."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import BINARY, ROOT, TARGET
from support.nspawn import Machine
from support.wait import wait_for

UNIT = "llamacpp-exporter.service"
DEFAULTS = "/etc/default/llamacpp-exporter"
# Where the container has the packages.
FOLDER = Path("/srv")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-get"), reason="installing the package needs root and Debian"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The same program as two versions of the package."""
    folder = tmp_path_factory.mktemp("packages")

    def build(revision, out):
        command = [ROOT / "scripts" / "debian-package", "--binary", BINARY, "--revision", revision, "--out", out]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return ROOT / done.stdout.strip()

    first, second = build("1", folder), build("2", folder)
    assert first.read_bytes() == build("1", folder / "again").read_bytes()
    return first, second


@pytest.fixture(scope="module")
def files(packages):
    return TARGET / "package-files"


@pytest.fixture(scope="module")
def machine(debian, packages, tmp_path_factory):
    nspawn = debian("systemd-nspawn", package="systemd-container")
    debian("debootstrap", package="debootstrap")
    subprocess.run([ROOT / "scripts" / "setup", "debian"], check=True)
    options = [f"--directory={ROOT / 'target' / 'debian'}", "--volatile=overlay", "--private-network"]
    options += [f"--bind-ro={package}:{FOLDER / package.name}" for package in packages]
    machine = Machine(nspawn, tmp_path_factory.mktemp("machine"), options, UNIT)
    yield machine
    machine.kill()


def metrics(machine, port):
    """What the exporter serves in the container, whose network is its own."""
    get = f"import urllib.request as u; print(u.urlopen('http://localhost:{port}/metrics', timeout=60).read().decode())"
    command = ["nsenter", f"--target={machine.leader}", "--net", sys.executable, "-c", get]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_is_installed_upgraded_and_removed(machine, packages):
    first, second = (str(FOLDER / package.name) for package in packages)
    before = machine.output("find", "/usr", "/etc", "/var/lib/systemd")
    machine.output("dpkg", "--install", first)
    assert machine.property("ActiveState") == "active"
    assert machine.systemctl("is-enabled", UNIT) == "enabled"
    assert re.search(r'^llamacpp_up\{server="localhost:8080"\} 0$', metrics(machine, 9100), re.MULTILINE)
    assert machine.output("llamacpp-exporter", "--version").startswith("llamacpp-exporter ")

    # An upgrade keeps what the administrator has set, and starts the new program.
    machine.output("sh", "-c", f"echo LLAMACPP_EXPORTER_ADDR=:9101 >>{DEFAULTS}")
    pid = machine.property("MainPID")
    machine.output("dpkg", "--install", second)
    assert machine.property("ActiveState") == "active"
    assert machine.property("MainPID") != pid
    assert machine.output("tail", "--lines=1", DEFAULTS) == "LLAMACPP_EXPORTER_ADDR=:9101"
    assert "llamacpp_up" in metrics(machine, 9101)
    machine.systemctl("disable", "--now", UNIT)
    machine.output("dpkg", "--install", second)
    assert machine.run("systemctl", "is-enabled", UNIT).stdout.strip() == "disabled"

    machine.systemctl("start", UNIT)
    machine.output("dpkg", "--remove", "llamacpp-exporter")
    assert machine.run("pidof", "llamacpp-exporter").stdout == ""
    assert machine.output("tail", "--lines=1", DEFAULTS) == "LLAMACPP_EXPORTER_ADDR=:9101"
    machine.output("dpkg", "--purge", "llamacpp-exporter")
    after = machine.output("find", "/usr", "/etc", "/var/lib/systemd")
    assert set(after.splitlines()) - set(before.splitlines()) == set()


def test_lintian_finds_nothing(debian, packages):
    lintian = debian("lintian", package="lintian")
    command = [lintian, "--profile=debian", "--allow-root", "--fail-on=error,warning", packages[0]]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_man_page_has_every_setting(debian, files):
    page = files / "llamacpp-exporter.1"
    checked = subprocess.run(
        [debian("mandoc", package="mandoc"), "-T", "lint", "-W", "style", page], capture_output=True, text=True
    )
    assert checked.returncode == 0 and not checked.stdout, checked.stdout
    man = [debian("man", package="man-db"), "--warnings", "--local-file", page]
    shown = subprocess.run(man, capture_output=True, text=True, env=os.environ | {"MANWIDTH": "200", "LC_ALL": "C"})
    assert shown.returncode == 0 and not shown.stderr, shown.stderr
    text = " ".join(shown.stdout.split())
    help_text = subprocess.run([BINARY, "--help"], check=True, capture_output=True, text=True).stdout
    names = set(re.findall(r"--[a-z][a-z-]+|LLAMACPP_[A-Z_]+", help_text))
    assert len(names) > 40 and not {name for name in names if name not in text}


def test_the_sbom_has_the_libraries_of_the_program():
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0"}
    command = [sys.executable, "scripts/sbom.py", "sbom"]
    sbom = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=environment).stdout)
    listed = {f"{entry['name']} v{entry['version']}" for entry in sbom["components"]}
    command = ["cargo", "tree", "--locked", "--edges=normal,no-proc-macro", "--prefix=none", "--format={p}"]
    command.append("--target=x86_64-unknown-linux-musl")
    tree = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True).stdout
    used = {" ".join(line.split()[:2]) for line in tree.splitlines()}
    assert len(listed) > 20 and listed == {name for name in used if not name.startswith("llamacpp-exporter ")}
    assert all("hashes" in entry and entry["licenses"][0]["expression"] for entry in sbom["components"])


# What is typed: flags and values that are cut short, with a tab after each.
TYPED = "llamacpp-exporter --log-le\tde\t --pid-f\t/etc/hostn\t --sysf\t/et\t\n"
COMPLETED = ["--log-level", "debug", "--pid-file", "/etc/hostname", "--sysfs", "/etc"]
# The words that the shell made of it.
PRINT = "llamacpp-exporter() { printf '<%s>' \"$@\" END; }"


def typed(shell, prepare):
    """Types it into an interactive shell, and returns the words of the command."""
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "HISTFILE": "", "LC_ALL": "C"}
    process = subprocess.Popen(shell, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True)
    screen = ""

    def shows(text):
        nonlocal screen
        while select.select([ours], [], [], 0)[0]:
            screen += os.read(ours, 4096).decode(errors="replace")
        return text in screen

    try:
        os.write(ours, f"{prepare}; {PRINT}; echo READY''NOW\n".encode())
        wait_for(lambda: shows("READYNOW"), lambda: screen)
        os.write(ours, TYPED.encode())
        wait_for(lambda: shows("<END>"), lambda: screen)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(its)
    words = re.findall(r"<([^<>]*)>", screen.split("READYNOW")[-1])
    # zsh completes --flag=value, and removes the slash after a folder.
    return [part.rstrip("/") for word in words for part in word.split("=")][: len(COMPLETED)]


def test_bash_completes(files):
    assert typed(["bash", "--norc", "--noprofile", "-i"], f"source {files}/llamacpp-exporter.bash") == COMPLETED


def test_zsh_completes(debian, files):
    zsh = debian("zsh", package="zsh")
    prepare = f"fpath=({files} $fpath); autoload -U compinit; compinit -u -D"
    assert typed([zsh, "-f", "-i"], prepare) == COMPLETED


def test_fish_completes(debian, files):
    fish = debian("fish", package="fish")

    def complete(line):
        command = [fish, "--no-config", "-c", f'source {files}/llamacpp-exporter.fish; complete -C "{line}"']
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return [choice.split("\t")[0] for choice in done.stdout.splitlines()]

    assert complete("llamacpp-exporter --log-le") == ["--log-level"]
    assert sorted(complete("llamacpp-exporter --log-level ")) == ["debug", "error", "info", "warn"]
    assert complete("llamacpp-exporter --pid-file /etc/hostn") == ["/etc/hostname"]
    assert complete("llamacpp-exporter --sysfs /et") == ["/etc/"]
