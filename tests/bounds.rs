//! Whatever a server answers, the exporter stays alive, small and right.

mod support;

use serde_json::json;
use support::recordings::{self, OLD, Stage};
use support::{Answer, Exporter, Server};

/// A router with one idle model, whose server was started with `args`.
fn router(args: &[&str]) -> Server {
    let server = Server::start();
    // Before b10566 /metrics is not asked of a server that may fall asleep, until it should have.
    let props = json!({"role": "router", "build_info": "b10068-abc"});
    server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
    server.answer("/props", Answer::json(props.to_string()));
    let model = json!({"id": "m", "status": {"value": "loaded", "args": args}});
    let models = json!({"data": [model], "object": "list"});
    server.answer("/models", Answer::json(models.to_string()));
    let metrics = recordings::metrics(OLD, Stage::After);
    server.answer("/metrics", Answer::exposition(metrics));
    server.answer(
        "/slots",
        Answer::json(recordings::file(OLD, "slots-after.json")),
    );
    server
}

#[test]
fn a_sleep_timer_of_any_length_does_not_end_the_process() {
    for seconds in ["18446744073709551615", "9223372036854775807", "0", "-1"] {
        let server = router(&["llama-server", "--sleep-idle-seconds", seconds]);
        let mut exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert!(exporter.is_alive() && scrape.up(), "{seconds}: {scrape:?}");
        let models = server.count("/models");
        assert!(models > 2, "{seconds}: the router was asked {models} times");
    }
}
