//! Parses the command line of a llama-server: its port, model file and KV cache options.
//!
//! Names and defaults are those of llama.cpp's `common/arg.cpp`. If one value cannot be parsed, all
//! KV cache options are unknown: no size is better than a wrong one.

use crate::bounds::BoundedDuration;
use crate::gguf::kv_cache::{CacheOptions, CacheType};

/// An argument: its names, and its environment variable.
struct Argument(&'static [&'static str], &'static str);

const CTX_SIZE: Argument = Argument(&["-c", "--ctx-size"], "LLAMA_ARG_CTX_SIZE");
const PARALLEL: Argument = Argument(&["-np", "--parallel"], "LLAMA_ARG_N_PARALLEL");
const TYPE_K: Argument = Argument(&["-ctk", "--cache-type-k"], "LLAMA_ARG_CACHE_TYPE_K");
const TYPE_V: Argument = Argument(&["-ctv", "--cache-type-v"], "LLAMA_ARG_CACHE_TYPE_V");
const BATCH: Argument = Argument(&["-b", "--batch-size"], "LLAMA_ARG_BATCH");
const UBATCH: Argument = Argument(&["-ub", "--ubatch-size"], "LLAMA_ARG_UBATCH");
const FLASH_ATTENTION: Argument = Argument(&["-fa", "--flash-attn"], "LLAMA_ARG_FLASH_ATTN");
const MODEL: Argument = Argument(&["-m", "--model"], "LLAMA_ARG_MODEL");
const ALIAS: Argument = Argument(&["-a", "--alias"], "LLAMA_ARG_ALIAS");
const HF_REPO: Argument = Argument(&["-hf", "-hfr", "--hf-repo"], "LLAMA_ARG_HF_REPO");
const MODEL_URL: Argument = Argument(&["-mu", "--model-url"], "LLAMA_ARG_MODEL_URL");
const PORT: Argument = Argument(&["--port"], "LLAMA_ARG_PORT");
const HOST: Argument = Argument(&["--host"], "LLAMA_ARG_HOST");
const API_PREFIX: Argument = Argument(&["--api-prefix"], "LLAMA_ARG_API_PREFIX");
const TLS_KEY: Argument = Argument(&["--ssl-key-file"], "LLAMA_ARG_SSL_KEY_FILE");
const TLS_CERTIFICATE: Argument = Argument(&["--ssl-cert-file"], "LLAMA_ARG_SSL_CERT_FILE");
const API_KEY: Argument = Argument(&["--api-key"], "");
const API_KEY_FILE: Argument = Argument(&["--api-key-file"], "LLAMA_ARG_API_KEY_FILE");
const SLEEP_IDLE: Argument = Argument(&["--sleep-idle-seconds"], "LLAMA_ARG_SLEEP_IDLE_SECONDS");
const UNIFIED_PER_SLOT: Argument =
    Argument(&["--kv-unified-per-slot"], "LLAMA_ARG_KV_UNIFIED_PER_SLOT");

/// The default ports: before b11549, and since.
const DEFAULT_PORTS: [u16; 2] = [8080, 9931];

/// Arguments with which the size of the KV cache is unknown: a draft model has a cache of its own,
/// or the model file's values are overridden.
const UNKNOWN_CACHE_ARGUMENTS: &[&str] = &[
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
const UNKNOWN_CACHE_VARIABLES: &[&str] = &[
    "LLAMA_ARG_MODEL_DRAFT",
    "LLAMA_ARG_SPEC_DRAFT_MODEL",
    "LLAMA_ARG_HFD_REPO",
    "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
    "LLAMA_ARG_SPEC_TYPE",
];

/// The command line and environment variables of a process that may be a llama-server.
#[derive(Clone, Debug, Default)]
pub struct ServerArguments {
    words: Vec<String>,
    variables: Vec<(String, String)>,
}

impl ServerArguments {
    /// From the words of a command line, program name first, and its environment variables.
    pub fn new(words: &[String], variables: &[(String, String)]) -> ServerArguments {
        // Like llama.cpp, treat underscores in long names as dashes.
        let normalize = |word: &String| {
            let is_name = word.starts_with("--") && !word.contains([' ', '/']);
            if is_name {
                word.replace('_', "-")
            } else {
                word.clone()
            }
        };
        ServerArguments {
            words: words.iter().map(normalize).collect(),
            variables: variables.to_vec(),
        }
    }

    /// From the command line of a router's child, with or without the program name.
    pub fn of_router_child(words: &[String]) -> ServerArguments {
        let has_program = words.first().is_some_and(|first| !first.starts_with('-'));
        let program = (!has_program).then(|| "llama-server".to_owned());
        let words: Vec<String> = program.into_iter().chain(words.iter().cloned()).collect();
        ServerArguments::new(&words, &[])
    }

    /// Whether this starts a llama-server, by the program name: `llama-server`,
    /// `com.docker.llama-server` and the like, or `llama serve` and `llama server`.
    pub fn is_llama_server(&self) -> bool {
        let word = |index: usize| self.words.get(index).map_or("", String::as_str);
        let program = word(0).rsplit('/').next().unwrap_or_default();
        program.contains("llama-server")
            || (program == "llama" && matches!(word(1), "serve" | "server"))
    }

    /// Whether this is a wrapper that starts `server`: `sudo llama-server …`,
    /// `docker-init -- llama-server …`.
    pub fn wraps(&self, server: &ServerArguments) -> bool {
        server.is_llama_server()
            && self.words.len() > server.words.len()
            && self.words.ends_with(&server.words)
    }

    /// Whether one of these words is present.
    fn has(&self, names: &[&str]) -> bool {
        self.words.iter().any(|word| names.contains(&word.as_str()))
    }

    /// The last value given, or that of the environment variable.
    fn value(&self, Argument(names, variable): &Argument) -> Option<&str> {
        let mut pairs = self.words.windows(2).rev();
        let given = pairs.find(|pair| names.contains(&pair[0].as_str()));
        given.map_or_else(|| self.variable(variable), |pair| Some(&pair[1]))
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let mut variables = self.variables.iter();
        let found = variables.find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The port that it listens on, if given.
    pub fn port(&self) -> Option<u16> {
        self.value(&PORT)?.parse().ok()
    }

    /// Whether it may listen on `port`: any program with `--port PORT`, or a llama-server with this
    /// default port in some build.
    pub fn may_listen_on(&self, port: u16) -> bool {
        self.has_port(port)
            || (self.is_llama_server()
                && match self.value(&PORT) {
                    None => DEFAULT_PORTS.contains(&port),
                    Some(_) => self.port() == Some(port),
                })
    }

    /// Whether `--port PORT` or `--port=PORT` is among the words.
    fn has_port(&self, port: u16) -> bool {
        let port = port.to_string();
        let mut pairs = self.words.windows(2);
        pairs.any(|pair| pair[0] == "--port" && pair[1] == port)
            || self.words.contains(&format!("--port={port}"))
    }

    /// The mode, as Docker Model Runner names it.
    pub fn mode(&self) -> &'static str {
        if self.has(&["--reranking", "--rerank"]) {
            "reranking"
        } else if self.has(&["--embeddings", "--embedding"]) {
            "embedding"
        } else {
            "completion"
        }
    }

    /// The model file.
    pub fn model_path(&self) -> Option<&str> {
        self.value(&MODEL)
    }

    /// How it calls its model (`--alias`): the first of several names.
    pub fn alias(&self) -> Option<&str> {
        let names = self.value(&ALIAS)?.split(',').map(str::trim);
        names.into_iter().find(|name| !name.is_empty())
    }

    /// The prefix of its endpoints (`--api-prefix`): empty, or begins with a slash.
    pub fn api_prefix(&self) -> String {
        let prefix = self.value(&API_PREFIX).unwrap_or_default();
        let prefix = prefix.trim_matches('/');
        if prefix.is_empty() {
            String::new()
        } else {
            format!("/{prefix}")
        }
    }

    /// Its API keys, separated by commas. A secret.
    pub fn api_keys(&self) -> Option<&str> {
        self.value(&API_KEY)
    }

    /// The file that holds its API keys, one a line.
    pub fn api_key_file(&self) -> Option<&str> {
        self.value(&API_KEY_FILE)
    }

    /// Whether it speaks `https`: it has a key and a certificate.
    pub fn is_https(&self) -> bool {
        self.value(&TLS_KEY).is_some() && self.value(&TLS_CERTIFICATE).is_some()
    }

    /// How it calls its model in its answers: by its alias, else by its file: up to b9713 by the
    /// file's name, from b9873 on by the path as given. `None` if that is not certain: the path has
    /// a folder, there are several aliases, of which builds take different ones, or the model is
    /// downloaded and has a name of its own.
    pub fn model_name(&self) -> Option<String> {
        if !self.is_llama_server() {
            return None;
        }
        let is_downloaded = self.value(&HF_REPO).or(self.value(&MODEL_URL)).is_some();
        let name = match self.value(&ALIAS) {
            Some(alias) => Some(alias).filter(|alias| !alias.contains(',')),
            None if is_downloaded => None,
            None => self.model_path().filter(|path| !path.contains('/')),
        };
        name.filter(|name| !name.is_empty()).map(str::to_owned)
    }

    /// The Unix sockets in `--host`, which is a list of addresses and sockets.
    pub fn unix_sockets(&self) -> impl Iterator<Item = &str> {
        let hosts = self.value(&HOST).unwrap_or_default().split(',');
        hosts.map(str::trim).filter(|host| host.ends_with(".sock"))
    }

    /// How long the server is idle before it unloads its model (`--sleep-idle-seconds`).
    pub fn sleep_idle(&self) -> Option<BoundedDuration> {
        let seconds: u64 = self.value(&SLEEP_IDLE)?.parse().ok()?;
        (seconds > 0).then(|| BoundedDuration::from_secs(seconds))
    }

    /// The options of the KV cache; `None` if unknown.
    pub fn cache_options(&self) -> Option<CacheOptions> {
        let is_set = |name: &&str| self.variable(name).is_some_and(|value| value != "none");
        if !self.is_llama_server()
            || self.has(UNKNOWN_CACHE_ARGUMENTS)
            || UNKNOWN_CACHE_VARIABLES.iter().any(is_set)
        {
            return None;
        }
        // Outer None: it cannot be parsed. Inner None: it is not given.
        let number = |argument: &Argument| match self.value(argument) {
            None => Some(None),
            Some(text) => text.parse::<i64>().ok().map(Some),
        };
        // 0 and negative values mean that the server chooses.
        let positive = |argument: &Argument| {
            let given = number(argument)?;
            Some(
                given
                    .and_then(|given| u64::try_from(given).ok())
                    .filter(|n| *n > 0),
            )
        };
        let size = |argument: &Argument| match number(argument)? {
            None => Some(None),
            Some(given) => u64::try_from(given).ok().map(Some),
        };
        let cache_type = |argument| CacheType::named(self.value(argument).unwrap_or("f16"));
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
            None if self.variable("LLAMA_ARG_NO_KV_UNIFIED").is_some() => false,
            None => parse_bool(self.variable("LLAMA_ARG_KV_UNIFIED").unwrap_or("off"))?,
        };
        let swa_full = self.has(&["--swa-full"])
            || parse_bool(self.variable("LLAMA_ARG_SWA_FULL").unwrap_or("off"))?;
        let flash_attention = self.value(&FLASH_ATTENTION).unwrap_or("auto");
        Some(CacheOptions {
            ctx_size: positive(&CTX_SIZE)?,
            parallel: positive(&PARALLEL)?,
            unified_per_slot: positive(&UNIFIED_PER_SLOT)?,
            unified,
            type_k: cache_type(&TYPE_K)?,
            type_v: cache_type(&TYPE_V)?,
            swa_full,
            batch: size(&BATCH)?,
            ubatch: size(&UBATCH)?,
            transposed_v: parse_bool(flash_attention) == Some(false),
        })
    }
}

/// A boolean as llama.cpp spells it.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "on" | "enabled" | "true" | "1" => Some(true),
        "off" | "disabled" | "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str, variables: &[(&str, &str)]) -> ServerArguments {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        ServerArguments::new(&words, &variables)
    }

    #[test]
    fn arguments_that_are_not_given_have_llama_servers_defaults() {
        let arguments = called("/app/llama-server -m x.gguf", &[]);
        assert_eq!(arguments.cache_options(), Some(CacheOptions::default()));
        assert!(arguments.may_listen_on(8080) && arguments.may_listen_on(9931));
        assert!(!arguments.may_listen_on(8081));
        let given = called("llama-server --port 8081", &[]);
        assert!(
            given.may_listen_on(8081) && !given.may_listen_on(8080) && !given.may_listen_on(9931)
        );
        assert_eq!(arguments.model_path(), Some("x.gguf"));
        assert_eq!(arguments.sleep_idle(), None);
    }

    #[test]
    fn arguments_override_variables_and_the_last_one_wins() {
        let variables = [
            ("LLAMA_ARG_CTX_SIZE", "1024"),
            ("LLAMA_ARG_N_PARALLEL", "3"),
            ("LLAMA_ARG_KV_UNIFIED", "true"),
            ("LLAMA_ARG_CACHE_TYPE_V", "q4_0"),
        ];
        let line =
            "llama-server -c 512 --ctx_size 2048 -ctk q8_0 --swa-full --sleep-idle-seconds 6";
        let arguments = called(line, &variables);
        let options = arguments.cache_options().unwrap();
        assert_eq!((options.ctx_size, options.parallel), (Some(2048), Some(3)));
        assert!(options.unified && options.swa_full);
        assert_eq!(options.type_k, CacheType::named("q8_0").unwrap());
        assert_eq!(options.type_v, CacheType::named("q4_0").unwrap());
        assert_eq!(arguments.sleep_idle(), Some(BoundedDuration::from_secs(6)));
        let apart = called("llama-server -kvu --no-kv-unified -np -1", &variables);
        let options = apart.cache_options().unwrap();
        assert_eq!((options.unified, options.parallel), (false, None));
    }

    #[test]
    fn one_value_that_cannot_be_parsed_makes_the_cache_unknown() {
        for line in [
            "python server.py -c 4096",
            "llama-server -c many",
            "llama-server -ctk q3_9",
            "llama-server -md draft.gguf",
            "llama-server --spec-type draft-mtp",
            "llama-server --override-kv a=int:1",
            "llama-server -b -5",
        ] {
            assert_eq!(called(line, &[]).cache_options(), None, "{line}");
        }
        let odd = [("LLAMA_ARG_SWA_FULL", "perhaps")];
        assert_eq!(called("llama-server", &odd).cache_options(), None);
    }

    #[test]
    fn a_port_is_found_in_any_programs_arguments() {
        assert!(called("python s.py --port 8123", &[]).has_port(8123));
        assert!(called("python s.py --port=8123", &[]).has_port(8123));
        assert!(!called("python s.py --port 81234", &[]).has_port(8123));
        let socket = called("com.docker.llama-server --host /run/i-1.sock", &[]);
        assert!(socket.is_llama_server());
        assert_eq!(socket.unix_sockets().collect::<Vec<_>>(), ["/run/i-1.sock"]);
        let list = called("llama-server --host 127.0.0.1,/run/a.sock,::1,b.sock", &[]);
        assert_eq!(
            list.unix_sockets().collect::<Vec<_>>(),
            ["/run/a.sock", "b.sock"]
        );
        let none = called("llama-server --host 127.0.0.1,::1", &[]);
        assert_eq!(none.unix_sockets().count(), 0);
    }

    #[test]
    fn the_name_of_the_model_is_its_alias_or_its_file() {
        for (line, name) in [
            // Builds differ.
            ("llama-server -m /models/gemma.gguf", None),
            ("llama-server -m gemma.gguf", Some("gemma.gguf")),
            ("llama-server -m gemma.gguf --alias tiny", Some("tiny")),
            ("llama-server -a tiny -m gemma.gguf", Some("tiny")),
            ("llama serve -m gemma.gguf", Some("gemma.gguf")),
            ("llama-server -m gemma.gguf --alias tiny,small", None),
            ("llama-server -hf org/gemma-GGUF", None),
            ("llama-server -hf org/gemma-GGUF -m gemma.gguf", None),
            ("llama-server --model-url http://h/gemma.gguf", None),
            ("llama-server", None),
            ("python -m gemma.gguf --alias tiny", None),
        ] {
            assert_eq!(called(line, &[]).model_name().as_deref(), name, "{line}");
        }
        let alias = [("LLAMA_ARG_ALIAS", "tiny")];
        let arguments = called("llama-server -m gemma.gguf", &alias);
        assert_eq!(arguments.model_name().as_deref(), Some("tiny"));
    }

    #[test]
    fn llama_serve_is_a_llama_server() {
        let case = "tests/cases/07-llama-serve-unified-binary/cmdline.txt";
        let case = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(case);
        let line = std::fs::read_to_string(&case).unwrap();
        let arguments = called(&line.trim().replace('\n', " "), &[]);
        assert!(arguments.is_llama_server() && arguments.may_listen_on(8080));
        assert_eq!(arguments.mode(), "completion");
        let options = arguments.cache_options().unwrap();
        assert_eq!((options.ctx_size, options.parallel), (Some(4096), Some(2)));
        // Its router gives its children the same.
        let router = case.with_file_name("router-models.json");
        let router: serde_json::Value =
            serde_json::from_reader(std::fs::File::open(router).unwrap()).unwrap();
        let words = router["data"][0]["status"]["args"].clone();
        let words: Vec<String> = serde_json::from_value(words).unwrap();
        let child = ServerArguments::of_router_child(&words);
        assert_eq!(child.port(), Some(45123));
        assert_eq!(child.cache_options(), Some(options));
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
            assert_eq!(called(line, &[]).is_llama_server(), is_one, "{line}");
        }
    }
}
