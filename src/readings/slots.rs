//! `GET /slots`: the slots of a server, each of which processes one request at a time.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use crate::bounds::lenient::{Object, count_32, flag, object_or_first};

/// The most slots in a response; real servers have some hundreds at most.
pub const MOST_SLOTS: usize = 16_384;

/// One object of `GET /slots`. Its counts are `int32_t` in llama.cpp.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Slot {
    /// Number of the slot.
    #[serde(deserialize_with = "count_32")]
    pub id: Option<f64>,
    /// Number of tokens that it can hold.
    #[serde(deserialize_with = "count_32")]
    pub n_ctx: Option<f64>,
    /// Whether it is processing a request.
    #[serde(deserialize_with = "flag")]
    pub is_processing: Option<bool>,
    /// 0: idle, 1: processing. ik_llama.cpp, and llama.cpp before November 2024, have it instead of
    /// `is_processing`.
    #[serde(deserialize_with = "count_32")]
    pub state: Option<f64>,
    /// Its current or last task; absent before the first one, and -1 for none in ik_llama.cpp.
    #[serde(deserialize_with = "count_32")]
    pub id_task: Option<f64>,
    /// The progress of generation: an array of one object in every recorded build, an object in
    /// earlier builds and in ik_llama.cpp.
    #[serde(deserialize_with = "object_or_first")]
    pub next_token: Option<NextToken>,
    /// Tokens in the slot, generated ones included; from b9294.
    #[serde(deserialize_with = "count_32")]
    pub n_prompt_tokens: Option<f64>,
    /// Prompt tokens computed for the task; from b9294.
    #[serde(deserialize_with = "count_32")]
    pub n_prompt_tokens_processed: Option<f64>,
    /// Prompt tokens taken from the cache for the task; from b9294.
    #[serde(deserialize_with = "count_32")]
    pub n_prompt_tokens_cache: Option<f64>,
    /// Whether it uses speculative decoding: one decode call may generate several tokens.
    #[serde(deserialize_with = "flag")]
    pub speculative: Option<bool>,
}

/// `next_token` of a [`Slot`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NextToken {
    /// Tokens generated.
    #[serde(deserialize_with = "count_32")]
    pub n_decoded: Option<f64>,
    /// Whether there is more to generate.
    #[serde(deserialize_with = "flag")]
    pub has_next_token: Option<bool>,
}

impl Slot {
    /// Whether it is processing a request.
    pub fn is_busy(&self) -> bool {
        let by_state = || Some(self.state? != 0.0);
        self.is_processing.or_else(by_state) == Some(true)
    }

    /// Tokens generated for the current task, or for the last one (before b10566).
    pub fn generated_tokens(&self) -> f64 {
        let n_decoded = self.next_token.and_then(|token| token.n_decoded);
        n_decoded.unwrap_or(0.0)
    }

    /// Sets the generated tokens, and whether there is more to generate.
    pub fn set_next_token(&mut self, n_decoded: f64, has_next_token: bool) {
        self.next_token = Some(NextToken {
            n_decoded: Some(n_decoded),
            has_next_token: Some(has_next_token),
        });
    }

    /// Whether the current task has more to generate, or the last task had at its end.
    pub fn has_next_token(&self) -> bool {
        let has_next_token = self.next_token.and_then(|token| token.has_next_token);
        has_next_token == Some(true)
    }

    /// Whether the task, this one or the one before, has generated all of its tokens.
    pub fn is_complete(&self) -> bool {
        let has_next_token = self.next_token.and_then(|token| token.has_next_token);
        has_next_token == Some(false)
    }

    /// Tokens in the slot that came after the prompt, as far as it has been computed.
    pub fn tokens_after_prompt(&self) -> Option<f64> {
        Some(self.n_prompt_tokens? - self.n_prompt_tokens_cache? - self.n_prompt_tokens_processed?)
    }
}

/// `GET /slots`: all of them, or an error if there are more than [`MOST_SLOTS`].
#[derive(Debug)]
pub struct Slots(pub Vec<Slot>);

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Slots, D::Error> {
        struct SlotsVisitor;
        impl<'de> Visitor<'de> for SlotsVisitor {
            type Value = Slots;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array of slots")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Slots, A::Error> {
                let mut slots = Vec::new();
                while let Some(Object(slot)) = seq.next_element::<Object<Slot>>()? {
                    if slot.is_processing.is_none() && slot.state.is_none() {
                        return Err(A::Error::custom(
                            "a slot has neither is_processing nor state",
                        ));
                    }
                    if slots.len() == MOST_SLOTS {
                        return Err(A::Error::custom("more slots than any real server has"));
                    }
                    slots.push(slot);
                }
                Ok(Slots(slots))
            }
        }
        deserializer.deserialize_seq(SlotsVisitor)
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
    fn a_slot_without_is_processing_has_a_state() {
        let json = r#"[{"id":0,"id_task":17,"state":1,"next_token":{"n_decoded":136}},
            {"id":1,"id_task":-1,"state":0,"next_token":{"n_decoded":0}},
            {"id":2,"is_processing":true,"state":0}]"#;
        let Slots(slots) = serde_json::from_str(json).unwrap();
        let states = slots
            .iter()
            .map(|slot| (slot.is_busy(), slot.id_task, slot.generated_tokens()));
        assert_eq!(
            states.collect::<Vec<_>>(),
            [
                (true, Some(17.0), 136.0),
                (false, None, 0.0),
                (true, None, 0.0)
            ]
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_unknown_and_the_rest_is_read() {
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
    fn anything_but_an_array_of_slots_is_an_error() {
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
    fn more_slots_than_any_server_has_are_an_error() {
        let slot = r#"{"is_processing":false}"#;
        let json = format!("[{}]", vec![slot; MOST_SLOTS + 1].join(","));
        assert!(serde_json::from_str::<Slots>(&json).is_err());
    }
}
