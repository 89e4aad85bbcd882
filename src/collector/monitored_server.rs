//! One base URL as the web server uses it: its newest snapshot, while its poll thread is on time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::collector::watchdog::Watchdog;
use crate::history::History;
use crate::snapshot::{Snapshot, SnapshotCell};

/// One base URL as it is served.
#[derive(Clone, Debug)]
pub struct MonitoredServer {
    /// Holds the snapshots that its poll thread publishes.
    pub cell: Arc<SnapshotCell>,
    /// Whether that thread is on time.
    pub(super) watchdog: Arc<Watchdog>,
    /// Keeps what was published.
    pub(super) history: Arc<History>,
}

impl MonitoredServer {
    /// A base URL whose first poll begins at `now`; polls begin every `interval`, and each takes
    /// `limit` at most.
    pub fn new(
        unpolled: Snapshot,
        now: Instant,
        interval: Duration,
        limit: Duration,
    ) -> MonitoredServer {
        MonitoredServer {
            cell: Arc::new(SnapshotCell::new(unpolled)),
            watchdog: Arc::new(Watchdog::new(now, interval, limit)),
            history: Arc::new(History::new(now)),
        }
    }

    /// The same, with a history that several servers share.
    #[must_use]
    pub fn with_history(self, history: &Arc<History>) -> MonitoredServer {
        MonitoredServer {
            history: Arc::clone(history),
            ..self
        }
    }

    /// Publishes what a poll that ended at `now` has found; the one before ended at `previous`.
    pub(super) fn publish(&self, snapshot: Snapshot, previous: Option<Instant>, now: Instant) {
        self.cell.publish(Arc::new(snapshot));
        // While a poll is overdue, nothing is known.
        let since = previous.filter(|_| self.watchdog.overdue(now).is_none());
        self.history.add_poll(&self.cell.load(), since, now);
    }

    /// The newest snapshot. If the poll is overdue at `now`, the server counts as down, and only
    /// the exporter's own counters remain.
    pub fn snapshot(&self, now: Instant) -> Arc<Snapshot> {
        let newest = self.cell.load();
        match self.watchdog.overdue(now) {
            Some(_) => Arc::new(newest.without_values()),
            None => newest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::ModelStatus;
    use crate::snapshot::{LiveCounts, Model, Polls};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A server that was polled once, with a running model, and whose next poll is due within
    /// two hours and a little.
    fn server(name: &str, is_overdue: bool, now: Instant) -> MonitoredServer {
        let model = Model {
            name: "m".to_owned(),
            status: Some(ModelStatus::Running),
            live: LiveCounts {
                generated_tokens: Some(7.0),
                ..LiveCounts::default()
            },
            ..Model::default()
        };
        let snapshot = Snapshot {
            server: name.to_owned(),
            up: Some(true),
            models: vec![model],
            models_disk_usage: Some(1.0),
            polls: Polls {
                total: 1,
                ..Polls::default()
            },
            ..Snapshot::default()
        };
        let start = if is_overdue { now - 3 * HOUR } else { now };
        MonitoredServer::new(snapshot, start, HOUR, HOUR)
    }

    /// A time that has hours before it.
    fn now() -> Instant {
        Instant::now() + 4 * HOUR
    }

    #[test]
    fn a_server_whose_poll_is_overdue_is_down_and_has_no_values() {
        let now = now();
        assert_eq!(server("a:1", false, now).snapshot(now).models.len(), 1);
        let stale = server("a:1", true, now).snapshot(now);
        assert_eq!((stale.up, stale.models.len()), (Some(false), 0));
        assert_eq!((stale.server.as_str(), stale.polls.total), ("a:1", 1));
        assert!(stale.info.is_none() && stale.models_disk_usage.is_none());
    }
}
