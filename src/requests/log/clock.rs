//! llama-server's own time in the lines of its log. It never decreases while the server runs, so a
//! line with an earlier time is forged.

use std::time::{Duration, Instant};

/// By how much the log's time may advance faster than our own clock before that counts as a jump. A
/// log that is read late also jumps.
const MAX_LEAD: Duration = Duration::from_secs(60);
/// How long lines must agree on an earlier time before they are accepted.
const AGREEMENT: Duration = Duration::from_secs(2);

/// The newest time in the log of one server.
#[derive(Debug, Default)]
pub struct LogClock {
    /// The last line that was accepted.
    last: Option<Moment>,
    /// The last line before a jump: if the jump was forged, the server's time continues from here.
    before_jump: Option<Moment>,
    /// The first and the last of the rejected lines since then that agree on an earlier time.
    rejected: Option<(Moment, Moment)>,
}

/// The time of a line, and when the line was read.
#[derive(Clone, Copy, Debug)]
struct Moment {
    time: Duration,
    read: Instant,
}

impl Moment {
    /// Whether `later` follows this one no faster than our own clock allows.
    fn allows(self, later: Moment) -> bool {
        let passed = later.read.saturating_duration_since(self.read);
        later.time >= self.time
            && later.time.saturating_sub(self.time) <= passed.saturating_add(MAX_LEAD)
    }
}

impl LogClock {
    /// Takes the time of a line, in microseconds, and when it was read; returns whether the server
    /// can have written it.
    pub fn accepts(&mut self, micros: u64, read: Instant) -> bool {
        let now = Moment {
            time: Duration::from_micros(micros),
            read,
        };
        let Some(last) = self.last else {
            self.last = Some(now);
            return true;
        };
        if now.time >= last.time {
            if !last.allows(now) {
                self.before_jump.get_or_insert(last);
            } else if self.before_jump.is_some_and(|from| from.allows(now)) {
                self.before_jump = None;
            }
            self.rejected = None;
            self.last = Some(now);
            return true;
        }
        let first = match self.rejected {
            Some((first, latest)) if now.time >= latest.time => first,
            _ => now,
        };
        let agreed = now.time.saturating_sub(first.time) >= AGREEMENT
            && now.read.saturating_duration_since(first.read) >= AGREEMENT;
        if agreed || self.before_jump.is_some_and(|from| from.allows(now)) {
            self.restart(micros, read);
            return true;
        }
        self.rejected = Some((first, now));
        false
    }

    /// Continues from this time, whatever it was before.
    pub fn restart(&mut self, micros: u64, read: Instant) {
        *self = LogClock {
            last: Some(Moment {
                time: Duration::from_micros(micros),
                read,
            }),
            ..LogClock::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether lines with these times, each read at so many seconds, are accepted.
    fn accepted(lines: &[(f64, f64)]) -> Vec<bool> {
        let start = Instant::now();
        let mut clock = LogClock::default();
        lines
            .iter()
            .map(|(time, read)| {
                let read = start + Duration::from_secs_f64(*read);
                clock.accepts((time * 1e6) as u64, read)
            })
            .collect()
    }

    #[test]
    fn a_line_that_goes_back_in_time_is_rejected() {
        assert_eq!(
            accepted(&[
                (10.0, 0.0),
                (10.0, 0.0),
                (9.9, 0.1),
                (3.0, 0.2),
                (10.1, 0.3)
            ]),
            [true, true, false, false, true]
        );
    }

    #[test]
    fn a_log_may_be_read_all_at_once_after_days() {
        let lines: Vec<_> = (1..11)
            .map(|hour| (f64::from(hour) * 3600.0, 0.0))
            .collect();
        assert_eq!(accepted(&lines), [true; 10]);
        assert!(!accepted(&[&lines[..], &[(0.5, 1.0)]].concat())[10]);
    }

    #[test]
    fn a_forged_time_in_the_future_does_not_stop_the_log() {
        assert_eq!(
            accepted(&[
                (10.0, 0.0),
                (9999.0, 0.1),
                (99999.0, 0.1),
                (10.2, 0.2),
                (10.1, 0.3)
            ]),
            [true, true, true, true, false]
        );
    }

    #[test]
    fn a_small_jump_is_corrected_within_seconds() {
        let ahead = [(10.0, 0.0), (40.0, 0.1)];
        let late: Vec<_> = (0..30)
            .map(|tenth| f64::from(tenth) / 10.0)
            .map(|passed| (10.2 + passed, 0.2 + passed))
            .collect();
        let accepted = accepted(&[&ahead[..], &late].concat());
        assert!(!accepted[2] && accepted[31], "{accepted:?}");
    }

    #[test]
    fn contradicting_lines_never_agree() {
        let lines: Vec<_> = (0..100)
            .map(|tenth| f64::from(tenth) / 10.0)
            .flat_map(|passed| [(500.0 + passed, passed), (20.0 + passed, passed)])
            .collect();
        let accepted = accepted(&lines);
        for (index, accepted) in accepted.into_iter().enumerate() {
            assert_eq!(accepted, index % 2 == 0, "{index}");
        }
    }
}
