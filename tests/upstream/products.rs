//! Other products that speak the OpenAI API: named and reported as down.

use serde_json::json;

use crate::support::recordings::{self, MIDDLE, OLD, Stage};
use crate::support::{Answer, Exporter, Server, for_each, for_each_case};
use crate::{ENDPOINTS, assert_down, json_case, kind};

fn models_owned_by(owner: &str) -> Answer {
    let model = json!({"id": "a-model", "object": "model", "created": 1, "owned_by": owner});
    Answer::json(json!({"object": "list", "data": [model]}).to_string())
}

/// A server that answers so where it is asked for more than its models.
fn product(models: Answer, elsewhere: Answer, others: &[(&str, Answer)]) -> Server {
    let server = Server::start();
    server.answer("/v1/models", models);
    server.answer_other_paths(elsewhere);
    for (path, answer) in others {
        server.answer(path, answer.clone());
    }
    server
}

fn text(text: &str) -> Answer {
    Answer::new(200, "text/plain; charset=utf-8", text)
}

/// Products that speak OpenAI's language, and what each is called. Their answers are those of
/// `tests/cases`, or follow their sources and documentation.
fn products() -> Vec<(&'static str, Server)> {
    let not_found = || Answer::new(404, "text/plain", "404 page not found");
    let detail = || Answer::new(404, "application/json", r#"{"detail":"Not Found"}"#);
    vec![
        (
            "Ollama",
            product(
                json_case("17-another-openai-server/ollama-models.json"),
                not_found(),
                &[
                    ("/", text("Ollama is running")),
                    ("/api/version", Answer::json(r#"{"version":"0.12.6"}"#)),
                ],
            ),
        ),
        // A model that is not from its own library is owned by whoever made it.
        (
            "Ollama",
            product(
                models_owned_by("bartowski"),
                not_found(),
                &[("/", text("Ollama is running"))],
            ),
        ),
        (
            "Ollama",
            product(
                Answer::json(r#"{"object":"list","data":null}"#),
                not_found(),
                &[("/", text("Ollama is running"))],
            ),
        ),
        (
            "vLLM",
            product(
                models_owned_by("vllm"),
                detail(),
                &[
                    ("/health", text("")),
                    (
                        "/metrics",
                        text(
                            "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"m\"} 1.0\n",
                        ),
                    ),
                    ("/version", Answer::json(r#"{"version":"0.11.0"}"#)),
                ],
            ),
        ),
        (
            "SGLang",
            product(
                models_owned_by("sglang"),
                detail(),
                &[
                    ("/health", text("")),
                    ("/metrics", text("sglang:num_running_reqs 0\n")),
                ],
            ),
        ),
        (
            "LM Studio",
            product(
                models_owned_by("organization_owner"),
                Answer::json(r#"{"error":"Unexpected endpoint or method. (GET /health)"}"#),
                &[],
            ),
        ),
        (
            "LiteLLM",
            product(
                models_owned_by("openai"),
                detail(),
                &[
                    (
                        "/health",
                        Answer::json(
                            r#"{"healthy_endpoints":[{"model":"gpt-4"}],"unhealthy_endpoints":[],"healthy_count":1,"unhealthy_count":0}"#,
                        ),
                    ),
                    ("/metrics", text("litellm_requests_metric_total 3\n")),
                    ("/", Answer::html()),
                ],
            ),
        ),
        (
            "Lemonade",
            product(
                models_owned_by("lemonade"),
                Answer::html(),
                &[
                    (
                        "/health",
                        Answer::json(
                            r#"{"status":"ok","version":"9.3.3","model_loaded":"m","all_models_loaded":[]}"#,
                        ),
                    ),
                    (
                        "/metrics",
                        text(
                            "# TYPE lemonade_llamacpp_requests_processing gauge\nlemonade_llamacpp_requests_processing{model=\"m\"} 1\nllamacpp_requests_processing 1\n",
                        ),
                    ),
                    (
                        "/v1/stats",
                        Answer::json(
                            r#"{"time_to_first_token":2.14,"tokens_per_second":33.33,"input_tokens":128,"output_tokens":5,"prompt_tokens":9}"#,
                        ),
                    ),
                ],
            ),
        ),
        (
            "KoboldCpp",
            product(
                models_owned_by("koboldcpp"),
                Answer::new(404, "text/html", "Error"),
                &[(
                    "/props",
                    Answer::json(
                        r#"{"chat_template":"","id":0,"id_task":-1,"total_slots":1,"model_path":"local_model.gguf","default_generation_settings":{"n_ctx":8192}}"#,
                    ),
                )],
            ),
        ),
        (
            "llama-cpp-python",
            product(models_owned_by("me"), detail(), &[]),
        ),
        // mlx_lm.server answers /health as llama-server does, and names no owner.
        (
            "an OpenAI-compatible server",
            product(
                Answer::json(
                    r#"{"object":"list","data":[{"id":"mlx-community/m","object":"model","created":1}]}"#,
                ),
                Answer::new(404, "text/html", "Not Found"),
                &[("/health", Answer::json(r#"{"status":"ok"}"#))],
            ),
        ),
        (
            "an OpenAI-compatible server (owned_by \\\"acme\\\")",
            product(
                models_owned_by("acme"),
                not_found(),
                &[("/health", Answer::json(r#"{"status":"healthy"}"#))],
            ),
        ),
        (
            "llama-swap",
            product(models_owned_by("llama-swap"), not_found(), &[]),
        ),
        (
            "Docker Model Runner",
            product(models_owned_by("docker"), not_found(), &[]),
        ),
    ]
}

#[test]
fn other_products_are_down_and_named_in_one_log_line() {
    let cases = products()
        .into_iter()
        .map(|(name, server)| (name, (name, server)));
    for_each_case(cases, |(name, server)| {
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert_down(&scrape);
        assert_eq!(
            scrape.errors(),
            0,
            "a missing endpoint is no error: {scrape:?}"
        );
        let lines = exporter.logged(&["the server is down", "reason=not_llama_cpp", name]);
        assert_eq!(lines.len(), 1, "{}", exporter.output());
        exporter.assert_logged(0, &["a request failed"]);
        exporter.assert_logged(0, &["is up"]);
        // A llama-server takes its place.
        let real = Server::recorded(MIDDLE, Stage::After);
        server.answer_like(&real, &ENDPOINTS);
        exporter.until("up", |scrape| {
            scrape.value("llamacpp_generated_tokens_total") == Some(120.0)
        });
    });
}

#[test]
fn only_the_models_of_an_identified_product_are_requested() {
    // LiteLLM's /health has every model behind it complete a prompt.
    for (name, server) in products() {
        if !["LiteLLM", "LM Studio", "vLLM"].contains(&name) {
            continue;
        }
        let exporter = Exporter::watching(&server).start();
        exporter.after_polls(2);
        let asked = server.requests().len();
        exporter.after_polls(4);
        for request in &server.requests()[asked..] {
            assert_eq!(request.path, "/v1/models", "{name}");
        }
        assert_eq!(server.count("/health"), 1, "{name}");
    }
}

#[test]
fn one_response_of_llama_cpp_identifies_a_llama_server() {
    let own = Server::recorded(MIDDLE, Stage::Busy);
    let endpoints = ["/props", "/metrics", "/slots"];
    for_each(endpoints, |path: &str| {
        // A fork that calls itself something else.
        let not_found = Answer::new(404, "text/plain", "not found");
        let server = product(
            models_owned_by("a-fork"),
            not_found,
            &[(path, own.answer_of(path))],
        );
        let scrape = Exporter::watching(&server).start().after_polls(3);
        assert!(scrape.up(), "{path}: {scrape:?}");
        assert_eq!(kind(&scrape), Some("llama-server"), "{path}: {scrape:?}");
    });
}

#[test]
fn the_models_of_recorded_builds_are_owned_by_llamacpp() {
    for build in recordings::BUILDS {
        let models = recordings::models(build);
        assert_eq!(models["data"][0]["owned_by"], "llamacpp", "{build}");
    }
    assert_eq!(recordings::models(OLD)["object"], "list");
}
