//! How a llama-server was called: the arguments and variables that decide about its cache.
//!
//! Names and defaults as llama.cpp's `common/arg.cpp` has them. What cannot be
//! understood makes the whole unknown: a wrong size is worse than none.

use crate::bounds::BoundedDuration;
use crate::gguf::kv_cache::{CacheType, Options};

/// One argument that is heeded: its names and its variable.
struct Argument {
    names: &'static [&'static str],
    variable: &'static str,
}

const CTX_SIZE: Argument = Argument {
    names: &["-c", "--ctx-size"],
    variable: "LLAMA_ARG_CTX_SIZE",
};
const PARALLEL: Argument = Argument {
    names: &["-np", "--parallel"],
    variable: "LLAMA_ARG_N_PARALLEL",
};
const TYPE_K: Argument = Argument {
    names: &["-ctk", "--cache-type-k"],
    variable: "LLAMA_ARG_CACHE_TYPE_K",
};
const TYPE_V: Argument = Argument {
    names: &["-ctv", "--cache-type-v"],
    variable: "LLAMA_ARG_CACHE_TYPE_V",
};
const BATCH: Argument = Argument {
    names: &["-b", "--batch-size"],
    variable: "LLAMA_ARG_BATCH",
};
const UBATCH: Argument = Argument {
    names: &["-ub", "--ubatch-size"],
    variable: "LLAMA_ARG_UBATCH",
};
const FLASH_ATTENTION: Argument = Argument {
    names: &["-fa", "--flash-attn"],
    variable: "LLAMA_ARG_FLASH_ATTN",
};
const MODEL: Argument = Argument {
    names: &["-m", "--model"],
    variable: "LLAMA_ARG_MODEL",
};
const PORT: Argument = Argument {
    names: &["--port"],
    variable: "LLAMA_ARG_PORT",
};
const HOST: Argument = Argument {
    names: &["--host"],
    variable: "LLAMA_ARG_HOST",
};
const SLEEP_IDLE: Argument = Argument {
    names: &["--sleep-idle-seconds"],
    variable: "LLAMA_ARG_SLEEP_IDLE_SECONDS",
};
const PER_SLOT: Argument = Argument {
    names: &["--kv-unified-per-slot"],
    variable: "LLAMA_ARG_KV_UNIFIED_PER_SLOT",
};
/// The port without `--port`: before b11549, and from it on.
const DEFAULT_PORTS: [u16; 2] = [8080, 9931];
const SWA_FULL: &str = "LLAMA_ARG_SWA_FULL";
const UNIFIED: &str = "LLAMA_ARG_KV_UNIFIED";
const NOT_UNIFIED: &str = "LLAMA_ARG_NO_KV_UNIFIED";

/// With one of these there is another model beside the first, with a cache of
/// its own, or the file does not say what the model is.
const BEYOND_US: &[&str] = &[
    "-md",
    "--model-draft",
    "--spec-draft-model",
    "-hfd",
    "-hfrd",
    "--hf-repo-draft",
    "--spec-draft-hf",
    "--spec-default",
    "--spec-type",
    "--override-kv",
];
const VARIABLES_BEYOND_US: &[&str] = &[
    "LLAMA_ARG_MODEL_DRAFT",
    "LLAMA_ARG_SPEC_DRAFT_MODEL",
    "LLAMA_ARG_HFD_REPO",
    "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    "LLAMA_ARG_SPEC_TYPE",
];

/// How a llama-server was called.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    words: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Arguments {
    /// From the words of a command line, the program's name first, and the variables.
    pub fn new(words: &[String], variables: &[(String, String)]) -> Arguments {
        // As llama.cpp reads them: underscores in long names are dashes.
        let normal = |word: &String| match word.strip_prefix("--") {
            Some(name) => format!("--{}", name.replace('_', "-")),
            None => word.clone(),
        };
        let known = |word: &String| word.starts_with("--") && !word.contains([' ', '/']);
        Arguments {
            words: words
                .iter()
                .map(|word| {
                    if known(word) {
                        normal(word)
                    } else {
                        word.clone()
                    }
                })
                .collect(),
            variables: variables.to_vec(),
        }
    }

    /// From the command line that a router gives a server of its own.
    pub fn of_child(words: &[String]) -> Arguments {
        let program = match words.first() {
            Some(first) if !first.starts_with('-') => None,
            _ => Some("llama-server".to_owned()),
        };
        let words: Vec<String> = program.into_iter().chain(words.iter().cloned()).collect();
        Arguments::new(&words, &[])
    }

    /// Whether this is a llama-server, by its program's name: `llama-server`,
    /// `com.docker.llama-server` and the like, or the unified `llama serve`, `llama server`.
    pub fn are_a_llama_servers(&self) -> bool {
        let program = self.words.first().map_or("", String::as_str);
        let file = program.rsplit('/').next().unwrap_or_default();
        let command = self.words.get(1).map_or("", String::as_str);
        file.contains("llama-server") || (file == "llama" && ["serve", "server"].contains(&command))
    }

    /// Whether these are the words of a program that was told to run a llama-server, with all of
    /// `server`'s words.
    pub fn wrap(&self, server: &Arguments) -> bool {
        server.are_a_llama_servers()
            && self.words.len() > server.words.len()
            && self.words.ends_with(&server.words)
    }

    fn value(&self, argument: &Argument) -> Option<&str> {
        let given = self
            .words
            .windows(2)
            .rev()
            .find(|pair| argument.names.contains(&pair[0].as_str()));
        match given {
            Some(pair) => Some(&pair[1]),
            None => self.variable(argument.variable),
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let mut variables = self.variables.iter();
        variables
            .find(|(key, _)| key == name)
            .map(|(_, v)| v.as_str())
    }

    /// The port that it says it listens on.
    pub fn port(&self) -> Option<u16> {
        self.value(&PORT)?.parse().ok()
    }

    /// Whether a program that was called so may listen on `port`: which of its defaults a
    /// llama-server without `--port` takes, its build decides.
    pub fn mean_port(&self, port: u16) -> bool {
        let by_default = || {
            let is_default = self.value(&PORT).is_none() && DEFAULT_PORTS.contains(&port);
            is_default || self.port() == Some(port)
        };
        self.name_port(port) || (self.are_a_llama_servers() && by_default())
    }

    /// What the model is run for, in Docker Model Runner's words.
    pub fn mode(&self) -> &'static str {
        let has = |names: &[&str]| self.words.iter().any(|word| names.contains(&word.as_str()));
        if has(&["--reranking", "--rerank"]) {
            "reranking"
        } else if has(&["--embeddings", "--embedding"]) {
            "embedding"
        } else {
            "completion"
        }
    }

    /// Whether `--port PORT` stands among the words: so may any program be called.
    fn name_port(&self, port: u16) -> bool {
        let port = port.to_string();
        let pair = |pair: &[String]| pair[0] == "--port" && pair[1] == port;
        let joined = format!("--port={port}");
        self.words.windows(2).any(pair) || self.words.contains(&joined)
    }

    /// The file of its model.
    pub fn model(&self) -> Option<&str> {
        self.value(&MODEL)
    }

    /// The Unix sockets that it listens on: `--host` is a list of them and of addresses.
    pub fn sockets(&self) -> impl Iterator<Item = &str> {
        let hosts = self.value(&HOST).unwrap_or_default().split(',');
        hosts.map(str::trim).filter(|host| host.ends_with(".sock"))
    }

    /// After how long without work it falls asleep.
    pub fn sleep_idle(&self) -> Option<BoundedDuration> {
        let seconds: u64 = self.value(&SLEEP_IDLE)?.parse().ok()?;
        (seconds > 0).then(|| BoundedDuration::from_secs(seconds))
    }

    /// What decides about its cache; `None` where that cannot be told.
    pub fn cache(&self) -> Option<Options> {
        if !self.are_a_llama_servers() {
            return None;
        }
        let has = |names: &[&str]| self.words.iter().any(|word| names.contains(&word.as_str()));
        let set = |name: &&str| self.variable(name).is_some_and(|value| value != "none");
        if has(BEYOND_US) || VARIABLES_BEYOND_US.iter().any(set) {
            return None;
        }
        let number = |argument: &Argument| match self.value(argument) {
            None => Some(None),
            Some(text) => text.parse::<i64>().ok().map(Some),
        };
        // Not given, 0 and (for slots) below 0 leave the choice to the server.
        let chosen = |argument: &Argument| {
            number(argument).map(|n| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0))
        };
        let or = |argument: &Argument, default: u64| match number(argument)? {
            None => Some(default),
            Some(given) => u64::try_from(given).ok(),
        };
        let cache_type = |argument: &Argument| match self.value(argument) {
            None => Some(CacheType::F16),
            Some(name) => CacheType::named(name),
        };
        let unified = self
            .words
            .iter()
            .rev()
            .find_map(|word| match word.as_str() {
                "-kvu" | "--kv-unified" => Some(true),
                "-no-kvu" | "--no-kv-unified" => Some(false),
                _ => None,
            });
        let unified = match unified {
            Some(unified) => unified,
            None if self.variable(NOT_UNIFIED).is_some() => false,
            None => match self.variable(UNIFIED) {
                None => false,
                Some(value) => truth(value)?,
            },
        };
        let swa_full = match self.variable(SWA_FULL) {
            _ if has(&["--swa-full"]) => true,
            None => false,
            Some(value) => truth(value)?,
        };
        let flash_attention = self.value(&FLASH_ATTENTION).unwrap_or("auto");
        Some(Options {
            ctx_size: chosen(&CTX_SIZE)?,
            parallel: chosen(&PARALLEL)?,
            per_slot: chosen(&PER_SLOT)?,
            unified,
            type_k: cache_type(&TYPE_K)?,
            type_v: cache_type(&TYPE_V)?,
            swa_full,
            batch: or(&BATCH, 2048)?,
            ubatch: or(&UBATCH, 512)?,
            transposed: truth(flash_attention) == Some(false),
        })
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "on" | "enabled" | "true" | "1" => Some(true),
        "off" | "disabled" | "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str, variables: &[(&str, &str)]) -> Arguments {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Arguments::new(&words, &variables)
    }

    #[test]
    fn what_is_not_given_is_llama_servers_own_choice() {
        let arguments = called("/app/llama-server -m x.gguf", &[]);
        assert_eq!(arguments.cache(), Some(Options::default()));
        assert!(arguments.mean_port(8080) && arguments.mean_port(9931));
        assert!(!arguments.mean_port(8081));
        let given = called("llama-server --port 8081", &[]);
        assert!(given.mean_port(8081) && !given.mean_port(8080) && !given.mean_port(9931));
        assert_eq!(arguments.model(), Some("x.gguf"));
        assert_eq!(arguments.sleep_idle(), None);
    }

    #[test]
    fn arguments_win_over_variables_and_the_last_one_over_the_first() {
        let variables = [
            ("LLAMA_ARG_CTX_SIZE", "1024"),
            ("LLAMA_ARG_N_PARALLEL", "3"),
            ("LLAMA_ARG_KV_UNIFIED", "true"),
            ("LLAMA_ARG_CACHE_TYPE_V", "q4_0"),
        ];
        let line =
            "llama-server -c 512 --ctx_size 2048 -ctk q8_0 --swa-full --sleep-idle-seconds 6";
        let arguments = called(line, &variables);
        let options = arguments.cache().unwrap();
        assert_eq!((options.ctx_size, options.parallel), (Some(2048), Some(3)));
        assert!(options.unified && options.swa_full);
        assert_eq!(options.type_k, CacheType::Q8_0);
        assert_eq!(options.type_v, CacheType::Q4_0);
        assert_eq!(arguments.sleep_idle(), Some(BoundedDuration::from_secs(6)));
        let apart = called("llama-server -kvu --no-kv-unified -np -1", &variables);
        let options = apart.cache().unwrap();
        assert_eq!((options.unified, options.parallel), (false, None));
    }

    #[test]
    fn what_is_not_understood_makes_the_whole_unknown() {
        for line in [
            "python server.py -c 4096",
            "llama-server -c many",
            "llama-server -ctk q3_9",
            "llama-server -md draft.gguf",
            "llama-server --spec-type draft-mtp",
            "llama-server --override-kv a=int:1",
            "llama-server -b -5",
        ] {
            assert_eq!(called(line, &[]).cache(), None, "{line}");
        }
        let odd = [("LLAMA_ARG_SWA_FULL", "perhaps")];
        assert_eq!(called("llama-server", &odd).cache(), None);
    }

    #[test]
    fn a_port_is_found_in_any_programs_words() {
        assert!(called("python s.py --port 8123", &[]).name_port(8123));
        assert!(called("python s.py --port=8123", &[]).name_port(8123));
        assert!(!called("python s.py --port 81234", &[]).name_port(8123));
        let socket = called("com.docker.llama-server --host /run/i-1.sock", &[]);
        assert!(socket.are_a_llama_servers());
        assert_eq!(socket.sockets().collect::<Vec<_>>(), ["/run/i-1.sock"]);
        let list = called("llama-server --host 127.0.0.1,/run/a.sock,::1,b.sock", &[]);
        assert_eq!(
            list.sockets().collect::<Vec<_>>(),
            ["/run/a.sock", "b.sock"]
        );
        let none = called("llama-server --host 127.0.0.1,::1", &[]);
        assert_eq!(none.sockets().count(), 0);
    }

    #[test]
    fn the_unified_binary_is_a_llama_server_when_it_serves() {
        let case = "tests/cases/07-llama-serve-unified-binary/cmdline.txt";
        let case = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(case);
        let line = std::fs::read_to_string(&case).unwrap();
        let arguments = called(&line.trim().replace('\n', " "), &[]);
        assert!(arguments.are_a_llama_servers() && arguments.mean_port(8080));
        assert_eq!(arguments.mode(), "completion");
        let options = arguments.cache().unwrap();
        assert_eq!((options.ctx_size, options.parallel), (Some(4096), Some(2)));
        // Its router gives its children the same.
        let router = case.with_file_name("router-models.json");
        let router: serde_json::Value =
            serde_json::from_reader(std::fs::File::open(router).unwrap()).unwrap();
        let words = router["data"][0]["status"]["args"].clone();
        let words: Vec<String> = serde_json::from_value(words).unwrap();
        let child = Arguments::of_child(&words);
        assert_eq!(child.port(), Some(45123));
        assert_eq!(child.cache(), Some(options));
        for (line, is_one) in [
            ("llama server --port 1", true),
            ("/usr/bin/llama serve", true),
            ("/app/llama-server serve", true),
            ("llama bench", false),
            ("llama", false),
            ("llama -m serve", false),
            ("ollama serve", false),
            ("python llama serve", false),
            ("vllm serve", false),
        ] {
            assert_eq!(called(line, &[]).are_a_llama_servers(), is_one, "{line}");
        }
    }
}
