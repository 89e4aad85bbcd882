//! Who is with which keeper, and who has to go when it gets crowded.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::web::stream::Stream;

/// No visit is cut that is younger: on a busy machine even a client in a hurry
/// may need this long between connecting and asking. With 64 keepers it still
/// lets 1,000 connections that never ask pass in less than 100 ms.
const GRACE: Duration = Duration::from_millis(4);

/// Where a visit is, in the order in which visits are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Answered; the client has yet to close.
    Leaving,
    /// The head of the request comes in.
    Reading,
    /// The answer goes out.
    Writing,
    /// The answer is being made. The client cannot be blamed for that and is
    /// never cut: it takes as long as it takes us, and the next ones queue.
    Answering,
}

#[derive(Clone, Debug)]
struct Visit {
    phase: Phase,
    since: Instant,
    stream: Arc<Stream>,
}

/// The visits, by the number of the keeper.
#[derive(Debug)]
pub struct Visits(Mutex<Vec<Option<Visit>>>);

impl Visits {
    /// None yet, with so many keepers.
    pub fn new(keepers: usize) -> Self {
        Self(Mutex::new(vec![None; keepers]))
    }

    /// Begins a visit, which reads first. Waits for room where it is crowded.
    pub fn begin(&self, keeper: usize, stream: &Arc<Stream>) {
        self.room()[keeper] = Some(Visit {
            phase: Phase::Reading,
            since: Instant::now(),
            stream: Arc::clone(stream),
        });
    }

    /// The visit goes on to another phase, unless it has been cut.
    pub fn enter(&self, keeper: usize, phase: Phase) {
        let mut visits = match phase {
            Phase::Writing => self.room(),
            Phase::Leaving | Phase::Reading | Phase::Answering => self.lock(),
        };
        if let Some(visit) = &mut visits[keeper] {
            visit.phase = phase;
        }
    }

    /// The visit is over.
    pub fn end(&self, keeper: usize) {
        self.lock()[keeper] = None;
    }

    /// Cuts the visit that can best be done without, if there is one.
    pub fn cut_one(&self) {
        cut_one(&mut self.lock(), Instant::now());
    }

    /// Waits until there is room for one more slow visit.
    fn room(&self) -> MutexGuard<'_, Vec<Option<Visit>>> {
        loop {
            let mut visits = self.lock();
            let Some(wait) = make_room(&mut visits, Instant::now()) else {
                return visits;
            };
            drop(visits);
            thread::sleep(wait);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Visit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The visits that hold a keeper for as long as the client likes.
fn slow(visits: &[Option<Visit>]) -> impl Iterator<Item = &Visit> {
    let visits = visits.iter().flatten();
    visits.filter(|visit| visit.phase != Phase::Answering)
}

/// `None` when there is room, made or found; else how long to wait for it. An
/// eighth of the keepers never has a slow visit, so that somebody is always
/// there to let the next one in.
fn make_room(visits: &mut [Option<Visit>], now: Instant) -> Option<Duration> {
    let limit = visits.len().saturating_sub((visits.len() / 8).max(1));
    if slow(visits).count() < limit || cut_one(visits, now) {
        return None;
    }
    let oldest = slow(visits).map(|visit| visit.since).min()?;
    Some(GRACE.saturating_sub(now.saturating_duration_since(oldest)))
}

/// Ends the connection of one visit, the oldest of the first phase that there
/// is. Its keeper notices at once.
fn cut_one(visits: &mut [Option<Visit>], now: Instant) -> bool {
    let may_be_cut = |visit: &Visit| match visit.phase {
        Phase::Leaving => true,
        Phase::Reading | Phase::Writing => now.saturating_duration_since(visit.since) >= GRACE,
        Phase::Answering => false,
    };
    let victim = visits
        .iter_mut()
        .filter(|visit| visit.as_ref().is_some_and(may_be_cut))
        .min_by_key(|visit| visit.as_ref().map(|visit| (visit.phase, visit.since)));
    match victim.and_then(Option::take) {
        Some(visit) => {
            visit.stream.shutdown(Shutdown::Both);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    const MS: Duration = Duration::from_millis(1);

    /// A visit with these phase and age, and the client's end of it.
    fn visit(phase: Phase, age: Duration, now: Instant) -> (Option<Visit>, UnixStream) {
        let (client, ours) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let visit = Visit {
            phase,
            since: now.checked_sub(age).unwrap(),
            stream: Arc::new(Stream::Unix(ours)),
        };
        (Some(visit), client)
    }

    /// Eight keepers, of whom the last is free, as one always should be.
    fn eight(of: [(Phase, u32); 7], now: Instant) -> (Vec<Option<Visit>>, Vec<UnixStream>) {
        let visits = of.map(|(phase, age)| visit(phase, Duration::from_millis(age.into()), now));
        let (mut visits, clients): (Vec<_>, _) = visits.into_iter().unzip();
        visits.push(None);
        (visits, clients)
    }

    fn cut(clients: &[UnixStream]) -> Vec<usize> {
        let is_cut = |mut client: &UnixStream| matches!(client.read(&mut [0]), Ok(0));
        (0..clients.len())
            .filter(|number| is_cut(&clients[*number]))
            .collect()
    }

    #[test]
    fn the_oldest_of_the_first_phase_has_to_go() {
        let now = Instant::now();
        let phases = [
            (Phase::Writing, 900),
            (Phase::Reading, 300),
            (Phase::Leaving, 1),
            (Phase::Reading, 400),
            (Phase::Leaving, 2),
            (Phase::Writing, 800),
            (Phase::Answering, 999),
        ];
        let (mut visits, clients) = eight(phases, now);
        let mut gone = Vec::new();
        for victim in [4, 2, 3, 1, 0, 5] {
            assert!(cut_one(&mut visits, now));
            gone.push(victim);
            gone.sort_unstable();
            assert_eq!(cut(&clients), gone);
        }
        assert!(!cut_one(&mut visits, now), "the answer is on its way");
        assert!(visits[6].is_some());
    }

    #[test]
    fn nobody_is_cut_while_there_is_room() {
        let now = Instant::now();
        let (mut visits, clients) = eight([(Phase::Reading, 100); 7], now);
        visits[3] = None;
        assert_eq!(make_room(&mut visits, now), None);
        assert_eq!(cut(&clients), [3]); // That one left by itself.

        let (mut visits, clients) = eight([(Phase::Reading, 100); 7], now);
        assert_eq!(make_room(&mut visits, now), None);
        assert_eq!(cut(&clients), [0]);
    }

    #[test]
    fn those_who_wait_for_us_do_not_make_a_crowd() {
        let now = Instant::now();
        let mut phases = [(Phase::Answering, 100); 7];
        phases[0].0 = Phase::Reading;
        let (mut visits, clients) = eight(phases, now);
        assert_eq!(make_room(&mut visits, now), None);
        assert!(cut(&clients).is_empty());
    }

    #[test]
    fn the_young_have_their_time() {
        let now = Instant::now();
        let mut phases = [
            (Phase::Reading, 1),
            (Phase::Reading, 3),
            (Phase::Writing, 2),
        ]
        .into_iter()
        .cycle();
        let (mut visits, clients) = eight([(); 7].map(|()| phases.next().unwrap()), now);
        let wait = make_room(&mut visits, now).unwrap();
        assert_eq!(wait, GRACE - 3 * MS);
        assert!(cut(&clients).is_empty());
        assert_eq!(make_room(&mut visits, now + wait), None);
        assert_eq!(cut(&clients), [1]);
    }

    #[test]
    fn a_visit_that_was_cut_does_not_come_back() {
        let visits = Visits::new(2);
        let (_client, ours) = UnixStream::pair().unwrap();
        visits.begin(0, &Arc::new(Stream::Unix(ours)));
        visits.enter(0, Phase::Leaving);
        visits.cut_one();
        visits.enter(0, Phase::Writing);
        assert!(visits.lock()[0].is_none());
    }
}
