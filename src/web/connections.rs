//! The open connections of a listener. Decides which one is closed when few workers are free.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::threads;
use crate::web::stream::Stream;

/// The minimum age at which a connection may be closed: on a busy machine, even a fast client may
/// need this long between connecting and sending. With 64 workers, 1,000 connections that never
/// send a request are still handled in less than 100 ms.
const GRACE: Duration = Duration::from_millis(4);

/// The phase of a connection, in the order in which connections are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The response has been sent; the client has not closed yet.
    Closing,
    /// The head of the request is being read.
    Reading,
    /// The response is being sent.
    Writing,
    /// The response is being generated. The delay is the exporter's own, so the connection is never
    /// closed in this phase.
    Waiting,
}

#[derive(Clone, Debug)]
struct Connection {
    phase: Phase,
    since: Instant,
    stream: Arc<Stream>,
}

/// The connection of each worker, by the worker's number.
#[derive(Debug)]
pub struct Connections(Mutex<Vec<Option<Connection>>>);

impl Connections {
    /// No connections yet, for this number of workers.
    pub fn new(workers: usize) -> Self {
        Self(Mutex::new(vec![None; workers]))
    }

    /// Adds a connection that a worker has accepted, in the phase [`Phase::Reading`]. Waits until
    /// enough workers are free.
    pub fn open(&self, worker: usize, stream: &Arc<Stream>) {
        self.room()[worker] = Some(Connection {
            phase: Phase::Reading,
            since: Instant::now(),
            stream: Arc::clone(stream),
        });
    }

    /// Sets the phase of the worker's connection, unless that has been closed.
    pub fn set_phase(&self, worker: usize, phase: Phase) {
        let mut connections = match phase {
            Phase::Writing => self.room(),
            Phase::Closing | Phase::Reading | Phase::Waiting => self.lock(),
        };
        if let Some(connection) = &mut connections[worker] {
            connection.phase = phase;
        }
    }

    /// Removes the worker's connection.
    pub fn remove(&self, worker: usize) {
        self.lock()[worker] = None;
    }

    /// Closes one slow connection, if there is one.
    pub fn close_one(&self) {
        close_one(&mut self.lock(), Instant::now());
    }

    /// Waits until another slow connection is allowed.
    fn room(&self) -> MutexGuard<'_, Vec<Option<Connection>>> {
        loop {
            let mut connections = self.lock();
            let Some(wait) = wait_for_worker(&mut connections, Instant::now()) else {
                return connections;
            };
            drop(connections);
            thread::sleep(wait);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Connection>>> {
        threads::lock(&self.0)
    }
}

/// The connections whose client decides how long they occupy a worker.
fn slow(connections: &[Option<Connection>]) -> impl Iterator<Item = &Connection> {
    let connections = connections.iter().flatten();
    connections.filter(|connection| connection.phase != Phase::Waiting)
}

/// How long to wait before another slow connection is allowed; `None` if it is allowed now. An
/// eighth of the workers never has a slow connection, so that one is always free to accept the
/// next.
fn wait_for_worker(connections: &mut [Option<Connection>], now: Instant) -> Option<Duration> {
    let limit = connections
        .len()
        .saturating_sub((connections.len() / 8).max(1));
    if slow(connections).count() < limit || close_one(connections, now) {
        return None;
    }
    let oldest = slow(connections).map(|connection| connection.since).min()?;
    Some(GRACE.saturating_sub(now.saturating_duration_since(oldest)))
}

/// Closes the oldest connection of the lowest phase. Its worker notices immediately.
fn close_one(connections: &mut [Option<Connection>], now: Instant) -> bool {
    let may_be_closed = |connection: &Connection| match connection.phase {
        Phase::Closing => true,
        Phase::Reading | Phase::Writing => now.saturating_duration_since(connection.since) >= GRACE,
        Phase::Waiting => false,
    };
    let closed = connections
        .iter_mut()
        .filter(|connection| connection.as_ref().is_some_and(may_be_closed))
        .min_by_key(|connection| {
            connection
                .as_ref()
                .map(|connection| (connection.phase, connection.since))
        });
    match closed.and_then(Option::take) {
        Some(connection) => {
            connection.stream.shutdown(Shutdown::Both);
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

    /// A connection with these phase and age, and the client's end of it.
    fn connection(phase: Phase, age: Duration, now: Instant) -> (Option<Connection>, UnixStream) {
        let (client, ours) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let connection = Connection {
            phase,
            since: now.checked_sub(age).unwrap(),
            stream: Arc::new(Stream::from(ours)),
        };
        (Some(connection), client)
    }

    /// Eight workers, of which the last one is free.
    fn eight(of: [(Phase, u32); 7], now: Instant) -> (Vec<Option<Connection>>, Vec<UnixStream>) {
        let connections =
            of.map(|(phase, age)| connection(phase, Duration::from_millis(age.into()), now));
        let (mut connections, clients): (Vec<_>, _) = connections.into_iter().unzip();
        connections.push(None);
        (connections, clients)
    }

    fn closed(clients: &[UnixStream]) -> Vec<usize> {
        let is_closed = |mut client: &UnixStream| matches!(client.read(&mut [0]), Ok(0));
        (0..clients.len())
            .filter(|number| is_closed(&clients[*number]))
            .collect()
    }

    #[test]
    fn the_oldest_connection_of_the_lowest_phase_is_closed() {
        let now = Instant::now();
        let phases = [
            (Phase::Writing, 900),
            (Phase::Reading, 300),
            (Phase::Closing, 1),
            (Phase::Reading, 400),
            (Phase::Closing, 2),
            (Phase::Writing, 800),
            (Phase::Waiting, 999),
        ];
        let (mut connections, clients) = eight(phases, now);
        let mut gone = Vec::new();
        for next in [4, 2, 3, 1, 0, 5] {
            assert!(close_one(&mut connections, now));
            gone.push(next);
            gone.sort_unstable();
            assert_eq!(closed(&clients), gone);
        }
        assert!(
            !close_one(&mut connections, now),
            "it is waiting for its response"
        );
        assert!(connections[6].is_some());
    }

    #[test]
    fn no_connection_is_closed_while_a_worker_is_free() {
        let now = Instant::now();
        let (mut connections, clients) = eight([(Phase::Reading, 100); 7], now);
        connections[3] = None;
        assert_eq!(wait_for_worker(&mut connections, now), None);
        assert_eq!(closed(&clients), [3]); // That client closed it.

        let (mut connections, clients) = eight([(Phase::Reading, 100); 7], now);
        assert_eq!(wait_for_worker(&mut connections, now), None);
        assert_eq!(closed(&clients), [0]);
    }

    #[test]
    fn connections_that_wait_for_a_response_are_not_slow() {
        let now = Instant::now();
        let mut phases = [(Phase::Waiting, 100); 7];
        phases[0].0 = Phase::Reading;
        let (mut connections, clients) = eight(phases, now);
        assert_eq!(wait_for_worker(&mut connections, now), None);
        assert!(closed(&clients).is_empty());
    }

    #[test]
    fn a_young_connection_is_not_closed() {
        let now = Instant::now();
        let mut phases = [
            (Phase::Reading, 1),
            (Phase::Reading, 3),
            (Phase::Writing, 2),
        ]
        .into_iter()
        .cycle();
        let (mut connections, clients) = eight([(); 7].map(|()| phases.next().unwrap()), now);
        let wait = wait_for_worker(&mut connections, now).unwrap();
        assert_eq!(wait, GRACE - 3 * MS);
        assert!(closed(&clients).is_empty());
        assert_eq!(wait_for_worker(&mut connections, now + wait), None);
        assert_eq!(closed(&clients), [1]);
    }

    #[test]
    fn a_closed_connection_stays_closed() {
        let connections = Connections::new(2);
        let (_client, ours) = UnixStream::pair().unwrap();
        connections.open(0, &Arc::new(Stream::from(ours)));
        connections.set_phase(0, Phase::Closing);
        connections.close_one();
        connections.set_phase(0, Phase::Writing);
        assert!(connections.lock()[0].is_none());
    }
}
