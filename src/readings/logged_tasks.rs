//! What a server's log says of its tasks: for servers whose `/metrics` is off.

/// What the log has said since the last poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedTasks {
    /// How often the server has been started while its log was followed.
    pub starts: u64,
    /// Tasks that have ended, in order.
    pub ended: Vec<EndedTask>,
    /// Tasks that are running now.
    pub running: Vec<RunningTask>,
}

/// A task that has ended. IDs are those of `/slots` (`id_task`), unique while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedTask {
    /// How often the server had been started by then.
    pub starts: u64,
    /// Its ID.
    pub id: u64,
    /// Its tokens; `None` if the log does not say, as of a cancelled task.
    pub tokens: Option<TaskTokens>,
    /// Whether its prompt was computed for another task (`n` > 1).
    pub is_child: bool,
}

/// The tokens of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskTokens {
    /// Prompt tokens computed.
    pub prompt: u64,
    /// Tokens generated.
    pub generated: u64,
}

/// A task that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningTask {
    /// Its ID.
    pub id: u64,
    /// Tokens generated when the log said so last, every 3 seconds.
    pub generated_tokens: u64,
    /// Whether its prompt was computed for another task (`n` > 1).
    pub is_child: bool,
}
