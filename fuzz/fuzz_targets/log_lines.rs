//! Any bytes, taken for a log: no panic, and the figures stay possible.
//!
//! `cargo +nightly fuzz run log_lines fuzz/corpus/log_lines tests/recordings/llama-server`,
//! or with `RUSTC_BOOTSTRAP=1 cargo fuzz` and a stable compiler.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use llamacpp_exporter::requests::server_log::{Polled, PolledCounters};
use llamacpp_exporter::requests::{Requests, Speaker};

fuzz_target!(|log: &[u8]| {
    let requests = Requests::default();
    let now = Instant::now();
    for line in log.split(|byte| *byte == b'\n') {
        requests.log_line(line, now, false);
    }
    let polled = Polled {
        model: "m",
        speaker: Speaker::Server,
        slots: None,
        counters: PolledCounters::None,
    };
    requests.polled(now, &[polled]);
    for of in requests.figures() {
        assert_eq!(of.model, "m");
        for histogram in [&of.figures.duration, &of.figures.first_token].into_iter().flatten() {
            assert!(histogram.sum().is_finite() && histogram.sum() >= 0.0);
        }
    }
});
