//! What a poll found, as far as it helps to understand the server's log.

use crate::requests::Speaker;
use crate::requests::log_plausibility::ServerCounters;
use crate::requests::server_log::{Polled, PolledCounters};
use crate::upstream::reading::{ModelReading, Reading, Seen, SlotsAt, State};

/// What a poll found of each model.
pub fn polled(reading: &Reading) -> Vec<Polled<'_>> {
    let kind = reading.info.as_ref().map_or("", |info| info.kind);
    let polled = reading.models.iter().map(|model| Polled {
        model: &model.name,
        speaker: speaker(kind, model),
        slots: slots(model),
        counters: counters(model),
    });
    polled.collect()
}

fn slots(model: &ModelReading) -> Option<u64> {
    let told = model.facts.slots.map(|slots| slots as u64);
    let listed = match &model.slots {
        Seen::Now(SlotsAt { slots, .. }) => u64::try_from(slots.len()).ok(),
        _ => None,
    };
    told.max(listed).filter(|slots| *slots > 0)
}

fn counters(model: &ModelReading) -> PolledCounters {
    match &model.counters {
        Seen::Now(read) => {
            let counters = &read.counters;
            let counters = ServerCounters {
                life: read.life.clone(),
                prompt_tokens: counters.prompt_tokens,
                cached_tokens: counters.prompt_tokens_cached,
                generated_tokens: counters.predicted_tokens,
                prompt_seconds: counters.prompt_seconds,
                generation_seconds: counters.predicted_seconds,
                decode_calls: counters.decode_calls,
            };
            PolledCounters::Read(read.at, counters)
        }
        Seen::Unchanged | Seen::Stale => PolledCounters::Unread,
        Seen::Gone => PolledCounters::None,
    }
}

/// Whose lines of the log are about this model.
fn speaker(kind: &str, model: &ModelReading) -> Speaker {
    match kind {
        // While it loads, its name may still be that of the model before.
        "llama-server" if !matches!(model.state, State::Loading | State::Waking) => Speaker::Server,
        // What is not loaded has the port of its last child, or 0: it may be another's by now.
        "router" if !matches!(model.state, State::Told(_) | State::Unknown) => {
            let arguments = model.host.arguments.as_deref().unwrap_or_default();
            let mut after = arguments
                .iter()
                .skip_while(|argument| *argument != "--port");
            let port = after.nth(1).and_then(|port| port.parse().ok());
            port.map_or(Speaker::Nobody, Speaker::Child)
        }
        _ => Speaker::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::snapshot::Status;

    #[test]
    fn a_log_speaks_of_a_child_as_long_as_the_child_is_there() {
        let speaker_of = |port: &str, state: State| {
            let arguments = ["llama-server", "--host", "127.0.0.1", "--port", port];
            let mut model = ModelReading {
                state,
                ..ModelReading::default()
            };
            model.host.arguments = Some(arguments.map(str::to_owned).to_vec());
            speaker("router", &model)
        };
        for state in [State::Loading, State::Ready, State::Asleep(Instant::now())] {
            assert_eq!(speaker_of("34541", state), Speaker::Child(34541));
        }
        for status in [Status::Unloaded, Status::Failed] {
            assert_eq!(speaker_of("0", State::Told(status)), Speaker::Nobody);
            assert_eq!(speaker_of("34541", State::Told(status)), Speaker::Nobody);
        }
        let single = ModelReading {
            state: State::Loading,
            ..ModelReading::default()
        };
        assert_eq!(speaker("llama-server", &single), Speaker::Nobody);
    }
}
