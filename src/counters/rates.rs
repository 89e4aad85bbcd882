//! Growth of the counts per second, over the shortest time in which it is known.
//!
//! Between two readings, a count has grown by at least what the slots showed, and its lower bound
//! now minus its upper bound then; and by at most what the slots showed and may have hidden, and
//! its upper bound now minus its lower bound then. If half the distance of the two is within a
//! tenth of the growth, the middle is taken as the growth, which is then off by a tenth at most.
//! Below a million the growth is exact, and the last interval is used.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rates are over no longer time than this.
const LONGEST_WINDOW: Duration = Duration::from_secs(600);
/// The most readings that are kept.
const MOST_POINTS: usize = 128;
/// The largest error of a growth, as a part of it.
const LARGEST_ERROR: f64 = 0.1;

/// A count at one reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountRange {
    /// The count is at least this.
    pub low: f64,
    /// The count is at most this.
    pub high: f64,
    /// What came since the reading before, at least.
    pub known: f64,
    /// How much more may have come since the reading before.
    pub hidden: f64,
}

impl CountRange {
    /// A count within `error` of `value`, with unknown growth.
    pub fn around(value: f64, error: f64) -> CountRange {
        CountRange {
            low: value - error,
            high: value + error,
            known: f64::NEG_INFINITY,
            hidden: f64::INFINITY,
        }
    }
}

/// The counts at one reading.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// When the tokens were read.
    pub at: Instant,
    /// When the decode calls were read.
    pub calls_at: Instant,
    /// Generated tokens, those in flight included.
    pub generated_tokens: Option<CountRange>,
    /// Prompt tokens, those in flight included.
    pub prompt_tokens: Option<CountRange>,
    /// Generated tokens at `calls_at`: for the batch size a token more or less matters.
    pub generated_at_calls: Option<CountRange>,
    /// Decode calls.
    pub decode_calls: Option<CountRange>,
    /// Whether the server was busy all the time since the reading before.
    pub busy: bool,
}

/// Growth of a count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// At least this, and at least 0.
    pub least: f64,
    /// At most this.
    pub most: f64,
}

impl Growth {
    /// The growth, if its error is small enough.
    pub fn value(self) -> Option<f64> {
        let middle = (self.least + self.most) / 2.0;
        let error = (self.most - self.least) / 2.0;
        (error <= middle * LARGEST_ERROR).then_some(middle)
    }

    /// The growth of two counts together.
    pub fn plus(self, other: Growth) -> Growth {
        Growth {
            least: self.least + other.least,
            most: self.most + other.most,
        }
    }
}

/// The time between an earlier reading and the last one.
pub struct Window<'a> {
    then: &'a Point,
    now: &'a Point,
    /// What came in its intervals.
    intervals: Point,
}

impl Window<'_> {
    /// The earlier reading.
    pub fn since(&self) -> Instant {
        self.then.at
    }

    /// Its length between the readings of tokens.
    pub fn seconds(&self) -> f64 {
        self.now.at.duration_since(self.then.at).as_secs_f64()
    }

    /// Its length between the readings of decode calls.
    pub fn calls_seconds(&self) -> f64 {
        let calls_time = self.now.calls_at.duration_since(self.then.calls_at);
        calls_time.as_secs_f64()
    }

    /// Whether the server was busy from end to end.
    pub fn busy(&self) -> bool {
        self.intervals.busy
    }

    /// The growth of a count.
    pub fn growth(&self, count: fn(&Point) -> Option<CountRange>) -> Option<Growth> {
        let (then, now) = (count(self.then)?, count(self.now)?);
        let intervals = count(&self.intervals)?;
        let least = intervals.known.max(now.low - then.high).max(0.0);
        let mut most = now.high - then.low;
        if intervals.hidden.is_finite() {
            most = most.min(intervals.known + intervals.hidden);
        }
        Some(Growth {
            least,
            most: most.max(least),
        })
    }

    /// The growth of a count per second, if it is known well enough.
    pub fn rate(&self, count: fn(&Point) -> Option<CountRange>) -> Option<f64> {
        Some(self.growth(count)?.value()? / self.seconds())
    }
}

/// The last readings since the server's start.
#[derive(Debug, Default)]
pub struct History {
    points: VecDeque<Point>,
}

impl History {
    /// Adds a reading.
    pub fn push(&mut self, point: Point) {
        let is_recent = |past: &Point| point.at.duration_since(past.at) <= LONGEST_WINDOW;
        // The last one stays, however old: the next interval begins there.
        while self.points.len() > 1 && self.points.front().is_some_and(|past| !is_recent(past)) {
            self.points.pop_front();
        }
        if self.points.len() >= MOST_POINTS {
            self.thin();
        }
        self.points.push_back(point);
    }

    /// Removes every other one of the older half: long windows need no fine beginnings.
    fn thin(&mut self) {
        let mut kept: VecDeque<Point> = VecDeque::with_capacity(MOST_POINTS);
        for (index, mut point) in self.points.drain(..).enumerate() {
            if index < MOST_POINTS / 2
                && index % 2 == 1
                && let Some(before) = kept.pop_back()
            {
                point.add_interval(&before);
            }
            kept.push_back(point);
        }
        self.points = kept;
    }

    /// Records that the server was idle until now: later growth is newer than that.
    pub fn idle_until(&mut self, now: Instant) {
        if let Some(mut last) = self.points.pop_back() {
            last.at = last.at.max(now);
            last.calls_at = last.calls_at.max(now);
            self.points.clear();
            self.points.push_back(last);
        }
    }

    /// The last reading.
    pub fn last(&self) -> Option<&Point> {
        self.points.back()
    }

    /// The windows that end with the last reading, the shortest first.
    pub fn windows(&self) -> impl Iterator<Item = Window<'_>> {
        let mut newer = self.points.iter().rev();
        let now = newer.next();
        let mut intervals = now.copied();
        newer.map_while(move |then| {
            let window = Window {
                then,
                now: now?,
                intervals: intervals?,
            };
            if let Some(intervals) = &mut intervals {
                intervals.add_interval(then);
            }
            Some(window)
        })
    }

    /// The growth of a count per second, over the shortest window in which it is known.
    pub fn rate(&self, count: fn(&Point) -> Option<CountRange>) -> Option<f64> {
        let rate = self.windows().find_map(|window| window.rate(count));
        rate.filter(|rate| rate.is_finite())
    }
}

impl Point {
    /// Adds what came in the interval before `before` to the interval before this reading.
    fn add_interval(&mut self, before: &Point) {
        let add = |range: &mut Option<CountRange>, before: Option<CountRange>| {
            *range = range.zip(before).map(|(range, before)| CountRange {
                known: range.known + before.known,
                hidden: range.hidden + before.hidden,
                ..range
            });
        };
        add(&mut self.generated_tokens, before.generated_tokens);
        add(&mut self.prompt_tokens, before.prompt_tokens);
        add(&mut self.generated_at_calls, before.generated_at_calls);
        add(&mut self.decode_calls, before.decode_calls);
        self.busy &= before.busy;
    }
}
