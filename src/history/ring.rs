//! The last 15 minutes of one value: a fixed number of points, however often it is read.

/// The points of a ring, each of which is the mean of [`POINT_SECONDS`].
pub const POINTS: usize = 180;
/// The time that one point stands for.
pub const POINT_SECONDS: f64 = 5.0;

/// The last [`POINTS`] means of a value. Times are seconds since the start of the history.
#[derive(Clone, Debug)]
pub struct Ring {
    /// The mean of each interval of [`POINT_SECONDS`], at its number modulo [`POINTS`]; NaN if
    /// nothing was known.
    points: [f32; POINTS],
    /// The number of the newest interval.
    newest: u64,
    /// The seconds of the newest interval in which the value was known, and the integral over them.
    known: (f64, f64),
    /// Whether the value was known at the last reading.
    is_known: bool,
}

impl Default for Ring {
    fn default() -> Ring {
        Ring {
            points: [f32::NAN; POINTS],
            newest: 0,
            known: (0.0, 0.0),
            is_known: false,
        }
    }
}

impl Ring {
    /// Adds a reading at `now`. It stands for the time since `since`.
    pub fn add(&mut self, since: f64, now: f64, value: Option<f64>) {
        let value = value.filter(|value| value.is_finite());
        self.is_known = value.is_some();
        let Some(value) = value else {
            return self.advance_to(number_of(now));
        };
        let first = number_of(since).max(self.newest);
        let oldest = number_of(now).saturating_sub(POINTS as u64);
        for number in first.max(oldest)..=number_of(now) {
            self.advance_to(number);
            let start = number as f64 * POINT_SECONDS;
            let seconds = now.min(start + POINT_SECONDS) - since.max(start);
            // A first reading stands for no time, but is known.
            let seconds = seconds.max(1e-3);
            self.known.0 += seconds;
            self.known.1 += seconds * value;
            self.points[index_of(number)] = (self.known.1 / self.known.0) as f32;
        }
    }

    /// Makes `number` the newest interval; nothing is known of those that were skipped.
    fn advance_to(&mut self, number: u64) {
        if number <= self.newest {
            return;
        }
        let oldest = number.saturating_sub(POINTS as u64);
        for skipped in self.newest.max(oldest).saturating_add(1)..=number {
            self.points[index_of(skipped)] = f32::NAN;
        }
        self.newest = number;
        self.known = (0.0, 0.0);
    }

    /// The points up to `now`, oldest first; NaN is unknown. While the value `is_current`, the last
    /// reading stands until now.
    pub fn points(&self, now: f64, is_current: bool) -> Vec<f32> {
        let end = number_of(now).max(self.newest);
        let start = end.saturating_sub((POINTS as u64).saturating_sub(1));
        let held = match is_current && self.is_known {
            true => self.points[index_of(self.newest)],
            false => f32::NAN,
        };
        let of_number = |number: u64| match number > self.newest {
            true => held,
            false => self.points[index_of(number)],
        };
        let mut points = vec![f32::NAN; POINTS.saturating_sub(count(start, end))];
        points.extend((start..=end).map(of_number));
        points
    }
}

/// How many intervals there are from `start` to `end`.
fn count(start: u64, end: u64) -> usize {
    let count = end.saturating_sub(start).saturating_add(1);
    usize::try_from(count).unwrap_or(POINTS)
}

/// The number of the interval at that time.
fn number_of(seconds: f64) -> u64 {
    // Saturates at 0.
    (seconds / POINT_SECONDS) as u64
}

fn index_of(number: u64) -> usize {
    number.checked_rem(POINTS as u64).unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known points, with how many points each is before the last one.
    fn known(ring: &Ring, now: f64) -> Vec<(usize, f32)> {
        let points = ring.points(now, true);
        assert_eq!(points.len(), POINTS);
        let points = points.into_iter().rev().enumerate();
        points.filter(|(_, point)| !point.is_nan()).collect()
    }

    #[test]
    fn a_point_is_the_mean_of_its_interval() {
        let mut ring = Ring::default();
        for tenths in 0..100 {
            let now = 10.0 + f64::from(tenths) / 10.0;
            ring.add(now - 0.1, now, Some(f64::from(tenths % 2)));
        }
        let points = known(&ring, 19.9);
        assert_eq!(points.len(), 3, "{points:?}");
        assert!(
            points[..2]
                .iter()
                .all(|(_, mean)| (mean - 0.5).abs() < 0.02)
        );
    }

    #[test]
    fn a_reading_stands_for_the_time_since_the_one_before() {
        let mut ring = Ring::default();
        ring.add(2.0, 2.0, Some(1.0));
        ring.add(2.0, 62.0, Some(7.0));
        let points = known(&ring, 62.0);
        assert_eq!(points.len(), 13);
        assert!(points.iter().all(|(_, value)| (value - 7.0).abs() < 0.01));
        // Until the next reading it is still known.
        assert_eq!(known(&ring, 100.0).len(), 21);
    }

    #[test]
    fn where_nothing_was_known_there_is_a_gap() {
        let mut ring = Ring::default();
        ring.add(0.0, 5.0, Some(1.0));
        ring.add(5.0, 30.0, None);
        assert_eq!(known(&ring, 30.0).len(), 2);
        ring.add(40.0, 41.0, Some(2.0));
        assert_eq!(known(&ring, 41.0), [(0, 2.0), (7, 1.0), (8, 1.0)]);
        let is_nan = |point: &f32| point.is_nan();
        assert!(ring.points(60.0, false).last().is_some_and(is_nan));
        ring.add(41.0, 42.0, Some(f64::NAN));
        assert!(ring.points(60.0, true).last().is_some_and(is_nan));
    }

    #[test]
    fn points_older_than_the_ring_are_gone() {
        let mut ring = Ring::default();
        ring.add(0.0, 10.0, Some(1.0));
        ring.add(5000.0, 5000.0, Some(2.0));
        assert_eq!(known(&ring, 5000.0), [(0, 2.0)]);
        assert_eq!(known(&ring, 1e6).len(), POINTS, "the last one is held");
        assert!(ring.points(1e6, false).iter().all(|point| point.is_nan()));
        // A value that stands for longer than the ring.
        ring.add(5000.0, 9e6, Some(3.0));
        assert_eq!(known(&ring, 9e6).len(), POINTS);
    }
}
