use super::*;
use crate::bounds::MAX_TEXT_BYTES;
use crate::history::History;
use crate::metrics::overview;
use crate::readings::{ModelFacts, ModelStatus, ServerKind};
use crate::snapshot::{Absence, GpuMemory, Missing, Model, ServerInfo, SourceKind};

/// Texts that break pages which do not escape them.
const HOSTILE: [&str; 4] = [
    "<script>alert(1)</script>",
    "\"' onload='x' --></title></style><img src=x>&amp;",
    "\u{202e}\u{2066}a\u{200f}\u{0}\r\n\u{1b}[2J",
    "模型🦙é\u{301}",
];

/// A name that begins with a hostile text, of the most bytes that are kept of one.
fn hostile(number: usize) -> String {
    let start = HOSTILE[number % HOSTILE.len()];
    let filler = HOSTILE[(number / HOSTILE.len()) % HOSTILE.len()];
    let long = format!("{start}{number}{}", filler.repeat(40));
    crate::bounds::cut_at(&long, MAX_TEXT_BYTES).to_owned()
}

fn model(number: usize) -> Model {
    let some = Some(1_234_567.0 + number as f64);
    let mut model = Model {
        name: hostile(number),
        status: Some(ModelStatus::Running),
        facts: ModelFacts {
            slots: Some(4.0),
            max_context_size: some,
            parameters: some,
            size: some,
            quantization: Some(hostile(number)),
            ..ModelFacts::default()
        },
        ..Model::default()
    };
    model.rates.tokens_per_second = some;
    model.counters.requests_processing = Some(4.0);
    model.slots.context_tokens = (0..300).map(|slot| (slot, 1000.0)).collect();
    model.process.pid = Some(7);
    model.process.start_time = Some(1.0);
    model
}

fn server(number: usize, models: usize) -> Arc<Snapshot> {
    let is_down = models == 0;
    let source = |number: usize| {
        let source = Source::missing(
            SourceKind::Log(Some(hostile(number).into())),
            Absence::ServerDown,
        );
        source
            .with_error(&hostile(number).repeat(20))
            .of_model(Some(&hostile(number)))
    };
    Arc::new(Snapshot {
        server: hostile(number),
        up: Some(!is_down),
        info: Some(ServerInfo {
            kind: ServerKind::LlamaServer,
            version: Some(hostile(number)),
            is_version_pending: false,
        }),
        models: (0..models).map(model).collect(),
        down: is_down.then(|| Missing {
            reason: Absence::ServerDown,
            detail: Some(hostile(number).repeat(20).into()),
            advice: Some(hostile(number).repeat(20).into()),
        }),
        sources: (0..300).map(source).collect(),
        ..Snapshot::default()
    })
}

/// The page of these servers after a quarter of an hour in which all values changed.
fn page_of(servers: &[Arc<Snapshot>], gpus: usize) -> String {
    let history = History::new(Instant::now());
    let start = Instant::now();
    let gpus: Vec<_> = (0..gpus)
        .map(|number| Gpu {
            index: format!("{number:02}{}", hostile(number)),
            name: Some(hostile(number)),
            utilization: Some(50.0),
            memory_used: GpuMemory::of_one_kind(Some(1e9)),
            ..Gpu::default()
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    let mut now = start;
    for _ in 0..200 {
        let before = now;
        now += Duration::from_secs(5);
        for server in servers.iter().take(10) {
            let mut snapshot = Snapshot::clone(server);
            snapshot.models.truncate(12);
            for model in &mut snapshot.models {
                let mut value = || Some(random.f64() * 1000.0);
                model.rates.tokens_per_second = value();
                model.rates.prompt_tokens_per_second = value();
                model.counters.requests_processing = value();
                model.counters.requests_deferred = value();
                model.kv_cache.usage_ratio = value().map(|value| value / 1000.0);
                model.process.cpu_utilization = value().map(|value| value / 10.0);
                model.process.memory_usage = value();
            }
            history.add_poll(&snapshot, Some(before), now);
        }
        let mut read = gpus.clone();
        for gpu in &mut read {
            gpu.utilization = Some(random.f64() * 100.0);
            gpu.memory_used = GpuMemory::of_one_kind(Some(random.f64() * 1e9));
        }
        history.add_gpus(&read, now);
    }
    let own = OwnMetrics {
        version: "1.2.3",
        revision: "abc",
        start_time: Some(1.0),
        ..OwnMetrics::default()
    };
    let page = StatusPage {
        servers,
        gpus: &gpus,
        history: &history.view(now),
        overview: &overview::overview(servers, &gpus, &[], &own),
        machine: &[],
        own: &own,
        interval: Duration::from_secs(5),
        now,
        unix_now: Some(1000.0),
    };
    render(&page, PageView { refreshes: true })
}

#[test]
fn the_page_is_small_and_whole_whatever_is_watched() {
    let one = |models| vec![server(0, models)];
    let many = |servers, models| (0..servers).map(|number| server(number, models)).collect();
    let cases: [(&str, Vec<_>, usize); 8] = [
        ("no server", Vec::new(), 0),
        ("one model", one(1), 0),
        ("a server that is down", one(0), 0),
        ("a router of twenty models", one(20), 2),
        ("500 models", one(500), 16),
        ("64 servers of a model", many(64, 1), 16),
        ("64 servers that are down", many(64, 0), 0),
        ("64 servers of 20 models, 40 GPUs", many(64, 20), 40),
    ];
    for (case, servers, gpus) in cases {
        let page = page_of(&servers, gpus);
        println!("{:6} bytes: {case}", page.len());
        assert!(page.len() <= MAX_BYTES, "{case}: {} bytes", page.len());
        assert!(page.ends_with("</body></html>\n"), "{case}");
        for wrong in ["<script", "<img", "\u{202e}", "\u{2066}", "\0", "onload='"] {
            assert!(!page.contains(wrong), "{case}: {wrong:?}");
        }
        for element in [
            "section", "table", "figure", "svg", "p", "ul", "li", "bdi", "span",
        ] {
            let open = page.matches(&format!("<{element}>")).count()
                + page.matches(&format!("<{element} ")).count();
            let closed = page.matches(&format!("</{element}>")).count();
            assert_eq!(open, closed, "{case}: {element}");
        }
    }
}

#[test]
fn what_is_left_out_is_counted() {
    let page = page_of(&[server(0, 500)], 0);
    assert!(page.contains("500 models"));
    let more = page
        .split_once(" more models in memory</p>")
        .expect("a count")
        .0;
    let count: usize = more.rsplit_once("and ").unwrap().1.parse().unwrap();
    let rows = more
        .split_once("<table class=\"models\">")
        .unwrap()
        .1
        .matches("<tr><th scope=\"row\">");
    assert_eq!(count + rows.count(), 500);
    assert!(page.contains(" more sources</p>"));
}

#[test]
fn the_policy_allows_the_style_sheet() {
    let digest = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
    assert_eq!(
        STYLE_HASH,
        format!("sha256-{}", base64(digest.as_ref())),
        "style.css has changed"
    );
    assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).map(|group| {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | u32::from(*group.get(at).unwrap_or(&0))
        });
        let digit = |at: usize| match at <= group.len() {
            true => char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]),
            false => '=',
        };
        (0..4).map(digit).collect::<String>()
    });
    groups.collect()
}

#[test]
fn a_reader_can_stop_the_refresh() {
    for (query, refreshes) in [
        ("", true),
        ("refresh=off", false),
        ("a&refresh=off", false),
        ("refresh", true),
    ] {
        let view = PageView::from_query(query);
        assert_eq!(view.refreshes, refreshes, "{query}");
        let headers = headers(view, Duration::from_secs(900));
        let refresh = headers.iter().find(|(name, _)| *name == "Refresh");
        let refresh = refresh.map(|(_, value)| value.as_str());
        assert_eq!(refresh, refreshes.then_some("60; url=./"), "{query}");
    }
}
