//! One request as llama-swap lists it, of any version.
//!
//! By llama-swap's source (`proxy/metrics_monitor.go`, from v218 on `internal/server/metrics.go`):
//!
//! - Up to v208 only requests that were answered with 200 are listed, and `duration_ms` is the
//!   time of prompt and generation or the time since the first byte. From v209 on all are listed,
//!   with their status, and the duration counts from the request's arrival (in v209 itself, the
//!   newest for two days, from the first byte).
//! - If the response has llama-server's `timings`, the numbers are theirs: `input_tokens` without
//!   those from the cache. Otherwise they are those of its `usage`, and the speeds are −1, or, from
//!   v237 on, those of vLLM.
//! - All numbers are 0 if the response has neither, as that of a stream that was cut.

use serde::Deserialize;

use crate::bounds::lenient::{count, measure, object, text};
use crate::readings::{EndedRequest, RequestResult, TokenTotals};

/// More tokens than one request can have, and few enough that sums of them stay exact.
const MOST_TOKENS: f64 = 4_294_967_296.0;
/// How far a time that was computed from a speed may be from a whole number of microseconds: far
/// above the rounding errors of times up to an hour.
const ROUNDING_MICROSECONDS: f64 = 1e-3;

/// One request as it is listed; −1 means unknown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListedRequest {
    /// Its number in the list.
    #[serde(deserialize_with = "count")]
    pub id: Option<f64>,
    /// When it ended.
    #[serde(deserialize_with = "text")]
    pub timestamp: Option<String>,
    /// The model's name, never an alias.
    #[serde(deserialize_with = "text")]
    pub model: Option<String>,
    #[serde(deserialize_with = "text")]
    req_path: Option<String>,
    #[serde(deserialize_with = "text")]
    resp_content_type: Option<String>,
    #[serde(deserialize_with = "count")]
    resp_status_code: Option<f64>,
    #[serde(deserialize_with = "count")]
    duration_ms: Option<f64>,
    #[serde(deserialize_with = "object")]
    tokens: Option<ListedTokens>,
    /// The same of versions up to v208, which have no `tokens`.
    #[serde(flatten)]
    flat: ListedTokens,
}

/// `tokens` of a [`ListedRequest`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct ListedTokens {
    #[serde(deserialize_with = "count")]
    cache_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    input_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<f64>,
    #[serde(deserialize_with = "measure")]
    prompt_per_second: Option<f64>,
    #[serde(deserialize_with = "measure")]
    tokens_per_second: Option<f64>,
    // From v229 on, with speculative decoding.
    #[serde(deserialize_with = "count")]
    draft_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    draft_acc_tokens: Option<f64>,
}

impl ListedRequest {
    /// Whether it is of a version that lists failed requests, too.
    pub fn has_status(&self) -> bool {
        self.resp_status_code.is_some()
    }

    /// Its tokens; what is unknown counts as 0.
    pub fn token_totals(&self) -> TokenTotals {
        let tokens = self.tokens();
        TokenTotals {
            prompt_tokens: tokens.input_tokens.unwrap_or(0.0),
            generated_tokens: tokens.output_tokens.unwrap_or(0.0),
            prompt_tokens_cached: tokens.cache_tokens,
            draft_tokens: tokens.draft_tokens,
            draft_tokens_accepted: tokens.draft_acc_tokens,
        }
    }

    /// What it tells of the request of this model.
    pub fn ended(&self, model: &str) -> EndedRequest {
        let tokens = self.tokens();
        let result = self.result(&tokens);
        let mut ended = EndedRequest {
            model: model.to_owned(),
            result,
            ..EndedRequest::default()
        };
        if result == RequestResult::Answered {
            let milliseconds = self.duration_ms.filter(|_| self.has_status());
            ended.duration = milliseconds.map(|milliseconds| milliseconds / 1000.0);
            ended.prompt_tokens = self.prompt_tokens(&tokens);
            ended.generated_tokens = tokens.output_tokens.filter(|tokens| *tokens > 0.0);
            ended.seconds_per_token = tokens.seconds_per_token();
            ended.prompt_seconds = tokens
                .prompt_seconds()
                .filter(|_| ended.generated_tokens.is_some());
        }
        ended
    }

    fn tokens(&self) -> ListedTokens {
        let mut tokens = self.tokens.unwrap_or(self.flat);
        for number in [
            &mut tokens.cache_tokens,
            &mut tokens.input_tokens,
            &mut tokens.output_tokens,
            &mut tokens.draft_tokens,
            &mut tokens.draft_acc_tokens,
        ] {
            *number = number.filter(|tokens| *tokens < MOST_TOKENS);
        }
        tokens
    }

    fn result(&self, tokens: &ListedTokens) -> RequestResult {
        let has_some = |tokens: Option<f64>| tokens.is_some_and(|tokens| tokens > 0.0);
        let content_type = self.resp_content_type.as_deref().unwrap_or_default();
        let is_stream = content_type.contains("text/event-stream");
        match self.resp_status_code.map(|status| status as u16) {
            Some(status @ 400..=599) => RequestResult::Failed(status),
            None | Some(200) if has_some(tokens.output_tokens) => RequestResult::Answered,
            // An embedding, an image: only a stream can end early, and a request that was given up
            // before its response has no content type.
            Some(200) if !is_stream && !content_type.is_empty() => RequestResult::Answered,
            None if has_some(tokens.input_tokens) && tokens.prompt_per_second.is_none() => {
                RequestResult::Answered
            }
            _ => RequestResult::Unknown,
        }
    }

    /// Prompt tokens computed.
    fn prompt_tokens(&self, tokens: &ListedTokens) -> Option<f64> {
        let input = tokens.input_tokens.filter(|tokens| *tokens > 0.0)?;
        let has_output = tokens.output_tokens.is_some_and(|tokens| tokens > 0.0);
        if tokens.prompt_seconds().is_some() || !has_output && tokens.cache_tokens.is_none() {
            return Some(input);
        }
        // Of a `usage`: Anthropic's is without those from the cache, OpenAI's with them.
        let cached = tokens.cache_tokens?;
        if self.req_path.as_deref()?.ends_with("/messages") {
            return Some(input);
        }
        Some(input - cached).filter(|computed| *computed >= 0.0)
    }
}

impl ListedTokens {
    /// Seconds of the prompt, if its speed is llama-server's.
    fn prompt_seconds(&self) -> Option<f64> {
        let microseconds = whole_microseconds(self.input_tokens?, self.prompt_per_second?)?;
        Some(microseconds / 1e6)
    }

    /// Seconds of generation per token after the first, if the speed is llama-server's. It is the
    /// tokens by the time, from b11434 on the tokens after the first by the time: only one of them
    /// gives whole microseconds, but for some responses of a few tokens, which are left out.
    fn seconds_per_token(&self) -> Option<f64> {
        let (tokens, speed) = (self.output_tokens?, self.tokens_per_second?);
        let after_first = tokens - 1.0;
        if after_first < 1.0 {
            return None;
        }
        let of_all = whole_microseconds(tokens, speed);
        let of_later = whole_microseconds(after_first, speed);
        let microseconds = match (of_all, of_later) {
            (Some(microseconds), None) | (None, Some(microseconds)) => microseconds,
            _ => return None,
        };
        Some(microseconds / 1e6 / after_first)
    }
}

/// The microseconds that so many tokens took at this speed, if they are a whole number.
/// llama-server measures whole microseconds (`ggml_time_us`), so that it always is one; vLLM
/// measures nanoseconds, so that it hardly ever is.
fn whole_microseconds(tokens: f64, tokens_per_second: f64) -> Option<f64> {
    let microseconds = tokens * 1e6 / tokens_per_second;
    let is_whole = (microseconds - microseconds.round()).abs() < ROUNDING_MICROSECONDS;
    (microseconds >= 1.0 && microseconds.is_finite() && is_whole).then(|| microseconds.round())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ended(listed: Value) -> EndedRequest {
        ListedRequest::deserialize(&listed).unwrap().ended("m")
    }

    /// A request of a version that lists statuses and paths.
    fn listed(path: &str, content_type: &str, status: u16, tokens: Value) -> Value {
        json!({"id": 1, "model": "m", "req_path": path, "resp_content_type": content_type,
            "resp_status_code": status, "duration_ms": 1500, "tokens": tokens})
    }

    const STREAM: &str = "text/event-stream";
    const JSON: &str = "application/json; charset=utf-8";
    const CHAT: &str = "/v1/chat/completions";

    #[test]
    fn a_recorded_activity_tells_durations_tokens_and_errors() {
        // llama-swap v250 with llama.cpp b10068: cancelled, refused, and two answered.
        let page = include_str!(
            "../../../tests/recordings/llama-swap/both-in-use/api-metrics-activity-limit-999.json"
        );
        let page: Value = serde_json::from_str(page).unwrap();
        let all: Vec<_> = page["data"].as_array().unwrap().clone();
        let ended: Vec<_> = all.into_iter().map(ended).collect();
        let expected = |result, duration, prompt_seconds, generated: Option<(f64, f64)>, prompt| {
            EndedRequest {
                model: "m".to_owned(),
                result,
                duration,
                prompt_seconds,
                seconds_per_token: generated.map(|(seconds, tokens)| seconds / (tokens - 1.0)),
                prompt_tokens: prompt,
                generated_tokens: generated.map(|(_, tokens)| tokens),
            }
        };
        assert_eq!(
            ended,
            [
                expected(RequestResult::Unknown, None, None, None, None),
                expected(RequestResult::Failed(400), None, None, None, None),
                expected(
                    RequestResult::Answered,
                    Some(0.452),
                    Some(0.146_215),
                    Some((0.295_593, 5.0)),
                    Some(5.0)
                ),
                expected(
                    RequestResult::Answered,
                    Some(11.931),
                    Some(0.478_845),
                    Some((6.165_302, 80.0)),
                    Some(28.0)
                ),
            ]
        );
    }

    #[test]
    fn the_generation_time_is_found_for_either_definition_of_the_speed() {
        // Recorded timings: b8672 divides all tokens by the time, b11549 those after the first.
        for (speed, milliseconds) in [
            (31.436_737_495_382_73, 381.719),
            (29.377_830_954_619_26, 374.432),
        ] {
            let tokens = json!({"input_tokens": 27, "output_tokens": 12, "cache_tokens": 0,
                "prompt_per_second": 94.860_993_510_805_37, "tokens_per_second": speed});
            let ended = ended(listed(CHAT, JSON, 200, tokens));
            let error = ended.seconds_per_token.unwrap() - milliseconds / 1e3 / 11.0;
            assert!(error.abs() < 1e-12, "{speed}");
            assert_eq!(ended.prompt_seconds, Some(0.284_627));
        }
        // 11 * 34,000 microseconds: 12 tokens in 0.374 s, or 11 in 0.408 s.
        for (generated, speed) in [(12, 12.0 / 0.408), (1, 50.0), (2, 2.0 / 0.05), (12, 0.0)] {
            let tokens = json!({"output_tokens": generated, "tokens_per_second": speed});
            let ended = ended(listed(CHAT, JSON, 200, tokens));
            assert_eq!(ended.seconds_per_token, None, "{generated} at {speed}");
            assert_eq!(ended.generated_tokens, Some(f64::from(generated)));
        }
    }

    #[test]
    fn speeds_of_another_engine_give_no_times() {
        // vLLM: 1000 / mean_itl_ms, and the prompt by the time to the first token.
        let tokens = json!({"input_tokens": 812, "output_tokens": 233, "cache_tokens": -1,
            "prompt_per_second": 812.0 / 0.123_456_789, "tokens_per_second": 1000.0 / 14.044_943_82});
        let ended = ended(listed(CHAT, STREAM, 200, tokens));
        assert_eq!(ended.duration, Some(1.5));
        assert_eq!(ended.generated_tokens, Some(233.0));
        assert_eq!(
            (ended.prompt_seconds, ended.seconds_per_token),
            (None, None)
        );
        assert_eq!(
            ended.prompt_tokens, None,
            "how many were cached is not known"
        );
    }

    #[test]
    fn prompt_tokens_are_those_computed() {
        let messages = "/v1/messages";
        for (path, input, cached, output, speed, expected) in [
            // llama-server's timings: without those from the cache.
            (CHAT, 5, 22, 12, 5.0 / 0.146_215, Some(5.0)),
            // The usage: OpenAI's with them, Anthropic's without them.
            (CHAT, 27, 22, 12, -1.0, Some(5.0)),
            ("/v1/responses", 27, 0, 12, -1.0, Some(27.0)),
            (messages, 5, 22, 12, -1.0, Some(5.0)),
            (CHAT, 27, -1, 12, -1.0, None),
            (CHAT, 5, 22, 12, -1.0, None),
            ("/v1/embeddings", 9, -1, 0, -1.0, Some(9.0)),
            (CHAT, 0, 0, 12, -1.0, None),
        ] {
            let tokens = json!({"input_tokens": input, "output_tokens": output,
                "cache_tokens": cached, "prompt_per_second": speed, "tokens_per_second": -1});
            let ended = ended(listed(path, JSON, 200, tokens));
            assert_eq!(ended.prompt_tokens, expected, "{path} {input} {cached}");
            assert_eq!(ended.result, RequestResult::Answered);
        }
    }

    #[test]
    fn a_request_whose_end_is_not_told_is_unknown() {
        let none = || {
            json!({"input_tokens": 0, "output_tokens": 0, "cache_tokens": 0,
            "prompt_per_second": 0, "tokens_per_second": 0})
        };
        for (content_type, status, expected) in [
            (STREAM, 200, RequestResult::Unknown),
            // Given up while it waited for its model.
            ("", 200, RequestResult::Unknown),
            ("image/png", 200, RequestResult::Answered),
            ("", 101, RequestResult::Unknown),
            ("", 600, RequestResult::Unknown),
            (JSON, 502, RequestResult::Failed(502)),
            (STREAM, 429, RequestResult::Failed(429)),
        ] {
            let ended = ended(listed("/v1/images", content_type, status, none()));
            assert_eq!(ended.result, expected, "{content_type} {status}");
            let is_answered = expected == RequestResult::Answered;
            assert_eq!(ended.duration.is_some(), is_answered);
            assert_eq!((ended.prompt_tokens, ended.generated_tokens), (None, None));
        }
        // A stream that was cut after the usage of its prompt, as Anthropic's begins.
        let tokens = json!({"input_tokens": 9, "output_tokens": 0, "cache_tokens": -1,
            "prompt_per_second": -1, "tokens_per_second": -1});
        let ended = ended(listed("/v1/messages", STREAM, 200, tokens));
        assert_eq!(ended.result, RequestResult::Unknown);
    }

    #[test]
    fn versions_before_the_status_tell_no_duration() {
        // v180 with timings of b8672, v180 without any, and v145, whose prompt may be cached.
        let v180 = json!({"id": 3, "model": "m", "cache_tokens": 4, "input_tokens": 27,
            "output_tokens": 12, "prompt_per_second": 94.860_993_510_805_37,
            "tokens_per_second": 31.436_737_495_382_73, "duration_ms": 666});
        let ended_180 = ended(v180);
        assert_eq!(ended_180.result, RequestResult::Answered);
        assert_eq!(ended_180.duration, None);
        assert_eq!(ended_180.prompt_seconds, Some(0.284_627));
        assert_eq!(ended_180.prompt_tokens, Some(27.0));
        let minimal = json!({"id": 3, "model": "m", "cache_tokens": 0, "input_tokens": 0,
            "output_tokens": 0, "prompt_per_second": 0, "tokens_per_second": 0, "duration_ms": 9});
        assert_eq!(ended(minimal).result, RequestResult::Unknown);
        let embedding = json!({"id": 3, "model": "m", "cache_tokens": -1, "input_tokens": 9,
            "output_tokens": 0, "prompt_per_second": -1, "tokens_per_second": -1, "duration_ms": 9});
        assert_eq!(ended(embedding).prompt_tokens, Some(9.0));
        let v145 = json!({"id": 0, "model": "m", "input_tokens": 27, "output_tokens": 12,
            "tokens_per_second": 31.436_737_495_382_73, "duration_ms": 666});
        let ended = ended(v145);
        assert_eq!(ended.seconds_per_token, Some(0.381_719 / 11.0));
        assert_eq!((ended.prompt_seconds, ended.prompt_tokens), (None, None));
    }
}
