"""With a draft model, drafts and accepted draft tokens are exported as the server counts them."""

import pytest

from support import MODEL
from support.llama_server import ANSWERS_WHILE_BUSY

TOKENS = 40


@pytest.fixture
def server(build, start_server):
    if build < ANSWERS_WHILE_BUSY:
        pytest.skip("the build has no counters of speculative decoding")
    # The model drafts for itself, so that most of its tokens are accepted.
    return start_server("--draft-model", MODEL)


def test_drafts(one_core, server, start_exporter):
    exporter = start_exporter(server.url, interval="250ms")
    idle = exporter.wait_for_status("idle")
    assert idle.value("drafts_total") == 0
    stream = server.stream(TOKENS, temperature=0).wait()
    done = exporter.poll_started_after(stream.ended_at)

    counter = "spec_decode_num_{}_total".format
    assert done.value("drafts_total") == server.counter(counter("drafts")) > 0
    assert done.value("draft_tokens_total") == server.counter(counter("draft_tokens"))
    accepted = done.value("draft_tokens_accepted_total")
    assert accepted == server.counter(counter("accepted_tokens")) > 0
    by_position = {
        int(sample.labels["position"]): sample.value
        for sample in done.find("draft_tokens_accepted_by_position_total")
    }
    assert sorted(by_position) == list(range(len(by_position)))
    assert sum(by_position.values()) == accepted
    # The first token of a draft comes before the second.
    assert by_position[0] == max(by_position.values()) <= done.value("drafts_total")
    # Accepted draft tokens are part of both.
    assert accepted <= done.value("draft_tokens_total")
    assert done.value("generated_tokens_total") == TOKENS

