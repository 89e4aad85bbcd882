//! Requests that timed out and are still open in the server.
//!
//! Closing the connection would not take such a request back: llama-server keeps it in the
//! queue of its work, and one of its HTTP threads with it, until the batch at hand is done.
//! So it stays open, and its endpoint is not asked again before it has ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::upstream::http::transport::PendingConnection;

/// Endpoints that wait behind the model's work: in llama-server before b10566 all but `/health`,
/// in ik_llama.cpp that as well.
const QUEUED: [&str; 3] = ["/health", "/metrics", "/slots"];
/// An answer of one of these shows that nothing waits behind the model's work any more. `/health`
/// shows that in ik_llama.cpp only.
const QUEUED_EVERYWHERE: [&str; 2] = ["/metrics", "/slots"];

/// After how many time-outs a request that waits alone is doubted, and at what age at the least:
/// it may have got lost.
const DOUBTED_AFTER: u32 = 20;
const LEAST_DOUBTED: Duration = Duration::from_secs(30);
/// The least age of a request outside of the queue that is given up while others are answered.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// The age at which any request is given up. ik_llama.cpp reads a prompt for up to an hour.
const LONGEST_WAIT: Duration = Duration::from_secs(6 * 3600);
/// The most requests of one base URL that are open, each of which holds a descriptor.
const MOST_OPEN: usize = 100;
/// The most of all: a process may have 1,024 descriptors by default, and llama-swap names as many
/// base URLs as it likes.
const MOST_OF_ALL: usize = 500;

/// How many requests are open, of all base URLs.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Open requests of one base URL, the oldest first.
#[derive(Debug)]
pub struct OpenRequests {
    requests: VecDeque<OpenRequest>,
    /// How many there are of all base URLs.
    all: &'static AtomicUsize,
    doubted_after: Duration,
    lost_after: Duration,
}

#[derive(Debug)]
struct OpenRequest {
    path: &'static str,
    url: String,
    since: Instant,
    connection: PendingConnection,
    all: &'static AtomicUsize,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What stands before the path of an endpoint in its URL, and the query behind it: the same for
/// all endpoints of one model's server.
fn place<'a>(path: &str, url: &'a str) -> (&'a str, &'a str) {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    (before.strip_suffix(path).unwrap_or(before), query)
}

impl OpenRequest {
    fn is_at(&self, place_of: (&str, &str)) -> bool {
        place(self.path, &self.url) == place_of
    }

    fn is_queued(&self) -> bool {
        QUEUED.contains(&self.path)
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

impl OpenRequests {
    /// None yet; each has timed out after `timeout`.
    pub fn new(timeout: Duration) -> OpenRequests {
        let doubted_after = timeout.saturating_mul(DOUBTED_AFTER).max(LEAST_DOUBTED);
        OpenRequests {
            requests: VecDeque::new(),
            all: &OPEN,
            doubted_after,
            lost_after: doubted_after.max(LOST_AFTER),
        }
    }

    /// Doubts a request that waits alone at this age.
    #[cfg(test)]
    pub(super) fn suspect_after(&mut self, age: Duration) {
        self.doubted_after = age;
    }

    /// Forgets those that have ended by `now`: answered, or their connection is gone.
    pub fn refresh(&mut self, now: Instant) {
        self.requests
            .retain(|request| request.age(now) < LONGEST_WAIT && !request.connection.is_over());
    }

    /// Whether the request for `url` is open.
    pub fn contains(&self, url: &str) -> bool {
        self.requests.iter().any(|request| request.url == url)
    }

    /// Keeps the request for `url`, sent at `since`. Where there are too many the oldest is given
    /// up, or this one, where the others are of other base URLs.
    pub fn keep(
        &mut self,
        path: &'static str,
        url: &str,
        since: Instant,
        connection: PendingConnection,
    ) {
        let is_full = || self.all.load(Ordering::Relaxed) >= MOST_OF_ALL;
        if self.requests.len() >= MOST_OPEN || is_full() {
            self.requests.pop_front();
        }
        if is_full() {
            return;
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        self.requests.push_back(OpenRequest {
            path,
            url: url.to_owned(),
            since,
            connection,
            all: self.all,
        });
    }

    /// Forgets all: nobody listens at the server's address any more.
    pub fn clear(&mut self) {
        self.requests.clear();
    }

    /// Takes that the request for `path` at `url` was answered at `now`, and by that gives up
    /// older ones that would have been answered too. `is_new` says that the server is still
    /// loading, and so was started after them.
    pub fn answered(&mut self, path: &str, url: &str, now: Instant, is_new: bool) {
        let is_queue_empty = is_new || QUEUED_EVERYWHERE.contains(&path);
        let place_of = place(path, url);
        let lost_after = self.lost_after;
        self.requests.retain(|request| {
            let is_lost = !request.is_queued() && request.age(now) >= lost_after;
            !(request.is_at(place_of) && (is_queue_empty || is_lost))
        });
    }

    /// Whether a request waits behind the work of the server of `path` at `url`.
    pub fn is_queue_blocked(&self, path: &str, url: &str) -> bool {
        self.queued_at(path, url).next().is_some()
    }

    /// Whether it waits alone there, and for so long that it may have got lost: then one more
    /// request, to another endpoint of the queue, tells.
    pub fn may_be_lost(&self, path: &str, url: &str, now: Instant) -> bool {
        let mut queued = self.queued_at(path, url);
        match (queued.next(), queued.next()) {
            (Some(request), None) => request.age(now) >= self.doubted_after,
            _ => false,
        }
    }

    fn queued_at(&self, path: &str, url: &str) -> impl Iterator<Item = &OpenRequest> {
        let place_of = place(path, url);
        let is_there = move |request: &&OpenRequest| request.is_queued() && request.is_at(place_of);
        self.requests.iter().filter(is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    const SECOND: Duration = Duration::from_secs(1);
    const METRICS: &str = "http://h:1/metrics";
    const SLOTS: &str = "http://h:1/slots";
    const HEALTH: &str = "http://h:1/health";
    const PROPS: &str = "http://h:1/props";

    /// The two ends of a connection: ours, and the server's.
    fn connection() -> (PendingConnection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (
            PendingConnection::new(Arc::new(ours)),
            listener.accept().unwrap().0,
        )
    }

    /// Requests for these URLs, open since `start`, and the server's ends of their connections.
    fn open(start: Instant, requests: &[(&'static str, &str)]) -> (OpenRequests, Vec<TcpStream>) {
        let mut open = OpenRequests::new(3 * SECOND);
        let mut peers = Vec::new();
        for (path, url) in requests {
            let (ours, peer) = connection();
            open.keep(path, url, start, ours);
            peers.push(peer);
        }
        (open, peers)
    }

    #[test]
    fn a_request_ends_with_its_answer_or_its_connection_and_not_with_time() {
        let start = Instant::now();
        let requests = [
            ("/health", HEALTH),
            ("/metrics", METRICS),
            ("/slots", SLOTS),
        ];
        let (mut open, mut peers) = open(start, &requests);
        open.refresh(start + 3600 * SECOND);
        assert!(requests.iter().all(|(_, url)| open.contains(url)));

        peers[0].write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        drop(peers.remove(1));
        while open.requests.len() > 1 {
            open.refresh(start);
        }
        assert!(open.contains(SLOTS));
    }

    #[test]
    fn an_answer_from_the_queue_shows_that_older_requests_have_left_it() {
        let start = Instant::now();
        let child = "http://h:1/slots?model=a&autoload=false";
        let requests = [("/health", HEALTH), ("/slots", SLOTS), ("/slots", child)];
        let (mut open, _peers) = open(start, &requests);
        // /health and /props are answered by llama.cpp while others wait.
        open.answered("/props", PROPS, start + 3600 * SECOND, false);
        open.answered("/health", HEALTH, start + 3600 * SECOND, false);
        assert!(open.contains(HEALTH) && open.contains(SLOTS));
        open.answered("/metrics", METRICS, start + SECOND, false);
        assert!(!open.contains(HEALTH) && !open.contains(SLOTS));
        assert!(open.contains(child), "another model's server");
    }

    #[test]
    fn a_server_that_loads_was_started_after_the_request() {
        let start = Instant::now();
        let (mut open, _peers) = open(start, &[("/metrics", METRICS), ("/props", PROPS)]);
        open.answered("/health", HEALTH, start + SECOND, true);
        assert!(!open.contains(METRICS) && !open.contains(PROPS));
    }

    #[test]
    fn a_lost_request_outside_of_the_queue_is_given_up_while_others_are_answered() {
        let start = Instant::now();
        let (mut open, _peers) = open(start, &[("/props", PROPS)]);
        open.answered("/health", HEALTH, start + 59 * SECOND, false);
        assert!(open.contains(PROPS));
        open.answered("/health", HEALTH, start + 61 * SECOND, false);
        assert!(!open.contains(PROPS));
    }

    #[test]
    fn a_request_that_waits_alone_for_long_is_doubted_and_two_are_not() {
        let start = Instant::now();
        let (mut open, _peers) = open(start, &[("/metrics", METRICS)]);
        assert!(open.is_queue_blocked("/slots", SLOTS));
        assert!(!open.may_be_lost("/slots", SLOTS, start + 59 * SECOND));
        assert!(open.may_be_lost("/slots", SLOTS, start + 61 * SECOND));
        let (ours, _peer) = connection();
        open.keep("/slots", SLOTS, start + 61 * SECOND, ours);
        assert!(!open.may_be_lost("/slots", SLOTS, start + 3600 * SECOND));
    }

    #[test]
    fn the_oldest_is_given_up_where_there_are_too_many() {
        let start = Instant::now();
        let mut open = OpenRequests::new(SECOND);
        let (ours, _peer) = connection();
        for model in 0..=MOST_OPEN {
            let url = format!("{METRICS}?model={model}");
            open.keep("/metrics", &url, start, ours.clone());
        }
        assert_eq!(open.requests.len(), MOST_OPEN);
        assert!(!open.contains(&format!("{METRICS}?model=0")));
        assert!(open.contains(&format!("{METRICS}?model=1")));
    }

    #[test]
    fn all_base_urls_together_leave_descriptors_for_the_rest_of_the_process() {
        static ALL: AtomicUsize = AtomicUsize::new(0);
        let start = Instant::now();
        let (ours, _peer) = connection();
        let of_one = || OpenRequests {
            all: &ALL,
            ..OpenRequests::new(SECOND)
        };
        let mut all: Vec<_> = (0..600).map(|_| of_one()).collect();
        for open in &mut all {
            open.keep("/metrics", METRICS, start, ours.clone());
        }
        let kept = |all: &[OpenRequests]| all.iter().map(|open| open.requests.len()).sum::<usize>();
        assert_eq!(kept(&all), MOST_OF_ALL);
        // Its own oldest makes room where there is none.
        all[0].keep("/slots", SLOTS, start, ours.clone());
        assert!(all[0].contains(SLOTS) && !all[0].contains(METRICS));
        all.truncate(100);
        all[0].keep("/health", HEALTH, start, ours);
        assert_eq!((kept(&all), all[0].contains(SLOTS)), (101, true));
    }
}
