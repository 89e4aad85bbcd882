"""A genuine llama.cpp server, from PyPI's xllamacpp, as a process of its own.

Started with PYTHONPATH set to the folder that holds the build. The options are
llama-server's own, as far as they go. Prints "LISTENING http://host:port" once
the model is loaded, and runs until it is killed or whoever started it has gone.
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
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2, help="slots")
    parser.add_argument("--ctx-size", type=int, default=4096, help="tokens, all slots together")
    parser.add_argument("--batch-size", type=int, default=0, help="0: llama.cpp's own choice")
    parser.add_argument("--threads", type=int, default=0, help="0: llama.cpp's own choice")
    parser.add_argument("--threads-http", type=int, default=0, help="0: llama.cpp's own choice")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-slots", action="store_true")
    parser.add_argument("--embeddings", action="store_true", help="with the pooling type mean")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--sleep-idle-seconds", type=int, default=-1)
    wanted = parser.parse_args()

    parent = os.getppid()
    params = xllamacpp.CommonParams()
    params.model.path = wanted.model
    if wanted.alias:
        # A name in older builds, a set of names in newer ones.
        old = isinstance(params.model_alias, str)
        params.model_alias = wanted.alias if old else {wanted.alias}
    if hasattr(params, "hostnames"):
        params.hostnames = [wanted.host]
    else:
        params.hostname = wanted.host
    params.port = wanted.port
    if hasattr(params, "fit_params"):
        # It would read the whole model once more, to see how much of it fits a GPU.
        params.fit_params = False
    params.n_parallel = wanted.parallel
    params.n_ctx = wanted.ctx_size
    if wanted.batch_size:
        params.n_batch = wanted.batch_size
        params.n_ubatch = wanted.batch_size
    if wanted.threads:
        params.cpuparams.n_threads = wanted.threads
        params.cpuparams_batch.n_threads = wanted.threads
    if wanted.threads_http:
        params.n_threads_http = wanted.threads_http
    params.endpoint_metrics = wanted.metrics
    params.endpoint_slots = not wanted.no_slots
    if wanted.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if wanted.api_key:
        params.api_keys = [wanted.api_key]
    if wanted.sleep_idle_seconds > 0:
        params.sleep_idle_seconds = wanted.sleep_idle_seconds

    # Die at once when asked to; a graceful end would wait for running requests.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server = xllamacpp.Server(params)
    print("LISTENING", server.listening_address, flush=True)
    while os.getppid() == parent:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
