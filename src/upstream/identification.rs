//! Identifies a llama-server by its responses in one poll.
//!
//! One response that only llama.cpp and its forks send is sufficient. Responses that other servers
//! send too (`{"status":"ok"}` at `/health` is common) are sufficient unless `/v1/models` shows
//! another product. A proxy may pass on only some paths; its own responses are no evidence.

use crate::snapshot::{Absence, Reason};
use crate::upstream::api::{Health, ModelEntry, Props};
use crate::upstream::http::endpoint::Endpoint;
use crate::upstream::http::exchange::{Exchange, RequestOutcome};
use crate::upstream::products::Product;
use crate::upstream::server_url::ServerUrl;

/// `GET /v1/models`.
pub const MODELS: Endpoint = Endpoint::new("/v1/models", 4 << 20);

/// The `owned_by` of llama.cpp, and of forks that spell it like the project.
const LLAMA_CPP_OWNERS: [&str; 2] = ["llamacpp", "llama.cpp"];

/// The part of `/v1/models` that is used.
#[derive(Debug, Default)]
pub struct ModelList {
    /// The first model; one of llama.cpp takes precedence.
    pub first: Option<ModelEntry>,
    /// Whether a model is llama.cpp's.
    pub is_llama_cpp: bool,
    /// Whether it is the list of a router.
    pub is_router: bool,
    /// The product whose models are listed, if it is not llama.cpp.
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
    /// Whether llama.cpp lists it: recognized by its owner, or by facts that only llama.cpp
    /// reports.
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

/// The paths that a proxy passes on to the server, if it does not pass on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedOn {
    /// Of the paths that are read, only `/v1/models`.
    V1,
    /// `/v1/models` and `/health`, possibly `/metrics` and `/slots`.
    V1AndHealth,
}

impl PassedOn {
    /// The same as a reason for what is missing.
    pub fn absence(self) -> Absence {
        match self {
            PassedOn::V1 => Absence::ProxyPassesOnV1,
            PassedOn::V1AndHealth => Absence::ProxyPassesOnHealth,
        }
    }
}

/// The evidence of one poll on which server responds.
#[derive(Debug, Default)]
pub struct Evidence {
    health: Option<RequestOutcome<()>>,
    props: Option<RequestOutcome<()>>,
    /// Whether there was a response that only llama.cpp and its forks send.
    is_llama_cpp: bool,
    /// Whether the evidence was sufficient without `/v1/models`.
    was_enough: bool,
    /// Whether `/v1/models` lists models of llama.cpp.
    lists_own_models: bool,
    /// The product whose models `/v1/models` lists.
    product: Option<Product>,
}

impl Evidence {
    /// Adds the response to `/health`.
    pub fn add_health(&mut self, health: &RequestOutcome<Health>) {
        self.health = Some(health.without_document());
        if let RequestOutcome::Ok(health) = health {
            self.is_llama_cpp |= health.slots_idle.is_some();
        }
    }

    /// Adds the response to `/props`.
    pub fn add_props(&mut self, props: &RequestOutcome<Props>) {
        self.props = Some(props.without_document());
        if let RequestOutcome::Ok(props) = props {
            // KoboldCpp has `total_slots` and `default_generation_settings`, but none of these.
            self.is_llama_cpp |=
                props.build_info.is_some() || props.model_alias.is_some() || props.role.is_some();
        }
        self.was_enough = self.is_enough();
    }

    /// Adds the response to `/v1/models`.
    pub fn add_models(&mut self, models: &RequestOutcome<ModelList>) {
        if let RequestOutcome::Ok(list) = models {
            self.lists_own_models = list.is_llama_cpp;
            self.is_llama_cpp |= list.is_llama_cpp;
            self.product.clone_from(&list.product);
        }
    }

    /// Adds whether there was another response that only llama.cpp sends.
    pub fn add_llama_cpp(&mut self, is_llama_cpp: bool) {
        self.is_llama_cpp |= is_llama_cpp;
    }

    /// Whether the server is certainly llama.cpp.
    pub fn is_llama_cpp(&self) -> bool {
        self.is_llama_cpp
    }

    /// Whether the evidence is sufficient for llama.cpp.
    pub fn is_enough(&self) -> bool {
        // A server that sends another document for `/props` may send `{"status":"ok"}` for any
        // path.
        let is_likely = match self.props {
            Some(RequestOutcome::Ok(())) => true,
            Some(RequestOutcome::Unrecognized) => false,
            _ => matches!(self.health, Some(RequestOutcome::Ok(()))),
        };
        self.is_llama_cpp || is_likely && self.product.is_none()
    }

    /// The other product, if the server is one.
    pub fn product(self) -> Option<Product> {
        self.product.filter(|_| !self.is_llama_cpp)
    }

    /// Whether `/props` was read.
    pub fn has_props(&self) -> bool {
        matches!(self.props, Some(RequestOutcome::Ok(())))
    }

    /// Whether a proxy responded to `/props` because it cannot reach the server.
    pub fn props_is_bad_gateway(&self) -> bool {
        matches!(self.props, Some(RequestOutcome::BadGateway))
    }

    /// Whether only `/v1/models` shows that the server is llama.cpp.
    pub fn is_v1_alone(&self) -> bool {
        !self.was_enough && self.is_llama_cpp
    }

    /// What a proxy passes on to the server, judging by `/health`, `/props` and `/v1/models`.
    pub fn passed_on(&self) -> Option<PassedOn> {
        let is_proxys_page = match self.props {
            Some(RequestOutcome::Unrecognized | RequestOutcome::NotServed(_)) => true,
            // Not a rejected key: the server itself may reject it.
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

    /// Whether a failure for this reason may be a response of the proxy, not of the server.
    pub fn may_be_proxys(&self, reason: Reason) -> bool {
        match reason {
            Reason::Connect | Reason::Timeout => false,
            // llama-server never rejects /health, so the proxy rejects requests.
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
    fn other_products_are_identified_by_the_owner_of_their_models() {
        for (owner, name) in [
            ("library", "Ollama behind a proxy"),
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
    fn a_product_is_identified_by_any_entry_of_its_list() {
        let RequestOutcome::Ok(list) = list(
            r#"[{"id":"hf.co/a/b","owned_by":"a"},{"id":"c"},{"id":"gpt","owned_by":"openai"}]"#,
        ) else {
            unreachable!()
        };
        assert_eq!(
            list.product.map(|product| product.name).as_deref(),
            Some("LiteLLM or another gateway")
        );
        assert!(!list.is_llama_cpp);
    }

    #[test]
    fn one_response_of_llama_cpp_is_sufficient_whatever_the_owner() {
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
    fn llama_cpp_is_identified_by_its_owner_or_its_facts() {
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
    fn an_unrecognized_props_makes_health_insufficient() {
        let mut evidence = Evidence::default();
        evidence.add_health(&health(r#"{"status":"ok"}"#));
        evidence.add_props(&RequestOutcome::Unrecognized);
        assert!(!evidence.is_enough());
        evidence.add_models(&list(r#"[{"id":"m","owned_by":"llamacpp"}]"#));
        assert!(evidence.is_enough());
    }

    #[test]
    fn no_response_is_not_sufficient() {
        assert!(!Evidence::default().is_enough());
        assert_eq!(Evidence::default().product(), None);
    }
}
