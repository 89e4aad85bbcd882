//! The activity, page by page.

use super::*;
use serde::Deserialize;
use serde_json::{Value, json};

const MODEL: &str = "m";

/// A request that ended at this minute, with this number of generated tokens.
fn request(id: u64, minute: u32, generated: Value) -> Value {
    let timestamp = format!("2026-08-22T{:02}:{:02}:00Z", minute / 60, minute % 60);
    let tokens = json!({"input_tokens": 100, "cache_tokens": -1, "output_tokens": generated});
    json!({"id": id, "timestamp": timestamp, "model": MODEL, "tokens": tokens})
}

fn page(requests: &[Value]) -> ActivityPage {
    let mut page = ActivityPage::default();
    for request in requests {
        page.add(ListedRequest::deserialize(request).unwrap());
    }
    page
}

fn models() -> BTreeSet<String> {
    BTreeSet::from([MODEL.to_owned()])
}

/// The total after each page, and whether the page has a gap before it.
fn generated(answers: &[&[Value]]) -> (Vec<f64>, Vec<bool>) {
    let mut activity = Activity::default();
    let take = |answer: &&[Value]| {
        let gap = activity.add(&page(answer), &models()).has_gap;
        (activity.totals(MODEL).unwrap().generated_tokens, gap)
    };
    answers.iter().map(take).unzip()
}

#[test]
fn the_first_page_is_history() {
    let first: Vec<_> = (502..=1500).map(|id| request(id, 1, json!(50))).collect();
    let mut second = first.clone();
    second.push(request(1501, 2, json!(7)));
    let (counted, gaps) = generated(&[&first, &first, &second[1..]]);
    assert_eq!(counted, [0.0, 0.0, 7.0]);
    assert_eq!(gaps, [false; 3]);
    assert_eq!(
        Activity::default().totals(MODEL),
        None,
        "nothing is known yet"
    );
}

#[test]
fn identifiers_may_start_at_0_and_at_1() {
    for first in [0, 1] {
        let all = [request(first, 1, json!(5)), request(first + 1, 2, json!(6))];
        let (counted, _) = generated(&[&[], &all[..1], &all]);
        assert_eq!(counted, [0.0, 5.0, 11.0], "from {first}");
    }
}

#[test]
fn requests_that_are_not_listed_are_reported_as_a_gap() {
    let listed = [request(5000, 9, json!(3)), request(5001, 9, json!(4))];
    let (counted, gaps) = generated(&[&[request(7, 1, json!(50))], &listed, &listed]);
    assert_eq!(counted, [0.0, 7.0, 7.0]);
    assert_eq!(gaps, [false, true, false]);
}

#[test]
fn identifiers_that_start_again_are_new_requests() {
    let before = [request(1, 1, json!(50)), request(2, 2, json!(50))];
    // Fewer than before, as many, more, and none at all at first.
    for count in 1..5 {
        let after: Vec<_> = (1..=count)
            .map(|id| request(id, 10, json!(3 + id)))
            .collect();
        let new: u64 = (1..=count).map(|id| 3 + id).sum();
        let (counted, gaps) = generated(&[&[], &before, &after, &after]);
        assert_eq!(
            counted,
            [0.0, 100.0, 100.0 + new as f64, 100.0 + new as f64]
        );
        assert_eq!(gaps, [false; 4]);
        let (counted, _) = generated(&[&[], &before, &[], &after]);
        assert_eq!(counted, [0.0, 100.0, 100.0, 100.0 + new as f64]);
    }
}

#[test]
fn a_list_that_is_set_back_adds_nothing() {
    let all: Vec<_> = (500..510)
        .map(|id| request(id, id as u32 - 490, json!(50)))
        .collect();
    // An older state of the same list, and another list from before.
    let older: Vec<_> = (300..350).map(|id| request(id, 1, json!(50))).collect();
    let (counted, _) = generated(&[&all[..5], &all, &all[..7], &older]);
    assert_eq!(counted, [0.0, 250.0, 250.0, 250.0]);
}

#[test]
fn tokens_that_the_server_has_counted_do_not_count_again() {
    let mut activity = Activity::default();
    let all: Vec<_> = (1..9).map(|id| request(id, 1, json!(50))).collect();
    activity.add(&page(&all[..2]), &models());
    activity.counted_by_server(MODEL);
    activity.add(&page(&all[..4]), &models());
    activity.counted_by_activity(MODEL);
    assert_eq!(
        activity.totals(MODEL),
        None,
        "how much the server counted is unknown"
    );
    activity.add(&page(&all[..6]), &models());
    assert_eq!(activity.totals(MODEL), Some(NO_TOKENS));
    activity.counted_by_activity(MODEL);
    activity.add(&page(&all), &models());
    assert_eq!(activity.totals(MODEL).unwrap().generated_tokens, 100.0);
}

#[test]
fn invalid_numbers_count_as_zero() {
    for wrong in [
        json!(-1),
        json!(-5),
        json!(0.5),
        json!(1e308),
        json!(1u64 << 40),
        json!("NaN"),
        json!(null),
        json!([7]),
    ] {
        let second = [request(1, 1, wrong.clone()), request(2, 1, json!(5))];
        assert_eq!(generated(&[&[], &second]).0, [0.0, 5.0], "{wrong}");
    }
    for wrong in [json!(-1), json!(1.5), json!("x"), json!(null), json!(1e300)] {
        let mut odd = request(1, 1, json!(50));
        odd["id"] = wrong.clone();
        assert_eq!(generated(&[&[], &[odd]]).0, [0.0, 0.0], "{wrong}");
    }
}

#[test]
fn requests_with_identifiers_beyond_2_to_the_53_do_not_count() {
    let all: Vec<_> = [7, (1 << 53) + 1, (1 << 53) + 2, u64::MAX]
        .map(|id| request(id, 1, json!(5)))
        .into();
    assert_eq!(generated(&[&[], &all, &all]).0, [0.0, 5.0, 5.0]);
}

#[test]
fn tokens_of_versions_of_2025_are_read() {
    let flat = json!({"id": 0, "timestamp": "2025-10-01T10:00:00.5+02:00", "model": MODEL,
        "cache_tokens": 3, "input_tokens": 4, "output_tokens": 5, "duration_ms": 9});
    let mut activity = Activity::default();
    activity.add(&ActivityPage::default(), &models());
    activity.add(&page(&[flat]), &models());
    let ended = activity.totals(MODEL).unwrap();
    assert_eq!(
        (
            ended.prompt_tokens_cached,
            ended.prompt_tokens,
            ended.generated_tokens
        ),
        (Some(3.0), 4.0, 5.0)
    );
}

#[test]
fn draft_tokens_count_from_the_first_request_that_has_any() {
    let with_drafts = |id, drafted: Value, accepted: Value| {
        let mut request = request(id, 1, json!(5));
        request["tokens"]["draft_tokens"] = drafted;
        request["tokens"]["draft_acc_tokens"] = accepted;
        request
    };
    let all = [
        with_drafts(1, json!(-1), json!(-1)),
        with_drafts(2, json!(12), json!(8)),
        with_drafts(3, json!(-1), json!(-1)),
        with_drafts(4, json!(3), json!(0)),
    ];
    let mut activity = Activity::default();
    activity.add(&ActivityPage::default(), &models());
    let drafted: Vec<_> = (1..=all.len())
        .map(|count| {
            activity.add(&page(&all[..count]), &models());
            let totals = activity.totals(MODEL).unwrap();
            totals.draft_tokens.zip(totals.draft_tokens_accepted)
        })
        .collect();
    let then = Some((12.0, 8.0));
    assert_eq!(drafted, [None, then, then, Some((15.0, 8.0))]);
    // What the server counts meanwhile is not the activity's.
    activity.counted_by_server(MODEL);
    activity.add(&page(&[with_drafts(5, json!(7), json!(7))]), &models());
    activity.counted_by_activity(MODEL);
    activity.add(&ActivityPage::default(), &models());
    let totals = activity.totals(MODEL).unwrap();
    assert_eq!(totals.draft_tokens, Some(0.0));
}

#[test]
fn duplicates_and_unknown_models_do_not_count() {
    let mut other = request(3, 1, json!(50));
    other["model"] = json!("other");
    let answer = [request(2, 1, json!(5)), request(2, 1, json!(6)), other];
    assert_eq!(generated(&[&[], &answer]).0, [0.0, 5.0]);
}

#[test]
fn a_long_page_is_cut_to_its_youngest_requests() {
    let all: Vec<_> = (0..5000).map(|id| request(id, 1, json!(1))).collect();
    let page = page(&all);
    assert_eq!(page.requests.len(), MOST_REQUESTS);
    assert_eq!(page.requests.keys().next_back(), Some(&4999));
}

/// A server that keeps some requests and loses them at a restart, with polls at random times.
/// The total never falls, and never exceeds the tokens since the first page. It is exact if
/// every request was read before it left the list.
#[test]
fn totals_follow_any_history() {
    let mut random = 0x5DEE_CE66_u64;
    let mut below = move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let mut complete = 0;
    for _ in 0..2000 {
        let kept = 1 + below(6) as usize;
        let (mut list, mut next_id) = (Vec::new(), 1);
        let (mut activity, mut truth, mut is_complete) = (Activity::default(), 0.0, true);
        let (mut minute, mut unread, mut counted) = (0, 0, 0.0);
        activity.add(&page(&list), &models());
        for _ in 0..below(60) {
            match below(10) {
                0..=4 => {
                    minute += 1;
                    let tokens = below(1000);
                    list.push(request(next_id, minute, json!(tokens)));
                    next_id += 1;
                    unread += 1;
                    truth += tokens as f64;
                    if list.len() > kept {
                        list.remove(0);
                    }
                }
                5 => {
                    is_complete &= unread == 0;
                    (list, next_id) = (Vec::new(), 1);
                }
                _ => {
                    is_complete &= unread <= list.len();
                    activity.add(&page(&list), &models());
                    let now = activity.totals(MODEL).unwrap().generated_tokens;
                    assert!(now >= counted, "{now} after {counted}");
                    assert!(now <= truth, "{now} of {truth}");
                    assert!(!is_complete || now == truth, "{now} of {truth}");
                    (counted, unread) = (now, 0);
                }
            }
        }
        complete += usize::from(is_complete);
    }
    assert!(complete > 200, "{complete} histories of 2000 were complete");
}
