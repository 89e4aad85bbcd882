//! Telling a llama-server from other servers by what they answer in one poll.
//!
//! An answer that only llama.cpp and its forks give is enough to be taken for a llama-server.
//! Others give some of its answers too (`{"status":"ok"}` at `/health` is common); those count
//! unless `/v1/models` shows that another product answers.

use crate::upstream::api::{Health, ModelEntry, Props};
use crate::upstream::http::exchange::{Endpoint, Exchange, RequestOutcome};
use crate::upstream::telemetry::ServerUrl;

/// `GET /v1/models`.
pub const MODELS: Endpoint = Endpoint {
    path: "/v1/models",
    limit: 4 << 20,
};

/// A server that is no llama.cpp, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// What it seems to be.
    pub name: String,
    /// What to watch in its place.
    pub advice: &'static str,
    /// Whether it is certain that nothing at its address can be watched.
    pub is_certain: bool,
}

const NOTHING_TO_WATCH: &str = "it runs no llama-server, so there is nothing here to watch";

/// Ollama, which is also known by what it answers at its root.
const OLLAMA: (&str, &str) = (
    "Ollama",
    "give the address of a llama-server that it runs, http://127.0.0.1:PORT: its port stands on its \
     command line (ps -o args -C llama-server)",
);
const LM_STUDIO: (&str, &str) = ("LM Studio", NOTHING_TO_WATCH);

/// Products by the `owned_by` of their models, each read off its source or documentation.
const OWNERS: [(&str, (&str, &str)); 10] = [
    ("library", OLLAMA),
    ("organization_owner", LM_STUDIO),
    (
        "vllm",
        (
            "vLLM",
            "it has a /metrics of its own, which Prometheus can scrape",
        ),
    ),
    (
        "sglang",
        (
            "SGLang",
            "it has a /metrics of its own, which Prometheus can scrape",
        ),
    ),
    (
        "lemonade",
        (
            "Lemonade",
            "give the address of a llama-server that it runs: its /v1/health names them (backend_url)",
        ),
    ),
    (
        "openai",
        (
            "LiteLLM or another gateway",
            "give the address of a llama-server behind it",
        ),
    ),
    ("koboldcpp", ("KoboldCpp", NOTHING_TO_WATCH)),
    ("me", ("llama-cpp-python", NOTHING_TO_WATCH)),
    (
        "user",
        (
            "Jan, text-generation-webui or another server",
            "give the address of a llama-server that it runs, if it runs one: its port stands on its \
             command line (ps -o args -C llama-server)",
        ),
    ),
    ("tabbyAPI", ("TabbyAPI", NOTHING_TO_WATCH)),
];

/// Servers that can be watched, where no more of them answers than their models: a proxy may pass
/// on no more, or they answer the rest a moment later.
const WATCHED_OWNERS: [(&str, (&str, &str)); 2] = [
    (
        "llama-swap",
        (
            "llama-swap behind a proxy",
            "have the proxy pass on /running too",
        ),
    ),
    (
        "docker",
        (
            "Docker Model Runner behind a proxy",
            "have the proxy pass on /engines, /models and /metrics too",
        ),
    ),
];

/// The `owned_by` of llama.cpp, and of forks that spell it as the project does.
const OWN: [&str; 2] = ["llamacpp", "llama.cpp"];

impl Product {
    fn known((name, advice): (&str, &'static str)) -> Product {
        Product {
            name: name.to_owned(),
            advice,
            is_certain: true,
        }
    }

    /// The product whose models are owned by `owner`.
    fn of_owner(owner: Option<&str>) -> Product {
        let is_owner = |(name, _): &&(&str, _)| Some(*name) == owner;
        if let Some((_, product)) = OWNERS.iter().find(is_owner) {
            return Product::known(*product);
        }
        if let Some((_, product)) = WATCHED_OWNERS.iter().find(is_owner) {
            return Product {
                is_certain: false,
                ..Product::known(*product)
            };
        }
        Product {
            name: match owner {
                Some(owner) => format!("an OpenAI-compatible server (owned_by {owner:?})"),
                None => "an OpenAI-compatible server".to_owned(),
            },
            advice: "give the address of a llama-server",
            is_certain: false,
        }
    }

    /// The product that answers `text` at its root.
    pub fn of_root(text: &str) -> Option<Product> {
        let known = if text.contains("Ollama is running") {
            OLLAMA
        } else if text.contains("Unexpected endpoint or method") {
            LM_STUDIO
        } else {
            return None;
        };
        Some(Product::known(known))
    }
}

/// What `/v1/models` lists, as far as it is used.
#[derive(Debug, Default)]
pub struct ModelList {
    /// The first model, llama.cpp's own before another's.
    pub first: Option<ModelEntry>,
    /// Whether a model is llama.cpp's own.
    pub is_own: bool,
    /// Whether it is the list of a router.
    pub is_router: bool,
    /// Whose models they are, where they are another's.
    pub product: Option<Product>,
}

impl ModelList {
    fn take(&mut self, entry: ModelEntry) {
        if entry.is_own() {
            self.is_router |= entry.status.is_some();
            if !self.is_own {
                self.first = Some(entry);
            }
            self.is_own = true;
            return;
        }
        let is_certain = |product: &Product| product.is_certain;
        if !self.product.as_ref().is_some_and(is_certain) {
            let product = Product::of_owner(entry.owned_by.as_deref());
            if product.is_certain || self.product.is_none() {
                self.product = Some(product);
            }
        }
        self.first.get_or_insert(entry);
    }
}

impl ModelEntry {
    /// Whether llama.cpp lists it: by its own word, or by the facts that only llama.cpp tells.
    fn is_own(&self) -> bool {
        let owner = self.owned_by.as_deref();
        let has_facts = self
            .meta
            .as_ref()
            .is_some_and(|meta| meta.n_params.is_some() || meta.size.is_some());
        owner.is_some_and(|owner| OWN.contains(&owner)) || has_facts
    }
}

/// Asks for `/v1/models` at `place`.
pub fn ask_models(exchange: &mut Exchange, place: &ServerUrl) -> RequestOutcome<ModelList> {
    exchange.get(MODELS, &place.url(MODELS), |answer| {
        let mut list = ModelList::default();
        answer.each_in("data", |entry| list.take(entry))?;
        Ok(list)
    })
}

/// Who answers, by the answers of one poll.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Something answered as only llama.cpp and its forks do.
    is_own: bool,
    /// Something answered as llama.cpp does, and others do too.
    is_likely: bool,
    /// `/props` is a document of another kind: `{"status":"ok"}` is answered to anything.
    is_doubtful: bool,
    /// `/v1/models` shows that it is this.
    product: Option<Product>,
}

impl Evidence {
    /// Takes that something answered as only llama.cpp does.
    pub fn saw_own(&mut self, is_own: bool) {
        self.is_own |= is_own;
    }

    /// Takes what `/health` answered.
    pub fn saw_health(&mut self, health: &RequestOutcome<Health>) {
        if let RequestOutcome::Ok(health) = health {
            self.is_likely = true;
            self.is_own |= health.slots_idle.is_some();
        }
    }

    /// Takes what `/props` answered.
    pub fn saw_props(&mut self, props: &RequestOutcome<Props>) {
        self.is_doubtful = matches!(props, RequestOutcome::Unrecognized);
        if let RequestOutcome::Ok(props) = props {
            self.is_likely = true;
            // KoboldCpp has `total_slots` and `default_generation_settings`, and none of these.
            let names_itself =
                props.build_info.is_some() || props.model_alias.is_some() || props.role.is_some();
            self.is_own |= names_itself;
        }
    }

    /// Takes what `/v1/models` answered.
    pub fn saw_models(&mut self, models: &RequestOutcome<ModelList>) {
        if let RequestOutcome::Ok(list) = models {
            self.is_own |= list.is_own;
            self.product.clone_from(&list.product);
        }
    }

    /// Whether it is llama.cpp beyond doubt.
    pub fn are_own(&self) -> bool {
        self.is_own
    }

    /// Whether it is to be taken for llama.cpp.
    pub fn are_enough(&self) -> bool {
        self.is_own || self.is_likely && !self.is_doubtful && self.product.is_none()
    }

    /// What else it is, where it is to be taken for another product.
    pub fn product(self) -> Option<Product> {
        self.product.filter(|_| !self.is_own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(json: &str) -> RequestOutcome<ModelList> {
        let entries: Vec<ModelEntry> = serde_json::from_str(json).unwrap();
        let mut list = ModelList::default();
        entries.into_iter().for_each(|entry| list.take(entry));
        RequestOutcome::Ok(list)
    }

    fn health(json: &str) -> RequestOutcome<Health> {
        RequestOutcome::Ok(serde_json::from_str(json).unwrap())
    }

    fn props(json: &str) -> RequestOutcome<Props> {
        RequestOutcome::Ok(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_models_of_other_products_are_told_by_their_owner() {
        for (owner, name) in [
            ("library", "Ollama"),
            ("vllm", "vLLM"),
            ("organization_owner", "LM Studio"),
            ("lemonade", "Lemonade"),
            ("openai", "LiteLLM or another gateway"),
            ("acme", "an OpenAI-compatible server (owned_by \"acme\")"),
        ] {
            let mut evidence = Evidence::default();
            evidence.saw_health(&health(r#"{"status":"ok"}"#));
            assert!(evidence.are_enough());
            evidence.saw_models(&list(&format!(r#"[{{"id":"m","owned_by":"{owner}"}}]"#)));
            assert!(!evidence.are_enough(), "{owner}");
            assert_eq!(
                evidence.product().map(|product| product.name).as_deref(),
                Some(name)
            );
        }
    }

    #[test]
    fn a_product_that_names_itself_anywhere_in_the_list_is_known() {
        let RequestOutcome::Ok(list) = list(
            r#"[{"id":"hf.co/a/b","owned_by":"a"},{"id":"c"},{"id":"qwen3:8b","owned_by":"library"}]"#,
        ) else {
            unreachable!()
        };
        assert_eq!(
            list.product.map(|product| product.name).as_deref(),
            Some("Ollama")
        );
        assert!(!list.is_own);
    }

    #[test]
    fn one_answer_of_llama_cpp_is_enough_whatever_the_owner() {
        let foreign = || list(r#"[{"id":"m","owned_by":"a-fork"}]"#);
        let mut by_props = Evidence::default();
        by_props.saw_props(&props(r#"{"build_info":"b1-x","total_slots":1}"#));
        by_props.saw_models(&foreign());
        assert!(by_props.are_enough() && by_props.product().is_none());

        let mut by_ik_health = Evidence::default();
        by_ik_health.saw_health(&health(
            r#"{"slots_idle":4,"slots_processing":0,"status":"ok"}"#,
        ));
        by_ik_health.saw_models(&foreign());
        assert!(by_ik_health.are_enough());

        let mut by_metrics = Evidence::default();
        by_metrics.saw_models(&foreign());
        assert!(!by_metrics.are_enough());
        by_metrics.saw_own(true);
        assert!(by_metrics.are_enough());
    }

    #[test]
    fn what_can_be_watched_is_looked_for_again() {
        let is_certain = |owner| Product::of_owner(Some(owner)).is_certain;
        for owner in ["llama-swap", "docker", "acme"] {
            assert!(!is_certain(owner), "{owner}");
        }
        assert!(is_certain("library") && is_certain("openai"));
    }

    #[test]
    fn what_kobold_cpp_imitates_is_not_enough() {
        let mut evidence = Evidence::default();
        evidence.saw_props(&props(
            r#"{"total_slots":1,"default_generation_settings":{"n_ctx":8192}}"#,
        ));
        evidence.saw_models(&list(r#"[{"id":"koboldcpp/m","owned_by":"koboldcpp"}]"#));
        assert!(!evidence.are_enough());
    }

    #[test]
    fn llama_cpp_is_known_by_its_owner_or_its_facts() {
        for json in [
            r#"[{"id":"m","owned_by":"llamacpp","meta":null}]"#,
            r#"[{"id":"m","meta":{"n_params":7}}]"#,
            r#"[{"id":"x","owned_by":"library"},{"id":"m","owned_by":"llamacpp"}]"#,
        ] {
            let mut evidence = Evidence::default();
            let models = list(json);
            evidence.saw_models(&models);
            assert!(evidence.are_enough(), "{json}");
            let first = models.ok().and_then(|list| list.first?.id);
            assert_eq!(first.as_deref(), Some("m"), "{json}");
        }
    }

    #[test]
    fn a_document_of_another_kind_at_props_makes_health_doubtful() {
        let mut evidence = Evidence::default();
        evidence.saw_health(&health(r#"{"status":"ok"}"#));
        evidence.saw_props(&RequestOutcome::Unrecognized);
        assert!(!evidence.are_enough());
        evidence.saw_models(&list(r#"[{"id":"m","owned_by":"llamacpp"}]"#));
        assert!(evidence.are_enough());
    }

    #[test]
    fn nothing_is_not_enough() {
        assert!(!Evidence::default().are_enough());
        assert_eq!(Evidence::default().product(), None);
    }
}
