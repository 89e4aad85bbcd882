//! The cell into which a poll thread publishes, and from which every scrape reads.

use std::sync::{Arc, Mutex, PoisonError};

use crate::snapshot::Snapshot;

/// Holds the newest snapshot of one base URL.
///
/// The lock is held only to swap or clone a pointer, so neither side waits for the other.
#[derive(Debug)]
pub struct SnapshotCell(Mutex<Arc<Snapshot>>);

impl SnapshotCell {
    /// A cell that holds `snapshot`.
    pub fn new(snapshot: Snapshot) -> SnapshotCell {
        SnapshotCell(Mutex::new(Arc::new(snapshot)))
    }

    /// Replaces the snapshot. Here and nowhere else duplicate series are removed.
    pub fn publish(&self, mut snapshot: Arc<Snapshot>) {
        Arc::make_mut(&mut snapshot).remove_duplicates();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
