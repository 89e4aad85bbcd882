//! The slots of `GET /slots`, one request each.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use crate::bounds::lenient::{Object, count_32, flag, object_or_first};

/// The most slots that an answer may hold; a real server has at most some hundreds.
pub const MOST_SLOTS: usize = 16_384;

/// One object of `GET /slots`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "SlotDocument")]
pub struct Slot {
    /// Number of the slot.
    pub id: Option<f64>,
    /// Tokens that fit it.
    pub n_ctx: Option<f64>,
    /// Whether it is at work.
    pub is_processing: bool,
    /// The task it has, or had last; none before the first.
    pub id_task: Option<f64>,
    /// How far generation is.
    pub next_token: Option<NextToken>,
    /// Tokens now in the slot, generated ones included; from b9294.
    pub n_prompt_tokens: Option<f64>,
    /// Prompt tokens computed for the task; from b9294.
    pub n_prompt_tokens_processed: Option<f64>,
    /// Whether it drafts: then one decode call may give it several tokens.
    pub speculative: Option<bool>,
}

/// A [`Slot`] as it is written. Its counts are `int32_t` in llama.cpp.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SlotDocument {
    #[serde(deserialize_with = "count_32")]
    id: Option<f64>,
    #[serde(deserialize_with = "count_32")]
    n_ctx: Option<f64>,
    #[serde(deserialize_with = "flag")]
    is_processing: Option<bool>,
    /// 0: idle, 1: processing; in ik_llama.cpp, and in llama.cpp before November 2024, in place
    /// of `is_processing`.
    #[serde(deserialize_with = "count_32")]
    state: Option<f64>,
    /// −1 for none in ik_llama.cpp.
    #[serde(deserialize_with = "count_32")]
    id_task: Option<f64>,
    /// In an array of one in every recorded build, an object before them and in ik_llama.cpp.
    #[serde(deserialize_with = "object_or_first")]
    next_token: Option<NextToken>,
    #[serde(deserialize_with = "count_32")]
    n_prompt_tokens: Option<f64>,
    #[serde(deserialize_with = "count_32")]
    n_prompt_tokens_processed: Option<f64>,
    #[serde(deserialize_with = "flag")]
    speculative: Option<bool>,
}

impl TryFrom<SlotDocument> for Slot {
    type Error = &'static str;

    fn try_from(document: SlotDocument) -> Result<Slot, &'static str> {
        let by_state = document.state.map(|state| state != 0.0);
        let is_processing = document.is_processing.or(by_state);
        Ok(Slot {
            id: document.id,
            n_ctx: document.n_ctx,
            is_processing: is_processing.ok_or("neither `is_processing` nor `state` is in it")?,
            id_task: document.id_task,
            next_token: document.next_token,
            n_prompt_tokens: document.n_prompt_tokens,
            n_prompt_tokens_processed: document.n_prompt_tokens_processed,
            speculative: document.speculative,
        })
    }
}

impl Slot {
    /// Tokens generated for the task at hand, or the last one (before b10566).
    pub fn generated_tokens(&self) -> f64 {
        self.next_token
            .as_ref()
            .and_then(|token| token.n_decoded)
            .unwrap_or(0.0)
    }

    /// Whether the task at hand has more to generate, or the last one had when it ended.
    pub fn has_next_token(&self) -> bool {
        let next = self.next_token.as_ref();
        next.and_then(|token| token.has_next_token) == Some(true)
    }
}

/// `next_token` of a [`Slot`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NextToken {
    /// Tokens generated.
    #[serde(deserialize_with = "count_32")]
    pub n_decoded: Option<f64>,
    /// Whether there are more to come.
    #[serde(deserialize_with = "flag")]
    pub has_next_token: Option<bool>,
}

/// `GET /slots`: all of them, or an error where there are more than [`MOST_SLOTS`].
#[derive(Debug)]
pub struct Slots(pub Vec<Slot>);

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Slots, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Slots;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array of slots")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Slots, A::Error> {
                let mut slots = Vec::new();
                while let Some(Object(slot)) = seq.next_element()? {
                    if slots.len() == MOST_SLOTS {
                        return Err(serde::de::Error::custom(
                            "more slots than any real server has",
                        ));
                    }
                    slots.push(slot);
                }
                Ok(Slots(slots))
            }
        }
        deserializer.deserialize_seq(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_next_token_are_read() {
        for shape in [r#"[{"n_decoded":7}]"#, r#"{"n_decoded":7}"#] {
            let json =
                format!(r#"[{{"id":0,"is_processing":true,"id_task":3,"next_token":{shape}}}]"#);
            let Slots(slots) = serde_json::from_str(&json).unwrap();
            assert_eq!(slots[0].generated_tokens(), 7.0, "{shape}");
        }
    }

    #[test]
    fn a_slot_without_is_processing_tells_by_its_state() {
        let json = r#"[{"id":0,"id_task":17,"state":1,"next_token":{"n_decoded":136}},
            {"id":1,"id_task":-1,"state":0,"next_token":{"n_decoded":0}},
            {"id":2,"is_processing":true,"state":0}]"#;
        let Slots(slots) = serde_json::from_str(json).unwrap();
        let told = slots
            .iter()
            .map(|slot| (slot.is_processing, slot.id_task, slot.generated_tokens()));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                (true, Some(17.0), 136.0),
                (false, None, 0.0),
                (true, None, 0.0)
            ]
        );
    }

    #[test]
    fn a_number_of_another_type_is_not_known_and_the_rest_counts() {
        let json = r#"[{"id":0,"is_processing":false,"n_ctx":"many","id_task":[1,{}],"next_token":3,"n_prompt_tokens":-1,"params":{"a":[{}]}}]"#;
        let Slots(slots) = serde_json::from_str(json).unwrap();
        assert_eq!(
            (slots[0].id, slots[0].n_ctx, slots[0].id_task),
            (Some(0.0), None, None)
        );
        assert_eq!(
            (slots[0].n_prompt_tokens, slots[0].generated_tokens()),
            (None, 0.0)
        );
    }

    #[test]
    fn what_is_no_array_of_slots_is_refused() {
        for json in [
            "{}",
            "[{}]",
            "[1]",
            "[[0,1,true]]",
            "null",
            r#"[{"is_processing":1}]"#,
        ] {
            assert!(serde_json::from_str::<Slots>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn more_slots_than_any_server_has_are_refused() {
        let slot = r#"{"is_processing":false}"#;
        let json = format!("[{}]", vec![slot; MOST_SLOTS + 1].join(","));
        assert!(serde_json::from_str::<Slots>(&json).is_err());
    }
}
