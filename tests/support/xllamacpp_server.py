"""Runs the llama.cpp server in PyPI's xllamacpp, with some of llama-server's options.

PYTHONPATH is the folder of the build. Prints "LISTENING http://host:port" once the model is loaded, and
runs until it is killed or its parent process ends.
"""

import argparse
import os
import signal
import sys
import time

import xllamacpp


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", default="")
    parser.add_argument("--host", default="127.0.0.1", help="from b11434: several, separated by commas")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2, help="slots")
    parser.add_argument("--ctx-size", type=int, default=4096, help="tokens, all slots together")
    parser.add_argument("--batch-size", type=int, default=0, help="0: llama.cpp's default")
    parser.add_argument("--threads", type=int, default=0, help="0: llama.cpp's default")
    parser.add_argument("--threads-http", type=int, default=0, help="0: llama.cpp's default")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-slots", action="store_true")
    parser.add_argument("--draft-model", default="", help="for speculative decoding (b11549)")
    parser.add_argument("--embeddings", action="store_true", help="with the pooling type mean")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--sleep-idle-seconds", type=int, default=-1)
    arguments = parser.parse_args()

    parent = os.getppid()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    if arguments.alias:
        # A name in older builds, a set of names in newer ones.
        old = isinstance(params.model_alias, str)
        params.model_alias = arguments.alias if old else {arguments.alias}
    if hasattr(params, "hostnames"):
        params.hostnames = arguments.host.split(",")
    else:
        params.hostname = arguments.host
    params.port = arguments.port
    if hasattr(params, "fit_params"):
        # It would read the whole model once more, to find out how much of it fits into a GPU.
        params.fit_params = False
    params.n_parallel = arguments.parallel
    params.n_ctx = arguments.ctx_size
    if arguments.batch_size:
        params.n_batch = arguments.batch_size
        params.n_ubatch = arguments.batch_size
    if arguments.threads:
        params.cpuparams.n_threads = arguments.threads
        params.cpuparams_batch.n_threads = arguments.threads
    if arguments.threads_http:
        params.n_threads_http = arguments.threads_http
    params.endpoint_metrics = arguments.metrics
    params.endpoint_slots = not arguments.no_slots
    if arguments.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if arguments.draft_model:
        params.speculative.draft.mparams.path = arguments.draft_model
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    if arguments.api_key:
        params.api_keys = [arguments.api_key]
    if arguments.sleep_idle_seconds > 0:
        params.sleep_idle_seconds = arguments.sleep_idle_seconds

    # SIGTERM ends the process at once; a graceful shutdown would wait for running requests.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server = xllamacpp.Server(params)
    print("LISTENING", server.listening_address, flush=True)
    while os.getppid() == parent:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
