//! llama-swap's activity, a list of the last requests that have ended, as counters.
//!
//! The first answer is history. Each later one holds the new requests and some of the known ones:
//! their identifiers only grow as long as the list is the same, and begin anew with llama-swap's
//! next life where it keeps the list in memory. (Newer versions keep it in SQLite, in memory
//! unless a path is set, and identifiers begin at 1; older ones in a ring, and they begin at 0.)

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use serde::Deserialize;

use crate::bounds::lenient::{count, object, text};
use crate::readings::TokenTotals;
use crate::upstream::llama_swap::timestamp::seconds;

/// The most requests of one answer that are taken, the youngest of them: a page has at most 999,
/// the ring 1,000 unless it was told otherwise.
const MOST_REQUESTS: usize = 2000;
/// More tokens than one request can have, and few enough that sums of them stay exact.
const MOST_TOKENS: f64 = 4_294_967_296.0;
/// Identifiers from here on, 2^53, are not told apart.
const MOST_IDENTIFIERS: f64 = 9_007_199_254_740_992.0;

/// One request of the activity, as it is answered; −1 means unknown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Entry {
    #[serde(deserialize_with = "count")]
    id: Option<f64>,
    #[serde(deserialize_with = "text")]
    timestamp: Option<String>,
    #[serde(deserialize_with = "text")]
    model: Option<String>,
    #[serde(deserialize_with = "object")]
    tokens: Option<Tokens>,
    // In versions of 2025, which have no `tokens`.
    #[serde(deserialize_with = "count")]
    cache_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    input_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<f64>,
}

/// `tokens` of an [`Entry`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokens {
    #[serde(deserialize_with = "count")]
    cache_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    input_tokens: Option<f64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<f64>,
}

/// The requests of one answer, by identifier.
#[derive(Debug, Default)]
pub struct Page(BTreeMap<u64, Request>);

#[derive(Debug)]
struct Request {
    model: String,
    tokens: TokenTotals,
    /// Seconds since 1970, where they are told.
    ended: Option<f64>,
    /// Tells it from another one of the same identifier.
    fingerprint: u64,
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Activity {
    /// None before the first answer.
    known: Option<Known>,
    models: BTreeMap<String, Counted>,
}

/// What is known of the list.
#[derive(Debug, Default)]
struct Known {
    newest: Option<u64>,
    /// When the last known request ended, in seconds since 1970.
    last_end: f64,
    /// The fingerprints of the last answer's requests.
    fingerprints: BTreeMap<u64, u64>,
}

/// The tokens of one model.
#[derive(Debug, Default)]
struct Counted {
    total: TokenTotals,
    /// What of it was told by the model's own server.
    told_before: TokenTotals,
    told: Told,
}

/// Where the tokens of a model were told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Here,
    /// By its own server.
    Elsewhere,
    /// By its own server before, and here from the next answer on.
    HereFromNow,
}

impl Page {
    /// Takes one request of an answer.
    pub fn add(&mut self, entry: Entry) {
        let id = entry.id.filter(|id| *id < MOST_IDENTIFIERS);
        let (Some(id), Some(model)) = (id, entry.model) else {
            return;
        };
        let tokens = entry.tokens.unwrap_or(Tokens {
            cache_tokens: entry.cache_tokens,
            input_tokens: entry.input_tokens,
            output_tokens: entry.output_tokens,
        });
        let number = |tokens: Option<f64>| tokens.filter(|n| *n < MOST_TOKENS).unwrap_or(0.0);
        let tokens = TokenTotals {
            prompt_tokens: number(tokens.input_tokens),
            prompt_tokens_cached: number(tokens.cache_tokens),
            generated_tokens: number(tokens.output_tokens),
        };
        let mut hasher = DefaultHasher::new();
        (&entry.timestamp, &model).hash(&mut hasher);
        (
            tokens.prompt_tokens.to_bits(),
            tokens.generated_tokens.to_bits(),
        )
            .hash(&mut hasher);
        // A whole number that a float holds exactly.
        self.0.entry(id as u64).or_insert(Request {
            model,
            tokens,
            ended: entry.timestamp.as_deref().and_then(seconds),
            fingerprint: hasher.finish(),
        });
        if self.0.len() > MOST_REQUESTS {
            self.0.pop_first();
        }
    }
}

impl Activity {
    /// Takes an answer, and adds up what is new in it of these models. Gives whether requests
    /// are missing: more have ended since the last answer than are listed.
    pub fn take(&mut self, page: &Page, models: &BTreeSet<String>) -> bool {
        let requests = &page.0;
        let has_begun_anew = self
            .known
            .as_ref()
            .is_some_and(|known| known.ended(requests));
        let gap = !has_begun_anew
            && self
                .known
                .as_ref()
                .is_some_and(|known| known.misses(requests));
        // Where the first requests of a new list are in it, so are all the others.
        let is_whole = requests.keys().next().is_some_and(|first| *first <= 1);
        let is_new = |(id, request): &(&u64, &Request)| match &self.known {
            None => false,
            Some(known) if has_begun_anew => {
                let is_known = known.fingerprints.get(id) == Some(&request.fingerprint);
                let is_younger = request.ended.is_some_and(|ended| ended > known.last_end);
                !is_known && (is_whole || is_younger)
            }
            Some(known) => known.newest.is_none_or(|newest| **id > newest),
        };
        for (_, request) in requests.iter().filter(is_new) {
            if models.contains(&request.model) {
                let counted = self.models.entry(request.model.clone()).or_default();
                counted.total.add(&request.tokens);
            }
        }
        for counted in self.models.values_mut() {
            if counted.told == Told::HereFromNow {
                counted.told = Told::Here;
                counted.told_before = counted.total;
            }
        }
        let ends = requests.values().filter_map(|request| request.ended);
        self.known = Some(Known {
            newest: requests.keys().next_back().copied(),
            last_end: ends.fold(0.0, f64::max),
            fingerprints: requests
                .iter()
                .map(|(id, request)| (*id, request.fingerprint))
                .collect(),
        });
        gap
    }

    /// Whether there was an answer.
    pub fn is_read(&self) -> bool {
        self.known.is_some()
    }

    /// The tokens of a model that are told here alone; none before the first answer.
    pub fn of(&self, model: &str) -> Option<TokenTotals> {
        self.known.as_ref()?;
        match self.models.get(model) {
            None => Some(TokenTotals::default()),
            Some(counted) if counted.told == Told::HereFromNow => None,
            Some(counted) => Some(counted.total.without(&counted.told_before)),
        }
    }

    /// The model's own server tells its tokens.
    pub fn told_elsewhere(&mut self, model: &str) {
        self.models.entry(model.to_owned()).or_default().told = Told::Elsewhere;
    }

    /// From now on a model's tokens are told here. What its own server told before does not
    /// count again.
    pub fn told_here(&mut self, model: &str) {
        if let Some(counted) = self.models.get_mut(model)
            && counted.told == Told::Elsewhere
        {
            counted.told = Told::HereFromNow;
        }
    }

    /// Forgets models that are none of these.
    pub fn forget_all_but(&mut self, models: &BTreeSet<String>) {
        self.models.retain(|model, _| models.contains(model));
    }
}

impl Known {
    /// Whether these are of another list: identifiers have begun anew.
    fn ended(&self, requests: &BTreeMap<u64, Request>) -> bool {
        let newest = requests.keys().next_back().copied();
        let is_another = |(id, request): (&u64, &Request)| {
            let fingerprint = self.fingerprints.get(id);
            fingerprint.is_some_and(|known| *known != request.fingerprint)
        };
        newest < self.newest || requests.iter().any(is_another)
    }

    /// Whether some requests between the last known and the first of these are not listed.
    fn misses(&self, requests: &BTreeMap<u64, Request>) -> bool {
        let first = requests.keys().next();
        first
            .zip(self.newest)
            .is_some_and(|(first, newest)| *first > newest.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const MODEL: &str = "m";

    /// A request that ended at that minute, with so many tokens generated.
    fn request(id: u64, minute: u32, generated: Value) -> Value {
        let timestamp = format!("2026-08-22T{:02}:{:02}:00Z", minute / 60, minute % 60);
        let tokens = json!({"input_tokens": 100, "cache_tokens": -1, "output_tokens": generated});
        json!({"id": id, "timestamp": timestamp, "model": MODEL, "tokens": tokens})
    }

    fn page(requests: &[Value]) -> Page {
        let mut page = Page::default();
        for request in requests {
            page.add(Entry::deserialize(request).unwrap());
        }
        page
    }

    fn models() -> BTreeSet<String> {
        BTreeSet::from([MODEL.to_owned()])
    }

    /// What the answers add up to, one after the other, and which of them tell of a gap.
    fn generated(answers: &[&[Value]]) -> (Vec<f64>, Vec<bool>) {
        let mut activity = Activity::default();
        let take = |answer: &&[Value]| {
            let gap = activity.take(&page(answer), &models());
            (activity.of(MODEL).unwrap().generated_tokens, gap)
        };
        answers.iter().map(take).unzip()
    }

    #[test]
    fn the_first_answer_is_history() {
        let first: Vec<_> = (502..=1500).map(|id| request(id, 1, json!(50))).collect();
        let mut second = first.clone();
        second.push(request(1501, 2, json!(7)));
        let (counted, gaps) = generated(&[&first, &first, &second[1..]]);
        assert_eq!(counted, [0.0, 0.0, 7.0]);
        assert_eq!(gaps, [false; 3]);
        assert_eq!(Activity::default().of(MODEL), None, "nothing is known yet");
    }

    #[test]
    fn identifiers_may_begin_at_0_and_at_1() {
        for first in [0, 1] {
            let all = [request(first, 1, json!(5)), request(first + 1, 2, json!(6))];
            let (counted, _) = generated(&[&[], &all[..1], &all]);
            assert_eq!(counted, [0.0, 5.0, 11.0], "from {first}");
        }
    }

    #[test]
    fn more_requests_than_are_listed_are_a_gap_and_are_not_made_up() {
        let listed = [request(5000, 9, json!(3)), request(5001, 9, json!(4))];
        let (counted, gaps) = generated(&[&[request(7, 1, json!(50))], &listed, &listed]);
        assert_eq!(counted, [0.0, 7.0, 7.0]);
        assert_eq!(gaps, [false, true, false]);
    }

    #[test]
    fn identifiers_that_begin_anew_are_new_requests() {
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
    fn a_list_that_is_set_back_is_no_news() {
        let all: Vec<_> = (500..510)
            .map(|id| request(id, id as u32 - 490, json!(50)))
            .collect();
        // An older state of the same list, and another list from before.
        let older: Vec<_> = (300..350).map(|id| request(id, 1, json!(50))).collect();
        let (counted, _) = generated(&[&all[..5], &all, &all[..7], &older]);
        assert_eq!(counted, [0.0, 250.0, 250.0, 250.0]);
    }

    #[test]
    fn what_the_models_own_server_told_does_not_count_again() {
        let mut activity = Activity::default();
        let all: Vec<_> = (1..9).map(|id| request(id, 1, json!(50))).collect();
        activity.take(&page(&all[..2]), &models());
        activity.told_elsewhere(MODEL);
        activity.take(&page(&all[..4]), &models());
        activity.told_here(MODEL);
        assert_eq!(activity.of(MODEL), None, "how much was told is not known");
        activity.take(&page(&all[..6]), &models());
        assert_eq!(activity.of(MODEL), Some(TokenTotals::default()));
        activity.told_here(MODEL);
        activity.take(&page(&all), &models());
        assert_eq!(activity.of(MODEL).unwrap().generated_tokens, 100.0);
    }

    #[test]
    fn numbers_that_are_none_are_unknown() {
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
    fn identifiers_that_are_not_told_apart_do_not_count() {
        let all: Vec<_> = [7, (1 << 53) + 1, (1 << 53) + 2, u64::MAX]
            .map(|id| request(id, 1, json!(5)))
            .into();
        assert_eq!(generated(&[&[], &all, &all]).0, [0.0, 5.0, 5.0]);
    }

    #[test]
    fn tokens_beside_the_model_are_read_as_well() {
        let flat = json!({"id": 0, "timestamp": "2025-10-01T10:00:00.5+02:00", "model": MODEL,
            "cache_tokens": 3, "input_tokens": 4, "output_tokens": 5, "duration_ms": 9});
        let mut activity = Activity::default();
        activity.take(&Page::default(), &models());
        activity.take(&page(&[flat]), &models());
        let ended = activity.of(MODEL).unwrap();
        assert_eq!(
            (
                ended.prompt_tokens_cached,
                ended.prompt_tokens,
                ended.generated_tokens
            ),
            (3.0, 4.0, 5.0)
        );
    }

    #[test]
    fn one_identifier_and_other_models_are_counted_once_or_not_at_all() {
        let mut other = request(3, 1, json!(50));
        other["model"] = json!("other");
        let answer = [request(2, 1, json!(5)), request(2, 1, json!(6)), other];
        assert_eq!(generated(&[&[], &answer]).0, [0.0, 5.0]);
    }

    #[test]
    fn a_list_without_end_is_held_in_part() {
        let all: Vec<_> = (0..5000).map(|id| request(id, 1, json!(1))).collect();
        let page = page(&all);
        assert_eq!(page.0.len(), MOST_REQUESTS);
        assert_eq!(page.0.keys().next_back(), Some(&4999));
    }

    /// A server that keeps some requests and forgets all of them at a restart, polled now and
    /// then: what is counted never falls, is never more than what ended since the first answer,
    /// and is all of it where nothing was gone from the list before it was read.
    #[test]
    fn counters_follow_any_history() {
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
            activity.take(&page(&list), &models());
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
                        activity.take(&page(&list), &models());
                        let now = activity.of(MODEL).unwrap().generated_tokens;
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
}
