//! The order in which the models of a base URL are polled, if one poll has no time for all.

use std::time::{Duration, Instant};

use crate::bounds;
use crate::settings::Settings;

/// Rotates over models whose own servers are polled. Each poll continues where the last one ran out
/// of time, and polls at least one model. So every model is polled within as many polls as there
/// are models.
#[derive(Debug)]
pub struct Rotation {
    /// How long a poll starts further models.
    time: Duration,
    /// How long the last model may take.
    reserve: Duration,
    /// The first model that the last poll had no time for.
    next: Option<String>,
    /// When this poll stops starting further models.
    until: Instant,
    has_polled: bool,
}

/// The most requests of one poll to one model's server.
const REQUESTS_PER_MODEL: u32 = 4;

impl Rotation {
    /// A rotation whose polls start models for one interval, or for two time-outs if that is
    /// longer.
    pub fn new(settings: &Settings) -> Rotation {
        Rotation {
            time: settings.interval.max(settings.timeout.saturating_mul(2)),
            reserve: settings.timeout.saturating_mul(REQUESTS_PER_MODEL),
            next: None,
            until: Instant::now(),
            has_polled: false,
        }
    }

    /// Begins a poll at `now` that must end by `deadline`, and sorts `models` into polling order.
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
        self.has_polled = false;
    }

    /// Whether `model` may be polled at `now`, or must wait for a later poll. Call it for each
    /// model, in order.
    pub fn may_poll(&mut self, model: &str, now: Instant) -> bool {
        let may_poll = self.next.is_none() && (!self.has_polled || now <= self.until);
        self.has_polled = true;
        if !may_poll {
            self.next.get_or_insert_with(|| model.to_owned());
        }
        may_poll
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Polls `models`, each for the duration `each`; returns the polled ones.
    fn poll<'a>(rotation: &mut Rotation, models: &[&'a str], each: Duration) -> Vec<&'a str> {
        let mut models = models.to_vec();
        let mut now = Instant::now();
        rotation.begin(&mut models, |model| model, now, now + 24 * SECOND);
        let mut polled = Vec::new();
        for model in models {
            if rotation.may_poll(model, now) {
                polled.push(model);
                now += each;
            }
        }
        polled
    }

    fn rotation(time: Duration) -> Rotation {
        Rotation {
            time,
            reserve: 12 * SECOND,
            next: None,
            until: Instant::now(),
            has_polled: false,
        }
    }

    #[test]
    fn every_model_is_polled_if_there_is_time() {
        let mut rotation = rotation(6 * SECOND);
        for _ in 0..3 {
            assert_eq!(
                poll(&mut rotation, &["c", "a", "b"], SECOND),
                ["a", "b", "c"]
            );
        }
    }

    #[test]
    fn a_poll_continues_where_the_last_one_ran_out_of_time() {
        let mut rotation = rotation(6 * SECOND);
        let models = ["a", "b", "c", "d", "e", "f"];
        let slow = 4 * SECOND;
        assert_eq!(poll(&mut rotation, &models, slow), ["a", "b"]);
        assert_eq!(poll(&mut rotation, &models, slow), ["c", "d"]);
        // The next one is gone: the one after it is next.
        assert_eq!(poll(&mut rotation, &["a", "b", "f"], slow), ["f", "a"]);
        assert_eq!(poll(&mut rotation, &models, slow), ["b", "c"]);
    }

    #[test]
    fn the_last_model_has_time_until_the_deadline() {
        let mut rotation = rotation(3600 * SECOND);
        let models = ["a", "b", "c", "d"];
        assert_eq!(poll(&mut rotation, &models, 5 * SECOND), ["a", "b", "c"]);
    }

    #[test]
    fn one_model_is_polled_however_slow_they_are() {
        let mut rotation = rotation(SECOND);
        let mut polled = Vec::new();
        for _ in 0..4 {
            polled.extend(poll(&mut rotation, &["a", "b", "c"], 60 * SECOND));
        }
        assert_eq!(polled, ["a", "b", "c", "a"]);
    }
}
