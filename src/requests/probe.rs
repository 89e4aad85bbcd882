//! The probe: a one-token completion of our own, to measure the latency that a client sees.
//!
//! A probe is work for the server. It is sent only to a model that is loaded and awake, and only
//! after real traffic since the last probe, so that the probe itself keeps no model awake. How it
//! is sent is passed in.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::bounds;
use crate::process::threads;
use crate::readings::counters::rounding_step;
use crate::readings::{Completion, ModelStatus};
use crate::requests::{RequestSource, Requests, increment, observe};
use crate::snapshot::histogram::{FIRST_TOKEN_SECONDS, Histogram};
use crate::snapshot::{Model, Reason, RequestFigures, Snapshot, SnapshotCell};

/// The probe's entry among the sources.
pub static SOURCE: RequestSource = RequestSource {
    label: "probe",
    zero: || RequestFigures {
        probe_first_token: Some(Histogram::new(FIRST_TOKEN_SECONDS)),
        probe_tokens: Some(0),
        probe_prompt_tokens: Some(0),
        probe_failures: Reason::ALL.map(|reason| (reason, 0)).into(),
        ..RequestFigures::default()
    },
};

/// How often the newest snapshot is checked for traffic.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// By how much generated tokens may be overestimated while a request runs.
const TOLERANCE: f64 = 5.0;
/// More prompt tokens than a failed probe can have used.
const MAX_PROMPT_TOKENS: u64 = 16;

/// Probes the models of one base URL.
pub struct Prober<S> {
    /// Whether a request to a loaded model of this kind of server loads no other.
    pub may_probe: fn(&Snapshot) -> bool,
    /// Sends one completion to a model of a snapshot, and calls the function right before; `None`
    /// if it is no longer loaded.
    pub send: S,
    /// Where the probes are counted.
    pub requests: Arc<Requests>,
    /// What the polls found.
    pub cell: Arc<SnapshotCell>,
    /// Time between two probes of a model.
    pub interval: Duration,
}

impl<S> Prober<S>
where
    S: Fn(&Snapshot, &Model, &dyn Fn()) -> Result<Option<Completion>, Reason> + Send + 'static,
{
    /// Starts the thread that probes.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(self) -> io::Result<()> {
        self.requests.start(&SOURCE);
        let run = move || {
            let mut traffic = Traffic::default();
            let mut due = Instant::now();
            loop {
                let snapshot = self.cell.load();
                traffic.update(&snapshot);
                let began = Instant::now();
                if began >= due && self.probe_all(&snapshot, &mut traffic) {
                    due = bounds::deadline(began, self.interval);
                }
                thread::sleep(CHECK_INTERVAL.min(self.interval));
            }
        };
        threads::start("probe", run)
    }

    /// Probes each model that may be probed; returns whether there was one. A model that was
    /// unloaded meanwhile, or does not answer, is not probed any sooner for it.
    fn probe_all(&self, snapshot: &Snapshot, traffic: &mut Traffic) -> bool {
        let mut any = false;
        if !(self.may_probe)(snapshot) {
            return any;
        }
        for model in &snapshot.models {
            if !traffic.may_probe(model) {
                continue;
            }
            any = true;
            let before_sending = || self.requests.probe_sent(&model.name);
            let result = (self.send)(snapshot, model, &before_sending).transpose();
            self.requests.probe_answered(&model.name, result);
            let Some(result) = result else { continue };
            self.requests
                .count(&model.name, &SOURCE, |figures| count(figures, result));
            let polls = self.cell.load().polls.total;
            traffic.probed(model, result.ok(), polls);
        }
        any
    }
}

fn count(figures: &mut RequestFigures, result: Result<Completion, Reason>) {
    let add = |count: &mut Option<u64>, tokens: u64| {
        *count = Some(count.unwrap_or(0).saturating_add(tokens));
    };
    match result {
        Ok(completion) => {
            let seconds = completion.first_token.as_secs_f64();
            observe(&mut figures.probe_first_token, seconds);
            add(&mut figures.probe_tokens, completion.generated_tokens);
            add(&mut figures.probe_prompt_tokens, completion.prompt_tokens);
        }
        Err(reason) => increment(figures.probe_failures.entry(reason).or_default()),
    }
}

/// Whether each model had real traffic since its last probe.
#[derive(Debug, Default)]
struct Traffic {
    probed: BTreeMap<String, SinceProbe>,
    /// The poll of the last snapshot.
    polls: u64,
}

#[derive(Debug)]
struct SinceProbe {
    /// How many polls had ended when the probe did.
    polls: u64,
    /// The [`token_counters`] before the probe.
    base: [Option<f64>; 2],
    /// By how much the probe alone may have moved them.
    own: [f64; 2],
    has_traffic: bool,
}

/// Tokens generated, and prompt tokens computed.
fn token_counters(model: &Model) -> [Option<f64>; 2] {
    [model.live.generated_tokens, model.live.prompt_tokens]
}

impl Traffic {
    /// Takes the newest snapshot; one that was taken before changes nothing.
    fn update(&mut self, snapshot: &Snapshot) {
        if snapshot.polls.total == self.polls {
            return;
        }
        self.polls = snapshot.polls.total;
        self.probed.retain(|name, _| {
            snapshot.models.iter().any(|model| model.name == *name) || snapshot.up != Some(true)
        });
        for model in &snapshot.models {
            if let Some(since) = self.probed.get_mut(&model.name)
                // A poll that began before the probe ended may not have seen all of it.
                && self.polls >= since.polls.saturating_add(2)
            {
                since.update(model);
            }
        }
    }

    /// Whether a model may be probed now.
    fn may_probe(&self, model: &Model) -> bool {
        let since = self.probed.get(&model.name);
        matches!(model.status, Some(ModelStatus::Idle | ModelStatus::Running))
            && since.is_none_or(|since| since.has_traffic)
    }

    /// Takes that a model was probed, as it was `before`, and how many polls had ended when the
    /// probe did.
    fn probed(&mut self, before: &Model, completion: Option<Completion>, polls: u64) {
        let (generated_tokens, prompt_tokens) = completion.map_or((1, MAX_PROMPT_TOKENS), |of| {
            (of.generated_tokens, of.prompt_tokens)
        });
        let since = SinceProbe {
            polls,
            base: token_counters(before),
            own: [generated_tokens as f64 + TOLERANCE, prompt_tokens as f64],
            has_traffic: false,
        };
        self.probed.insert(before.name.clone(), since);
    }
}

impl SinceProbe {
    /// Takes the results of a poll. The counters may be those of an earlier poll: they are not
    /// requested from a server that is about to sleep.
    fn update(&mut self, model: &Model) {
        let gauges = [
            model.counters.requests_processing,
            model.counters.requests_deferred,
            model.slots.busy,
        ];
        self.has_traffic |= gauges.into_iter().flatten().any(|count| count > 0.0);
        let known = self.base.iter_mut().zip(&mut self.own);
        for (now, (base, own)) in token_counters(model).into_iter().zip(known) {
            match (now, *base) {
                (Some(now), Some(then)) if now >= then => {
                    self.has_traffic |= now - then > *own + rounding_step(now);
                }
                // The server has restarted since the probe, or the counter was unknown.
                (Some(now), then) => {
                    *base = Some(now);
                    if then.is_some() {
                        *own = 0.0;
                    }
                }
                (None, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::{RequestEnd, log};
    use crate::snapshot::LiveCounts;

    const COMPLETION: Completion = Completion {
        first_token: Duration::from_millis(80),
        prompt_tokens: 2,
        generated_tokens: 1,
        prompt_ms: None,
    };

    fn snapshot(poll: u64, status: ModelStatus, tokens: Option<f64>) -> Snapshot {
        let mut snapshot = Snapshot {
            up: Some(true),
            models: vec![Model {
                name: "m".to_owned(),
                status: Some(status),
                live: LiveCounts {
                    generated_tokens: tokens,
                    ..LiveCounts::default()
                },
                ..Model::default()
            }],
            ..Snapshot::default()
        };
        snapshot.polls.total = poll;
        snapshot
    }

    fn may(traffic: &mut Traffic, snapshot: &Snapshot) -> bool {
        traffic.update(snapshot);
        traffic.may_probe(&snapshot.models[0])
    }

    #[test]
    fn only_a_loaded_and_awake_model_is_probed() {
        for status in ModelStatus::ALL {
            let loaded = matches!(status, ModelStatus::Idle | ModelStatus::Running);
            assert_eq!(
                may(&mut Traffic::default(), &snapshot(1, status, None)),
                loaded,
                "{status:?}"
            );
        }
    }

    #[test]
    fn a_probe_that_was_not_sent_is_not_looked_for_in_the_log() {
        let requests = Arc::new(Requests::default());
        let first = snapshot(1, ModelStatus::Idle, None);
        for (is_sent, cancellations) in [(false, 1), (true, 1)] {
            let prober = Prober {
                may_probe: |_| true,
                send: move |_: &Snapshot, _: &Model, before_sending: &dyn Fn()| {
                    if is_sent {
                        before_sending();
                    }
                    Err(Reason::Timeout)
                },
                requests: Arc::clone(&requests),
                cell: Arc::new(SnapshotCell::new(first.clone())),
                interval: Duration::from_secs(1),
            };
            assert!(prober.probe_all(&first, &mut Traffic::default()));
            requests.count_logged(("m", None), RequestEnd::Cancelled, Instant::now());
            let figures = requests.figures();
            let of_log = figures.iter().find(|of| of.source == log::SOURCE.label);
            assert_eq!(of_log.unwrap().figures.cancellations, Some(cancellations));
        }
    }

    #[test]
    fn only_real_traffic_allows_the_next_probe() {
        let mut traffic = Traffic::default();
        let first = snapshot(1, ModelStatus::Idle, Some(100.0));
        assert!(may(&mut traffic, &first));
        traffic.probed(&first.models[0], Some(COMPLETION), 1);
        // The probe itself is counted whenever the counters are read again.
        for (poll, tokens) in [(2, 100.0), (3, 100.0), (4, 100.0), (5, 101.0)] {
            assert!(
                !may(
                    &mut traffic,
                    &snapshot(poll, ModelStatus::Idle, Some(tokens))
                ),
                "{poll}"
            );
        }
        assert!(!may(
            &mut traffic,
            &snapshot(6, ModelStatus::Sleeping, None)
        ));
        assert!(!may(
            &mut traffic,
            &snapshot(7, ModelStatus::Idle, Some(101.0))
        ));
        assert!(may(
            &mut traffic,
            &snapshot(8, ModelStatus::Idle, Some(140.0))
        ));
        // It stays so until the probe is sent.
        let now = snapshot(9, ModelStatus::Idle, Some(140.0));
        assert!(may(&mut traffic, &now));
        traffic.probed(&now.models[0], Some(COMPLETION), 9);
        assert!(!may(
            &mut traffic,
            &snapshot(10, ModelStatus::Idle, Some(141.0))
        ));
    }

    #[test]
    fn a_running_request_is_traffic() {
        let mut traffic = Traffic::default();
        let first = snapshot(1, ModelStatus::Idle, None);
        traffic.update(&first);
        traffic.probed(&first.models[0], Some(COMPLETION), 1);
        let mut busy = snapshot(3, ModelStatus::Running, None);
        busy.models[0].counters.requests_processing = Some(1.0);
        assert!(may(&mut traffic, &busy));
    }

    #[test]
    fn a_restart_is_not_traffic() {
        let mut traffic = Traffic::default();
        let first = snapshot(1, ModelStatus::Idle, Some(500.0));
        traffic.update(&first);
        traffic.probed(&first.models[0], Some(COMPLETION), 1);
        assert!(!may(
            &mut traffic,
            &snapshot(3, ModelStatus::Idle, Some(501.0))
        ));
        assert!(!may(&mut traffic, &snapshot(4, ModelStatus::Loading, None)));
        assert!(!may(
            &mut traffic,
            &snapshot(5, ModelStatus::Idle, Some(0.0))
        ));
        assert!(may(
            &mut traffic,
            &snapshot(6, ModelStatus::Idle, Some(20.0))
        ));
    }
}
