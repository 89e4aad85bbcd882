//! A proxy before the server. One that answers in place of a dead server is no server, and it may
//! pass on a part of the endpoints only.

use crate::support::recordings::{self, MIDDLE, NEW, Stage};
use crate::support::{Answer, Exporter, Scrape, Server, for_each, for_each_case};
use crate::{ENDPOINTS, assert_down, kind};

/// An answer of `tests/cases`, head included.
fn raw_case(name: &str) -> Answer {
    Answer::raw(recordings::case(name))
}

/// What proxies and web servers answer on every path when the server behind them is gone.
fn proxy_answers() -> Vec<(&'static str, Answer)> {
    vec![
        ("nginx 502", raw_case("01-proxy-502/nginx-502.http")),
        ("nginx 504", raw_case("01-proxy-502/nginx-504.http")),
        ("envoy 503", raw_case("01-proxy-502/envoy-503.http")),
        (
            "envoy, no upstream",
            raw_case("01-proxy-502/envoy-no-healthy-upstream.http"),
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
            raw_case("14-basic-auth-and-api-key/nginx-401.http"),
        ),
    ]
}

/// The course of a server that dies behind its proxy, and comes back.
fn assert_down_behind_every_proxy(kind_of_server: &str, server: &Server) {
    // Figures of past requests stand while a server is down.
    let exporter = Exporter::watching(server)
        .interval("10ms")
        .args(&["--no-request-records"])
        .start();
    let states = |scrape: &Scrape| scrape.all("llamacpp_status").len();
    let is_back = |scrape: &Scrape| scrape.up() && kind(scrape) == Some(kind_of_server);
    let before = states(&exporter.until("up", is_back));
    for (name, page) in proxy_answers() {
        server.answer_everything(page);
        assert_down(&exporter.until(&format!("down, {name}"), Scrape::down));
        // Not only at the first poll.
        assert_down(&exporter.after_polls(1));
        server.answer_by_script();
        // The first poll may have met the page at some endpoints.
        exporter.until(
            &format!("up again after {name}, with all of its models"),
            |scrape| is_back(scrape) && states(scrape) == before,
        );
    }
}

#[test]
fn a_llama_server_that_dies_behind_a_proxy_is_down() {
    assert_down_behind_every_proxy("llama-server", &Server::recorded(MIDDLE, Stage::Busy));
}

#[test]
fn a_router_that_dies_behind_a_proxy_is_down() {
    assert_down_behind_every_proxy("router", &Server::recorded_router("models-unloaded.json"));
}

#[test]
fn a_model_runner_that_dies_behind_a_proxy_is_down() {
    assert_down_behind_every_proxy(
        "model-runner",
        &Server::recorded_kind("model-runner", "idle"),
    );
    assert_down_behind_every_proxy(
        "model-runner",
        &Server::recorded_kind("model-runner", "no-models"),
    );
}

#[test]
fn a_llama_swap_that_dies_behind_a_proxy_is_down() {
    assert_down_behind_every_proxy("llama-swap", &Server::recorded_kind("llama-swap", "none"));
}

#[test]
fn a_proxy_without_a_server_is_down() {
    for_each_case(proxy_answers(), |page| {
        let server = Server::start();
        server.answer_everything(page);
        let exporter = Exporter::watching(&server).start();
        assert_down(&exporter.after_polls(2));
        exporter.assert_logged(1, &["the server is down"]);
    });
}

#[test]
fn a_server_that_reloads_its_model_behind_a_proxy_is_up() {
    let server = Server::recorded(MIDDLE, Stage::After);
    let exporter = Exporter::watching(&server).start();
    exporter.until("up", Scrape::up);
    server.answer_everything(raw_case("01-proxy-502/nginx-502.http"));
    assert_down(&exporter.after_polls(1));
    server.answer_everything(Answer::error(503, "Loading model"));
    exporter.until("loading", |scrape| scrape.status() == Some("loading"));
}

#[test]
fn health_answered_by_a_proxy_does_not_keep_a_dead_server_up() {
    let pages = vec![
        ("nginx", raw_case("01-proxy-502/nginx-502.http")),
        (
            "cloudflare",
            Answer::new(521, "text/plain", "error code: 521"),
        ),
    ];
    for_each_case(pages, |page: Answer| assert_down_behind(&page));
}

fn assert_down_behind(page: &Answer) {
    let server = Server::recorded(MIDDLE, Stage::Busy);
    let exporter = Exporter::watching(&server).start();
    assert!(exporter.after_polls(1).up());
    for endpoint in ["/props", "/v1/models", "/metrics", "/slots"] {
        server.answer(endpoint, page.clone());
    }
    assert_down(&exporter.after_polls(1));
    exporter.wait_for_log(&["the server is down", "reason=status", "a proxy answers"]);
}

#[test]
fn one_endpoint_alone_decides_whether_a_server_is_up() {
    for_each(ENDPOINTS, |endpoint: &str| {
        for elsewhere in [
            Answer::html(),
            Answer::new(404, "text/html", "not here"),
            Answer::new(403, "text/html", "forbidden"),
        ] {
            let server = Server::start();
            let alone = Server::recorded(MIDDLE, Stage::Busy).answer_of(endpoint);
            server.answer(endpoint, alone);
            server.answer_other_paths(elsewhere.clone());
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
fn answers_of_blocked_paths() -> Vec<(&'static str, Answer)> {
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
        ("401", raw_case("14-basic-auth-and-api-key/nginx-401.http")),
        (
            "an error",
            Answer::new(500, "text/html", "<html>Internal Server Error</html>"),
        ),
        ("an error in JSON", Answer::json(r#"{"error":"no route"}"#)),
    ]
}

#[test]
fn behind_a_proxy_of_v1_alone_the_server_is_up_without_errors() {
    for_each_case(answers_of_blocked_paths(), |page| {
        let server = Server::start();
        server.answer(
            "/v1/models",
            Answer::json(recordings::file(NEW, "models.json")),
        );
        server.answer_other_paths(page);
        let exporter = Exporter::with_url(&format!("{}/v1", server.url())).start();
        let scrape = exporter.after_polls(5);
        scrape.assert_up();
        assert_eq!(kind(&scrape), Some("llama-server"), "{scrape:?}");
        scrape.assert_value("llamacpp_model_size_bytes", 246_587_904.0);
        assert_eq!(
            scrape.status(),
            None,
            "no endpoint tells its state: {scrape:?}"
        );
        scrape.assert_errors(0);
        let polls = scrape.polls() as usize;
        assert!(server.count("/v1/models") >= polls, "asked at each poll");
        // A path that the proxy blocks is requested once, and logged once.
        assert_eq!((server.count("/metrics"), server.count("/slots")), (1, 1));
        exporter.assert_logged(1, &["only /v1/models to the server"]);
        exporter.assert_logged(0, &["failed"]);
        // It is up by its models alone.
        server.answer_404("/v1/models");
        assert_down(&exporter.after_polls(1));
        server.answer(
            "/v1/models",
            Answer::json(recordings::file(NEW, "models.json")),
        );
        exporter.until("up again", Scrape::up);
        // The proxy passes on the rest.
        let whole = Server::recorded(NEW, Stage::Busy);
        server.answer_like(&whole, &ENDPOINTS);
        let scrape = exporter.until("read whole", |scrape| scrape.status() == Some("running"));
        assert!(scrape.has("llamacpp_generated_tokens_total"), "{scrape:?}");
        assert_eq!(exporter.after_polls(1).errors(), scrape.errors());
    });
}

#[test]
fn behind_a_proxy_of_v1_and_health_the_server_is_up_without_errors() {
    // A refusal may be the server's own there: it wants a key at /props.
    let pages = answers_of_blocked_paths()
        .into_iter()
        .filter(|(name, _)| !["401", "403"].contains(name));
    for_each_case(pages, |page| {
        let server = Server::start();
        server.answer(
            "/v1/models",
            Answer::json(recordings::file(NEW, "models.json")),
        );
        server.answer_json("/health", r#"{"status":"ok"}"#);
        server.answer_other_paths(page);
        let exporter = Exporter::with_url(&format!("{}/v1", server.url())).start();
        let scrape = exporter.after_polls(5);
        scrape.assert_up();
        assert_eq!(kind(&scrape), Some("llama-server"), "{scrape:?}");
        scrape.assert_errors(0);
        assert_eq!((server.count("/metrics"), server.count("/slots")), (1, 1));
        let notes = exporter.logged(&["only /health and /v1/models to the server"]);
        assert_eq!(notes.len(), 1, "{}", exporter.output());
        // The proxy passes on the rest.
        let whole = Server::recorded(NEW, Stage::Busy);
        server.answer_like(&whole, &ENDPOINTS);
        exporter.until("read whole", |scrape| scrape.status() == Some("running"));
    });
}

#[test]
fn behind_a_proxy_of_v1_alone_a_router_is_up_without_models() {
    let router = Server::recorded_router("models-unloaded.json");
    let refused = Answer::error(401, "Invalid API Key");
    for (elsewhere, with_health) in [
        (Answer::html(), false),
        (Answer::html(), true),
        (refused, true),
    ] {
        let server = Server::start();
        server.answer("/v1/models", router.answer_of("/v1/models"));
        server.answer_other_paths(elsewhere);
        if with_health {
            server.answer("/health", router.answer_of("/health"));
        }
        let exporter = Exporter::with_url(&format!("{}/v1", server.url())).start();
        let scrape = exporter.after_polls(3);
        scrape.assert_up();
        assert_eq!(kind(&scrape), Some("router"), "{scrape:?}");
        // None of them is the server's one model.
        scrape.assert_absent(&["llamacpp_status"]);
        scrape.assert_absent(&["llamacpp_model_info"]);
        if !with_health {
            scrape.assert_errors(0);
        }
        exporter.assert_logged(1, &["only the router's list of models can be read"]);
        for path in ["/health", "/props", "/models", "/metrics"] {
            server.answer(path, router.answer_of(path));
        }
        exporter.until("its models", |scrape| scrape.has("llamacpp_status"));
    }
}

#[test]
fn a_401_of_a_proxy_is_distinguished_from_one_of_the_server() {
    let proxy = "a proxy in front of the server requires a user and password";
    let key = "the server requires an API key";
    let refused_user = "rejects the user and password";
    let refused_key = "rejects the API key";
    let by_server = || Answer::error(401, "Invalid API Key");
    let by_proxy = || raw_case("14-basic-auth-and-api-key/nginx-401.http");
    // The answer, whether /health has it too, user, key, and words of the log line.
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
    for_each_case(cases, |(answer, with_health, user, key, words)| {
        let server = Server::start();
        server.answer_other_paths(answer.clone());
        if !with_health {
            server.answer_json("/health", r#"{"status":"ok"}"#);
        }
        let url = format!("http://{user}{}", server.authority());
        let mut start = Exporter::with_url(&url);
        if !key.is_empty() {
            start = start.env("LLAMACPP_API_KEY", key);
        }
        let exporter = start.start();
        let scrape = exporter.after_polls(2);
        assert_eq!(scrape.down(), with_health, "{scrape:?}");
        assert!(
            scrape.errors_of("/metrics").contains_key("unauthorized"),
            "{scrape:?}"
        );
        let refused = exporter.logged(&["endpoint=", "/metrics", "reason=unauthorized"]);
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains(words), "{refused:?}");
        if with_health {
            assert!(
                scrape.errors_of("/health").contains_key("unauthorized"),
                "{scrape:?}"
            );
            let down = exporter.logged(&["the server is down", "reason=unauthorized"]);
            assert_eq!(down.len(), 1, "{}", exporter.output());
            assert!(down[0].contains(words), "{down:?}");
        }
    });
}
