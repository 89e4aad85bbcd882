//! The thread that probes: see [`crate::requests::probe`] for when.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::bounds;
use crate::process::log;
use crate::requests::probe::{Answer, Traffic};
use crate::requests::{Requests, probed};
use crate::snapshot::{Cell, RequestSource, Snapshot};
use crate::upstream::completion::Completions;

/// How often the newest poll is looked at for traffic.
const LOOK: Duration = Duration::from_millis(500);

/// Probes the models of one base URL, as far as they may be, every `interval`.
pub(super) struct Prober {
    pub completions: Completions,
    pub requests: Arc<Requests>,
    pub cell: Arc<Cell>,
    pub interval: Duration,
}

impl Prober {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(self) -> io::Result<()> {
        let probe_on = move || {
            let mut traffic = Traffic::default();
            let mut due = Instant::now();
            loop {
                let snapshot = self.cell.load();
                traffic.saw(&snapshot);
                let began = Instant::now();
                if began >= due && self.probe_all(&snapshot, &mut traffic) {
                    due = bounds::deadline(began, self.interval);
                }
                thread::sleep(LOOK.min(self.interval));
            }
        };
        thread::Builder::new()
            .name("probe".to_owned())
            .spawn(probe_on)
            .map(drop)
    }

    /// Probes every model that may be, one by one; gives whether there was one. That one was put
    /// away in the meantime, or does not answer, is no reason to ask sooner.
    fn probe_all(&self, snapshot: &Snapshot, traffic: &mut Traffic) -> bool {
        let is_router = snapshot
            .info
            .as_ref()
            .is_some_and(|info| info.kind == "router");
        let mut any = false;
        for model in &snapshot.models {
            if !traffic.may_probe(snapshot, model) {
                continue;
            }
            any = true;
            let name = &model.name;
            let result = self.completions.one_token(is_router.then_some(name));
            let result = match result {
                Ok(Some(completed)) => Ok(Answer {
                    first_token: completed.first_token,
                    prompt: completed.prompt,
                    generated: completed.generated,
                }),
                Ok(None) => continue,
                Err(failure) => {
                    log::debug(
                        "a probe got no token",
                        &[
                            ("model", name),
                            ("reason", &failure.reason.label()),
                            ("detail", &failure),
                        ],
                    );
                    Err(failure.reason)
                }
            };
            self.requests.count(name, RequestSource::Probe, |figures| {
                probed(figures, result)
            });
            let polls = self.cell.load().polls.total;
            traffic.probed(model, result.as_ref().ok(), polls);
        }
        any
    }
}
