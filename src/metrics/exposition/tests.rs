use super::*;
use crate::readings::llama_server_family::SampleText;
use crate::readings::{Counters, LlamaServerFamily, ModelFacts, ModelStatus, Stats};
use crate::snapshot::histogram::{
    DURATION_SECONDS, FIRST_TOKEN_SECONDS, PER_TOKEN_SECONDS, TOKENS,
};
use crate::snapshot::{
    GpuMemory, KvCacheUsage, LiveCounts, Model, ModelRequests, ProcessUsage, Rates, RequestFigures,
    SlotUsage,
};

fn stats(section: &str, name: &str, value: u32) -> Stats {
    let document = format!(r#"{{"{section}":{{"{name}":{value}}}}}"#);
    serde_json::from_str(&document).unwrap()
}

fn own_metrics() -> OwnMetrics {
    OwnMetrics {
        resident_bytes: Some(4_194_304.0),
        cpu_seconds: Some(1.5),
        ..OwnMetrics::default()
    }
}

fn snapshot(server: &str, model: Model) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        server: server.to_owned(),
        up: Some(true),
        models: vec![model],
        ..Snapshot::default()
    })
}

#[test]
fn a_llama_servers_own_families_have_one_header_and_their_text() {
    let of_model = |name: &str, value: &str| Model {
        name: name.to_owned(),
        llama_server: vec![LlamaServerFamily {
            name: "llamacpp:a_total".to_owned(),
            help: "An \\ a.".to_owned(),
            family_type: Some(FamilyType::Counter),
            samples: vec![SampleText {
                labels: vec![("position".to_owned(), "0".to_owned())],
                value: value.to_owned(),
            }],
        }],
        ..Model::default()
    };
    let servers = [
        snapshot("h:1", of_model("m", "1.23457e+06")),
        snapshot("h:2", of_model("\"", "NaN")),
    ];
    let text = render(&servers, &[], &OwnMetrics::default());
    let expected = "# HELP llamacpp:a_total An \\\\ a.\n# TYPE llamacpp:a_total counter\n\
            llamacpp:a_total{model=\"m\",position=\"0\",server=\"h:1\"} 1.23457e+06\n\
            llamacpp:a_total{model=\"\\\"\",position=\"0\",server=\"h:2\"} NaN\n";
    assert!(text.contains(expected), "{text}");
    assert_eq!(text.matches("llamacpp:a_total counter").count(), 1);
}

#[test]
fn a_family_without_series_is_left_out() {
    let text = render(
        &[snapshot("h:1", Model::default())],
        &[],
        &OwnMetrics::default(),
    );
    assert!(!text.contains("llamacpp_tokens_per_second"), "{text}");
    assert!(
        text.contains("# TYPE llamacpp_up gauge\nllamacpp_up{server=\"h:1\"} 1\n"),
        "{text}"
    );
}

#[test]
fn label_values_are_escaped() {
    let model = Model {
        name: "a\"b\\c\nd".to_owned(),
        facts: ModelFacts {
            slots: Some(2.0),
            ..ModelFacts::default()
        },
        ..Model::default()
    };
    let text = render(&[snapshot("h:1", model)], &[], &OwnMetrics::default());
    assert!(
        text.contains(r#"llamacpp_slots{model="a\"b\\c\nd",server="h:1"} 2"#),
        "{text}"
    );
}

#[test]
fn every_series_about_a_server_names_it() {
    let model = || Model {
        name: "m".to_owned(),
        facts: ModelFacts {
            slots: Some(1.0),
            ..ModelFacts::default()
        },
        ..Model::default()
    };
    let two = [snapshot("a:1", model()), snapshot("b:1", model())];
    let text = render(&two, &[], &OwnMetrics::default());
    assert!(text.contains("llamacpp_slots{model=\"m\",server=\"a:1\"} 1\nllamacpp_slots{model=\"m\",server=\"b:1\"} 1\n"));
    let one = render(&two[..1], &[], &OwnMetrics::default());
    assert!(one.contains("llamacpp_slots{model=\"m\",server=\"a:1\"} 1\n"));
    assert!(one.contains("llamacpp_up{server=\"a:1\"} 1\n"));
}

#[test]
fn a_histogram_has_buckets_sum_and_count() {
    let mut histogram = Histogram::new(PER_TOKEN_SECONDS);
    histogram.observe(0.02, 3);
    let model = Model {
        name: "m".to_owned(),
        rates: Rates {
            batch_latency: Some(histogram),
            ..Rates::default()
        },
        ..Model::default()
    };
    let text = render(&[snapshot("h:1", model)], &[], &OwnMetrics::default());
    assert!(
        text.contains(
            "llamacpp_batch_latency_seconds_bucket{le=\"0.01\",model=\"m\",server=\"h:1\"} 0\n"
        ),
        "{text}"
    );
    assert!(text.contains(
        "llamacpp_batch_latency_seconds_bucket{le=\"0.025\",model=\"m\",server=\"h:1\"} 3\n"
    ));
    assert!(text.contains(
        "llamacpp_batch_latency_seconds_bucket{le=\"+Inf\",model=\"m\",server=\"h:1\"} 3\n"
    ));
    assert!(text.contains("llamacpp_batch_latency_seconds_sum{model=\"m\",server=\"h:1\"} 0.06\n"));
    assert!(text.contains("llamacpp_batch_latency_seconds_count{model=\"m\",server=\"h:1\"} 3\n"));
}

#[test]
fn exactly_one_status_is_1() {
    let model = Model {
        name: "m".to_owned(),
        status: Some(ModelStatus::Running),
        ..Model::default()
    };
    let text = render(&[snapshot("h:1", model)], &[], &OwnMetrics::default());
    assert_eq!(text.matches("llamacpp_status{").count(), 7);
    assert!(text.contains("llamacpp_status{model=\"m\",server=\"h:1\",status=\"running\"} 1\n"));
}

#[test]
fn gpus_of_the_machine_are_written_once() {
    let gpu = |index: &str| crate::snapshot::Gpu {
        index: index.to_owned(),
        utilization: Some(40.0),
        ..crate::snapshot::Gpu::default()
    };
    let model = Model {
        name: "m".to_owned(),
        stats: stats("performance", "gpu_utilization", 7),
        ..Model::default()
    };
    let servers = [snapshot("a:1", model), snapshot("b:1", Model::default())];
    let text = render(&servers, &[gpu("0"), gpu("1")], &own_metrics());
    let series: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("llamacpp_gpu_utilization_percent"))
        .collect();
    assert_eq!(
        series,
        [
            "llamacpp_gpu_utilization_percent{gpu=\"0\"} 40",
            "llamacpp_gpu_utilization_percent{gpu=\"1\"} 40",
            "llamacpp_gpu_utilization_percent{gpu=\"a:1\"} 7",
        ]
    );
    assert!(text.contains("llamacpp_gpu_info{driver=\"\",gpu=\"1\",name=\"\",uuid=\"\"} 1\n"));
}

#[test]
fn the_process_is_preferred_to_stats() {
    let mut model = Model {
        stats: stats("memory", "used_bytes", 1),
        ..Model::default()
    };
    let text = |model: &Model| render(&[snapshot("h:1", model.clone())], &[], &own_metrics());
    assert!(text(&model).contains("llamacpp_memory_usage_bytes{model=\"\",server=\"h:1\"} 1\n"));
    model.process.memory_usage = Some(2.0);
    assert!(text(&model).contains("llamacpp_memory_usage_bytes{model=\"\",server=\"h:1\"} 2\n"));
}

#[test]
fn the_same_snapshot_renders_to_the_same_bytes() {
    let servers = [snapshot(
        "h:1",
        Model {
            name: "m".to_owned(),
            facts: ModelFacts {
                slots: Some(4.0),
                ..ModelFacts::default()
            },
            ..Model::default()
        },
    )];
    let rendered = || render(&servers, &[], &own_metrics());
    assert_eq!(rendered(), rendered());
}

/// A loaded model with every value and histogram, and a name of so many bytes.
fn full_model(number: usize, name_bytes: usize) -> Model {
    let mut histogram = Histogram::new(PER_TOKEN_SECONDS);
    histogram.observe(0.02, 1_000_000_000_000);
    let some = Some(1_234_567_890_123.0);
    let memory = GpuMemory {
        vram: some,
        gtt: None,
    };
    Model {
        name: format!("{number:03}{}", "n".repeat(name_bytes.saturating_sub(3))),
        status: Some(ModelStatus::Running),
        facts: ModelFacts {
            slots: some,
            max_context_size: some,
            training_context: some,
            size: some,
            parameters: some,
            quantization: Some("Q4_K - Medium".to_owned()),
            ..ModelFacts::default()
        },
        counters: Counters {
            prompt_tokens_cached: some,
            prompt_seconds: some,
            generation_seconds: some,
            draft_tokens: some,
            draft_tokens_accepted: some,
            drafts: some,
            draft_tokens_accepted_by_position: (0..4).map(|position| (position, 1e6)).collect(),
            max_sequence_tokens: some,
            requests_processing: some,
            requests_deferred: some,
            kv_cache_usage_ratio: some,
            ..Counters::default()
        },
        live: LiveCounts {
            prompt_tokens: some,
            generated_tokens: some,
            decode_calls: some,
        },
        rates: Rates {
            tokens_per_second: some,
            prompt_tokens_per_second: some,
            batch_latency: Some(histogram),
            batch_size: some,
            optimal_batch_size: some,
        },
        slots: SlotUsage {
            are_unused: false,
            busy: some,
            context_tokens: (0..4).map(|slot| (slot, 1e6)).collect(),
            active_tokens: some,
        },
        kv_cache: KvCacheUsage {
            usage_bytes: some,
            limit_bytes: some,
            usage_ratio: some,
        },
        process: ProcessUsage {
            pid: None,
            memory_usage: some,
            total_memory: some,
            cpu_utilization: some,
            cpu_seconds: some,
            start_time: some,
            thread_count: some,
            gpu_memory: vec![("0".to_owned(), memory)],
        },
        ..Model::default()
    }
}

/// The requests of a model, with all histograms.
fn full_requests(model: &Model) -> ModelRequests {
    let histogram = |bounds| {
        let mut histogram = Histogram::new(bounds);
        histogram.observe(0.02, 1_000_000_000_000);
        Some(histogram)
    };
    ModelRequests {
        model: model.name.clone(),
        mode: model.mode.clone(),
        source: "records",
        figures: Arc::new(RequestFigures {
            first_token: histogram(FIRST_TOKEN_SECONDS),
            duration: histogram(DURATION_SECONDS),
            per_token: histogram(PER_TOKEN_SECONDS),
            prompt_tokens: histogram(TOKENS),
            generated_tokens: histogram(TOKENS),
            record_gaps: Some(0),
            ..RequestFigures::default()
        }),
    }
}

fn full_server(models: usize, name_bytes: usize) -> Arc<Snapshot> {
    let models: Vec<_> = (0..models)
        .map(|number| full_model(number, name_bytes))
        .collect();
    Arc::new(Snapshot {
        server: "model-runner.docker.internal:80".to_owned(),
        up: Some(true),
        requests: models.iter().map(full_requests).collect(),
        models,
        ..Snapshot::default()
    })
}

fn dropped(text: &str) -> usize {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("llamacpp_exporter_series_dropped "));
    line.unwrap().parse().unwrap()
}

fn series(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn a_hundred_and_fifty_loaded_models_with_every_histogram_fit() {
    let servers = [full_server(150, 40), full_server(0, 0)];
    let text = render(&servers, &[], &OwnMetrics::default());
    assert_eq!(dropped(&text), 0, "{} bytes", text.len());
    println!("{} series, {} bytes", series(&text), text.len());
}

#[test]
fn a_scrape_that_is_too_large_is_cut_and_counts_what_is_missing() {
    for name_bytes in [512, 40] {
        let whole: usize = 1500 / if name_bytes == 512 { 3 } else { 1 };
        let servers = [full_server(whole, name_bytes), full_server(0, 0)];
        let text = render(&servers, &[], &own_metrics());
        assert!(text.len() <= MAX_BYTES && series(&text) <= MAX_SERIES);
        assert!(text.capacity() < MAX_BYTES + 2 * GROWTH);
        let one = render(
            &[full_server(1, name_bytes), full_server(0, 0)],
            &[],
            &own_metrics(),
        );
        let none = render(&[full_server(0, 0), full_server(0, 0)], &[], &own_metrics());
        let of_each = series(&one) - series(&none);
        let all = series(&none) + whole * of_each;
        assert_eq!(series(&text) + dropped(&text), all, "every series counts");
        assert!(dropped(&text) > 0);
        // What is about the servers and the exporter is whole, and so is each histogram.
        for line in [
            "llamacpp_up{",
            "process_resident_memory_bytes ",
            "llamacpp_exporter_build_info{",
        ] {
            assert!(text.contains(&format!("\n{line}")), "{line}");
        }
        let count = |end: &str| {
            let start = format!("llamacpp_batch_latency_seconds{end}{{");
            text.lines().filter(|line| line.starts_with(&start)).count()
        };
        assert_eq!(
            count("_bucket"),
            count("_sum") * (PER_TOKEN_SECONDS.len() + 1)
        );
        assert_eq!(count("_sum"), count("_count"));
    }
}

#[test]
fn no_two_series_have_the_same_labels() {
    let memory = GpuMemory {
        vram: Some(1.0),
        gtt: Some(2.0),
    };
    let model = |name: &str, mode: Option<&str>| Model {
        name: name.to_owned(),
        mode: mode.map(str::to_owned),
        status: Some(ModelStatus::Idle),
        slots: SlotUsage {
            are_unused: false,
            context_tokens: vec![(3, 1.0), (3, 2.0)],
            ..SlotUsage::default()
        },
        process: ProcessUsage {
            gpu_memory: vec![("0".to_owned(), memory), ("0".to_owned(), memory)],
            ..ProcessUsage::default()
        },
        ..Model::default()
    };
    let long = "n".repeat(600);
    let models = vec![
        model("a", None),
        model("a", None),
        model("b", Some("completion")),
        model("b", Some("embedding")),
        model(&format!("{long}1"), None),
        model(&format!("{long}2"), None),
    ];
    let mut requests: Vec<_> = models.iter().map(full_requests).collect();
    requests.extend(requests.clone());
    let cell = crate::snapshot::SnapshotCell::new(Snapshot::default());
    cell.publish(Arc::new(Snapshot {
        server: "h:1".to_owned(),
        models,
        requests,
        ..Snapshot::default()
    }));
    let gpu = |name: &str| Gpu {
        index: "0".to_owned(),
        name: Some(name.to_owned()),
        utilization: Some(1.0),
        ..Gpu::default()
    };
    let gpus = [gpu("first"), gpu("second")];
    let text = render(&[cell.load()], &gpus, &OwnMetrics::default());
    let labels = |line: &str| line.rsplit_once(' ').unwrap().0.to_owned();
    let all: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(labels)
        .collect();
    let unique: BTreeSet<_> = all.iter().collect();
    assert_eq!(all.len(), unique.len(), "{text}");
    // The first one wins.
    assert!(text.contains("llamacpp_context_tokens{model=\"a\",server=\"h:1\",slot=\"3\"} 1\n"));
    assert!(text.contains("name=\"first\"") && !text.contains("name=\"second\""));
    // Models a and nnn…, and both modes of b.
    assert_eq!(text.matches("llamacpp_status{").count(), 4 * 7);
    assert!(text.contains(&format!("model=\"{}\"", "n".repeat(512))));
}
