//! Requests that timed out and are still pending in the server.
//!
//! Closing the connection would not cancel such a request: it stays in llama-server's queue and
//! occupies an HTTP thread until the current batch is done. So the connection stays open, and the
//! request is not sent again before it has ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::upstream::http::transport::PendingConnection;

/// Endpoints whose requests wait in the model's queue until the current batch is done: in
/// llama-server before b10566 all but `/health`, in ik_llama.cpp `/health` too.
const QUEUED: [&str; 3] = ["/health", "/metrics", "/slots"];
/// Endpoints whose response shows that the queue is empty. `/health` shows it only in ik_llama.cpp.
const QUEUED_EVERYWHERE: [&str; 2] = ["/metrics", "/slots"];

/// The only request in a queue may be lost after this many time-outs, and no sooner than at this
/// age.
const SUSPECT_TIMEOUTS: u32 = 20;
const MIN_SUSPECT_AGE: Duration = Duration::from_secs(30);
/// The minimum age at which a request outside of the queue is given up while others get responses.
const MIN_LOST_AGE: Duration = Duration::from_secs(60);
/// Any request is given up at this age. ik_llama.cpp reads a prompt for up to an hour.
const MAX_AGE: Duration = Duration::from_secs(6 * 3600);
/// The most open requests of one base URL. Each holds a file descriptor.
const MAX_OPEN: usize = 100;
/// The most open requests of all base URLs: a process may have 1,024 file descriptors by default,
/// and llama-swap may list any number of servers.
const MAX_OPEN_IN_TOTAL: usize = 500;

/// Open requests of all base URLs.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Open requests of one base URL, the oldest first.
#[derive(Debug)]
pub struct OpenRequests {
    requests: VecDeque<OpenRequest>,
    total: &'static AtomicUsize,
    suspect_age: Duration,
    lost_age: Duration,
}

#[derive(Debug)]
struct OpenRequest {
    path: &'static str,
    url: String,
    sent_at: Instant,
    connection: PendingConnection,
    total: &'static AtomicUsize,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OpenRequest {
    fn is_queued(&self) -> bool {
        QUEUED.contains(&self.path)
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.sent_at)
    }

    /// Whether the same model's server receives a request for `path` at `url`.
    fn has_server_of(&self, path: &str, url: &str) -> bool {
        server_of(self.path, &self.url) == server_of(path, url)
    }
}

/// The parts of an endpoint's URL before and after its path, which are the same for all endpoints
/// of one model's server.
fn server_of<'a>(path: &str, url: &'a str) -> (&'a str, &'a str) {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    (before.strip_suffix(path).unwrap_or(before), query)
}

impl OpenRequests {
    /// No open requests yet, for a client with this time-out.
    pub fn new(timeout: Duration) -> OpenRequests {
        let suspect_age = timeout
            .saturating_mul(SUSPECT_TIMEOUTS)
            .max(MIN_SUSPECT_AGE);
        OpenRequests {
            requests: VecDeque::new(),
            total: &OPEN,
            suspect_age,
            lost_age: suspect_age.max(MIN_LOST_AGE),
        }
    }

    #[cfg(test)]
    pub(super) fn suspect_after(&mut self, age: Duration) {
        self.suspect_age = age;
    }

    /// Removes the requests that have ended by `now`: the server has responded, or the connection
    /// is closed.
    pub fn remove_ended(&mut self, now: Instant) {
        self.requests
            .retain(|request| request.age(now) < MAX_AGE && !request.connection.is_over());
    }

    /// Whether the request for `url` is open.
    pub fn contains(&self, url: &str) -> bool {
        self.requests.iter().any(|request| request.url == url)
    }

    /// Adds a request for `url`, sent at `sent_at`. At the limit, gives up the oldest request of
    /// this base URL, or the new one if there is none.
    pub fn add(
        &mut self,
        path: &'static str,
        url: &str,
        sent_at: Instant,
        connection: PendingConnection,
    ) {
        let is_full = || self.total.load(Ordering::Relaxed) >= MAX_OPEN_IN_TOTAL;
        if self.requests.len() >= MAX_OPEN || is_full() {
            self.requests.pop_front();
        }
        if is_full() {
            return;
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        self.requests.push_back(OpenRequest {
            path,
            url: url.to_owned(),
            sent_at,
            connection,
            total: self.total,
        });
    }

    /// Removes all requests: nothing listens on the server's address any more.
    pub fn clear(&mut self) {
        self.requests.clear();
    }

    /// Removes lost requests: those that the server would have handled before the request for
    /// `path` at `url`, which got a response at `now`. `is_loading`: the server is loading its
    /// model, so it was started after all of them were sent.
    pub fn remove_lost(&mut self, path: &str, url: &str, now: Instant, is_loading: bool) {
        let is_queue_empty = is_loading || QUEUED_EVERYWHERE.contains(&path);
        let lost_age = self.lost_age;
        self.requests.retain(|request| {
            let is_lost = !request.is_queued() && request.age(now) >= lost_age;
            !(request.has_server_of(path, url) && (is_queue_empty || is_lost))
        });
    }

    /// Whether a request waits in the queue of the server of `path` at `url`.
    pub fn is_queue_blocked(&self, path: &str, url: &str) -> bool {
        self.queued(path, url).next().is_some()
    }

    /// Whether exactly one request waits there, for so long that it may be lost: then one more
    /// request, to another endpoint with the same queue, shows whether it is.
    pub fn may_be_lost(&self, path: &str, url: &str, now: Instant) -> bool {
        let mut queued = self.queued(path, url);
        match (queued.next(), queued.next()) {
            (Some(request), None) => request.age(now) >= self.suspect_age,
            _ => false,
        }
    }

    fn queued(&self, path: &str, url: &str) -> impl Iterator<Item = &OpenRequest> {
        let requests = self.requests.iter();
        requests.filter(move |request| request.is_queued() && request.has_server_of(path, url))
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
            open.add(path, url, start, ours);
            peers.push(peer);
        }
        (open, peers)
    }

    #[test]
    fn a_request_ends_with_its_response_or_connection_not_with_time() {
        let start = Instant::now();
        let requests = [
            ("/health", HEALTH),
            ("/metrics", METRICS),
            ("/slots", SLOTS),
        ];
        let (mut open, mut peers) = open(start, &requests);
        open.remove_ended(start + 3600 * SECOND);
        assert!(requests.iter().all(|(_, url)| open.contains(url)));

        peers[0].write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        drop(peers.remove(1));
        while open.requests.len() > 1 {
            open.remove_ended(start);
        }
        assert!(open.contains(SLOTS));
    }

    #[test]
    fn a_response_from_the_queue_ends_older_requests_in_it() {
        let start = Instant::now();
        let child = "http://h:1/slots?model=a&autoload=false";
        let requests = [("/health", HEALTH), ("/slots", SLOTS), ("/slots", child)];
        let (mut open, _peers) = open(start, &requests);
        // llama.cpp responds to /health and /props while others wait.
        open.remove_lost("/props", PROPS, start + 3600 * SECOND, false);
        open.remove_lost("/health", HEALTH, start + 3600 * SECOND, false);
        assert!(open.contains(HEALTH) && open.contains(SLOTS));
        open.remove_lost("/metrics", METRICS, start + SECOND, false);
        assert!(!open.contains(HEALTH) && !open.contains(SLOTS));
        assert!(open.contains(child), "another model's server");
    }

    #[test]
    fn a_loading_server_was_started_after_the_request() {
        let start = Instant::now();
        let (mut open, _peers) = open(start, &[("/metrics", METRICS), ("/props", PROPS)]);
        open.remove_lost("/health", HEALTH, start + SECOND, true);
        assert!(!open.contains(METRICS) && !open.contains(PROPS));
    }

    #[test]
    fn a_request_outside_of_the_queue_is_given_up_while_others_get_responses() {
        let start = Instant::now();
        let (mut open, _peers) = open(start, &[("/props", PROPS)]);
        open.remove_lost("/health", HEALTH, start + 59 * SECOND, false);
        assert!(open.contains(PROPS));
        open.remove_lost("/health", HEALTH, start + 61 * SECOND, false);
        assert!(!open.contains(PROPS));
    }

    #[test]
    fn a_single_request_that_waits_for_long_may_be_lost_and_two_may_not() {
        let start = Instant::now();
        let (mut open, _peers) = open(start, &[("/metrics", METRICS)]);
        assert!(open.is_queue_blocked("/slots", SLOTS));
        assert!(!open.may_be_lost("/slots", SLOTS, start + 59 * SECOND));
        assert!(open.may_be_lost("/slots", SLOTS, start + 61 * SECOND));
        let (ours, _peer) = connection();
        open.add("/slots", SLOTS, start + 61 * SECOND, ours);
        assert!(!open.may_be_lost("/slots", SLOTS, start + 3600 * SECOND));
    }

    #[test]
    fn the_oldest_is_given_up_if_there_are_too_many() {
        let start = Instant::now();
        let mut open = OpenRequests::new(SECOND);
        let (ours, _peer) = connection();
        for model in 0..=MAX_OPEN {
            let url = format!("{METRICS}?model={model}");
            open.add("/metrics", &url, start, ours.clone());
        }
        assert_eq!(open.requests.len(), MAX_OPEN);
        assert!(!open.contains(&format!("{METRICS}?model=0")));
        assert!(open.contains(&format!("{METRICS}?model=1")));
    }

    #[test]
    fn open_requests_of_all_base_urls_are_limited() {
        static TOTAL: AtomicUsize = AtomicUsize::new(0);
        let start = Instant::now();
        let (ours, _peer) = connection();
        let of_one = || OpenRequests {
            total: &TOTAL,
            ..OpenRequests::new(SECOND)
        };
        let mut all: Vec<_> = (0..600).map(|_| of_one()).collect();
        for open in &mut all {
            open.add("/metrics", METRICS, start, ours.clone());
        }
        let kept = |all: &[OpenRequests]| all.iter().map(|open| open.requests.len()).sum::<usize>();
        assert_eq!(kept(&all), MAX_OPEN_IN_TOTAL);
        // Its own oldest request makes room.
        all[0].add("/slots", SLOTS, start, ours.clone());
        assert!(all[0].contains(SLOTS) && !all[0].contains(METRICS));
        all.truncate(100);
        all[0].add("/health", HEALTH, start, ours);
        assert_eq!((kept(&all), all[0].contains(SLOTS)), (101, true));
    }
}
