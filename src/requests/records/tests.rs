use super::*;

fn completion(id: usize) -> serde_json::Value {
    let response = serde_json::json!({
        "choices": [{"message": {"content": "a \"timings\": b"}}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 60},
        "timings": {"cache_n": 5, "prompt_n": 7, "prompt_ms": 42.5, "predicted_n": 60, "predicted_ms": 1387.5},
    });
    serde_json::json!({
        "id": format!("m_{id}"), "model": "ai/m", "method": "POST", "url": "/v1/chat/completions",
        "request": "{\"messages\":[]}", "response": response.to_string(),
        "timestamp": 1_764_000_000, "status_code": 200, "user_agent": "curl",
    })
}

fn answer(records: &[serde_json::Value]) -> Vec<u8> {
    let group = serde_json::json!({"count": records.len(), "model": "ai/m", "config": {}, "records": records});
    serde_json::json!([group]).to_string().into_bytes()
}

struct Watch {
    records: Records,
    records_use: RecordsUse,
    requests: Requests,
}

impl Watch {
    fn new() -> Watch {
        let mut watch = Watch {
            records: Records::default(),
            records_use: RecordsUse::Count,
            requests: Requests::default(),
        };
        watch.poll(&[]);
        watch
    }

    fn poll(&mut self, records: &[serde_json::Value]) -> RequestFigures {
        let answer = answer(records);
        self.records
            .take(
                answer.as_slice(),
                &self.requests,
                |name| Some(name.to_owned()),
                |_, _| self.records_use,
            )
            .unwrap();
        let figures = self.requests.figures();
        (*figures[0].figures).clone()
    }
}

fn counted(figures: &RequestFigures) -> (u64, u64) {
    let count = figures.duration.as_ref().unwrap().count();
    (count, figures.record_gaps.unwrap())
}

#[test]
fn each_record_is_counted_once() {
    let mut watch = Watch::new();
    let all: Vec<_> = (0..15).map(completion).collect();
    assert_eq!(counted(&watch.poll(&all[..3])), (3, 0));
    assert_eq!(counted(&watch.poll(&all[..3])), (3, 0));
    assert_eq!(counted(&watch.poll(&all[..10])), (10, 0));
    let figures = watch.poll(&all[5..15]);
    assert_eq!(counted(&figures), (15, 0));
    let near = |histogram: &Option<crate::snapshot::histogram::Histogram>, sum: f64| {
        let found = histogram.as_ref().unwrap().sum();
        assert!((found - sum).abs() < 1e-9, "{found} {sum}");
    };
    near(&figures.first_token, 15.0 * 0.0425);
    near(&figures.duration, 15.0 * 1.43);
    near(&figures.per_token, 15.0 * 1.3875 / 59.0);
    near(&figures.prompt_tokens, 15.0 * 7.0);
    near(&figures.generated_tokens, 15.0 * 60.0);
}

#[test]
fn records_of_a_model_that_is_not_counted_are_known_later() {
    let mut watch = Watch::new();
    let all: Vec<_> = (0..6).map(completion).collect();
    assert_eq!(counted(&watch.poll(&all[..2])), (2, 0));
    watch.records_use = RecordsUse::Skip;
    assert_eq!(counted(&watch.poll(&all[..4])), (2, 0));
    let tokens = watch.records.tokens("ai/m", Some("completion"));
    assert_eq!(
        (tokens.prompt_tokens, tokens.generated_tokens),
        (14.0, 120.0)
    );
    assert_eq!(tokens.prompt_tokens_cached, Some(10.0));
    assert_eq!(tokens.draft_tokens, None);
    watch.records_use = RecordsUse::Later;
    assert_eq!(counted(&watch.poll(&all[..5])), (2, 0));
    watch.records_use = RecordsUse::Count;
    assert_eq!(counted(&watch.poll(&all)), (4, 0), "two are new");
    let tokens = watch.records.tokens("ai/m", Some("completion"));
    assert_eq!(tokens.generated_tokens, 240.0);
    for unknown in [
        ("other", Some("completion")),
        ("ai/m", Some("x")),
        ("ai/m", None),
    ] {
        let (model, mode) = unknown;
        assert_eq!(watch.records.tokens(model, mode), TokenTotals::default());
    }
}

#[test]
fn lost_records_are_counted_as_gaps() {
    let mut watch = Watch::new();
    let all: Vec<_> = (0..40).map(completion).collect();
    assert_eq!(
        counted(&watch.poll(&all[..10])),
        (10, 1),
        "ten at once may have been more"
    );
    assert_eq!(
        counted(&watch.poll(&all[9..19])),
        (19, 1),
        "the oldest was known"
    );
    assert_eq!(counted(&watch.poll(&all[25..35])), (29, 2));
}

#[test]
fn a_long_request_among_short_ones_is_a_gap_only_once_it_is_pushed_out() {
    let mut watch = Watch::new();
    let all: Vec<_> = (0..30).map(completion).collect();
    let under_way = |id: usize| {
        let mut record = completion(id);
        record["status_code"] = 0.into();
        record.as_object_mut().unwrap().remove("response");
        record
    };
    let kept = |first: usize, last: usize| {
        let rest = all[first + 1..last].iter().cloned();
        [under_way(first)]
            .into_iter()
            .chain(rest)
            .collect::<Vec<_>>()
    };
    assert_eq!(counted(&watch.poll(&kept(0, 5))), (4, 0));
    assert_eq!(counted(&watch.poll(&kept(0, 10))), (9, 0));
    assert_eq!(
        counted(&watch.poll(&kept(0, 10))),
        (9, 0),
        "the oldest is known"
    );
    assert_eq!(
        counted(&watch.poll(&all[5..15])),
        (14, 1),
        "how it ended is unknown"
    );
}

#[test]
fn a_model_that_is_missing_for_a_while_is_not_counted_again() {
    let mut watch = Watch::new();
    let all: Vec<_> = (0..3).map(completion).collect();
    assert_eq!(counted(&watch.poll(&all)), (3, 0));
    for number in 0..3 * MAX_MODELS {
        let other = serde_json::json!([{"model": number.to_string(), "records": [completion(1)]}]);
        let name = |_: &str| None;
        let other = other.to_string();
        watch
            .records
            .take(other.as_bytes(), &watch.requests, name, |_, _| {
                RecordsUse::Count
            })
            .unwrap();
        assert!(watch.records.known.len() <= MAX_MODELS);
        if number == 1 {
            assert_eq!(counted(&watch.poll(&all)), (3, 0));
        }
    }
    // However many there were: one that is there now is counted once.
    let before = counted(&watch.poll(&all)).0;
    assert_eq!(counted(&watch.poll(&all)).0, before);
}

#[test]
fn a_model_that_is_listed_twice_counts_once() {
    let mut watch = Watch::new();
    let group = serde_json::json!({"model": "ai/m", "records": [completion(1)]});
    for _ in 0..2 {
        let twice = serde_json::json!([group, group]).to_string();
        let name = |name: &str| Some(name.to_owned());
        watch
            .records
            .take(twice.as_bytes(), &watch.requests, name, |_, _| {
                RecordsUse::Count
            })
            .unwrap();
        let figures = watch.requests.figures();
        assert_eq!(counted(&figures[0].figures), (1, 0));
    }
}

#[test]
fn a_long_response_is_counted_without_its_middle() {
    let mut watch = Watch::new();
    let long = "word \"timings\":{ \\ ".repeat(100_000);
    let mut talk = completion(1);
    let response = serde_json::json!({
        "choices": [{"message": {"content": long}}],
        "timings": {"prompt_n": 7, "prompt_ms": 42.5, "predicted_n": 60, "predicted_ms": 1387.5},
    });
    talk["response"] = response.to_string().into();
    let numbers = vec!["0.123456789"; 200_000].join(",");
    let mut embedding = completion(2);
    embedding["response"] = format!(
        r#"{{"model":"m","object":"list","usage":{{"prompt_tokens":9,"total_tokens":9}},"data":[{{"embedding":[{numbers}]}}]}}"#
    )
    .into();
    let figures = watch.poll(&[talk, embedding]);
    assert_eq!(counted(&figures), (1, 0));
    let prompts = figures.prompt_tokens.as_ref().unwrap();
    assert_eq!((prompts.count(), prompts.sum()), (2, 16.0));
}

#[test]
fn records_from_before_the_start_are_not_counted() {
    let mut watch = Watch {
        records: Records::default(),
        records_use: RecordsUse::Count,
        requests: Requests::default(),
    };
    let all: Vec<_> = (0..12).map(completion).collect();
    assert_eq!(counted(&watch.poll(&all[..10])), (0, 0));
    assert_eq!(counted(&watch.poll(&all[2..12])), (2, 0));
}

#[test]
fn a_running_request_is_counted_at_its_end() {
    let mut watch = Watch::new();
    let mut record = completion(1);
    record["status_code"] = 0.into();
    record["response"] = "".into();
    assert_eq!(counted(&watch.poll(&[record])), (0, 0));
    assert_eq!(counted(&watch.poll(&[completion(1)])), (1, 0));
}

#[test]
fn errors_count_by_status_and_embeddings_by_their_prompt() {
    let mut watch = Watch::new();
    let mut failed = completion(1);
    failed["status_code"] = 503.into();
    failed["error"] = "no room".into();
    let mut embedding = completion(2);
    embedding["response"] =
        r#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":9,"total_tokens":9}}"#.into();
    let mut streamed = completion(3);
    streamed["response"] = "data: {\"choices\":[]}\n\ndata: {\"timings\":{\"prompt_n\":3,\"prompt_ms\":1.0,\"predicted_n\":1,\"predicted_ms\":0.0}}\n\ndata: [DONE]\n".into();
    let mut foreign = completion(4);
    foreign["response"] = serde_json::Value::Null;
    let mut fails = completion(5);
    fails["response"] = r#"{"choices":[],"error":{"code":500,"message":"Context size has been exceeded."},"object":"chat.completion"}"#.into();
    let mut fails_as_before = completion(6);
    fails_as_before["error"] = r#"{"status_code":429,"message":"streaming error"}"#.into();
    let mut strange = completion(7);
    strange["status_code"] = 65_535.into();
    let all = [
        failed,
        embedding,
        streamed,
        foreign,
        fails,
        fails_as_before,
        strange,
    ];
    let figures = watch.poll(&all);
    let counted_errors = figures.errors.iter().filter(|(_, count)| **count > 0);
    assert!(counted_errors.eq(&BTreeMap::from([(429, 1), (500, 2), (503, 1)])));
    let prompts = figures.prompt_tokens.as_ref().unwrap();
    assert_eq!((prompts.count(), prompts.sum()), (2, 12.0));
    assert_eq!(counted(&figures).0, 1);
    assert_eq!(
        figures.per_token.as_ref().unwrap().count(),
        0,
        "one token alone"
    );
    assert_eq!(figures.first_token.as_ref().unwrap().count(), 1);
}

#[test]
fn an_error_about_an_invalid_response_quotes_nothing() {
    for text in [
        "",
        "{\"secret\":1}",
        "[{\"secret\":2}]",
        "[{\"model\":\"m\",\"records\":[{\"id\":\"secret",
        "[3]",
    ] {
        let error = Records::default()
            .take(
                text.as_bytes(),
                &Requests::default(),
                |_| None,
                |_, _| RecordsUse::Count,
            )
            .unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
    for text in ["null", "[]", "[{\"model\":\"m\",\"records\":null}]"] {
        let requests = Requests::default();
        let taken = Records::default().take(
            text.as_bytes(),
            &requests,
            |_| None,
            |_, _| RecordsUse::Count,
        );
        assert_eq!(taken, Ok(()), "{text}");
    }
}
