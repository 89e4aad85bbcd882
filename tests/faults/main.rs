//! Faults of a llama-server.
//!
//! A server that answers as a recorded, busy llama-server fails in one way at one endpoint and is
//! repaired later. The exporter keeps running, answers its own scrapes at once, stays small, counts
//! the error under the right reason, logs it once, exports no unknown value, and is correct again
//! at the first poll after the repair.

mod answers;
mod connection;
mod documents;
mod overload;
mod restarts;
#[path = "../support/mod.rs"]
mod support;
use support::exporter::{Builder, Scraping};
use support::recordings::{OLD, Stage};
use support::{Answer, Exporter, Scrape, Server, for_each};

const HEALTH: &str = "/health";
const PROPS: &str = "/props";
const MODELS: &str = "/v1/models";
const METRICS: &str = "/metrics";
const SLOTS: &str = "/slots";

/// What a llama-server answers on.
const ENDPOINTS: [&str; 5] = [HEALTH, PROPS, MODELS, METRICS, SLOTS];
const MEMORY_LIMIT: u64 = 32 << 20;

/// A busy llama-server of December 2025.
fn server() -> Server {
    Server::recorded(OLD, Stage::Busy)
}

/// The values of that server without a fault.
fn assert_healthy(scrape: &Scrape) {
    scrape.assert_up();
    scrape.assert_status("running");
    scrape.assert_values(&[
        ("llamacpp_generated_tokens_total", 2.0),
        ("llamacpp_prompt_tokens_total", 122.0),
        ("llamacpp_decode_calls_total", 2.0),
        ("llamacpp_requests_processing", 1.0),
        ("llamacpp_slots", 2.0),
        ("llamacpp_slots_busy", 1.0),
        ("llamacpp_max_context_size_tokens", 2048.0),
        ("llamacpp_model_size_bytes", 246_587_904.0),
    ]);
}

/// An exporter that is scraped in the background.
struct Monitored {
    // Dropped in this order: the scrapes end before the exporter does.
    scraping: Scraping,
    exporter: Exporter,
}

impl Monitored {
    fn watching(server: &Server) -> Self {
        Self::of(Exporter::watching(server))
    }
    fn of(start: Builder) -> Self {
        let exporter = start.start();
        let scraping = exporter.keep_scraping();
        Monitored { scraping, exporter }
    }
    /// Waits for the fault to be noticed and to last, and asserts that it is counted under
    /// `reason` alone, that no other endpoint has errors, and that it is logged once.
    fn assert_counted(&self, endpoint: &str, reason: &str) -> Scrape {
        self.exporter
            .until(&format!("{reason} counted at {endpoint}"), |scrape| {
                scrape.errors_of(endpoint).contains_key(reason)
            });
        let scrape = self.exporter.after_polls(1);
        let errors = scrape.errors_of(endpoint);
        assert_eq!(errors.keys().collect::<Vec<_>>(), [reason], "{scrape:?}");
        assert_eq!(
            errors[reason],
            scrape.errors(),
            "another endpoint has errors: {scrape:?}"
        );
        self.assert_logged_once(&[&format!("endpoint={endpoint}"), &format!("reason={reason}")]);
        scrape
    }
    fn assert_logged_once(&self, words: &[&str]) {
        self.exporter.assert_logged(1, words);
    }
    /// Everything is right by the end of the next poll, stays so, and was served throughout.
    fn assert_recovered(self) {
        // One poll may have begun before the repair; the next one has not.
        let scrape = self.exporter.after_polls(1);
        assert_healthy(&scrape);
        let later = self.exporter.after_polls(1);
        assert_healthy(&later);
        assert_eq!(scrape.errors(), later.errors(), "errors go on: {later:?}");
        self.assert_served_throughout();
    }
    /// It runs, it is small, and it answered every scrape.
    fn assert_served_throughout(mut self) {
        assert!(self.exporter.is_alive());
        let memory = self.exporter.peak_memory();
        assert!(memory < MEMORY_LIMIT, "{memory} bytes of memory");
        self.scraping.assert_all_answered();
    }
}

/// The course of a fault: `endpoint` answers so for a while, and then as before.
fn assert_fault(endpoint: &str, answer: Answer, reason: &str) {
    let server = server();
    let healthy = server.answer_of(endpoint);
    // What a server calls its model is asked until it is known: it has to break before.
    let at_once = endpoint == MODELS;
    if at_once {
        server.answer(endpoint, answer.clone());
    }
    let timeout = if reason == "timeout" { "1s" } else { "10s" };
    let monitored = Monitored::of(Exporter::watching(&server).timeout(timeout));
    if !at_once {
        assert_healthy(&monitored.exporter.after_polls(1));
        server.answer(endpoint, answer);
    }
    let scrape = monitored.assert_counted(endpoint, reason);
    if endpoint == METRICS && reason != "timeout" {
        // These are unknown now. (After a time-out the server is busy, and they stand.)
        scrape.assert_absent(&["llamacpp_decode_calls_total"]);
        scrape.assert_absent(&["llamacpp_generated_tokens_total"]);
    }
    server.answer(endpoint, healthy);
    monitored.assert_recovered();
}

fn assert_fault_at(endpoints: &[&str], answer: Answer, reason: &str) {
    for_each(endpoints.iter().copied(), |endpoint| {
        assert_fault(endpoint, answer.clone(), reason)
    });
}

/// A scrape after two polls without an error.
fn scrape_without_errors(server: &Server) -> Scrape {
    let monitored = Monitored::watching(server);
    let scrape = monitored.exporter.after_polls(2);
    scrape.assert_errors(0);
    monitored.assert_served_throughout();
    scrape
}
