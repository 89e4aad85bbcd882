//! llama-swap's activity, its list of the last ended requests: which of them are new, and the sums
//! of their tokens.
//!
//! The first page is history. Each later page holds the new requests and some known ones.
//! Identifiers increase within one list; if llama-swap keeps the list in memory, they start again
//! when it restarts. (Newer versions keep it in SQLite, in memory unless a path is set, and start
//! at 1. Older versions keep it in a ring buffer, and start at 0.)

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use crate::readings::{EndedRequest, EndedRequests, TokenTotals};
use crate::upstream::llama_swap::listed_request::ListedRequest;
use crate::upstream::llama_swap::timestamp::unix_seconds;

/// The most requests of one page that are used, the newest ones. A page has at most 999, the ring
/// buffer 1,000 by default.
const MOST_REQUESTS: usize = 2000;
/// From here on, 2^53, identifiers cannot be distinguished.
const MOST_IDENTIFIERS: f64 = 9_007_199_254_740_992.0;

/// The requests of one page, by identifier.
#[derive(Debug, Default)]
pub struct ActivityPage {
    requests: BTreeMap<u64, PageEntry>,
    /// Whether requests that failed are listed, too.
    pub has_failures: bool,
}

#[derive(Debug)]
struct PageEntry {
    request: EndedRequest,
    tokens: TokenTotals,
    /// Seconds since 1970, if they are listed.
    ended: Option<f64>,
    /// Distinguishes it from another request with the same identifier.
    fingerprint: u64,
}

/// The tokens of ended requests by model, counted over all pages.
#[derive(Debug, Default)]
pub struct Activity {
    /// None before the first page.
    last: Option<LastPage>,
    models: BTreeMap<String, ModelTokens>,
}

/// The last page.
#[derive(Debug, Default)]
struct LastPage {
    /// When the last of its requests ended, in seconds since 1970.
    last_end: f64,
    /// The fingerprint of each request, by identifier.
    fingerprints: BTreeMap<u64, u64>,
}

/// The tokens of one model.
#[derive(Debug)]
struct ModelTokens {
    total: TokenTotals,
    /// The part of it that the model's own server has counted.
    counted_by_server: TokenTotals,
    counted_by: CountedBy,
}

impl Default for ModelTokens {
    fn default() -> ModelTokens {
        ModelTokens {
            total: NO_TOKENS,
            counted_by_server: TokenTotals::default(),
            counted_by: CountedBy::Activity,
        }
    }
}

/// The tokens of a model before its first request. Draft tokens count from the first request that
/// has any.
const NO_TOKENS: TokenTotals = TokenTotals {
    prompt_tokens: 0.0,
    generated_tokens: 0.0,
    prompt_tokens_cached: Some(0.0),
    draft_tokens: None,
    draft_tokens_accepted: None,
};

/// What counts the tokens of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CountedBy {
    Activity,
    /// Its own server.
    Server,
    /// Its own server until the next page, and the activity after that.
    ActivityFromNextPage,
}

impl ActivityPage {
    /// Adds one request.
    pub fn add(&mut self, listed: ListedRequest) {
        let id = listed.id.filter(|id| *id < MOST_IDENTIFIERS);
        let (Some(id), Some(model)) = (id, &listed.model) else {
            return;
        };
        self.has_failures |= listed.has_status();
        let tokens = listed.token_totals();
        let numbers = [tokens.prompt_tokens, tokens.generated_tokens].map(f64::to_bits);
        let mut hasher = DefaultHasher::new();
        (&listed.timestamp, model, numbers).hash(&mut hasher);
        // A whole number that a float holds exactly.
        self.requests.entry(id as u64).or_insert(PageEntry {
            request: listed.ended(model),
            tokens,
            ended: listed.timestamp.as_deref().and_then(unix_seconds),
            fingerprint: hasher.finish(),
        });
        if self.requests.len() > MOST_REQUESTS {
            self.requests.pop_first();
        }
    }
}

impl Activity {
    /// Returns the requests of these models that are new on a page, and adds up their tokens.
    pub fn add(&mut self, page: &ActivityPage, models: &BTreeSet<String>) -> EndedRequests {
        let mut new = Vec::new();
        let last = self.last.as_ref();
        let is_new_list = last.is_some_and(|last| last.is_of_another_list(page));
        let has_gap = !is_new_list && last.is_some_and(|last| last.has_gap_before(page));
        for (id, entry) in &page.requests {
            let is_new = last.is_some_and(|last| {
                if is_new_list {
                    last.is_new(page, *id, entry)
                } else {
                    last.newest() < Some(*id)
                }
            });
            if is_new && models.contains(&entry.request.model) {
                let model = entry.request.model.clone();
                let tokens = self.models.entry(model).or_default();
                tokens.total.add(&entry.tokens);
                new.push(entry.request.clone());
            }
        }
        for tokens in self.models.values_mut() {
            if tokens.counted_by == CountedBy::ActivityFromNextPage {
                tokens.counted_by = CountedBy::Activity;
                tokens.counted_by_server = tokens.total;
            }
        }
        let requests = page.requests.iter();
        let ends = page.requests.values().filter_map(|entry| entry.ended);
        self.last = Some(LastPage {
            last_end: ends.fold(0.0, f64::max),
            fingerprints: requests
                .map(|(id, entry)| (*id, entry.fingerprint))
                .collect(),
        });
        EndedRequests {
            requests: new,
            has_gap,
            has_failures: page.has_failures,
        }
    }

    /// Whether a page was read.
    pub fn is_read(&self) -> bool {
        self.last.is_some()
    }

    /// The tokens of a model that only the activity has counted; `None` before the first page.
    pub fn totals(&self, model: &str) -> Option<TokenTotals> {
        self.last.as_ref()?;
        match self.models.get(model) {
            None => Some(NO_TOKENS),
            Some(tokens) if tokens.counted_by == CountedBy::ActivityFromNextPage => None,
            Some(tokens) => Some(tokens.total.without(&tokens.counted_by_server)),
        }
    }

    /// From now on, the model's own server counts its tokens.
    pub fn counted_by_server(&mut self, model: &str) {
        self.models.entry(model.to_owned()).or_default().counted_by = CountedBy::Server;
    }

    /// From now on, the activity counts the model's tokens, without those that its server counted.
    pub fn counted_by_activity(&mut self, model: &str) {
        if let Some(tokens) = self.models.get_mut(model)
            && tokens.counted_by == CountedBy::Server
        {
            tokens.counted_by = CountedBy::ActivityFromNextPage;
        }
    }

    /// Forgets all but these models.
    pub fn retain(&mut self, models: &BTreeSet<String>) {
        self.models.retain(|model, _| models.contains(model));
    }
}

impl LastPage {
    fn newest(&self) -> Option<u64> {
        self.fingerprints.keys().next_back().copied()
    }

    /// Whether `page` is of another list: identifiers have started again.
    fn is_of_another_list(&self, page: &ActivityPage) -> bool {
        let newest = page.requests.keys().next_back().copied();
        newest < self.newest()
            || page.requests.iter().any(|(id, entry)| {
                let known = self.fingerprints.get(id);
                known.is_some_and(|known| *known != entry.fingerprint)
            })
    }

    /// Whether a request on a `page` of another list is new.
    fn is_new(&self, page: &ActivityPage, id: u64, entry: &PageEntry) -> bool {
        // If the page has the first request of the new list, it has all of them.
        let is_whole = page.requests.keys().next().is_some_and(|first| *first <= 1);
        let is_younger = entry.ended.is_some_and(|ended| ended > self.last_end);
        self.fingerprints.get(&id) != Some(&entry.fingerprint) && (is_whole || is_younger)
    }

    /// Whether some requests between this page and `page` are not listed.
    fn has_gap_before(&self, page: &ActivityPage) -> bool {
        let first = page.requests.keys().next();
        first
            .zip(self.newest())
            .is_some_and(|(first, newest)| *first > newest.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
