//! Who answers at a base URL, and whether it is up: judged at every poll by the answers of that
//! poll. A proxy that answers in the place of a dead server is no server, other products are no
//! llama.cpp, and a proxy may pass on a part of the endpoints only.

mod support;

use serde_json::{Value, json};
use support::exporter::{program, run};
use support::recordings::{self, MIDDLE, NEW, OLD, Stage};
use support::{Answer, Exporter, Scrape, Server, all_at_once, eventually};

/// An answer of `tests/cases`, head included.
fn page(name: &str) -> Answer {
    Answer::raw(recordings::case(name))
}

fn case(name: &str) -> Answer {
    Answer::json(recordings::case(name))
}

/// What proxies and web servers answer on every path when the server behind them is gone.
fn pages_of_proxies() -> Vec<(&'static str, Answer)> {
    vec![
        ("nginx 502", page("01-proxy-502/nginx-502.http")),
        ("nginx 504", page("01-proxy-502/nginx-504.http")),
        ("envoy 503", page("01-proxy-502/envoy-503.http")),
        (
            "envoy, no upstream",
            page("01-proxy-502/envoy-no-healthy-upstream.http"),
        ),
        ("caddy 502", Answer::new(502, "", "")),
        ("traefik 502", Answer::new(502, "text/plain", "Bad Gateway")),
        ("null", Answer::json("null")),
        ("nothing", Answer::json("")),
        ("nothing at all", Answer::new(204, "text/plain", "")),
        ("an object", Answer::json("{}")),
        ("a list", Answer::json("[]")),
        ("a list of something", Answer::json(r#"[{"status":"ok"}]"#)),
        (
            "the word of a health check to everything",
            Answer::json(r#"{"status":"ok"}"#),
        ),
        (
            "cloudflare 522",
            Answer::new(522, "text/plain", "error code: 522"),
        ),
        (
            "haproxy 503",
            Answer::new(
                503,
                "text/html",
                "<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>\n",
            ),
        ),
        (
            "too many requests",
            Answer::new(429, "text/plain", "Too Many Requests"),
        ),
        (
            "an error with 200",
            Answer::json(r#"{"error":{"message":"upstream is down","code":502}}"#),
        ),
        ("a page", Answer::html()),
        (
            "a login",
            Answer::new(302, "text/html", "").header("Location", "/login"),
        ),
        ("not found", Answer::new(404, "text/html", "<html></html>")),
        (
            "unauthorized",
            page("14-basic-auth-and-api-key/nginx-401.http"),
        ),
    ]
}

/// Nothing is said of the server but that it is down.
fn assert_down(scrape: &Scrape) {
    assert!(scrape.down(), "{scrape:?}");
    for (family, _) in &scrape.families {
        let own = ["llamacpp_up", "llamacpp_exporter_", "process_"];
        assert!(
            own.iter().any(|start| family.starts_with(start)),
            "{family} of a server that is down:\n{scrape:?}"
        );
    }
}

fn kind(scrape: &Scrape) -> Option<&str> {
    scrape.label("llamacpp_server_info", "kind")
}

/// The course of a server that dies behind its proxy, and comes back.
fn dies_behind_a_proxy(kind_of_server: &str, server: &Server) {
    // Figures of past requests stand while a server is down.
    let exporter = Exporter::watching(server)
        .interval("10ms")
        .arguments(&["--no-request-records"])
        .start();
    let states = |scrape: &Scrape| scrape.all("llamacpp_status").len();
    let is_back = |scrape: &Scrape| scrape.up() && kind(scrape) == Some(kind_of_server);
    let before = states(&exporter.until("up", is_back));
    for (name, page) in pages_of_proxies() {
        server.cover(page);
        assert_down(&exporter.until(&format!("down, {name}"), Scrape::down));
        // Not only at the first poll.
        assert_down(&exporter.after_polls(1));
        server.uncover();
        // The first poll may have met the page at some endpoints.
        exporter.until(
            &format!("up again after {name}, with all of its models"),
            |scrape| is_back(scrape) && states(scrape) == before,
        );
    }
}

#[test]
fn a_llama_server_that_dies_behind_a_proxy_is_down() {
    dies_behind_a_proxy("llama-server", &Server::recorded(MIDDLE, Stage::Busy));
}

#[test]
fn a_router_that_dies_behind_a_proxy_is_down() {
    dies_behind_a_proxy("router", &Server::recorded_router("models-unloaded.json"));
}

#[test]
fn a_model_runner_that_dies_behind_a_proxy_is_down() {
    dies_behind_a_proxy(
        "model-runner",
        &Server::recorded_kind("model-runner", "idle"),
    );
    dies_behind_a_proxy(
        "model-runner",
        &Server::recorded_kind("model-runner", "no-models"),
    );
}

#[test]
fn a_llama_swap_that_dies_behind_a_proxy_is_down() {
    dies_behind_a_proxy("llama-swap", &Server::recorded_kind("llama-swap", "none"));
}

#[test]
fn a_proxy_before_a_server_that_was_never_there_is_down() {
    all_at_once(pages_of_proxies(), |page| {
        let server = Server::start();
        server.cover(page);
        let exporter = Exporter::watching(&server).start();
        assert_down(&exporter.after_polls(2));
        assert_eq!(exporter.logged(&["the server is down"]).len(), 1);
    });
}

#[test]
fn a_server_that_loads_its_model_again_behind_a_proxy_is_up() {
    let server = Server::recorded(MIDDLE, Stage::After);
    let exporter = Exporter::watching(&server).start();
    exporter.until("up", Scrape::up);
    server.cover(page("01-proxy-502/nginx-502.http"));
    assert_down(&exporter.after_polls(1));
    server.cover(Answer::error(503, "Loading model"));
    exporter.until("loading", |scrape| scrape.status() == Some("loading"));
}

#[test]
fn a_proxy_that_answers_health_itself_does_not_keep_a_dead_server_up() {
    let pages = vec![
        ("nginx", page("01-proxy-502/nginx-502.http")),
        (
            "cloudflare",
            Answer::new(521, "text/plain", "error code: 521"),
        ),
    ];
    all_at_once(pages, |page: Answer| a_dead_server_behind(&page));
}

fn a_dead_server_behind(page: &Answer) {
    let server = Server::recorded(MIDDLE, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    assert!(exporter.after_polls(1).up());
    for endpoint in ["/props", "/v1/models", "/metrics", "/slots"] {
        server.answer(endpoint, page.clone());
    }
    assert_down(&exporter.after_polls(1));
    exporter.wait_for_log(&[
        "the server is down",
        "reason=status",
        "a proxy answers there",
    ]);
}

// A part of the endpoints.

const ENDPOINTS: [&str; 5] = ["/health", "/props", "/v1/models", "/metrics", "/slots"];

#[test]
fn any_endpoint_alone_shows_that_a_server_is_up_and_its_end_that_it_is_down() {
    let cases = ENDPOINTS.map(|endpoint| (endpoint, endpoint)).into();
    all_at_once(cases, |endpoint: &str| {
        for elsewhere in [
            Answer::html(),
            Answer::new(404, "text/html", "not here"),
            Answer::new(403, "text/html", "forbidden"),
        ] {
            let server = Server::start();
            let alone = Server::recorded(MIDDLE, Stage::Busy).script(endpoint);
            server.answer(endpoint, alone);
            server.answer_elsewhere(elsewhere.clone());
            let exporter = Exporter::watching(&server).start();
            let scrape = exporter.after_polls(2);
            assert!(scrape.up(), "{endpoint}: {scrape:?}");
            assert_eq!(
                kind(&scrape),
                Some("llama-server"),
                "{endpoint}: {scrape:?}"
            );
            server.answer(endpoint, elsewhere);
            assert_down(&exporter.after_polls(1));
        }
    });
}

/// What a proxy that passes on `/v1` alone answers to everything else.
fn pages_for_strangers() -> Vec<(&'static str, Answer)> {
    vec![
        ("its page", Answer::html()),
        ("200 and a text", Answer::new(200, "text/plain", "Welcome!")),
        ("200 and nothing", Answer::new(200, "text/plain", "")),
        (
            "404",
            Answer::new(404, "text/html", "<html>Not Found</html>"),
        ),
        (
            "403",
            Answer::new(403, "text/html", "<html>Forbidden</html>"),
        ),
        ("405", Answer::new(405, "text/html", "")),
        (
            "a redirect",
            Answer::new(302, "text/html", "").header("Location", "/login"),
        ),
        ("401", page("14-basic-auth-and-api-key/nginx-401.http")),
        (
            "an error",
            Answer::new(500, "text/html", "<html>Internal Server Error</html>"),
        ),
        ("an error in JSON", Answer::json(r#"{"error":"no route"}"#)),
    ]
}

#[test]
fn a_server_of_which_only_v1_is_passed_on_is_up_by_its_models() {
    all_at_once(pages_for_strangers(), |page| {
        let server = Server::start();
        server.answer(
            "/v1/models",
            Answer::json(recordings::file(NEW, "models.json")),
        );
        server.answer_elsewhere(page);
        let exporter = Exporter::of(&format!("{}/v1", server.url())).start();
        let scrape = exporter.after_polls(5);
        assert!(scrape.up(), "{scrape:?}");
        assert_eq!(kind(&scrape), Some("llama-server"), "{scrape:?}");
        assert_eq!(
            scrape.value("llamacpp_model_size_bytes"),
            Some(246_587_904.0)
        );
        assert_eq!(
            scrape.status(),
            None,
            "nothing tells what it does: {scrape:?}"
        );
        assert_eq!(scrape.errors(), 0, "{scrape:?}");
        let polls = scrape.polls() as usize;
        assert!(server.count("/v1/models") >= polls, "asked at each poll");
        // What a proxy has not passed on is asked for once, and one line tells of it.
        assert_eq!((server.count("/metrics"), server.count("/slots")), (1, 1));
        assert_eq!(exporter.logged(&["only /v1/models is"]).len(), 1);
        assert_eq!(
            exporter.logged(&["failed"]).len(),
            0,
            "{}",
            exporter.output()
        );

        // Its models are all that keeps it up.
        server.without("/v1/models");
        assert_down(&exporter.after_polls(1));
        server.answer(
            "/v1/models",
            Answer::json(recordings::file(NEW, "models.json")),
        );
        exporter.until("up again", Scrape::up);

        // The proxy is told to pass on the rest.
        let whole = Server::recorded(NEW, Stage::Busy);
        for endpoint in ENDPOINTS {
            server.answer(endpoint, whole.script(endpoint));
        }
        let scrape = exporter.until("read whole", |scrape| scrape.status() == Some("running"));
        assert!(scrape.has("llamacpp_generated_tokens_total"), "{scrape:?}");
        assert_eq!(exporter.after_polls(1).errors(), scrape.errors());
    });
}

#[test]
fn a_server_of_which_only_v1_and_health_are_passed_on_is_up_without_errors() {
    // A refusal may be the server's own there: it wants a key at /props.
    let pages = pages_for_strangers()
        .into_iter()
        .filter(|(name, _)| !["401", "403"].contains(name))
        .collect();
    all_at_once(pages, |page| {
        let server = Server::start();
        server.answer(
            "/v1/models",
            Answer::json(recordings::file(NEW, "models.json")),
        );
        server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
        server.answer_elsewhere(page);
        let exporter = Exporter::of(&format!("{}/v1", server.url())).start();
        let scrape = exporter.after_polls(5);
        assert!(scrape.up(), "{scrape:?}");
        assert_eq!(kind(&scrape), Some("llama-server"), "{scrape:?}");
        assert_eq!(scrape.errors(), 0, "{scrape:?}");
        assert_eq!((server.count("/metrics"), server.count("/slots")), (1, 1));
        let notes = exporter.logged(&["only /health and /v1/models are"]);
        assert_eq!(notes.len(), 1, "{}", exporter.output());

        // The proxy is told to pass on the rest.
        let whole = Server::recorded(NEW, Stage::Busy);
        for endpoint in ENDPOINTS {
            server.answer(endpoint, whole.script(endpoint));
        }
        exporter.until("read whole", |scrape| scrape.status() == Some("running"));
    });
}

#[test]
fn a_router_that_tells_only_its_list_is_up_without_models() {
    let router = Server::recorded_router("models-unloaded.json");
    let refused = Answer::error(401, "Invalid API Key");
    for (elsewhere, with_health) in [
        (Answer::html(), false),
        (Answer::html(), true),
        (refused, true),
    ] {
        let server = Server::start();
        server.answer("/v1/models", router.script("/v1/models"));
        server.answer_elsewhere(elsewhere);
        if with_health {
            server.answer("/health", router.script("/health"));
        }
        let exporter = Exporter::of(&format!("{}/v1", server.url())).start();
        let scrape = exporter.after_polls(3);
        assert!(scrape.up(), "{scrape:?}");
        assert_eq!(kind(&scrape), Some("router"), "{scrape:?}");
        // None of them is the server's one model.
        assert!(!scrape.has("llamacpp_status"), "{scrape:?}");
        assert!(!scrape.has("llamacpp_model_info"), "{scrape:?}");
        if !with_health {
            assert_eq!(scrape.errors(), 0, "{scrape:?}");
        }
        assert_eq!(exporter.logged(&["a router answers"]).len(), 1);

        for path in ["/health", "/props", "/models", "/metrics"] {
            server.answer(path, router.script(path));
        }
        exporter.until("its models", |scrape| scrape.has("llamacpp_status"));
    }
}

// Keys.

#[test]
fn a_proxy_that_wants_a_user_is_told_from_a_server_that_wants_a_key() {
    let proxy = "a proxy before the server wants a user and password";
    let key = "the server wants an API key";
    let refused_user = "refuses the user and password";
    let refused_key = "refuses the API key";
    let by_server = || Answer::error(401, "Invalid API Key");
    let by_proxy = || page("14-basic-auth-and-api-key/nginx-401.http");
    // What answers, whether /health is refused too, what is given, and what is said of it.
    let cases = [
        ("a proxy", (by_proxy(), true, "", "", proxy)),
        (
            "a proxy and a wrong user",
            (by_proxy(), true, "me:no@", "", refused_user),
        ),
        (
            "a proxy that leaves out /health",
            (by_proxy(), false, "", "", proxy),
        ),
        ("no key", (by_server(), false, "", "", key)),
        (
            "a wrong key",
            (by_server(), false, "", "sk-wrong", refused_key),
        ),
        (
            "a proxy that passes Authorization on",
            (by_server(), false, "me:pw@", "sk-right", "X-Api-Key"),
        ),
    ];
    all_at_once(cases.into(), |(answer, with_health, user, key, said)| {
        let server = Server::start();
        server.answer_elsewhere(answer.clone());
        if !with_health {
            server.answer("/health", Answer::json(r#"{"status":"ok"}"#));
        }
        let url = format!("http://{user}{}", server.authority());
        let mut start = Exporter::of(&url);
        if !key.is_empty() {
            start = start.variable("LLAMACPP_API_KEY", key);
        }
        let exporter = start.start();
        let scrape = exporter.after_polls(2);
        assert_eq!(scrape.down(), with_health, "{scrape:?}");
        assert!(
            scrape.errors_of("/metrics").contains_key("unauthorized"),
            "{scrape:?}"
        );
        let refused = exporter.logged(&["endpoint=/metrics", "reason=unauthorized"]);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains(said), "{refused:?}");
        if with_health {
            assert!(
                scrape.errors_of("/health").contains_key("unauthorized"),
                "{scrape:?}"
            );
            let down = exporter.logged(&["the server is down", "reason=unauthorized"]);
            assert_eq!(down.len(), 1, "{}", exporter.output());
            assert!(down[0].contains(said), "{down:?}");
        }
    });
}

// Other products.

fn models_of(owner: &str) -> Answer {
    let model = json!({"id": "a-model", "object": "model", "created": 1, "owned_by": owner});
    Answer::json(json!({"object": "list", "data": [model]}).to_string())
}

/// A server that answers so where it is asked for more than its models.
fn product(models: Answer, elsewhere: Answer, others: &[(&str, Answer)]) -> Server {
    let server = Server::start();
    server.answer("/v1/models", models);
    server.answer_elsewhere(elsewhere);
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
                case("17-another-openai-server/ollama-models.json"),
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
                models_of("bartowski"),
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
                models_of("vllm"),
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
                models_of("sglang"),
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
                models_of("organization_owner"),
                Answer::json(r#"{"error":"Unexpected endpoint or method. (GET /health)"}"#),
                &[],
            ),
        ),
        (
            "LiteLLM",
            product(
                models_of("openai"),
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
                models_of("lemonade"),
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
                models_of("koboldcpp"),
                Answer::new(404, "text/html", "Error"),
                &[(
                    "/props",
                    Answer::json(
                        r#"{"chat_template":"","id":0,"id_task":-1,"total_slots":1,"model_path":"local_model.gguf","default_generation_settings":{"n_ctx":8192}}"#,
                    ),
                )],
            ),
        ),
        ("llama-cpp-python", product(models_of("me"), detail(), &[])),
        // mlx_lm.server says that it is well as llama-server does, and nothing of owners.
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
                models_of("acme"),
                not_found(),
                &[("/health", Answer::json(r#"{"status":"healthy"}"#))],
            ),
        ),
        (
            "llama-swap",
            product(models_of("llama-swap"), not_found(), &[]),
        ),
        (
            "Docker Model Runner",
            product(models_of("docker"), not_found(), &[]),
        ),
    ]
}

#[test]
fn other_products_are_down_and_one_line_says_what_they_are() {
    let cases = products()
        .into_iter()
        .map(|(name, server)| (name, (name, server)));
    all_at_once(cases.collect(), |(name, server)| {
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert_down(&scrape);
        assert_eq!(
            scrape.errors(),
            0,
            "what it has not is no failure: {scrape:?}"
        );
        let lines = exporter.logged(&["the server is down", "reason=not_llama_cpp", name]);
        assert_eq!(lines.len(), 1, "{}", exporter.output());
        assert_eq!(
            exporter.logged(&["a request failed"]).len(),
            0,
            "{}",
            exporter.output()
        );
        assert_eq!(
            exporter.logged(&["is up"]).len(),
            0,
            "{}",
            exporter.output()
        );

        // A llama-server takes its place.
        let real = Server::recorded(MIDDLE, Stage::After);
        for endpoint in ENDPOINTS {
            server.answer(endpoint, real.script(endpoint));
        }
        exporter.until("up", |scrape| {
            scrape.value("llamacpp_generated_tokens_total") == Some(120.0)
        });
    });
}

#[test]
fn a_product_that_has_named_itself_is_asked_for_its_models_alone() {
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
fn what_answers_anything_that_only_llama_cpp_answers_is_a_llama_server() {
    let own = Server::recorded(MIDDLE, Stage::Busy);
    let endpoints = ["/props", "/metrics", "/slots"];
    all_at_once(endpoints.map(|path| (path, path)).into(), |path: &str| {
        // A fork that calls itself something else.
        let not_found = Answer::new(404, "text/plain", "not found");
        let server = product(models_of("a-fork"), not_found, &[(path, own.script(path))]);
        let scrape = Exporter::watching(&server).start().after_polls(3);
        assert!(scrape.up(), "{path}: {scrape:?}");
        assert_eq!(kind(&scrape), Some("llama-server"), "{path}: {scrape:?}");
    });
}

// ik_llama.cpp.

fn ik_llama() -> Server {
    let server = Server::start();
    server.answer(
        "/health",
        case("05-ik-health-waits-in-queue/health-idle.json"),
    );
    server.answer("/props", case("06-ik-slots-state/props.json"));
    server.answer("/v1/models", Answer::json(r#"{"object":"list","data":[{"id":"qwen3-235b","object":"model","created":1,"owned_by":"llamacpp","meta":{"vocab_type":2,"n_vocab":151936,"n_ctx_train":262144,"n_embd":4096,"n_params":235093634560,"size":134000000000}}]}"#));
    server.answer(
        "/metrics",
        text(&String::from_utf8(recordings::case("06-ik-slots-state/metrics.txt")).unwrap()),
    );
    server.answer("/slots", case("06-ik-slots-state/slots.json"));
    server
}

#[test]
fn the_answers_of_ik_llama_are_read() {
    for health in ["health-idle.json", "health-all-busy.json"] {
        let server = ik_llama();
        server.answer(
            "/health",
            case(&format!("05-ik-health-waits-in-queue/{health}")),
        );
        let exporter = Exporter::watching(&server).start();
        let scrape = exporter.after_polls(3);
        assert_eq!(scrape.errors(), 0, "{scrape:?}\n{}", exporter.output());
        assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
        for (metric, value) in [
            ("llamacpp_slots", 2.0),
            ("llamacpp_slots_busy", 1.0),
            ("llamacpp_requests_processing", 1.0),
            ("llamacpp_max_context_size_tokens", 65536.0),
            // 0 of ended requests, 136 in a slot.
            ("llamacpp_generated_tokens_total", 136.0),
            ("llamacpp_prompt_tokens_total", 2053.0),
            ("llamacpp_kv_cache_usage_ratio", 0.0167007),
            ("llamacpp_model_parameters", 235_093_634_560.0),
        ] {
            assert_eq!(scrape.value(metric), Some(value), "{metric} in\n{scrape:?}");
        }
        assert_eq!(scrape.label("llamacpp_slots", "model"), Some("qwen3-235b"));
    }
}

#[test]
fn ik_llama_that_loads_its_model_is_loading() {
    let server = Server::start();
    server.cover(Answer::new(
        503,
        "application/json",
        r#"{"status":"loading model"}"#,
    ));
    let scrape = Exporter::watching(&server).start().after_polls(2);
    assert_eq!(scrape.status(), Some("loading"), "{scrape:?}");
}

#[test]
fn a_server_that_answers_health_late_is_up_and_busy() {
    let waiting = ["/health", "/metrics", "/slots"];
    let cases = [("at work from the start", true), ("at work later", false)];
    all_at_once(cases.into(), |from_the_start| {
        let server = ik_llama();
        let idle = waiting.map(|path| server.script(path));
        let make_busy = || waiting.map(|path| server.answer(path, Answer::never()));
        if from_the_start {
            make_busy();
        }
        let exporter = Exporter::watching(&server).timeout("400ms").start();
        if !from_the_start {
            exporter.after_polls(2);
            make_busy();
        }
        exporter.until("late", |scrape| {
            scrape.errors_of("/health").contains_key("timeout")
        });
        let scrape = exporter.after_polls(6);
        assert!(scrape.up(), "{scrape:?}");
        assert_eq!(scrape.status(), Some("running"), "{scrape:?}");
        let is_running = [("model", "qwen3-235b"), ("status", "running")];
        assert_eq!(scrape.get("llamacpp_status", &is_running), Some(1.0));
        if !from_the_start {
            // The last counters stand.
            assert_eq!(scrape.value("llamacpp_generated_tokens_total"), Some(136.0));
            assert_eq!(scrape.value("llamacpp_prompt_tokens_total"), Some(2053.0));
        }
        let requests = server.requests().into_iter();
        let open = requests.filter(|request| request.is_waiting());
        let mut open: Vec<_> = open.map(|request| request.path).collect();
        let count = open.len();
        open.sort();
        open.dedup();
        assert_eq!(open.len(), count, "one of each at most: {open:?}");

        for (path, answer) in waiting.iter().zip(idle) {
            server.answer(path, answer);
        }
        exporter.until("read again", |scrape| {
            scrape.value("llamacpp_slots_busy") == Some(1.0)
                && scrape.value("llamacpp_generated_tokens_total") == Some(136.0)
        });
    });
}

#[test]
fn a_server_that_answers_nothing_in_time_is_down() {
    let server = ik_llama();
    let exporter = Exporter::watching(&server).timeout("400ms").start();
    exporter.after_polls(2);
    server.cover(Answer::never());
    exporter.until("down", Scrape::down);
    assert_down(&exporter.after_polls(3));
    server.uncover();
    eventually("up again", || exporter.scrape().up());
}

// States of a router.

#[test]
fn a_llama_server_that_becomes_a_router_and_one_again_is_read_as_what_it_is() {
    let server = Server::recorded(NEW, Stage::After);
    let router = Server::recorded_router("models-unloaded.json");
    // It is never seen down in between.
    let exporter = Exporter::watching(&server).start();
    let is = |kind_of_server: &'static str| {
        move |scrape: &Scrape| kind(scrape) == Some(kind_of_server) && scrape.has("llamacpp_status")
    };
    exporter.until("a llama-server", is("llama-server"));
    for path in ["/health", "/props", "/models", "/v1/models", "/metrics"] {
        server.answer(path, router.script(path));
    }
    server.without("/slots");
    let scrape = exporter.until("a router", is("router"));
    assert_eq!(scrape.all("llamacpp_up").len(), 1);
    server.answer_recorded(NEW, Stage::After);
    exporter.until("a llama-server again", is("llama-server"));
}

#[test]
fn a_model_of_a_router_that_was_downloaded_is_unloaded() {
    let server = Server::recorded_router("models-unloaded.json");
    server.answer("/models", case("26-router-status-downloaded/models.json"));
    let exporter = Exporter::watching(&server).start();
    let scrape = exporter.after_polls(2);
    let is_in = |model: &str, status: &str| {
        scrape.get("llamacpp_status", &[("model", model), ("status", status)])
    };
    assert_eq!(
        is_in("ggml-org/gemma-3-270m-GGUF:Q8_0", "unloaded"),
        Some(1.0)
    );
    assert_eq!(is_in("other", "failed"), Some(1.0));
    assert_eq!(scrape.errors(), 0, "{scrape:?}");
}

#[test]
fn a_model_of_a_router_in_a_state_that_is_not_known_is_there_without_a_state() {
    let server = Server::recorded_router("models-unloaded.json");
    let mut models: Value =
        serde_json::from_slice(&recordings::case("26-router-status-downloaded/models.json"))
            .unwrap();
    models["data"][0]["status"]["value"] = json!("hibernating");
    models["data"][1]["status"] = json!({"value": "unloaded"});
    server.answer("/models", Answer::json(models.to_string()));
    let report = run(program().args(["--base-url", &server.url(), "--check"])).stdout;
    assert!(
        report.contains("model: ggml-org/gemma-3-270m-GGUF:Q8_0 (unknown)"),
        "{report}"
    );
    assert!(report.contains("model: other (unloaded)"), "{report}");
}

#[test]
fn the_models_of_recorded_builds_have_an_owner_that_is_known() {
    for build in recordings::BUILDS {
        let models = recordings::models(build);
        assert_eq!(models["data"][0]["owned_by"], "llamacpp", "{build}");
    }
    assert_eq!(recordings::models(OLD)["object"], "list");
}
