//! ik_llama.cpp, whose `/health` waits behind the prompt that is processed.

use crate::support::recordings;
use crate::support::{Answer, Exporter, Scrape, Server, for_each_case, wait_until};
use crate::{assert_down, json_case};

fn text(text: &str) -> Answer {
    Answer::new(200, "text/plain; charset=utf-8", text)
}

fn ik_llama() -> Server {
    let server = Server::start();
    server.answer(
        "/health",
        json_case("05-ik-health-waits-in-queue/health-idle.json"),
    );
    server.answer("/props", json_case("06-ik-slots-state/props.json"));
    server.answer("/v1/models", Answer::json(r#"{"object":"list","data":[{"id":"qwen3-235b","object":"model","created":1,"owned_by":"llamacpp","meta":{"vocab_type":2,"n_vocab":151936,"n_ctx_train":262144,"n_embd":4096,"n_params":235093634560,"size":134000000000}}]}"#));
    server.answer(
        "/metrics",
        text(&String::from_utf8(recordings::case("06-ik-slots-state/metrics.txt")).unwrap()),
    );
    server.answer("/slots", json_case("06-ik-slots-state/slots.json"));
    server
}

#[test]
fn the_answers_of_ik_llama_are_read() {
    for health in ["health-idle.json", "health-all-busy.json"] {
        let server = ik_llama();
        server.answer(
            "/health",
            json_case(&format!("05-ik-health-waits-in-queue/{health}")),
        );
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        scrape.assert_errors(0);
        scrape.assert_status("running");
        scrape.assert_values(&[
            ("llamacpp_slots", 2.0),
            ("llamacpp_slots_busy", 1.0),
            ("llamacpp_requests_processing", 1.0),
            ("llamacpp_max_context_size_tokens", 65536.0),
            // 0 of ended requests, 136 in a slot.
            ("llamacpp_generated_tokens_total", 136.0),
            ("llamacpp_prompt_tokens_total", 2053.0),
            ("llamacpp_kv_cache_usage_ratio", 0.0167007),
            ("llamacpp_model_parameters", 235_093_634_560.0),
        ]);
        assert_eq!(scrape.label("llamacpp_slots", "model"), Some("qwen3-235b"));
    }
}

#[test]
fn a_server_that_loads_its_model_is_loading() {
    let server = Server::start();
    server.answer_everything(Answer::new(
        503,
        "application/json",
        r#"{"status":"loading model"}"#,
    ));
    let exporter = Exporter::watching(&server).args(["--model", "m"]);
    exporter.start().after_polls(2).assert_status("loading");
}

#[test]
fn a_server_that_answers_health_late_is_up_and_busy() {
    let waiting = ["/health", "/metrics", "/slots"];
    let cases = [("at work from the start", true), ("at work later", false)];
    for_each_case(cases, |from_the_start| {
        let server = ik_llama();
        let idle = waiting.map(|path| server.answer_of(path));
        let make_busy = || waiting.map(|path| server.answer(path, Answer::never()));
        if from_the_start {
            make_busy();
        }
        let exporter = Exporter::watching(&server).timeout("400ms").start();
        if !from_the_start {
            exporter.after_polls(2);
            make_busy();
        }
        exporter.until("late", |scrape| {
            scrape.errors_of("/health").contains_key("timeout")
        });
        let scrape = exporter.after_polls(6);
        scrape.assert_up();
        scrape.assert_status("running");
        let is_running = [("model", "qwen3-235b"), ("status", "running")];
        assert_eq!(scrape.get("llamacpp_status", &is_running), Some(1.0));
        if !from_the_start {
            // The last counters stand.
            scrape.assert_values(&[
                ("llamacpp_generated_tokens_total", 136.0),
                ("llamacpp_prompt_tokens_total", 2053.0),
            ]);
        }
        let requests = server.requests().into_iter();
        let open = requests.filter(|request| request.is_waiting());
        let mut open: Vec<_> = open.map(|request| request.path).collect();
        let count = open.len();
        open.sort();
        open.dedup();
        assert_eq!(open.len(), count, "one of each at most: {open:?}");
        for (path, answer) in waiting.iter().zip(idle) {
            server.answer(path, answer);
        }
        exporter.until("read again", |scrape| {
            scrape.value("llamacpp_slots_busy") == Some(1.0)
                && scrape.value("llamacpp_generated_tokens_total") == Some(136.0)
        });
    });
}

#[test]
fn a_server_whose_answers_all_time_out_is_down() {
    let server = ik_llama();
    let exporter = Exporter::watching(&server).timeout("400ms").start();
    exporter.after_polls(2);
    server.answer_everything(Answer::never());
    exporter.until("down", Scrape::down);
    assert_down(&exporter.after_polls(3));
    server.answer_by_script();
    wait_until("up again", || exporter.scrape().up());
}
