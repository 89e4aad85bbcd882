//! The status of a model.

use crate::bounds::label_enum::label_enum;

label_enum! {
    /// The status of a model, as the label `status` spells it.
    pub enum ModelStatus {
        /// Loaded, with no request to process.
        Idle = "idle",
        /// Being loaded.
        Loading = "loading",
        /// Processing a request.
        Running = "running",
        /// Put to sleep by `--sleep-idle-seconds`: the next request loads it again.
        Sleeping = "sleeping",
        /// Known and not loaded.
        Unloaded = "unloaded",
        /// Being downloaded.
        Downloading = "downloading",
        /// Its process ended with an error.
        Failed = "failed",
    }
}
