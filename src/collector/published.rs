//! What the served pages see of one base URL: its newest snapshot, while that is fresh.

use std::sync::Arc;

use crate::collector::schedule::Heart;
use crate::snapshot::{Cell, Snapshot};

/// One base URL as it is served.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Where its poll thread publishes.
    pub cell: Arc<Cell>,
    /// Whether that thread is on time.
    pub heart: Arc<Heart>,
}

impl Watch {
    /// A base URL of which `unpolled` is known.
    pub fn new(unpolled: Snapshot) -> Watch {
        Watch {
            cell: Arc::new(Cell::new(unpolled)),
            heart: Arc::default(),
        }
    }

    /// What is known now: of a server whose poll is overdue only that, and what the exporter
    /// itself has counted.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let newest = self.cell.load();
        match self.heart.overdue() {
            Some(_) => Arc::new(newest.without_values()),
            None => newest,
        }
    }
}

/// Whether the polls go on: one server whose poll is stuck does not end the watch of the others.
///
/// # Errors
/// Every poll is overdue; the text names the first.
pub fn health(watched: &[Watch]) -> Result<(), String> {
    let overdue: Option<Vec<_>> = watched.iter().map(|watch| watch.heart.overdue()).collect();
    let late = overdue.and_then(|overdue| overdue.into_iter().next());
    match (late, watched.first()) {
        (Some(late), Some(first)) => Err(format!(
            "no poll is on time: that of {} is {} s overdue",
            first.cell.load().server,
            late.as_secs()
        )),
        _ => Ok(()),
    }
}

/// Whether every base URL has been polled.
///
/// # Errors
/// The first poll of one has not ended; the text names it.
pub fn readiness(watched: &[Watch]) -> Result<(), String> {
    let newest = watched.iter().map(|watch| watch.cell.load());
    match newest.into_iter().find(|snapshot| snapshot.up.is_none()) {
        Some(snapshot) => Err(format!(
            "the first poll of {} has not ended yet",
            snapshot.server
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Model, Polls, Status};
    use std::time::Duration;

    /// A server that was polled once, with a model at work, and whose next poll is due by then.
    fn watch(server: &str, is_overdue: bool) -> Watch {
        let model = Model {
            name: "m".to_owned(),
            status: Some(Status::Running),
            generated_tokens: Some(7.0),
            ..Model::default()
        };
        let watch = Watch::new(Snapshot {
            server: server.to_owned(),
            up: Some(true),
            models: vec![model],
            models_disk_usage: Some(1.0),
            polls: Polls {
                total: 1,
                ..Polls::default()
            },
            ..Snapshot::default()
        });
        let limit = Duration::from_secs(3600);
        watch.heart.beat(limit, limit);
        if is_overdue {
            watch.heart.set_overdue();
        }
        watch
    }

    #[test]
    fn a_server_whose_poll_is_overdue_is_down_and_has_no_values() {
        assert_eq!(watch("a:1", false).snapshot().models.len(), 1);
        let stale = watch("a:1", true).snapshot();
        assert_eq!((stale.up, stale.models.len()), (Some(false), 0));
        assert_eq!((stale.server.as_str(), stale.polls.total), ("a:1", 1));
        assert!(stale.info.is_none() && stale.models_disk_usage.is_none());
    }

    #[test]
    fn one_stuck_poll_does_not_make_the_exporter_unhealthy() {
        assert_eq!(health(&[watch("a:1", true), watch("b:2", false)]), Ok(()));
        assert_eq!(health(&[watch("a:1", false)]), Ok(()));
        let error = health(&[watch("a:1", true), watch("b:2", true)]).unwrap_err();
        assert!(
            error.starts_with("no poll is on time: that of a:1 is "),
            "{error}"
        );
        assert_eq!(health(&[]), Ok(()), "nothing to poll");
    }

    #[test]
    fn it_is_ready_when_every_server_was_polled() {
        let unpolled = Watch::new(Snapshot {
            server: "b:2".to_owned(),
            ..Snapshot::default()
        });
        assert_eq!(readiness(&[watch("a:1", false)]), Ok(()));
        let error = readiness(&[watch("a:1", false), unpolled]).unwrap_err();
        assert_eq!(error, "the first poll of b:2 has not ended yet");
    }
}
