//! The kinds of servers, and how they differ for those who do not poll them.

use crate::bounds::label_enum::label_enum;

label_enum! {
    /// A kind of server, as the label `kind` spells it.
    pub enum ServerKind {
        /// llama-server with one model.
        LlamaServer = "llama-server",
        /// llama-server in router mode.
        Router = "router",
        /// Docker Model Runner.
        ModelRunner = "model-runner",
        /// llama-swap.
        LlamaSwap = "llama-swap",
        /// Ollama.
        Ollama = "ollama",
    }
}

/// How to identify the model that a line of a server's log is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// All lines are about the server's one model.
    OneModel,
    /// Lines are about any of the loaded models, without a sign which: usable while there is one.
    AnyModel,
    /// Lines begin with the port of the model's child process.
    ChildPorts,
}

impl ServerKind {
    /// Whether the server can hold several models, or none.
    pub fn holds_many_models(self) -> bool {
        self != ServerKind::LlamaServer
    }

    /// Whether the server is llama.cpp's own: a completion can be sent to a loaded model without
    /// loading another.
    pub fn is_llama_cpp(self) -> bool {
        matches!(self, ServerKind::LlamaServer | ServerKind::Router)
    }

    /// Whether the server keeps a list of requests that have ended.
    pub fn lists_requests(self) -> bool {
        matches!(self, ServerKind::ModelRunner | ServerKind::LlamaSwap)
    }

    /// How to identify the model of a log line; `None` if that is impossible.
    pub fn log_source(self) -> Option<LogSource> {
        match self {
            ServerKind::LlamaServer => Some(LogSource::OneModel),
            ServerKind::Router => Some(LogSource::ChildPorts),
            ServerKind::Ollama => Some(LogSource::AnyModel),
            ServerKind::ModelRunner | ServerKind::LlamaSwap => None,
        }
    }
}
