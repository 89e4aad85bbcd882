//! The sources of one base URL: what each poll says of them, and what earlier polls said of those
//! that were not asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::settings::{BaseUrl, Settings};
use crate::snapshot::{Absence, MOST_SOURCES, Missing, Reason, Source, SourceKind};
use crate::upstream::advice::Advice;
use crate::upstream::http::request_log::{FailedRequest, RequestTarget};
use crate::upstream::reading::Reading;

/// The sources of one base URL.
pub(super) struct SourceTable {
    /// What it means that a request is refused: the server gets no key, or the wrong one.
    refused: Absence,
    /// By model, those of the whole server first, and kind.
    sources: BTreeMap<SourceKey, Entry>,
}

type SourceKey = (Option<Arc<str>>, SourceKind);

struct Entry {
    source: Source,
    /// Whether the last poll said this of the source without having requested it.
    is_stated: bool,
}

impl SourceTable {
    /// No sources yet, of the server at `base`.
    pub fn new(base: &BaseUrl, settings: &Settings) -> SourceTable {
        let has_credentials = settings.api_key_of(base).is_some() || base.userinfo().is_some();
        SourceTable {
            refused: match (has_credentials, &settings.discovered) {
                (true, _) => Absence::KeyRejected,
                (false, None) => Absence::KeyRequired,
                (false, Some(_)) => Absence::KeyUnreadable,
            },
            sources: BTreeMap::new(),
        }
    }

    /// Takes the requests of a poll, and what it did not read; `others` are those besides the
    /// endpoints. Returns all sources.
    pub fn update(&mut self, reading: &Reading, others: &[Source]) -> Vec<Source> {
        self.forget(reading);
        for answered in &reading.requests.answered {
            let source = self.endpoint(&answered.target);
            source.absence = answered.absence;
            source.read_at = Some(answered.sent_at);
            source.duration = Some(answered.duration);
            source.error = None;
        }
        for failed in &reading.requests.failures {
            let absence = self.absence(failed);
            let source = self.endpoint(&failed.target);
            source.absence = Some(absence);
            source.duration = failed.duration.or(source.duration);
            source.read_at = failed
                .duration
                .and_then(|duration| Instant::now().checked_sub(duration))
                .or(source.read_at);
            *source = source.clone().with_error(&failed.error.detail);
        }
        for stated in reading.unread.iter().chain(others) {
            self.state(stated);
        }
        let all = self.sources.values().map(|entry| &entry.source);
        // Of too many, those that say why something is missing are the ones to keep.
        let (missing, read): (Vec<&Source>, Vec<_>) = all.partition(|of| of.absence.is_some());
        let kept = missing.into_iter().chain(read).take(MOST_SOURCES);
        let mut kept: Vec<Source> = kept.cloned().collect();
        kept.sort_by(|a, b| (&a.model, &a.kind).cmp(&(&b.model, &b.kind)));
        kept
    }

    /// Why a server is down, and what to do.
    pub fn down(&self, reading: &Reading, advice: &Advice) -> Missing {
        let failures = &reading.requests.failures;
        let unauthorized = failures
            .iter()
            .find(|failed| failed.error.reason == Reason::Unauthorized);
        let reason = match (&reading.product, unauthorized) {
            (Some(_), _) => Absence::NotLlamaCpp,
            (None, Some(failed)) => self.absence(failed),
            (None, None) if advice.reason == Reason::Timeout.label() => Absence::ServerLate,
            (None, None) => Absence::ServerDown,
        };
        let detail = failures.first().map(|failed| failed.error.detail.as_str());
        Missing {
            reason,
            detail: detail
                .filter(|detail| !advice.text.contains(detail))
                .map(Arc::from),
            advice: Some(advice.text.as_str().into()),
        }
    }

    /// Forgets what the last poll stated, the models that are gone, and the endpoints that are not
    /// requested of this kind of server.
    fn forget(&mut self, reading: &Reading) {
        self.sources.retain(|(model, kind), entry| {
            if entry.is_stated {
                entry.source.absence = None;
                entry.is_stated = false;
                if entry.source.duration.is_none() || !matches!(kind, SourceKind::Endpoint(_)) {
                    return false;
                }
            }
            if !reading.up {
                return true;
            }
            match (model, kind) {
                (Some(model), _) => reading.models.iter().any(|of| *of.name == **model),
                (None, SourceKind::Endpoint(path)) => {
                    reading.endpoints.is_empty() || reading.endpoints.contains(path)
                }
                (None, _) => true,
            }
        });
    }

    fn endpoint(&mut self, target: &RequestTarget) -> &mut Source {
        let model = target.model.as_deref().map(Arc::<str>::from);
        let kind = SourceKind::Endpoint(target.endpoint);
        let entry = self.sources.entry((model, kind.clone()));
        let entry = entry.or_insert_with(|| Entry {
            source: Source::new(kind).of_model(target.model.as_deref()),
            is_stated: false,
        });
        entry.is_stated = false;
        &mut entry.source
    }

    /// Takes what a poll says of a source without having requested it.
    fn state(&mut self, stated: &Source) {
        let key = (stated.model.clone(), stated.kind.clone());
        let entry = self.sources.entry(key).or_insert_with(|| Entry {
            source: stated.clone(),
            is_stated: true,
        });
        entry.is_stated = true;
        let source = &mut entry.source;
        source.absence = stated.absence;
        source.read_at = stated.read_at.or(source.read_at);
        source.duration = stated.duration.or(source.duration);
        source.error = stated.error.clone();
    }

    fn absence(&self, failed: &FailedRequest) -> Absence {
        match failed.error.reason {
            Reason::Unauthorized => self.refused,
            Reason::Timeout if failed.duration.is_none() => Absence::NotYetPolled,
            Reason::Timeout => Absence::AnswerLate,
            _ => Absence::EndpointFailing,
        }
    }
}
