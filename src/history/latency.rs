//! Quantiles of the time to the first token over the last minute, from the increase of a
//! histogram.

use std::collections::VecDeque;

use crate::snapshot::histogram::Histogram;

/// The time over which quantiles are computed, in seconds.
pub const WINDOW_SECONDS: f64 = 60.0;
/// The least time between two readings that are kept.
const STEP_SECONDS: f64 = 5.0;
/// The most readings that are kept.
const MOST_READINGS: usize = (WINDOW_SECONDS / STEP_SECONDS) as usize + 2;

/// The readings of a histogram in the last minute, and the newest one before.
#[derive(Clone, Debug, Default)]
pub(super) struct LatencyWindow {
    source: &'static str,
    /// The time of each, and its cumulative counts.
    readings: VecDeque<(f64, Vec<u64>)>,
}

impl LatencyWindow {
    /// Adds a reading of the `source` at `now`, in seconds. Returns the quantiles p50 and p95 of
    /// what was observed in the last minute, if anything was.
    pub(super) fn add(
        &mut self,
        now: f64,
        source: &'static str,
        histogram: &Histogram,
    ) -> Option<[f64; 2]> {
        let counts: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        let fell = |(_, before): &(f64, Vec<u64>)| {
            before.len() != counts.len() || before.iter().zip(&counts).any(|(old, new)| old > new)
        };
        if self.source != source || self.readings.back().is_some_and(fell) {
            self.readings.clear();
            self.source = source;
        }
        while self
            .readings
            .get(1)
            .is_some_and(|(at, _)| now - at >= WINDOW_SECONDS)
        {
            self.readings.pop_front();
        }
        let quantiles = self.readings.front().and_then(|(_, before)| {
            let bounds = histogram.cumulative().map(|(bound, _)| bound);
            let increase = counts
                .iter()
                .zip(before)
                .map(|(new, old)| new.saturating_sub(*old));
            let increase: Vec<_> = bounds.zip(increase).collect();
            Some([quantile(&increase, 0.5)?, quantile(&increase, 0.95)?])
        });
        let is_due = |(at, _): &(f64, Vec<u64>)| now - at >= STEP_SECONDS;
        if self.readings.back().is_none_or(is_due) {
            self.readings.push_back((now, counts));
        }
        if self.readings.len() > MOST_READINGS {
            self.readings.pop_front();
        }
        quantiles
    }

    /// The bytes that it has allocated.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let of_reading = |(_, counts): &(f64, Vec<u64>)| counts.capacity() * size_of::<u64>();
        self.readings.capacity() * size_of::<(f64, Vec<u64>)>()
            + self.readings.iter().map(of_reading).sum::<usize>()
    }
}

/// The quantile of observations by their upper bounds, interpolated within a bucket, as
/// Prometheus' `histogram_quantile` has it.
fn quantile(cumulative: &[(f64, u64)], share: f64) -> Option<f64> {
    let (_, total) = cumulative.last().filter(|(_, total)| *total > 0)?;
    let rank = share * *total as f64;
    let mut below = (0.0, 0.0);
    for (bound, count) in cumulative {
        let count = *count as f64;
        if count >= rank {
            if bound.is_infinite() {
                return Some(below.0);
            }
            let part = (rank - below.1) / (count - below.1).max(1.0);
            return Some(below.0 + (bound - below.0) * part);
        }
        below = (*bound, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: &[f64] = &[1.0, 2.0, 4.0];

    #[test]
    fn quantiles_are_those_of_the_last_minute() {
        let (mut window, mut histogram) = (LatencyWindow::default(), Histogram::new(BOUNDS));
        // What was observed before the first reading is of an unknown time.
        histogram.observe(0.5, 1000);
        assert_eq!(window.add(0.0, "log", &histogram), None);
        histogram.observe(3.0, 10);
        assert_eq!(window.add(10.0, "log", &histogram), Some([3.0, 3.9]));
        for now in 2..7 {
            assert!(
                window
                    .add(f64::from(now) * 10.0, "log", &histogram)
                    .is_some()
            );
        }
        assert_eq!(window.add(75.0, "log", &histogram), None, "a minute later");
        histogram.observe(9.0, 1);
        assert_eq!(window.add(80.0, "log", &histogram), Some([4.0, 4.0]));
    }

    #[test]
    fn another_source_or_a_restart_begins_anew() {
        let (mut window, mut histogram) = (LatencyWindow::default(), Histogram::new(BOUNDS));
        window.add(0.0, "log", &histogram);
        histogram.observe(1.0, 5);
        assert!(window.add(1.0, "log", &histogram).is_some());
        assert_eq!(window.add(2.0, "records", &histogram), None);
        assert_eq!(window.add(3.0, "records", &Histogram::new(BOUNDS)), None);
    }

    #[test]
    fn few_readings_are_kept_however_often_it_is_read() {
        let (mut window, histogram) = (LatencyWindow::default(), Histogram::new(BOUNDS));
        for now in 0..10_000 {
            window.add(f64::from(now) / 10.0, "log", &histogram);
        }
        assert!(window.readings.len() <= MOST_READINGS);
    }
}
