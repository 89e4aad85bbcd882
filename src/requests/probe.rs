//! When to send a request of our own, to see what a client would feel now.
//!
//! A probe is work for the server. It goes only to a model that is loaded and
//! awake, and only after real traffic since the last one, so that it keeps
//! nothing awake: it is real traffic that does.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::readings::ModelStatus;
use crate::snapshot::{Model, Snapshot};

/// What a probe was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// From sending it to the first token.
    pub first_token: Duration,
    /// Prompt tokens that were computed for it.
    pub prompt: u64,
    /// Tokens that were generated for it.
    pub generated: u64,
}

/// What is known of each model's traffic since its last probe.
#[derive(Debug, Default)]
pub struct Traffic {
    probed: BTreeMap<String, Since>,
    /// The last poll that was looked at.
    polls: u64,
}

/// What has happened since a probe.
#[derive(Debug)]
struct Since {
    /// How many polls had ended when it ended.
    polls: u64,
    /// What the counters said before it.
    base: Work,
    /// How far the probe alone may have moved them.
    own: [f64; 2],
    /// Whether anyone else has asked anything.
    traffic: bool,
}

/// Tokens generated, and prompt tokens computed.
type Work = [Option<f64>; 2];

/// By how much the count of generated tokens may run high where it is estimated.
const SLACK: f64 = 5.0;
/// More than the prompt of a probe that failed can have had.
const LONGEST_PROMPT: f64 = 16.0;

impl Traffic {
    /// Takes a snapshot, whether it is new or not.
    pub fn saw(&mut self, snapshot: &Snapshot) {
        if snapshot.polls.total == self.polls {
            return;
        }
        self.polls = snapshot.polls.total;
        self.probed.retain(|name, _| {
            snapshot.models.iter().any(|model| model.name == *name) || snapshot.up != Some(true)
        });
        for model in &snapshot.models {
            if let Some(since) = self.probed.get_mut(&model.name) {
                // A poll that had begun before the probe ended may not have seen all of it.
                if self.polls >= since.polls.saturating_add(2) {
                    since.saw(model);
                }
            }
        }
    }

    /// Whether a model may be probed now.
    pub fn may_probe(&self, snapshot: &Snapshot, model: &Model) -> bool {
        let kind = snapshot.info.as_ref().map(|info| info.kind);
        // Of other servers it is not certain that a request loads nothing.
        matches!(kind, Some("llama-server" | "router"))
            && matches!(model.status, Some(ModelStatus::Idle | ModelStatus::Running))
            && self
                .probed
                .get(&model.name)
                .is_none_or(|since| since.traffic)
    }

    /// Takes that a model, as `before` shows it, was probed, and that so many polls had ended
    /// when the probe did.
    pub fn probed(&mut self, before: &Model, answer: Option<&Answer>, polls: u64) {
        let own = answer.map_or([1.0, LONGEST_PROMPT], |answer| {
            [answer.generated as f64, answer.prompt as f64]
        });
        let since = Since {
            polls,
            base: work(before),
            own: [own[0] + SLACK, own[1]],
            traffic: false,
        };
        self.probed.insert(before.name.clone(), since);
    }
}

impl Since {
    /// Takes what a poll has found. Its counters may be those of an earlier one: a server that
    /// could fall asleep is not asked for them.
    fn saw(&mut self, model: &Model) {
        let busy = |count: Option<f64>| count.is_some_and(|count| count > 0.0);
        self.traffic |= busy(model.requests_processing)
            || busy(model.requests_deferred)
            || busy(model.slots_busy);
        for ((now, base), own) in work(model)
            .into_iter()
            .zip(&mut self.base)
            .zip(&mut self.own)
        {
            match (now, *base) {
                (Some(now), Some(then)) if now >= then => {
                    self.traffic |= now - then > *own + rounding(now);
                }
                // It has begun anew since the probe, or was not known: from here on.
                (Some(now), known) => {
                    *base = Some(now);
                    *own = if known.is_some() { 0.0 } else { *own };
                }
                (None, _) => {}
            }
        }
    }
}

fn work(model: &Model) -> Work {
    [model.generated_tokens, model.prompt_tokens]
}

/// llama-server's counters have six digits.
fn rounding(value: f64) -> f64 {
    if value < 1e6 {
        0.0
    } else {
        10f64.powf(value.log10().floor() - 5.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ServerInfo;

    const ANSWER: Answer = Answer {
        first_token: Duration::from_millis(80),
        prompt: 2,
        generated: 1,
    };

    fn snapshot(poll: u64, status: ModelStatus, tokens: Option<f64>) -> Snapshot {
        let mut snapshot = Snapshot {
            up: Some(true),
            info: Some(ServerInfo {
                kind: "llama-server",
                version: None,
            }),
            models: vec![Model {
                name: "m".to_owned(),
                status: Some(status),
                generated_tokens: tokens,
                ..Model::default()
            }],
            ..Snapshot::default()
        };
        snapshot.polls.total = poll;
        snapshot
    }

    fn may(traffic: &mut Traffic, snapshot: &Snapshot) -> bool {
        traffic.saw(snapshot);
        traffic.may_probe(snapshot, &snapshot.models[0])
    }

    #[test]
    fn only_a_model_that_is_loaded_and_awake_is_probed() {
        for status in ModelStatus::ALL {
            let loaded = matches!(status, ModelStatus::Idle | ModelStatus::Running);
            assert_eq!(
                may(&mut Traffic::default(), &snapshot(1, status, None)),
                loaded,
                "{status:?}"
            );
        }
        let mut runner = snapshot(1, ModelStatus::Idle, None);
        runner.info = None;
        assert!(!may(&mut Traffic::default(), &runner));
    }

    #[test]
    fn after_a_probe_nothing_but_real_traffic_allows_the_next() {
        let mut traffic = Traffic::default();
        let first = snapshot(1, ModelStatus::Idle, Some(100.0));
        assert!(may(&mut traffic, &first));
        traffic.probed(&first.models[0], Some(&ANSWER), 1);
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
        traffic.probed(&now.models[0], Some(&ANSWER), 9);
        assert!(!may(
            &mut traffic,
            &snapshot(10, ModelStatus::Idle, Some(141.0))
        ));
    }

    #[test]
    fn a_request_at_work_is_traffic() {
        let mut traffic = Traffic::default();
        let first = snapshot(1, ModelStatus::Idle, None);
        traffic.saw(&first);
        traffic.probed(&first.models[0], Some(&ANSWER), 1);
        let mut busy = snapshot(3, ModelStatus::Running, None);
        busy.models[0].requests_processing = Some(1.0);
        assert!(may(&mut traffic, &busy));
    }

    #[test]
    fn a_restart_of_the_server_is_no_traffic() {
        let mut traffic = Traffic::default();
        let first = snapshot(1, ModelStatus::Idle, Some(500.0));
        traffic.saw(&first);
        traffic.probed(&first.models[0], Some(&ANSWER), 1);
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
