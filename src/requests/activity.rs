//! Figures of the requests that llama-swap lists in its activity. How they are read is not known
//! here.
//!
//! Where a model's log is followed as well, each request is counted once: answers by the log,
//! failures by the activity, which has those of llama-swap itself, too.

use crate::readings::{EndedRequest, EndedRequests, RequestResult};
use crate::requests::records::USUAL_ERRORS;
use crate::requests::{RequestSource, Requests, increment, observe, zero_completions};
use crate::snapshot::{Outcome, RequestFigures};

/// The activity's entry among the sources.
pub static SOURCE: RequestSource = RequestSource {
    label: "activity",
    zero: || RequestFigures {
        outcomes: [(Outcome::Ok, 0)].into(),
        record_gaps: Some(0),
        ..zero_completions()
    },
};

/// Counts the requests that have ended since the last poll, but not the answers of models whose log
/// reports them. The figures of `models`, those that have a process, start at zero.
pub fn count<'a>(
    requests: &Requests,
    ended: &EndedRequests,
    models: impl IntoIterator<Item = &'a str>,
    is_logged: impl Fn(&str) -> bool,
) {
    let start = |figures: &mut RequestFigures| {
        if ended.has_failures {
            figures.outcomes.entry(Outcome::Error).or_insert(0);
            for status in USUAL_ERRORS {
                figures.errors.entry(status).or_insert(0);
            }
        }
    };
    for model in models {
        requests.count(model, &SOURCE, |figures| {
            start(figures);
            if ended.has_gap {
                increment(figures.record_gaps.get_or_insert(0));
            }
        });
    }
    let is_counted = |request: &&EndedRequest| {
        matches!(request.result, RequestResult::Failed(_)) || !is_logged(&request.model)
    };
    for request in ended.requests.iter().filter(is_counted) {
        requests.count(&request.model, &SOURCE, |figures| {
            start(figures);
            count_one(request, figures);
        });
    }
}

fn count_one(request: &EndedRequest, figures: &mut RequestFigures) {
    let outcome = match request.result {
        RequestResult::Unknown => return,
        RequestResult::Answered => Outcome::Ok,
        RequestResult::Failed(status) => {
            increment(figures.errors.entry(status).or_default());
            Outcome::Error
        }
    };
    increment(figures.outcomes.entry(outcome).or_default());
    for (histogram, value) in [
        (&mut figures.duration, request.duration),
        (&mut figures.first_token, request.prompt_seconds),
        (&mut figures.per_token, request.seconds_per_token),
        (&mut figures.prompt_tokens, request.prompt_tokens),
        (&mut figures.generated_tokens, request.generated_tokens),
    ] {
        if let Some(value) = value {
            observe(histogram, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures_of(requests: &Requests) -> Vec<(String, RequestFigures)> {
        let figures = requests.figures().into_iter();
        figures
            .map(|of| (of.model, (*of.figures).clone()))
            .collect()
    }

    #[test]
    fn the_figures_of_a_model_with_a_process_start_at_zero() {
        let requests = Requests::default();
        let mut ended = EndedRequests::default();
        count(&requests, &ended, ["m"], |_| false);
        let (model, figures) = figures_of(&requests).remove(0);
        assert_eq!(model, "m");
        assert_eq!(figures, (SOURCE.zero)());
        assert_eq!(figures.outcomes, [(Outcome::Ok, 0)].into());
        assert!(figures.errors.is_empty(), "failures are not listed");

        ended.has_failures = true;
        count(&requests, &ended, ["m"], |_| true);
        let (_, figures) = figures_of(&requests).remove(0);
        assert_eq!(figures.outcomes.get(&Outcome::Error), Some(&0));
        assert_eq!(
            figures.errors,
            USUAL_ERRORS.map(|status| (status, 0)).into()
        );
    }

    #[test]
    fn what_is_unknown_of_a_request_is_not_counted() {
        let requests = Requests::default();
        let request = |result, duration| EndedRequest {
            model: "m".to_owned(),
            result,
            duration,
            ..EndedRequest::default()
        };
        let ended = EndedRequests {
            requests: vec![
                request(RequestResult::Answered, Some(1.5)),
                request(RequestResult::Answered, None),
                request(RequestResult::Failed(418), None),
                request(RequestResult::Unknown, None),
            ],
            has_gap: true,
            has_failures: true,
        };
        count(&requests, &ended, ["other"], |_| false);
        let all = figures_of(&requests);
        let (_, figures) = &all[0];
        assert_eq!(
            figures.outcomes,
            [(Outcome::Ok, 2), (Outcome::Error, 1)].into()
        );
        assert_eq!(figures.errors.get(&418), Some(&1));
        let duration = figures.duration.as_ref().unwrap();
        assert_eq!((duration.count(), duration.sum()), (1, 1.5));
        assert_eq!(figures.generated_tokens.as_ref().unwrap().count(), 0);
        let gaps: Vec<_> = all.iter().map(|(_, of)| of.record_gaps).collect();
        assert_eq!(gaps, [Some(0), Some(1)], "of the models with a process");

        // The log reports the answers.
        count(&requests, &ended, [], |model| model == "m");
        let (_, figures) = &figures_of(&requests)[0];
        let outcomes = [(Outcome::Ok, 2), (Outcome::Error, 2)].into();
        assert_eq!(figures.outcomes, outcomes);
        assert_eq!(figures.duration.as_ref().unwrap().count(), 1);
    }
}
