//! `--discover`: the llama-servers among the processes of the machine.
//!
//! The processes are entries in a folder that stands for `/proc`. The sockets are real: those of
//! the scripted servers, which are in this process.
#![cfg(target_os = "linux")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use llamacpp_exporter::settings::Settings;
use llamacpp_exporter::upstream::http::endpoint::Endpoint;
use llamacpp_exporter::upstream::http::exchange::{Exchange, RequestOutcome};
use llamacpp_exporter::upstream::http::peer_check::PeerCheck;
use serde_json::json;
use support::exporter::{program, run};
use support::recordings::{NEW, Stage};
use support::{Answer, Exporter, Scrape, Server, assert_contains, wait_until};

/// A folder that stands for `/proc`.
struct Processes(tempfile::TempDir);

impl Processes {
    fn new() -> Processes {
        let folder = tempfile::tempdir().unwrap();
        symlink("/proc/self/net", folder.path().join("net")).unwrap();
        fs::write(folder.path().join("stat"), "btime 1700000000\n").unwrap();
        Processes(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Adds a process, which has the socket of `server` open.
    fn add(
        &self,
        pid: u32,
        parent: u32,
        words: &[&str],
        environment: &str,
        server: Option<&Server>,
    ) {
        let new = self.path("new");
        fs::create_dir_all(new.join("fd")).unwrap();
        let zeros = "0 ".repeat(17);
        let stat = format!("{pid} (llama-server) S {parent} {zeros}{pid} 0 0");
        fs::write(new.join("stat"), stat).unwrap();
        fs::write(new.join("cmdline"), words.join("\0") + "\0").unwrap();
        fs::write(new.join("environ"), environment.to_owned() + "\0").unwrap();
        fs::copy("/proc/self/status", new.join("status")).unwrap();
        for link in ["net", "root", "cwd"] {
            let target = format!("/proc/{}/{link}", std::process::id());
            symlink(target, new.join(link)).unwrap();
        }
        if let Some(server) = server {
            symlink(format!("socket:[{}]", inode(server)), new.join("fd/3")).unwrap();
        }
        fs::rename(new, self.path(&pid.to_string())).unwrap();
    }

    /// Adds a llama-server that listens on the port of `server`.
    fn add_server(&self, pid: u32, server: &Server, arguments: &[&str], environment: &str) {
        let port = server.port().to_string();
        let words = [&["/app/llama-server", "--port", &port], arguments].concat();
        self.add(pid, 1, &words, environment, Some(server));
    }

    fn remove(&self, pid: u32) {
        let gone = self.path("gone");
        fs::rename(self.path(&pid.to_string()), &gone).unwrap();
        fs::remove_dir_all(gone).unwrap();
    }

    fn discover(&self, arguments: &[&str]) -> support::exporter::Builder {
        Exporter::with_args(&[&["--discover", "--no-gpu"], arguments].concat())
            .env("LLAMACPP_PROCFS", self.0.path())
    }
}

/// The inode number of the socket that the server listens on.
fn inode(server: &Server) -> String {
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    // Each server has an address of its own, so two may have the same port.
    let address: SocketAddrV4 = server.authority().parse().unwrap();
    let ip = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{ip:08X}:{:04X}", address.port());
    let mut rows = table
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>());
    // Local address, remote address, state; 0A is listening.
    let row = rows.find(|row| row[1] == local && row[3] == "0A").unwrap();
    row[9].to_owned()
}

/// The labels `server` of a scrape.
fn servers(scrape: &Scrape) -> BTreeSet<String> {
    let all = scrape.all("llamacpp_up").into_iter();
    let label = |labels: &std::collections::BTreeMap<String, String>| labels["server"].clone();
    all.map(|sample| label(&sample.labels)).collect()
}

fn has(expected: &[&Server]) -> impl Fn(&Scrape) -> bool {
    let expected: BTreeSet<_> = expected.iter().map(|server| server.authority()).collect();
    move |scrape| servers(scrape) == expected
}

fn count(scrape: &Scrape) -> Option<f64> {
    scrape.value("llamacpp_discovered_servers")
}

/// The different values of `Authorization` that the server received.
fn keys(server: &Server) -> BTreeSet<String> {
    let requests = server.requests();
    let keys = requests
        .iter()
        .map(|request| request.header("Authorization").unwrap_or_default());
    keys.map(str::to_owned).collect()
}

#[test]
fn each_server_is_watched_with_its_own_key_while_its_process_runs() {
    let processes = Processes::new();
    let (first, second, third) = (
        Server::recorded(NEW, Stage::Busy),
        Server::recorded(NEW, Stage::After),
        Server::recorded(NEW, Stage::After),
    );
    let exporter = processes
        .discover(&[])
        .env("LLAMACPP_API_KEY", "given-key")
        .start();
    let none = exporter.until("a look", |scrape| count(scrape) == Some(0.0));
    assert!(
        servers(&none).is_empty(),
        "the default base URL is not watched"
    );
    let descriptors = exporter.descriptors();

    processes.add_server(101, &first, &["--api-key", "first-key,x"], "");
    processes.add_server(102, &second, &[], "LLAMA_API_KEY=second-key");
    processes.add_server(103, &third, &[], "");
    exporter.until("three servers", has(&[&first, &second, &third]));
    assert_eq!(exporter.threads_named("poll"), 3);
    let scrape = exporter.until("their values", |scrape| {
        scrape.all("llamacpp_generated_tokens_total").len() == 3
    });
    assert_eq!(count(&scrape), Some(3.0));
    assert_eq!(keys(&first), ["Bearer first-key".to_owned()].into());
    assert_eq!(keys(&second), ["Bearer second-key".to_owned()].into());
    assert_eq!(
        keys(&third),
        [String::new()].into(),
        "a key of another server"
    );

    processes.remove(101);
    processes.remove(103);
    let scrape = exporter.until("one server", has(&[&second]));
    assert_eq!(count(&scrape), Some(1.0));
    assert_eq!(scrape.all("llamacpp_generated_tokens_total").len(), 1);
    processes.remove(102);
    exporter.until("no server", |scrape| count(scrape) == Some(0.0));
    wait_until("its threads have ended", || {
        exporter.threads_named("poll") == 0
    });
    // The connection of a scrape may have been open when they were counted.
    wait_until("its connections are closed", || {
        exporter.descriptors() <= descriptors
    });
    assert_eq!(exporter.get("/healthz").status, 200);
    for key in ["first-key", "second-key", "given-key"] {
        exporter.assert_logged(0, &[key]);
    }
}

#[test]
fn nothing_is_sent_over_a_connection_that_reached_another_process() {
    let server = Server::recorded(NEW, Stage::After);
    let base: llamacpp_exporter::settings::BaseUrl = server.url().parse().unwrap();
    let settings = Settings {
        base_urls: vec![base.clone()],
        timeout: Duration::from_secs(10),
        ..Settings::default()
    };
    let get = |is_it: bool| {
        let mut exchange = Exchange::new(&base, &settings).unwrap();
        exchange.check_peer(PeerCheck(Arc::new(move |_| is_it)));
        exchange.begin_poll(Instant::now() + Duration::from_secs(10));
        let url = format!("{}/health", base.root());
        let outcome = exchange.get(Endpoint::new("/health", 1000), &url, |_| Ok(()));
        matches!(outcome, RequestOutcome::Ok(()))
    };
    assert!(!get(false));
    assert!(server.requests().is_empty());
    assert!(get(true));
    assert_eq!(server.count("/health"), 1);
}

#[test]
fn a_process_that_no_longer_has_the_socket_is_not_watched() {
    let processes = Processes::new();
    let server = Server::recorded(NEW, Stage::After);
    processes.add_server(101, &server, &["--api-key", "its-key"], "");
    let exporter = processes.discover(&[]).start();
    exporter.until("a server", |scrape| has(&[&server])(scrape) && scrape.up());
    // It has closed its socket, and another process listens there.
    fs::remove_file(processes.path("101/fd/3")).unwrap();
    let scrape = exporter.until("no server", |scrape| count(scrape) == Some(0.0));
    assert!(servers(&scrape).is_empty());
    wait_until("its connection is closed", || {
        server.open_connections() == 0
    });
    let requests = server.requests().len();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(server.requests().len(), requests);
}

/// Two servers of b7710 can be started on one port; so can a server and a copy of it (`fork`).
#[test]
fn processes_that_share_an_address_are_not_watched() {
    let processes = Processes::new();
    let server = Server::recorded(NEW, Stage::After);
    processes.add_server(101, &server, &[], "");
    let exporter = processes.discover(&[]).start();
    exporter.until("a server", has(&[&server]));
    processes.add_server(102, &server, &[], "");
    exporter.until("none", |scrape| count(scrape) == Some(0.0));
    exporter.wait_for_log(&["not watched", "process 102 listens at"]);
    exporter.wait_for_log(&["not watched", "process 101 listens at"]);
    let page = exporter.get("/").body;
    assert_contains(&page, &["not watched: process 101: process 102 listens at"]);
    processes.remove(101);
    exporter.until("the other one", has(&[&server]));
    // One that it has started has its sockets until it executes another program.
    let port = server.port().to_string();
    let words = ["/app/llama-server", "--port", &port];
    processes.add(103, 102, &words, "", Some(&server));
    exporter.after_polls(5);
    assert!(has(&[&server])(&exporter.scrape()));
}

#[test]
fn what_is_shown_already_is_not_watched_twice() {
    let processes = Processes::new();
    let (router, child, given) = (
        Server::start(),
        Server::recorded(NEW, Stage::After),
        Server::recorded(NEW, Stage::After),
    );
    router.answer_json("/health", r#"{"status":"ok"}"#);
    router.answer_json(
        "/props",
        json!({"role": "router", "build_info": "b10068-abc"}),
    );
    router.answer_json("/models", r#"{"data":[]}"#);
    processes.add_server(101, &router, &["--models-dir", "/models"], "");
    let port = child.port().to_string();
    processes.add(
        102,
        101,
        &["llama-server", "--port", &port],
        "",
        Some(&child),
    );
    processes.add_server(103, &given, &[], "");
    // One that does not listen, and one that only waits for a server.
    processes.add(104, 1, &["llama-server", "--port", "1"], "", None);
    processes.add(105, 1, &["bash", "-c", "llama-server --port 1"], "", None);

    let given_url = given.url();
    let exporter = processes.discover(&["--base-url", &given_url]).start();
    let both = |scrape: &Scrape| has(&[&router, &given])(scrape) && count(scrape) == Some(1.0);
    exporter.until("the router and the base URL", both);
    let polls = exporter.polls();
    wait_until("more looks", || exporter.polls() > polls + 5);
    assert!(both(&exporter.scrape()));
    assert!(child.requests().is_empty());
    drop(exporter);

    // The same router, at a base URL.
    let router_url = router.url();
    let exporter = processes.discover(&["--base-url", &router_url]).start();
    let both = |scrape: &Scrape| has(&[&router, &given])(scrape) && count(scrape) == Some(1.0);
    exporter.until("the base URL of the router", both);
    assert!(child.requests().is_empty());
}

#[test]
fn check_prints_what_was_found_and_why_something_is_not_watched() {
    let processes = Processes::new();
    let server = Server::recorded(NEW, Stage::After);
    processes.add_server(101, &server, &["--alias", "tiny"], "");
    processes.add(102, 101, &["llama-server", "--port", "1"], "", None);
    processes.add(103, 1, &["llama-server", "--port", "1"], "", None);
    let mut command = program();
    command.env("LLAMACPP_PROCFS", processes.0.path());
    let output = run(command.args(["--check", "--discover", "--no-gpu", "--interval", "100ms"]));
    output.assert_code(0);
    let at = server.authority();
    assert_contains(
        &output.stdout,
        &[
            &format!("\nprocess 102: not watched: it is shown under {at}\n"),
            "\nprocess 103: not watched: it does not listen yet\n",
            &format!("{at} (discovered, process 101): up\n"),
        ],
    );
}

#[test]
fn at_most_64_servers_are_watched() {
    let processes = Processes::new();
    let servers: Vec<_> = (0..70)
        .map(|_| Server::recorded(NEW, Stage::After))
        .collect();
    for (server, pid) in servers.iter().zip(101..) {
        processes.add_server(pid, server, &[], "");
    }
    let exporter = processes.discover(&[]).interval("1s").start();
    exporter.until("64 servers", |scrape| count(scrape) == Some(64.0));
    exporter.wait_for_log(&["not watched", "64 servers are watched already"]);
    // The others follow when some have ended.
    (101..131).for_each(|pid| processes.remove(pid));
    exporter.until("40 servers", |scrape| count(scrape) == Some(40.0));
}

/// Servers that start and end at random: no series of one that does not run, and nothing is left
/// behind. `tests/machine/test_discovery.py` does the same with real ones.
#[test]
fn servers_that_come_and_go_leave_nothing_behind() {
    let processes = Processes::new();
    let servers: Vec<_> = (0..6).map(|_| Server::recorded(NEW, Stage::Busy)).collect();
    let exporter = processes.discover(&[]).start();
    exporter.until("a look", |scrape| count(scrape) == Some(0.0));
    let descriptors = exporter.descriptors();
    let mut running = [None; 6];
    let mut random = 12345_u32;
    for pid in 1000..1060 {
        random = random.wrapping_mul(1_103_515_245).wrapping_add(12345);
        let index = (random >> 16) as usize % servers.len();
        match running[index].take() {
            Some(pid) => processes.remove(pid),
            None => {
                processes.add_server(pid, &servers[index], &[], "");
                running[index] = Some(pid);
            }
        }
        thread::sleep(Duration::from_millis(u64::from(random >> 8) % 60));
        if pid % 10 == 0 {
            let now = servers.iter().zip(running).filter(|(_, pid)| pid.is_some());
            let now: Vec<_> = now.map(|(server, _)| server).collect();
            exporter.until("those that run", has(&now));
        }
    }
    running
        .into_iter()
        .flatten()
        .for_each(|pid| processes.remove(pid));
    exporter.until("no server", |scrape| count(scrape) == Some(0.0));
    wait_until("its threads have ended", || {
        exporter.threads_named("poll") == 0
    });
    // The connection of a scrape may have been open when they were counted.
    wait_until("its connections are closed", || {
        exporter.descriptors() <= descriptors
    });
}

#[test]
fn the_exporter_is_ready_and_healthy_without_any_server() {
    let processes = Processes::new();
    let exporter = processes.discover(&[]).start();
    wait_until("ready", || exporter.get("/readyz").status == 200);
    assert_eq!(exporter.get("/healthz").status, 200);
    let server = Server::start();
    server.answer_everything(Answer::never());
    processes.add_server(101, &server, &[], "");
    wait_until("it is found", || {
        !exporter.logged(&["discovered a server"]).is_empty()
    });
    assert_eq!(
        exporter.get("/readyz").status,
        200,
        "a new server makes it unready"
    );
}

#[test]
fn while_a_base_url_is_down_the_log_names_the_servers_of_this_machine() {
    let processes = Processes::new();
    let there = Server::recorded(NEW, Stage::Idle);
    let child = Server::recorded(NEW, Stage::Idle);
    processes.add_server(70, &there, &[], "");
    processes.add(71, 70, &["/app/llama-server"], "", Some(&child));
    let exporter = Exporter::with_url(&Server::stopped().url())
        .env("LLAMACPP_PROCFS", processes.0.path())
        .start();
    let named = format!("{} (llama-server). Give one with --base-url", there.url());
    exporter.wait_for_log(&["other servers were found on this machine: ", &named]);
    // Not again for each that comes.
    let second = Server::recorded(NEW, Stage::Idle);
    processes.add_server(72, &second, &[], "");
    exporter.after_polls(10);
    exporter.assert_logged(1, &["other servers were found"]);
    // It is not asked: only its process was looked at.
    assert!(there.requests().is_empty());
}
