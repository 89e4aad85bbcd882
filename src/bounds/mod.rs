//! Limits on data from outside: durations, texts, JSON. Depends on no other module.

pub mod escape;
pub mod json;
pub(crate) mod label_enum;
pub mod lenient;

use std::time::{Duration, Instant};

/// A duration from outside: an argument, a response, a setting. At most
/// [`BoundedDuration::MAX`], so that [`deadline`] and [`times`](BoundedDuration::times) neither
/// overflow nor panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundedDuration(Duration);

impl BoundedDuration {
    /// A leap year. Longer durations are cut to this.
    pub const MAX: BoundedDuration = BoundedDuration(Duration::from_secs(366 * 24 * 3600));

    /// `duration`, at most [`BoundedDuration::MAX`].
    pub const fn new(duration: Duration) -> BoundedDuration {
        if duration.as_nanos() > BoundedDuration::MAX.0.as_nanos() {
            BoundedDuration::MAX
        } else {
            BoundedDuration(duration)
        }
    }

    /// A number of whole seconds.
    pub const fn from_secs(seconds: u64) -> BoundedDuration {
        BoundedDuration::new(Duration::from_secs(seconds))
    }

    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// `factor` times as long, at most [`BoundedDuration::MAX`].
    #[must_use]
    pub const fn times(self, factor: u32) -> BoundedDuration {
        BoundedDuration::new(self.0.saturating_mul(factor))
    }
}

impl From<Duration> for BoundedDuration {
    fn from(duration: Duration) -> BoundedDuration {
        BoundedDuration::new(duration)
    }
}

/// The most bytes that are kept of a label's value, or of another text from outside.
pub const MAX_TEXT_BYTES: usize = 512;

/// The first [`MAX_TEXT_BYTES`] of `text`, or a few less so that no character is cut.
///
/// Every name is cut by this function. Two names that are equal after the cut count as one name:
/// only the first one's series are exported, see [`crate::snapshot`].
pub fn cut(text: &str) -> &str {
    cut_at(text, MAX_TEXT_BYTES)
}

/// The first `bytes` of `text`, or a few less so that no character is cut.
pub fn cut_at(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    // No character is longer than four bytes.
    let mut ends = (bytes.saturating_sub(3)..=bytes).rev();
    let cut = ends.find_map(|end| text.get(..end));
    cut.unwrap_or(text)
}

/// `from + duration`, without a panic on overflow. The duration is limited to a year.
pub fn deadline(from: Instant, duration: impl Into<BoundedDuration>) -> Instant {
    // No system's clock ends within a year of now.
    from.checked_add(duration.into().0).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_from_outside_is_at_most_a_year() {
        for (seconds, expected) in [(0, 0), (6, 6), (u64::MAX, 366 * 86_400)] {
            let duration = BoundedDuration::from_secs(seconds);
            assert_eq!(duration.get().as_secs(), expected, "{seconds}");
        }
        assert_eq!(BoundedDuration::from(Duration::MAX), BoundedDuration::MAX);
        assert_eq!(BoundedDuration::MAX.times(u32::MAX), BoundedDuration::MAX);
        assert_eq!(
            BoundedDuration::from_secs(6).times(2).get(),
            Duration::from_secs(12)
        );
    }

    #[test]
    fn a_text_is_cut_where_a_character_ends() {
        assert_eq!(cut("ab"), "ab");
        assert_eq!(cut(&"a".repeat(600)).len(), 512);
        assert_eq!(cut(&"a".repeat(512)).len(), 512);
        assert_eq!(cut(&"模".repeat(200)), "模".repeat(170));
        let odd = format!("a{}", "ü".repeat(400));
        assert_eq!(cut(&odd).len(), 511);
    }

    #[test]
    fn a_deadline_never_overflows() {
        let now = Instant::now();
        let year = deadline(now, Duration::MAX);
        assert_eq!(year - now, BoundedDuration::MAX.get());
        // The same for start times in the future.
        (0..1000).fold(now, |from, _| deadline(from, Duration::MAX));
    }
}
