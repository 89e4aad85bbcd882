//! llama-server's own time, as the lines of its log tell it: within one life of the server it
//! never goes back, so a line whose time does is not the server's.

use std::time::{Duration, Instant};

/// By how much a log may run ahead of our own clock before that is remembered: a log that is
/// read late, or all at once, does so as well.
const LEAP: Duration = Duration::from_secs(60);
/// How long lines must agree on an earlier time before they are believed.
const AGREED: Duration = Duration::from_secs(2);

/// The time that the log of one server has come to.
#[derive(Debug, Default)]
pub struct LogClock {
    /// The last line that was believed.
    last: Option<Moment>,
    /// The last line before the log leapt ahead: if that was a lie, the server goes on from here.
    leapt_from: Option<Moment>,
    /// Lines since then that agree on an earlier time: the first and the last of them.
    earlier: Option<(Moment, Moment)>,
}

/// A time of the log, and when we read it.
#[derive(Clone, Copy, Debug)]
struct Moment {
    time: Duration,
    read: Instant,
}

impl Moment {
    /// Whether `later` comes no sooner after this one than our own clock allows.
    fn allows(self, later: Moment) -> bool {
        let passed = later.read.saturating_duration_since(self.read);
        later.time >= self.time
            && later.time.saturating_sub(self.time) <= passed.saturating_add(LEAP)
    }
}

impl LogClock {
    /// Takes the time of a line, in microseconds, and when it was read; gives whether a line of
    /// that server can have it.
    pub fn believes(&mut self, micros: u64, read: Instant) -> bool {
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
                self.leapt_from.get_or_insert(last);
            } else if self.leapt_from.is_some_and(|from| from.allows(now)) {
                self.leapt_from = None;
            }
            self.earlier = None;
            self.last = Some(now);
            return true;
        }
        let first = match self.earlier {
            Some((first, latest)) if now.time >= latest.time => first,
            _ => now,
        };
        let agreed = now.time.saturating_sub(first.time) >= AGREED
            && now.read.saturating_duration_since(first.read) >= AGREED;
        if agreed || self.leapt_from.is_some_and(|from| from.allows(now)) {
            self.restart(micros, read);
            return true;
        }
        self.earlier = Some((first, now));
        false
    }

    /// Goes on from this time, whatever it was before.
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

    /// What is believed of lines with these times, each read at so many seconds.
    fn believed(lines: &[(f64, f64)]) -> Vec<bool> {
        let start = Instant::now();
        let mut clock = LogClock::default();
        lines
            .iter()
            .map(|(time, read)| {
                let read = start + Duration::from_secs_f64(*read);
                clock.believes((time * 1e6) as u64, read)
            })
            .collect()
    }

    #[test]
    fn a_line_whose_time_runs_back_is_not_believed() {
        assert_eq!(
            believed(&[
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
        assert_eq!(believed(&lines), [true; 10]);
        assert!(!believed(&[&lines[..], &[(0.5, 1.0)]].concat())[10]);
    }

    #[test]
    fn a_time_in_the_future_makes_no_later_line_unbelievable() {
        assert_eq!(
            believed(&[
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
    fn a_small_leap_ahead_is_put_right_soon() {
        let ahead = [(10.0, 0.0), (40.0, 0.1)];
        let late: Vec<_> = (0..30)
            .map(|tenth| f64::from(tenth) / 10.0)
            .map(|passed| (10.2 + passed, 0.2 + passed))
            .collect();
        let believed = believed(&[&ahead[..], &late].concat());
        assert!(!believed[2] && believed[31], "{believed:?}");
    }

    #[test]
    fn lines_that_contradict_each_other_never_agree() {
        let lines: Vec<_> = (0..100)
            .map(|tenth| f64::from(tenth) / 10.0)
            .flat_map(|passed| [(500.0 + passed, passed), (20.0 + passed, passed)])
            .collect();
        let believed = believed(&lines);
        for (index, believed) in believed.into_iter().enumerate() {
            assert_eq!(believed, index % 2 == 0, "{index}");
        }
    }
}
