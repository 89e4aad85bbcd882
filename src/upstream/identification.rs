//! Tells a llama-server from other servers by what they answer in one poll.
//!
//! One answer that only llama.cpp and its forks give is enough. Answers that others give too
//! (`{"status":"ok"}` at `/health` is common) are enough unless `/v1/models` shows another product.
//! A proxy may pass on some paths only; what it answers on the others says nothing of the server.

use crate::snapshot::Reason;
use crate::upstream::api::{Health, ModelEntry, Props};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::products::Product;
use crate::upstream::server_url::ServerUrl;

/// `GET /v1/models`.
const MODELS: Endpoint = Endpoint::new("/v1/models", 4 << 20);

/// The `owned_by` of llama.cpp, and of forks that spell it as the project does.
const LLAMA_CPP_OWNERS: [&str; 2] = ["llamacpp", "llama.cpp"];

/// What `/v1/models` lists, as far as it is used.
#[derive(Debug, Default)]
pub struct ModelList {
    /// The first model, llama.cpp's own before another's.
    pub first: Option<ModelEntry>,
    /// Whether a model is llama.cpp's own.
    pub is_llama_cpp: bool,
    /// Whether it is the list of a router.
    pub is_router: bool,
    /// The product whose models are listed, if it is another.
    pub product: Option<Product>,
}

impl ModelList {
    fn push(&mut self, entry: ModelEntry) {
        if entry.is_llama_cpp() {
            self.is_router |= entry.status.is_some();
            if !self.is_llama_cpp {
                self.first = Some(entry);
            }
            self.is_llama_cpp = true;
            return;
        }
        if !self.product.as_ref().is_some_and(|known| known.is_certain) {
            let product = Product::of_owner(entry.owned_by.as_deref());
            if product.is_certain || self.product.is_none() {
                self.product = Some(product);
            }
        }
        self.first.get_or_insert(entry);
    }
}

impl ModelEntry {
    /// Whether llama.cpp lists it: by its owner, or by facts that only llama.cpp gives.
    fn is_llama_cpp(&self) -> bool {
        let owner = self.owned_by.as_deref();
        let meta = self.meta.as_ref();
        owner.is_some_and(|owner| LLAMA_CPP_OWNERS.contains(&owner))
            || meta.is_some_and(|meta| meta.n_params.is_some() || meta.size.is_some())
    }
}

/// Reads `/v1/models`.
pub fn read_models(exchange: &mut Exchange, url: &ServerUrl) -> RequestOutcome<ModelList> {
    exchange.get(MODELS, &url.of(MODELS), |answer| {
        let mut list = ModelList::default();
        answer.for_each_in("data", |entry| list.push(entry))?;
        Ok(list)
    })
}

/// Paths that a proxy passes on to the server, where those are not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedOn {
    /// `/v1/models` of all that is read.
    V1,
    /// `/v1/models` and `/health`, and perhaps `/metrics` and `/slots`.
    V1AndHealth,
}

impl PassedOn {
    /// What to do about it, for people.
    pub fn note(self) -> &'static str {
        match self {
            PassedOn::V1 => {
                "a proxy passes on only /v1/models to the server: to see more, have it pass on \
                 /health, /props, /metrics and /slots too"
            }
            PassedOn::V1AndHealth => {
                "a proxy passes on only /health and /v1/models to the server: to see more, have it \
                 pass on /props, /metrics and /slots too"
            }
        }
    }
}

/// What the answers of one poll show about the server.
#[derive(Debug, Default)]
pub struct Evidence {
    health: Option<RequestOutcome<()>>,
    props: Option<RequestOutcome<()>>,
    /// An answer that only llama.cpp and its forks give.
    is_llama_cpp: bool,
    /// Whether that was enough without `/v1/models`.
    was_enough: bool,
    /// `/v1/models` lists llama.cpp's own.
    lists_own_models: bool,
    /// The product whose models `/v1/models` lists.
    product: Option<Product>,
}

impl Evidence {
    /// Adds the answer to `/health`.
    pub fn add_health(&mut self, health: &RequestOutcome<Health>) {
        self.health = Some(health.without_answer());
        if let RequestOutcome::Ok(health) = health {
            self.is_llama_cpp |= health.slots_idle.is_some();
        }
    }

    /// Adds the answer to `/props`.
    pub fn add_props(&mut self, props: &RequestOutcome<Props>) {
        self.props = Some(props.without_answer());
        if let RequestOutcome::Ok(props) = props {
            // KoboldCpp has `total_slots` and `default_generation_settings`, and none of these.
            self.is_llama_cpp |=
                props.build_info.is_some() || props.model_alias.is_some() || props.role.is_some();
        }
        self.was_enough = self.is_enough();
    }

    /// Adds the answer to `/v1/models`.
    pub fn add_models(&mut self, models: &RequestOutcome<ModelList>) {
        if let RequestOutcome::Ok(list) = models {
            self.lists_own_models = list.is_llama_cpp;
            self.is_llama_cpp |= list.is_llama_cpp;
            self.product.clone_from(&list.product);
        }
    }

    /// Adds whether there was another answer that only llama.cpp gives.
    pub fn add_llama_cpp(&mut self, is_llama_cpp: bool) {
        self.is_llama_cpp |= is_llama_cpp;
    }

    /// Whether it is certainly llama.cpp.
    pub fn is_llama_cpp(&self) -> bool {
        self.is_llama_cpp
    }

    /// Whether it counts as llama.cpp.
    pub fn is_enough(&self) -> bool {
        // Something that is no `/props` may answer `{"status":"ok"}` to anything.
        let is_likely = match self.props {
            Some(RequestOutcome::Ok(())) => true,
            Some(RequestOutcome::Unrecognized) => false,
            _ => matches!(self.health, Some(RequestOutcome::Ok(()))),
        };
        self.is_llama_cpp || is_likely && self.product.is_none()
    }

    /// The product that it is instead, if it is one.
    pub fn product(self) -> Option<Product> {
        self.product.filter(|_| !self.is_llama_cpp)
    }

    /// Whether `/props` was read.
    pub fn has_props(&self) -> bool {
        matches!(self.props, Some(RequestOutcome::Ok(())))
    }

    /// Whether a proxy has answered `/props` in place of a server that it cannot reach.
    pub fn props_is_bad_gateway(&self) -> bool {
        matches!(self.props, Some(RequestOutcome::BadGateway))
    }

    /// Whether nothing but `/v1/models` shows that it is llama.cpp.
    pub fn is_v1_alone(&self) -> bool {
        !self.was_enough && self.is_llama_cpp
    }

    /// What a proxy passes on to the server, as far as `/health`, `/props` and `/v1/models` show.
    pub fn passed_on(&self) -> Option<PassedOn> {
        let is_proxys_page = match self.props {
            Some(RequestOutcome::Unrecognized | RequestOutcome::NotServed(_)) => true,
            // A refused key is not among these: the server itself may refuse it.
            Some(RequestOutcome::Failed(reason)) => {
                matches!(reason, Reason::Status | Reason::TooLarge | Reason::Parse)
            }
            _ => false,
        };
        match &self.health {
            Some(health) if health.timed_out() => None,
            Some(RequestOutcome::Ok(())) if is_proxys_page && self.lists_own_models => {
                Some(PassedOn::V1AndHealth)
            }
            _ => self.is_v1_alone().then_some(PassedOn::V1),
        }
    }

    /// Whether a failure for this reason may be the answer of the proxy in the server's place.
    pub fn may_be_proxys(&self, reason: Reason) -> bool {
        match reason {
            Reason::Connect | Reason::Timeout => false,
            // llama-server refuses nobody at /health: the proxy does, there and elsewhere.
            Reason::Unauthorized => {
                matches!(
                    self.health,
                    Some(RequestOutcome::Failed(Reason::Unauthorized))
                )
            }
            Reason::Status | Reason::TooLarge | Reason::Parse => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(json: &str) -> RequestOutcome<ModelList> {
        let entries: Vec<ModelEntry> = serde_json::from_str(json).unwrap();
        let mut list = ModelList::default();
        entries.into_iter().for_each(|entry| list.push(entry));
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
            evidence.add_health(&health(r#"{"status":"ok"}"#));
            assert!(evidence.is_enough());
            evidence.add_models(&list(&format!(r#"[{{"id":"m","owned_by":"{owner}"}}]"#)));
            assert!(!evidence.is_enough(), "{owner}");
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
        assert!(!list.is_llama_cpp);
    }

    #[test]
    fn one_answer_of_llama_cpp_is_enough_whatever_the_owner() {
        let foreign = || list(r#"[{"id":"m","owned_by":"a-fork"}]"#);
        let mut by_props = Evidence::default();
        by_props.add_props(&props(r#"{"build_info":"b1-x","total_slots":1}"#));
        by_props.add_models(&foreign());
        assert!(by_props.is_enough() && by_props.product().is_none());

        let mut by_ik_health = Evidence::default();
        by_ik_health.add_health(&health(
            r#"{"slots_idle":4,"slots_processing":0,"status":"ok"}"#,
        ));
        by_ik_health.add_models(&foreign());
        assert!(by_ik_health.is_enough());

        let mut by_metrics = Evidence::default();
        by_metrics.add_models(&foreign());
        assert!(!by_metrics.is_enough());
        by_metrics.add_llama_cpp(true);
        assert!(by_metrics.is_enough());
    }

    #[test]
    fn what_kobold_cpp_imitates_is_not_enough() {
        let mut evidence = Evidence::default();
        evidence.add_props(&props(
            r#"{"total_slots":1,"default_generation_settings":{"n_ctx":8192}}"#,
        ));
        evidence.add_models(&list(r#"[{"id":"koboldcpp/m","owned_by":"koboldcpp"}]"#));
        assert!(!evidence.is_enough());
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
            evidence.add_models(&models);
            assert!(evidence.is_enough(), "{json}");
            let first = models.ok().and_then(|list| list.first?.id);
            assert_eq!(first.as_deref(), Some("m"), "{json}");
        }
    }

    #[test]
    fn a_document_of_another_kind_at_props_makes_health_doubtful() {
        let mut evidence = Evidence::default();
        evidence.add_health(&health(r#"{"status":"ok"}"#));
        evidence.add_props(&RequestOutcome::Unrecognized);
        assert!(!evidence.is_enough());
        evidence.add_models(&list(r#"[{"id":"m","owned_by":"llamacpp"}]"#));
        assert!(evidence.is_enough());
    }

    #[test]
    fn nothing_is_not_enough() {
        assert!(!Evidence::default().is_enough());
        assert_eq!(Evidence::default().product(), None);
    }
}
