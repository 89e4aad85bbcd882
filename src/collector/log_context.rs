//! What a poll found, as far as it helps to understand the server's log.

use crate::readings::{ModelReading, ModelState, SlotsReading, Update};
use crate::requests::Speaker;
use crate::requests::log_plausibility::ServerCounters;
use crate::requests::server_log::{Polled, PolledCounters};
use crate::upstream::reading::Reading;

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
        Update::New(SlotsReading { slots, .. }) => u64::try_from(slots.len()).ok(),
        _ => None,
    };
    told.max(listed).filter(|slots| *slots > 0)
}

fn counters(model: &ModelReading) -> PolledCounters {
    match &model.counters {
        Update::New(read) => {
            let counters = &read.counters;
            let counters = ServerCounters {
                life: read.process.clone(),
                prompt_tokens: counters.prompt_tokens,
                cached_tokens: counters.prompt_tokens_cached,
                generated_tokens: counters.generated_tokens,
                prompt_seconds: counters.prompt_seconds,
                generation_seconds: counters.generation_seconds,
                decode_calls: counters.decode_calls,
            };
            PolledCounters::Read(read.at, counters)
        }
        Update::Unchanged | Update::Stale => PolledCounters::Unread,
        Update::Absent => PolledCounters::None,
    }
}

/// Whose lines of the log are about this model.
fn speaker(kind: &str, model: &ModelReading) -> Speaker {
    match kind {
        // While it loads, its name may still be that of the model before.
        "llama-server" if !matches!(model.state, ModelState::Loading | ModelState::Waking) => {
            Speaker::Server
        }
        // What is not loaded has the port of its last child, or 0: it may be another's by now.
        "router" if !matches!(model.state, ModelState::Reported(_) | ModelState::Unknown) => {
            let arguments = model.process.arguments.as_deref().unwrap_or_default();
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
    use crate::readings::ModelStatus;

    #[test]
    fn a_log_speaks_of_a_child_as_long_as_the_child_is_there() {
        let speaker_of = |port: &str, state: ModelState| {
            let arguments = ["llama-server", "--host", "127.0.0.1", "--port", port];
            let mut model = ModelReading {
                state,
                ..ModelReading::default()
            };
            model.process.arguments = Some(arguments.map(str::to_owned).to_vec());
            speaker("router", &model)
        };
        for state in [
            ModelState::Loading,
            ModelState::Ready,
            ModelState::Asleep(Instant::now()),
        ] {
            assert_eq!(speaker_of("34541", state), Speaker::Child(34541));
        }
        for status in [ModelStatus::Unloaded, ModelStatus::Failed] {
            assert_eq!(
                speaker_of("0", ModelState::Reported(status)),
                Speaker::Nobody
            );
            assert_eq!(
                speaker_of("34541", ModelState::Reported(status)),
                Speaker::Nobody
            );
        }
        let single = ModelReading {
            state: ModelState::Loading,
            ..ModelReading::default()
        };
        assert_eq!(speaker("llama-server", &single), Speaker::Nobody);
    }
}
