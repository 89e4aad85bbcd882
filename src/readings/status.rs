//! The status of a model, as the label `status` spells it.

/// The state that a model is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelStatus {
    /// Loaded, with nothing to do.
    Idle,
    /// Being loaded.
    Loading,
    /// At work on a request.
    Running,
    /// Put to sleep by `--sleep-idle-seconds`: the next request loads it again.
    Sleeping,
    /// Known and not loaded.
    Unloaded,
    /// Being fetched.
    Downloading,
    /// Ended by an error.
    Failed,
}

impl ModelStatus {
    /// Every state, in the order of the exposition.
    pub const ALL: [ModelStatus; 7] = [
        ModelStatus::Idle,
        ModelStatus::Loading,
        ModelStatus::Running,
        ModelStatus::Sleeping,
        ModelStatus::Unloaded,
        ModelStatus::Downloading,
        ModelStatus::Failed,
    ];

    /// The value of the label `status`.
    pub fn label(self) -> &'static str {
        match self {
            ModelStatus::Idle => "idle",
            ModelStatus::Loading => "loading",
            ModelStatus::Running => "running",
            ModelStatus::Sleeping => "sleeping",
            ModelStatus::Unloaded => "unloaded",
            ModelStatus::Downloading => "downloading",
            ModelStatus::Failed => "failed",
        }
    }
}
