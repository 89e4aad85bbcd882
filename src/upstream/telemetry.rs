//! Reading what one model's server is doing: `/metrics`, and right after it `/slots`.
//!
//! In that order a request that ends in between is missing from both for one
//! poll, and none is ever counted twice. Before b10566 both wait in the
//! server's queue until the batch at hand is done, and count as work.

use std::io;
use std::time::Instant;

use crate::bounds;
use crate::readings::{CountersReading, Slots, SlotsReading, Update};
use crate::snapshot::Reason;
use crate::upstream::api::counters_by_model::CountersByModel;
use crate::upstream::http::exchange::{Endpoint, Exchange, NotServed};
use crate::upstream::idle_guard::IdleGuard;

const METRICS: Endpoint = Endpoint {
    path: "/metrics",
    limit: 1 << 20,
};
/// 1.7 KB a slot in the recordings; never held as a whole.
const SLOTS: Endpoint = Endpoint {
    path: "/slots",
    limit: 32 << 20,
};

/// Said where a part of `/metrics` is not understood.
pub const LINES_PASSED_OVER: &str =
    "/metrics has lines that are not understood: they are passed over, the others count";

/// The response header that tells one life of the server from the next.
const LIFE_HEADER: &str = "Process-Start-Time-Unix";

/// Where one model's server is asked.
#[derive(Clone, Debug)]
pub struct ServerUrl {
    /// What stands before an endpoint's path.
    pub root: String,
    /// What stands behind it: empty, or a query with its question mark.
    pub query: String,
    /// What its server may call its model in `/metrics`, where that says.
    pub model_names: Vec<String>,
}

impl ServerUrl {
    /// The URL of `endpoint` there.
    pub fn url(&self, endpoint: Endpoint) -> String {
        format!("{}{}{}", self.root, endpoint.path, self.query)
    }
}

/// What must be remembered of one model's server between two polls.
#[derive(Debug)]
pub struct TelemetryReader {
    /// When it may be asked.
    pub idle_guard: IdleGuard,
    no_metrics: Option<NotServed>,
    no_slots: Option<NotServed>,
    /// Whether lines of the last `/metrics` were not understood.
    passes_over_lines: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Read {
    /// `/metrics`.
    pub counters: Update<CountersReading>,
    /// `/slots`.
    pub slots: Update<SlotsReading>,
    /// Whether an answer is late: the server is at work.
    pub late: bool,
}

impl TelemetryReader {
    /// Nothing is known yet.
    pub fn new(idle_guard: IdleGuard) -> TelemetryReader {
        TelemetryReader {
            idle_guard,
            no_metrics: None,
            no_slots: None,
            passes_over_lines: false,
        }
    }

    /// Whether the server has said that it serves no `/metrics`.
    pub fn lacks_metrics(&self) -> bool {
        self.no_metrics.is_some()
    }

    /// Whether there is no `/slots`.
    pub fn lacks_slots(&self) -> bool {
        self.no_slots.is_some()
    }

    /// Forgets the last life of the server; keeps what is known of its sleep.
    pub fn restarted(&mut self) {
        self.idle_guard.reconnected();
        self.no_metrics = None;
        self.no_slots = None;
        self.passes_over_lines = false;
    }

    /// What is to be made of both where neither is asked.
    pub fn unread(&self, late: bool) -> Read {
        Read {
            counters: if self.no_metrics.is_some() {
                Update::Absent
            } else {
                Update::Stale
            },
            slots: if self.no_slots.is_some() {
                Update::Absent
            } else {
                Update::Stale
            },
            late,
        }
    }

    /// Asks what may be asked now.
    pub fn read(&mut self, exchange: &mut Exchange, place: &ServerUrl) -> Read {
        let (metrics_url, slots_url) = (place.url(METRICS), place.url(SLOTS));
        if exchange.is_queue_blocked(METRICS, &metrics_url) {
            self.look_whether_lost(exchange, &metrics_url, &slots_url);
            if exchange.is_queue_blocked(METRICS, &metrics_url) {
                return self.unread(true);
            }
        }
        let mut read = Read::default();
        if self.no_metrics.is_some() {
            read.counters = Update::Absent;
        } else if self.idle_guard.may_ask_metrics(Instant::now()) {
            let metrics = exchange.get(METRICS, &metrics_url, |answer| {
                let process = answer
                    .header(LIFE_HEADER)
                    .map(|process| bounds::cut(process).to_owned());
                let names: Vec<&str> = place.model_names.iter().map(String::as_str).collect();
                let (counters, passed_over) = answer.stream(|body| {
                    let read = CountersByModel::read(body, |_| true)?;
                    let passed_over = read.passed_over > 0;
                    Ok((read.of_server(&names)?, passed_over))
                })?;
                let counters = CountersReading {
                    at: Instant::now(),
                    process,
                    counters,
                };
                Ok((counters, passed_over))
            });
            if metrics.timed_out() {
                return self.unread(true);
            }
            self.no_metrics = metrics.not_served();
            if let Some((counters, passed_over)) = metrics.ok() {
                self.passes_over_lines = passed_over;
                self.idle_guard.saw_metrics(counters.at, &counters.counters);
                read.counters = Update::New(counters);
            }
        } else {
            let asleep = self.idle_guard.is_asleep();
            read.counters = if asleep {
                Update::Unchanged
            } else {
                Update::Stale
            };
        }

        if self.no_slots.is_some() || self.idle_guard.is_asleep() {
            read.slots = Update::Absent;
        } else if self.idle_guard.may_ask_slots(Instant::now()) {
            let slots = exchange.get(SLOTS, &slots_url, |answer| {
                let Slots(slots) = answer.json()?;
                Ok(SlotsReading {
                    at: Instant::now(),
                    slots,
                })
            });
            if slots.timed_out() {
                read.slots = Update::Stale;
                read.late = true;
                return read;
            }
            self.no_slots = slots.not_served();
            if let Some(slots) = slots.ok() {
                let busy = slots.slots.iter().any(|slot| slot.is_processing);
                self.idle_guard.saw_slots(slots.at, busy);
                read.slots = Update::New(slots);
            }
        } else {
            let known = matches!(read.counters, Update::New(_));
            read.slots = if known {
                Update::Unchanged
            } else {
                Update::Stale
            };
        }
        read
    }

    /// Where a request waits for so long that it may have got lost, asks another endpoint of the
    /// same queue: an answer shows that. There are never more than these two.
    fn look_whether_lost(&self, exchange: &mut Exchange, metrics_url: &str, slots_url: &str) {
        if self.idle_guard.is_asleep() || !exchange.may_be_lost(METRICS, metrics_url) {
            return;
        }
        let others = [
            (METRICS, metrics_url, self.no_metrics),
            (SLOTS, slots_url, self.no_slots),
        ];
        let other = others
            .into_iter()
            .find(|(_, url, missing)| missing.is_none() && !exchange.is_pending(url));
        if let Some((endpoint, url, _)) = other {
            exchange.get(endpoint, url, |answer| {
                answer.stream(|body| {
                    io::copy(body, &mut io::sink()).map_err(|error| error.to_string())
                })
            });
        }
    }

    /// Takes it that what failed in this poll for an `is_proxys` reason is not served: a proxy has
    /// answered in the server's place.
    pub fn not_passed_on(&mut self, exchange: &mut Exchange, is_proxys: impl Fn(Reason) -> bool) {
        let endpoints = [(METRICS, &mut self.no_metrics), (SLOTS, &mut self.no_slots)];
        for (endpoint, missing) in endpoints {
            if exchange.discard_failures_where(endpoint, &is_proxys) {
                *missing = Some(NotServed::NotFound);
            }
        }
    }

    /// What the server cannot tell, for people.
    pub fn notes(&self, has_stats: bool) -> Vec<&'static str> {
        let mut notes = Vec::new();
        match self.no_metrics {
            Some(NotServed::Disabled) => notes.push(
                "/metrics is switched off: start llama-server with --metrics to get token counters, \
                 decode calls and waiting requests",
            ),
            Some(NotServed::NotFound) => notes.push("/metrics is not served at this address"),
            None if self.passes_over_lines => notes.push(LINES_PASSED_OVER),
            None => {}
        }
        match self.no_slots {
            Some(NotServed::Disabled) => notes.push(
                "/slots is switched off: start llama-server with --slots to get context use and \
                 exact live tokens",
            ),
            Some(NotServed::NotFound) => notes.push("/slots is not served at this address"),
            None => {}
        }
        match (self.no_metrics, self.no_slots) {
            (Some(_), Some(_)) if !has_stats => notes.push(
                "without both it cannot be told whether the model is idle or running, nor how fast",
            ),
            (Some(_), None) => notes.push(
                "without /metrics, tokens per second come from /slots: requests that begin and end \
                 between two polls are missed",
            ),
            (None, Some(_)) => notes.push(
                "without /slots, tokens in flight come from the decode calls, to within a few \
                 tokens a prompt",
            ),
            _ => {}
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::llama_server::{HEALTH, ask_health};
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The paths that a server was asked for.
    type Asked = Arc<Mutex<Vec<String>>>;

    /// A server that never answers the first request for `lost`, as if that had got lost on its
    /// way, and answers all others as an idle llama-server does.
    fn server(lost: &'static str) -> (String, Asked) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Asked::default();
        let record = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let record = Arc::clone(&record);
                thread::spawn(move || serve(&stream.unwrap(), lost, &record));
            }
        });
        (url, asked)
    }

    fn serve(mut stream: &TcpStream, lost: &str, asked: &Asked) {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Some(path) = line.strip_prefix("GET ").and_then(|l| l.split(' ').next()) else {
                continue;
            };
            let is_first = {
                let mut asked = asked.lock().unwrap();
                asked.push(path.to_owned());
                asked.iter().filter(|asked| *asked == path).count() == 1
            };
            if path == lost && is_first {
                continue;
            }
            let body = match path {
                "/metrics" => "llamacpp:requests_processing 0\n",
                "/slots" => "[{\"id\":0,\"is_processing\":false}]",
                _ => "{\"status\":\"ok\"}",
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_request_that_got_lost_is_given_up_when_another_of_the_queue_is_answered() {
        for lost in ["/health", "/metrics", "/slots"] {
            let (root, asked) = server(lost);
            let arguments = ["--base-url", &root, "--timeout", "2s"];
            let arguments = arguments.map(std::ffi::OsString::from).to_vec();
            let (_, settings) = crate::settings::parse(arguments, |_| None).unwrap();
            let mut exchange = Exchange::new(&settings.base_urls[0], &settings).unwrap();
            let place = ServerUrl {
                root,
                query: String::new(),
                model_names: Vec::new(),
            };
            let mut work = TelemetryReader::new(IdleGuard::new(None));
            let mut read = |exchange: &mut Exchange| {
                exchange.begin_poll(bounds::deadline(Instant::now(), HOUR));
                work.read(exchange, &place)
            };
            if lost == "/health" {
                exchange.begin_poll(bounds::deadline(Instant::now(), HOUR));
                assert!(ask_health(&mut exchange, &place.url(HEALTH)).timed_out());
            } else {
                assert!(read(&mut exchange).late, "{lost}");
            }
            // It may wait behind the work at hand: nothing else is asked of the queue.
            let before = asked.lock().unwrap().len();
            for _ in 0..3 {
                assert!(read(&mut exchange).late, "{lost}");
            }
            assert_eq!(asked.lock().unwrap().len(), before, "{lost}");

            exchange.suspect_after(Duration::ZERO);
            let read = read(&mut exchange);
            assert!(!read.late, "{lost}");
            assert!(matches!(read.counters, Update::New(_)), "{lost}");
            assert!(matches!(read.slots, Update::New(_)), "{lost}");
            assert!(!exchange.is_pending(&place.url(HEALTH)), "{lost}");
        }
    }
}
