//! How much the counts have grown, over the shortest time in which that is known.
//!
//! Between two readings a count has grown by no less than what was seen on the slots, and
//! than the lower bound now exceeds the upper bound then; and by no more than what was seen
//! and may have been hidden, and than the upper bound now exceeds the lower bound then.
//! Where half the distance of the two, the doubt, is within a tenth of the growth, the
//! middle is taken for the growth: it is then wrong by a tenth at most. A server that has
//! counted less than a million has no doubt, and the last interval does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rates hold over no longer time than this.
const LONGEST: Duration = Duration::from_secs(600);
/// The most readings that are kept.
const MOST: usize = 128;
/// The doubt may be this part of the growth.
const TENTH: f64 = 0.1;

/// A count at one reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    /// No less than this.
    pub low: f64,
    /// No more than this.
    pub high: f64,
    /// What is known to have come since the reading before.
    pub known: f64,
    /// How much more may have come since the reading before.
    pub hidden: f64,
}

impl Reach {
    /// A count of which nothing is known but that it is within `doubt` of `value`.
    pub fn around(value: f64, doubt: f64) -> Reach {
        Reach {
            low: value - doubt,
            high: value + doubt,
            known: f64::NEG_INFINITY,
            hidden: f64::INFINITY,
        }
    }
}

/// The counts of one reading.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// When the tokens were read.
    pub at: Instant,
    /// When the decode calls were read.
    pub calls_at: Instant,
    /// Generated tokens, those in flight included.
    pub generated: Option<Reach>,
    /// Prompt tokens, those in flight included.
    pub prompt: Option<Reach>,
    /// Generated tokens as of `calls_at`: beside decode calls a token more or less counts.
    pub generated_then: Option<Reach>,
    /// Decode calls.
    pub calls: Option<Reach>,
    /// Whether the server was at work all the time since the reading before.
    pub busy: bool,
}

/// By how much a count has grown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// No less than this, and no less than nothing.
    pub least: f64,
    /// No more than this.
    pub most: f64,
}

impl Growth {
    /// The growth, where the doubt is small enough.
    pub fn value(self) -> Option<f64> {
        let middle = (self.least + self.most) / 2.0;
        let doubt = (self.most - self.least) / 2.0;
        (doubt <= middle * TENTH).then_some(middle)
    }

    /// Of two counts together.
    pub fn and(self, other: Growth) -> Growth {
        Growth {
            least: self.least + other.least,
            most: self.most + other.most,
        }
    }
}

/// The time from an earlier reading to the last one.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The earlier reading.
    pub since: Instant,
    /// Its length.
    pub seconds: f64,
    /// Its length as far as decode calls go.
    pub calls_seconds: f64,
    /// Whether the server was at work from end to end.
    pub busy: bool,
    /// Growth of the counts in it, each where it was read.
    pub generated: Option<Growth>,
    /// See [`Point::prompt`].
    pub prompt: Option<Growth>,
    /// See [`Point::generated_then`].
    pub generated_then: Option<Growth>,
    /// See [`Point::calls`].
    pub calls: Option<Growth>,
}

/// The last readings of one life of the server.
#[derive(Debug, Default)]
pub struct History {
    points: VecDeque<Point>,
}

impl History {
    /// Takes one more reading.
    pub fn push(&mut self, point: Point) {
        let young = |past: &Point| point.at.duration_since(past.at) <= LONGEST;
        // The last one stays, however long ago: the next interval begins there.
        while self.points.len() > 1 && self.points.front().is_some_and(|past| !young(past)) {
            self.points.pop_front();
        }
        if self.points.len() >= MOST {
            self.thin();
        }
        self.points.push_back(point);
    }

    /// Leaves out every other one of the older half: long windows need no fine beginnings.
    fn thin(&mut self) {
        let mut kept = VecDeque::with_capacity(MOST);
        for (index, mut point) in self.points.drain(..).enumerate() {
            // The first one left out is the one before the second, and so on.
            if index < MOST / 2 && index % 2 == 1 {
                let before: Option<Point> = kept.pop_back();
                if let Some(before) = before {
                    point.absorb(&before);
                }
            }
            kept.push_back(point);
        }
        self.points = kept;
    }

    /// Nothing was done up to this moment: what the counts grow by is younger.
    pub fn rested(&mut self, until: Instant) {
        if let Some(mut last) = self.points.pop_back() {
            last.at = last.at.max(until);
            last.calls_at = last.calls_at.max(until);
            self.points.clear();
            self.points.push_back(last);
        }
    }

    /// The last reading.
    pub fn last(&self) -> Option<&Point> {
        self.points.back()
    }

    /// The windows that end with the last reading, the shortest first.
    pub fn windows(&self) -> impl Iterator<Item = Window> {
        let mut newer = self.points.iter().rev();
        let now = newer.next();
        // What came in the intervals of the window, up to now.
        let mut came = now.copied();
        newer.map_while(move |then| {
            let (now, sum) = (now?, came?);
            let growth =
                |of: fn(&Point) -> Option<Reach>| Some(grown(&of(then)?, &of(now)?, &of(&sum)?));
            let window = Window {
                since: then.at,
                seconds: now.at.duration_since(then.at).as_secs_f64(),
                calls_seconds: now.calls_at.duration_since(then.calls_at).as_secs_f64(),
                busy: sum.busy,
                generated: growth(|point| point.generated),
                prompt: growth(|point| point.prompt),
                generated_then: growth(|point| point.generated_then),
                calls: growth(|point| point.calls),
            };
            came = came.map(|mut sum| {
                sum.absorb(then);
                sum
            });
            Some(window)
        })
    }
}

impl Point {
    /// Takes the interval before the reading `before` into the one before this reading.
    fn absorb(&mut self, before: &Point) {
        let add = |reach: &mut Option<Reach>, before: Option<Reach>| {
            *reach = reach.zip(before).map(|(reach, before)| Reach {
                known: reach.known + before.known,
                hidden: reach.hidden + before.hidden,
                ..reach
            });
        };
        add(&mut self.generated, before.generated);
        add(&mut self.prompt, before.prompt);
        add(&mut self.generated_then, before.generated_then);
        add(&mut self.calls, before.calls);
        self.busy &= before.busy;
    }
}

fn grown(then: &Reach, now: &Reach, came: &Reach) -> Growth {
    let least = came.known.max(now.low - then.high).max(0.0);
    let mut most = now.high - then.low;
    if came.hidden.is_finite() {
        most = most.min(came.known + came.hidden);
    }
    Growth {
        least,
        most: most.max(least),
    }
}
