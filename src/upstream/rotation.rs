//! Whose turn it is, where one poll may not reach all models of a base URL.

use std::time::{Duration, Instant};

use crate::bounds;
use crate::settings::Settings;

/// Rotation of the models whose own servers are asked. The polls go on where the last one had no
/// time left, and each asks one model at least: so every model is asked within as many polls as
/// there are models.
#[derive(Debug)]
pub struct Rotation {
    /// How long one poll goes on asking.
    time: Duration,
    /// How long the last of them may take.
    reserve: Duration,
    /// The first model that the last poll had no time for.
    next: Option<String>,
    /// When this poll has asked for long enough.
    until: Instant,
    asked: bool,
}

/// The most requests of one poll to one model's server.
const REQUESTS_A_MODEL: u32 = 4;

impl Rotation {
    /// Rotation that go on for the interval, or for two time-outs where that is longer.
    pub fn new(settings: &Settings) -> Rotation {
        Rotation {
            time: settings.interval.max(settings.timeout.saturating_mul(2)),
            reserve: settings.timeout.saturating_mul(REQUESTS_A_MODEL),
            next: None,
            until: Instant::now(),
            asked: false,
        }
    }

    /// Begins at `now` the rotation of one poll that must have ended by `deadline`, and puts `models`
    /// in their order.
    pub fn begin<T>(
        &mut self,
        models: &mut [T],
        name: impl Fn(&T) -> &str,
        now: Instant,
        deadline: Instant,
    ) {
        models.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        if let Some(next) = self.next.take() {
            let first = models.partition_point(|model| name(model) < next.as_str());
            models.rotate_left(first);
        }
        let latest = deadline.checked_sub(self.reserve).unwrap_or(now);
        self.until = bounds::deadline(now, self.time).min(latest);
        self.asked = false;
    }

    /// Whether `model` may be asked at `now`; it is asked in a later poll otherwise. To be called
    /// for each model in turn.
    pub fn may_ask(&mut self, model: &str, now: Instant) -> bool {
        let may_ask = self.next.is_none() && (!self.asked || now <= self.until);
        self.asked = true;
        if !may_ask {
            self.next.get_or_insert_with(|| model.to_owned());
        }
        may_ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Asks `models` in turn, each of which takes so long, and gives those that were asked.
    fn poll<'a>(rotation: &mut Rotation, models: &[&'a str], each: Duration) -> Vec<&'a str> {
        let mut models = models.to_vec();
        let mut now = Instant::now();
        rotation.begin(&mut models, |model| model, now, now + 24 * SECOND);
        let mut asked = Vec::new();
        for model in models {
            if rotation.may_ask(model, now) {
                asked.push(model);
                now += each;
            }
        }
        asked
    }

    fn rotation(time: Duration) -> Rotation {
        Rotation {
            time,
            reserve: 12 * SECOND,
            next: None,
            until: Instant::now(),
            asked: false,
        }
    }

    #[test]
    fn all_are_asked_in_every_poll_that_has_the_time() {
        let mut rotation = rotation(6 * SECOND);
        for _ in 0..3 {
            assert_eq!(
                poll(&mut rotation, &["c", "a", "b"], SECOND),
                ["a", "b", "c"]
            );
        }
    }

    #[test]
    fn a_poll_goes_on_where_the_last_one_had_no_time_left() {
        let mut rotation = rotation(6 * SECOND);
        let models = ["a", "b", "c", "d", "e", "f"];
        let slow = 4 * SECOND;
        assert_eq!(poll(&mut rotation, &models, slow), ["a", "b"]);
        assert_eq!(poll(&mut rotation, &models, slow), ["c", "d"]);
        // The one that was next is gone: whoever comes after it is next.
        assert_eq!(poll(&mut rotation, &["a", "b", "f"], slow), ["f", "a"]);
        assert_eq!(poll(&mut rotation, &models, slow), ["b", "c"]);
    }

    #[test]
    fn the_last_one_has_its_time_before_the_poll_must_end() {
        let mut rotation = rotation(3600 * SECOND);
        let models = ["a", "b", "c", "d"];
        assert_eq!(poll(&mut rotation, &models, 5 * SECOND), ["a", "b", "c"]);
    }

    #[test]
    fn one_is_asked_however_slow_they_are() {
        let mut rotation = rotation(SECOND);
        let mut asked = Vec::new();
        for _ in 0..4 {
            asked.extend(poll(&mut rotation, &["a", "b", "c"], 60 * SECOND));
        }
        assert_eq!(asked, ["a", "b", "c", "a"]);
    }
}
