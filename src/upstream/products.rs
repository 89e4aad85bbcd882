//! Products that are not a llama.cpp server, and what to watch instead.

/// A product that is probably not a llama.cpp server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Its probable name.
    pub name: String,
    /// What to watch instead.
    pub advice: &'static str,
    /// Whether it is certain that the server at this address cannot be watched.
    pub is_certain: bool,
}

const NO_LLAMA_SERVER: &str = "it runs no llama-server, so there is nothing to watch here";
const OWN_METRICS: &str = "have Prometheus scrape its own /metrics instead";
const PERHAPS_ITS_LLAMA_SERVER: &str = "give the address of a llama-server that it runs, if it runs one: its port is on its command \
     line (ps -o args -C llama-server)";
const LEMONADE: &str =
    "give the address of a llama-server that it runs: its /v1/health names them (backend_url)";
const BEHIND_GATEWAY: &str = "give the address of a llama-server behind it";
const PASS_ON_RUNNING: &str = "configure the proxy to pass on /running too";
const PASS_ON_API: &str =
    "configure the proxy to pass on /, /api/ps, /api/tags and /api/version too";
const PASS_ON_ENGINES: &str = "configure the proxy to pass on /engines, /models and /metrics too";

/// Products by the `owned_by` of their models, as in their source or documentation: name, advice,
/// and whether it is certain. Servers that can be watched are not certain: a proxy may pass on only
/// their list of models, or they may respond to the rest a moment later.
const PRODUCTS: [(&str, &str, &str, bool); 12] = [
    ("library", "Ollama behind a proxy", PASS_ON_API, false),
    ("organization_owner", "LM Studio", NO_LLAMA_SERVER, true),
    ("vllm", "vLLM", OWN_METRICS, true),
    ("sglang", "SGLang", OWN_METRICS, true),
    ("lemonade", "Lemonade", LEMONADE, true),
    ("openai", "LiteLLM or another gateway", BEHIND_GATEWAY, true),
    ("koboldcpp", "KoboldCpp", NO_LLAMA_SERVER, true),
    ("me", "llama-cpp-python", NO_LLAMA_SERVER, true),
    (
        "user",
        "Jan, text-generation-webui or another server",
        PERHAPS_ITS_LLAMA_SERVER,
        true,
    ),
    ("tabbyAPI", "TabbyAPI", NO_LLAMA_SERVER, true),
    (
        "llama-swap",
        "llama-swap behind a proxy",
        PASS_ON_RUNNING,
        false,
    ),
    (
        "docker",
        "Docker Model Runner behind a proxy",
        PASS_ON_ENGINES,
        false,
    ),
];

/// Texts in the root page of products, with the `owned_by` of their models.
const ROOT_PAGES: [(&str, &str); 2] = [
    ("Ollama is running", "library"),
    ("Unexpected endpoint or method", "organization_owner"),
];

impl Product {
    /// The product whose models are owned by `owner`.
    pub fn of_owner(owner: Option<&str>) -> Product {
        let known = PRODUCTS.iter().find(|(known, ..)| Some(*known) == owner);
        if let Some(&(_, name, advice, is_certain)) = known {
            return Product {
                name: name.to_owned(),
                advice,
                is_certain,
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

    /// The product whose root page is `text`.
    pub fn of_root_page(text: &str) -> Option<Product> {
        let (_, owner) = ROOT_PAGES.iter().find(|(page, _)| text.contains(page))?;
        Some(Product::of_owner(Some(owner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_can_be_watched_is_not_certain() {
        let is_certain = |owner| Product::of_owner(Some(owner)).is_certain;
        for owner in ["library", "llama-swap", "docker", "acme"] {
            assert!(!is_certain(owner), "{owner}");
        }
        assert!(is_certain("vllm") && is_certain("openai"));
    }
}
