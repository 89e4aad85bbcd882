//! Recorded logs, changed at random: no line may end the program, and no more is counted than the
//! log contains, or the server's counters allow.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use llamacpp_exporter::readings::{Counters, CountersReading, Update};
use llamacpp_exporter::requests::Requests;
use llamacpp_exporter::requests::log::{LogWriter, PolledModel, ServerLog};
use llamacpp_exporter::snapshot::RequestFigures;

use crate::support::recordings;

/// All recorded logs and all of users.
fn logs() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut folders = vec![
        recordings::path("recordings"),
        recordings::path("cases/logs"),
    ];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with("log") && name.ends_with(".txt") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 30, "{found:?}");
    found.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The lines of a log with some lost, doubled, moved, cut, joined, or with other bytes in them.
fn mutated(log: &[u8], others: &[Vec<u8>], random: &mut Rng) -> Vec<Vec<u8>> {
    let cut = |log: &[u8]| -> Vec<Vec<u8>> {
        let lines = log.split(|byte| *byte == b'\n');
        lines.map(<[u8]>::to_vec).collect()
    };
    let mut lines = cut(log);
    for _ in 0..random.usize(..40) {
        let (at, to) = (random.usize(..lines.len()), random.usize(..lines.len()));
        match random.usize(..9) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(to, lines[at].clone()),
            2 => lines.swap(at, to),
            3 => {
                let length = random.usize(..lines[at].len() + 1);
                lines[at].truncate(length);
            }
            4 => {
                let length = random.usize(..lines[at].len() + 1);
                let rest = lines[at].split_off(length);
                lines.insert(at + 1, rest);
            }
            5 => {
                let next = lines[to].clone();
                lines[at].extend(next);
            }
            6 => {
                let other = cut(&others[random.usize(..others.len())]);
                lines.insert(at, other[random.usize(..other.len())].clone());
            }
            7 => {
                // Another number in the place of one.
                let digits = lines[at].iter().position(u8::is_ascii_digit);
                if let Some(digits) = digits {
                    let numbers: [&[u8]; 5] = [
                        b"0",
                        b"-1",
                        b"99999999999999999999",
                        b"18446744073709551615",
                        b"1e999",
                    ];
                    let number = numbers[random.usize(..numbers.len())];
                    lines[at].splice(digits..=digits, number.iter().copied());
                }
            }
            _ => {
                if !lines[at].is_empty() {
                    let byte = random.usize(..lines[at].len());
                    lines[at][byte] = random.u8(..);
                }
            }
        }
        if lines.is_empty() {
            break;
        }
    }
    lines
}

/// What is counted of these lines, between a poll and two later ones that read these counters.
fn counted(lines: &[Vec<u8>], counters: Option<[f64; 2]>) -> RequestFigures {
    let requests = Arc::<Requests>::default();
    let log = ServerLog::new(Arc::clone(&requests));
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    log.found();
    let poll = |seconds, [prompt, generated]: [f64; 2]| {
        let reading = CountersReading {
            at: at(seconds),
            process: None,
            counters: Counters {
                prompt_tokens: Some(prompt),
                generated_tokens: Some(generated),
                ..Counters::default()
            },
        };
        let polled = PolledModel {
            model: "m",
            mode: None,
            writer: Some(LogWriter::Server),
            slots: Some(2),
            counters: &counters.map_or(Update::Absent, |_| Update::New(reading)),
        };
        requests.polled(at(seconds), [("m", true)]);
        log.polled(at(seconds), &[polled]);
    };
    poll(0, [0.0; 2]);
    for line in lines {
        log.line(line, at(5), false);
    }
    for seconds in [10, 20] {
        poll(seconds, counters.unwrap_or_default());
    }
    let mut figures = requests.figures();
    assert_eq!(figures.len(), 1);
    assert_eq!(figures[0].model, "m");
    (*figures.remove(0).figures).clone()
}

#[test]
fn a_changed_log_counts_no_more_than_it_contains() {
    let logs = logs();
    let mut random = Rng::with_seed(0x9E37_79B9_7F4A_7C15);
    let mut all = 0;
    for round in 0..40 {
        for log in &logs {
            let lines = mutated(log, &logs, &mut random);
            let holding = |text: &str| {
                let is_in = |line: &&Vec<u8>| {
                    let mut windows = line.windows(text.len());
                    windows.any(|window| window == text.as_bytes())
                };
                lines.iter().filter(is_in).count() as u64
            };
            let figures = counted(&lines, None);
            let duration = figures.duration.as_ref().unwrap();
            let prompts = figures.prompt_tokens.as_ref().unwrap();
            all += duration.count();
            assert!(duration.count() <= holding("total"), "round {round}");
            assert!(prompts.count() <= holding("total") + holding("stop processing"));
            assert!(figures.cancellations.unwrap() <= holding("cancel"));
            assert!(duration.sum().is_finite() && duration.sum() >= 0.0);

            let bounds = [random.usize(..3000) as f64, random.usize(..200) as f64];
            let figures = counted(&lines, Some(bounds));
            let generated = figures.generated_tokens.as_ref().unwrap();
            assert!(
                generated.sum() <= bounds[1],
                "{} {bounds:?}",
                generated.sum()
            );
        }
    }
    assert!(all > 100, "too few were counted: {all}");
}
