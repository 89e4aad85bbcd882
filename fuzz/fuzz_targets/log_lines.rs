//! Any bytes, taken for a log: no panic, and the figures stay possible.
//!
//! `cargo +nightly fuzz run log_lines fuzz/corpus/log_lines tests/recordings/llama-server`,
//! or with `RUSTC_BOOTSTRAP=1 cargo fuzz` and a stable compiler.
#![no_main]

use std::sync::Arc;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use llamacpp_exporter::readings::Update;
use llamacpp_exporter::requests::Requests;
use llamacpp_exporter::requests::log::{LogWriter, PolledModel, ServerLog};

fuzz_target!(|log: &[u8]| {
    let requests = Arc::<Requests>::default();
    let server_log = ServerLog::new(Arc::clone(&requests));
    let now = Instant::now();
    for line in log.split(|byte| *byte == b'\n') {
        server_log.line(line, now, false);
    }
    let polled = PolledModel {
        model: "m",
        writer: Some(LogWriter::Server),
        slots: None,
        counters: &Update::Absent,
    };
    requests.polled(now, [("m", true)]);
    server_log.polled(now, &[polled]);
    for of in requests.figures() {
        assert_eq!(of.model, "m");
        for histogram in [&of.figures.duration, &of.figures.first_token].into_iter().flatten() {
            assert!(histogram.sum().is_finite() && histogram.sum() >= 0.0);
        }
    }
});
