//! Reads `/metrics` of one model's server, and right after it `/slots`.
//!
//! In this order, a request that ends in between is missing from both for one poll, but no request
//! is counted twice. Before b10566, both wait in the server's queue until the current batch is
//! done, and restart its idle timer.

use std::io;
use std::time::Instant;

use crate::bounds;
use crate::readings::{CountersReading, ModelReading, ModelState, Slots, SlotsReading, Update};
use crate::snapshot::{Absence, Reason, SourceKind};
use crate::upstream::api::counters_by_model::CountersByModel;
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, NotServed, RequestOutcome};
use crate::upstream::idle_guard::IdleGuard;
use crate::upstream::server_url::ServerUrl;

/// `GET /metrics`.
pub const METRICS: Endpoint = Endpoint::new("/metrics", 1 << 20);
/// `GET /slots`. 1.7 KB a slot in the recordings; never held as a whole.
pub const SLOTS: Endpoint = Endpoint::new("/slots", 32 << 20);

/// The note if a part of `/metrics` cannot be parsed.
pub const INVALID_LINES: &str =
    "/metrics has lines that cannot be parsed: they are skipped, the others are used";

/// The response header that identifies the server's process.
const PROCESS_HEADER: &str = "Process-Start-Time-Unix";

/// Reads `/metrics` and `/slots` of one model's server.
#[derive(Debug)]
pub struct TelemetryReader {
    /// Decides when they may be read.
    pub idle_guard: IdleGuard,
    /// Whether the families of `/metrics` are kept as text, too.
    keeps_text: bool,
    metrics_not_served: Option<NotServed>,
    has_read_metrics: bool,
    slots_not_served: Option<NotServed>,
    /// Whether lines of the last `/metrics` could not be parsed.
    has_invalid_lines: bool,
}

impl TelemetryReader {
    /// Nothing is known yet. With `keeps_text`, the families of `/metrics` are kept as text, too.
    pub fn new(idle_guard: IdleGuard, keeps_text: bool) -> TelemetryReader {
        TelemetryReader {
            idle_guard,
            keeps_text,
            metrics_not_served: None,
            has_read_metrics: false,
            slots_not_served: None,
            has_invalid_lines: false,
        }
    }

    /// Whether `/metrics` is not served.
    pub fn lacks_metrics(&self) -> bool {
        self.metrics_not_served.is_some()
    }

    /// Whether `/slots` is not served.
    pub fn lacks_slots(&self) -> bool {
        self.slots_not_served.is_some()
    }

    /// Resets what is known of the server's process; keeps its idle timeout.
    pub fn reset(&mut self) {
        self.idle_guard.reset();
        self.metrics_not_served = None;
        self.has_read_metrics = false;
        self.slots_not_served = None;
        self.has_invalid_lines = false;
    }

    /// Fills in `model` without sending a request: counters of served endpoints keep their values.
    pub fn skip(&self, model: &mut ModelReading) {
        fn stale<T>(not_served: Option<NotServed>) -> Update<T> {
            not_served.map_or(Update::Stale, |_| Update::Absent)
        }
        model.counters = stale(self.metrics_not_served);
        model.slots = stale(self.slots_not_served);
        model.lacks_metrics = self.lacks_metrics();
    }

    /// Reads into `model` what may be read now; `names` are the server's possible names for it.
    /// Returns whether a response is late: then the server is busy.
    pub fn read(
        &mut self,
        exchange: &mut Exchange,
        url: &ServerUrl,
        names: &[String],
        model: &mut ModelReading,
    ) -> bool {
        self.skip(model);
        if exchange.is_queue_blocked(METRICS, &url.of(METRICS)) {
            self.check_pending(exchange, url);
            if exchange.is_queue_blocked(METRICS, &url.of(METRICS)) {
                return true;
            }
        }
        let Some(counters) = self.read_metrics(exchange, url, names) else {
            return true;
        };
        let slots = self.read_slots(exchange, url, matches!(counters, Update::New(_)));
        model.counters = counters;
        model.lacks_metrics = self.lacks_metrics();
        // No server switches it off while it runs.
        let is_off = self.metrics_not_served == Some(NotServed::Disabled);
        model.has_lost_metrics = is_off && std::mem::take(&mut self.has_read_metrics);
        let timed_out = slots.is_none();
        model.slots = slots.unwrap_or(Update::Stale);
        timed_out
    }

    /// Reads `/metrics`; `None` if the response is late.
    fn read_metrics(
        &mut self,
        exchange: &mut Exchange,
        url: &ServerUrl,
        names: &[String],
    ) -> Option<Update<CountersReading>> {
        if self.metrics_not_served.is_some() {
            return Some(Update::Absent);
        }
        if !self.idle_guard.may_read_metrics(Instant::now()) {
            let is_asleep = self.idle_guard.is_asleep();
            return Some(if is_asleep {
                Update::Unchanged
            } else {
                Update::Stale
            });
        }
        let metrics = exchange.get(METRICS, &url.of(METRICS), |answer| {
            let process = answer.header(PROCESS_HEADER);
            let process = process.map(|process| bounds::cut(process).to_owned());
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            answer.stream(|body| {
                let read = CountersByModel::read(body, self.keeps_text, |_| true)?;
                let has_invalid_lines = read.skipped_lines > 0;
                let counters = CountersReading {
                    process,
                    counters: read.of_server(&names)?,
                    at: Instant::now(),
                };
                Ok((counters, has_invalid_lines))
            })
        });
        if metrics.timed_out() {
            return None;
        }
        self.metrics_not_served = metrics.not_served();
        let Some((counters, has_invalid_lines)) = metrics.ok() else {
            return Some(Update::Absent);
        };
        self.has_invalid_lines = has_invalid_lines;
        self.has_read_metrics = true;
        self.idle_guard
            .record_metrics(counters.at, &counters.counters);
        Some(Update::New(counters))
    }

    /// Reads `/slots`; `None` if the response is late.
    fn read_slots(
        &mut self,
        exchange: &mut Exchange,
        url: &ServerUrl,
        has_metrics: bool,
    ) -> Option<Update<SlotsReading>> {
        if self.slots_not_served.is_some() || self.idle_guard.is_asleep() {
            return Some(Update::Absent);
        }
        if !self.idle_guard.may_read_slots(Instant::now()) {
            return Some(if has_metrics {
                Update::Unchanged
            } else {
                Update::Stale
            });
        }
        let slots = exchange.get(SLOTS, &url.of(SLOTS), |answer| {
            let Slots(slots) = answer.json()?;
            let at = Instant::now();
            Ok(SlotsReading { at, slots })
        });
        if slots.timed_out() {
            return None;
        }
        self.slots_not_served = slots.not_served();
        let Some(slots) = slots.ok() else {
            return Some(Update::Absent);
        };
        let is_busy = slots.slots.iter().any(|slot| slot.is_busy());
        self.idle_guard.record_slots(slots.at, is_busy);
        Some(Update::New(slots))
    }

    /// If a request has been waiting for so long that it may be lost, requests another endpoint
    /// with the same queue: a response shows that it is lost. No more than these two requests are
    /// open.
    fn check_pending(&self, exchange: &mut Exchange, url: &ServerUrl) {
        if self.idle_guard.is_asleep() || !exchange.may_be_lost(METRICS, &url.of(METRICS)) {
            return;
        }
        let endpoints = [
            (METRICS, self.metrics_not_served),
            (SLOTS, self.slots_not_served),
        ];
        let other = endpoints.into_iter().find(|(endpoint, missing)| {
            missing.is_none() && !exchange.is_pending(&url.of(*endpoint))
        });
        if let Some((endpoint, _)) = other {
            let _: RequestOutcome<u64> = exchange.get(endpoint, &url.of(endpoint), |answer| {
                answer.stream(|body| {
                    io::copy(body, &mut io::sink()).map_err(|error| error.to_string())
                })
            });
        }
    }

    /// Treats endpoints that failed in this poll for an `is_proxys` reason as not served: the
    /// response came from a proxy, not from the server.
    pub fn not_passed_on(&mut self, exchange: &mut Exchange, is_proxys: impl Fn(Reason) -> bool) {
        for (endpoint, missing) in [
            (METRICS, &mut self.metrics_not_served),
            (SLOTS, &mut self.slots_not_served),
        ] {
            if exchange.discard_failures_where(endpoint, &is_proxys) {
                *missing = Some(NotServed::NotFound);
            }
        }
    }

    /// Why `/metrics` and `/slots` were not read into `model`, if they were not.
    pub fn unread(&self, model: &ModelReading) -> impl Iterator<Item = (SourceKind, Absence)> {
        let is_stale = [
            matches!(model.counters, Update::Stale),
            matches!(model.slots, Update::Stale),
        ];
        let why_stale = match model.state {
            ModelState::Busy | ModelState::Waking => Absence::AnswerLate,
            ModelState::Unknown => Absence::NotYetPolled,
            _ => Absence::MayFallAsleep,
        };
        [
            (METRICS, self.metrics_not_served, is_stale[0]),
            (SLOTS, self.slots_not_served, is_stale[1]),
        ]
        .into_iter()
        .filter_map(move |(endpoint, missing, is_stale)| {
            let missing = missing.map(|missing| missing.absence(endpoint));
            let why = missing.or(is_stale.then_some(why_stale))?;
            Some((SourceKind::Endpoint(endpoint.path), why))
        })
    }

    /// Notes on endpoints that cannot be read, and on the missing data, for the user.
    pub fn notes(&self, has_stats: bool) -> Vec<&'static str> {
        let not_served = |missing: Option<NotServed>, endpoint: Endpoint| {
            missing.map(|missing| missing.absence(endpoint).note())
        };
        let invalid = self.has_invalid_lines.then_some(INVALID_LINES);
        let metrics = not_served(self.metrics_not_served, METRICS).or(invalid);
        let slots = not_served(self.slots_not_served, SLOTS);
        let loss = match (self.lacks_metrics(), self.lacks_slots()) {
            (true, true) if !has_stats => {
                Some("without both, the model's status and its tokens per second are unknown")
            }
            (true, false) => Some(
                "without /metrics, tokens per second come from /slots: where its log is not read, \
                 requests that begin and end between two polls are missed",
            ),
            (false, true) => Some(
                "without /slots, tokens in flight are computed from the decode calls, and are off \
                 by a few tokens per prompt",
            ),
            _ => None,
        };
        [metrics, slots, loss].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::endpoints::{HEALTH, read_health};
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The paths that a server received requests for.
    type RequestedPaths = Arc<Mutex<Vec<String>>>;

    /// A server that never responds to the first request for `lost`, as if it were lost on its way,
    /// and responds to all others like an idle llama-server.
    fn server(lost: &'static str) -> (String, RequestedPaths) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = RequestedPaths::default();
        let record = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let record = Arc::clone(&record);
                thread::spawn(move || serve(&stream.unwrap(), lost, &record));
            }
        });
        (url, asked)
    }

    fn serve(mut stream: &TcpStream, lost: &str, asked: &RequestedPaths) {
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
    fn a_lost_request_is_given_up_when_a_later_one_of_the_queue_is_answered() {
        for lost in ["/health", "/metrics", "/slots"] {
            let (root, asked) = server(lost);
            let arguments = ["--base-url", &root, "--timeout", "2s"];
            let arguments = arguments.map(std::ffi::OsString::from).to_vec();
            let (_, settings) = crate::settings::parse(arguments, |_| None).unwrap();
            let mut exchange = Exchange::new(&settings.base_urls[0], &settings).unwrap();
            let url = ServerUrl::new(root);
            let mut reader = TelemetryReader::new(IdleGuard::new(None), false);
            let mut read = |exchange: &mut Exchange| {
                exchange.begin_poll(bounds::deadline(Instant::now(), HOUR));
                let mut model = ModelReading::default();
                let timed_out = reader.read(exchange, &url, &[], &mut model);
                (timed_out, model)
            };
            if lost == "/health" {
                exchange.begin_poll(bounds::deadline(Instant::now(), HOUR));
                assert!(read_health(&mut exchange, &url.of(HEALTH)).timed_out());
            } else {
                assert!(read(&mut exchange).0, "{lost}");
            }
            // It may wait behind the current batch: no other request is sent to the queue.
            let before = asked.lock().unwrap().len();
            for _ in 0..3 {
                assert!(read(&mut exchange).0, "{lost}");
            }
            assert_eq!(asked.lock().unwrap().len(), before, "{lost}");

            exchange.suspect_after(Duration::ZERO);
            let (timed_out, model) = read(&mut exchange);
            assert!(!timed_out, "{lost}");
            assert!(matches!(model.counters, Update::New(_)), "{lost}");
            assert!(matches!(model.slots, Update::New(_)), "{lost}");
            assert!(!exchange.is_pending(&url.of(HEALTH)), "{lost}");
        }
    }
}
