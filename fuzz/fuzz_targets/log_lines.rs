//! Any bytes, taken for a log: no panic, and the figures stay possible.
//!
//! `cargo +nightly fuzz run log_lines fuzz/corpus/log_lines tests/recordings/llama-server`,
//! or with `RUSTC_BOOTSTRAP=1 cargo fuzz` and a stable compiler.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llamacpp_exporter::requests::tally::{Outcome, Tally};

fuzz_target!(|log: &[u8]| {
    let mut tally = Tally::default();
    for line in log.split(|byte| *byte == b'\n') {
        tally.take(line, |(_, outcome)| {
            if let Outcome::Finished(timings) = outcome {
                for ms in [timings.prompt.ms, timings.generation.ms, timings.total_ms] {
                    assert!(ms.is_finite() && ms >= 0.0);
                }
            }
        });
    }
});
