use std::ffi::OsString;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::SystemTime;

use super::file_tree::FileTree;
use crate::bounds::BoundedDuration;
use crate::machine::server_arguments::ServerArguments;
use crate::machine::*;
use crate::readings::{ModelFacts, ModelStatus, ProcessHints};
use crate::snapshot::ProcessUsage;

fn at(host: &str) -> ServerAddress {
    ServerAddress::Host {
        host: host.to_owned(),
        port: None,
    }
}

/// A machine as a file tree, with running processes `(pid, arguments, uid)`.
fn machine(processes: &[(u32, &str, u32)], more: &[&str]) -> (FileTree, Machine) {
    let tree = FileTree::new(&[
        ("proc/meminfo", "MemTotal: 1048576 kB\n"),
        ("sys/devices/system/cpu/online", "0-3\n"),
        (
            "proc/stat",
            "cpu  1 2 3\nintr 7 0 0\nbtime 1700000000\nprocesses 9\n",
        ),
    ]);
    for (pid, line, uid) in processes {
        run(&tree, *pid, line, *uid, 100);
    }
    let arguments = ["--base-url", "http://127.0.0.1:8080"];
    let arguments = arguments.iter().chain(more).map(OsString::from).collect();
    let (_, mut settings) = crate::settings::parse(arguments, |_| None).unwrap();
    settings.procfs = tree.path("proc");
    settings.sysfs = tree.path("sys");
    let machine = Machine::new(&settings.base_urls[0], &settings);
    (tree, machine)
}

fn run(tree: &FileTree, pid: u32, line: &str, uid: u32, started: u64) {
    let file = |name: &str| format!("proc/{pid}/{name}");
    tree.write(&file("cmdline"), line.replace(' ', "\0") + "\0");
    tree.write(&file("environ"), "SECRET=x\0LLAMA_ARG_UBATCH=64\0");
    tree.write(
        &file("status"),
        format!(
            "Uid:\t{uid}\t{uid}\t0\t0\nVmRSS:\t2048 kB\nThreads:\t9\nCpus_allowed_list:\t0-1\n"
        ),
    );
    stat(tree, pid, 100, started);
    std::fs::create_dir_all(tree.path(&file("fd"))).unwrap();
}

fn stat(tree: &FileTree, pid: u32, ticks: u64, started: u64) {
    let text =
        format!("{pid} (x) S 1 7 7 0 -1 4194304 100 0 0 0 {ticks} 0 0 0 20 0 3 0 {started} 1 2");
    tree.write(&format!("proc/{pid}/stat"), text);
}

/// Maps a model file into the process.
fn map_model(tree: &FileTree, pid: u32) {
    let maps = "7f00-7f01 r--p 00000000 fe:00 1234   /m/model.gguf\n";
    tree.write(&format!("proc/{pid}/maps"), maps);
}

/// The row of `/proc/net/tcp` for a server on port 8080 of `address`.
fn listening(address: [u8; 4], uid: u32, inode: u32) -> String {
    let address = u32::from_ne_bytes(address);
    format!(
        "   0: {address:08X}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  {uid}        0 {inode} 1 0\n"
    )
}

/// Makes `pid` listen on port 8080 as the user `uid`.
fn listen(tree: &FileTree, pid: Option<u32>, uid: u32) {
    tree.write("proc/net/tcp", listening([127, 0, 0, 1], uid, 4242));
    if let Some(pid) = pid {
        tree.link(&format!("proc/{pid}/fd/5"), "socket:[4242]");
    }
}

fn poll(machine: &mut Machine, reading: &ModelReading) -> Model {
    let mut model = Model {
        name: "m".to_owned(),
        ..Model::default()
    };
    machine.begin_poll();
    machine.fill(&mut model, reading);
    model
}

/// The process of a model of which the server reports nothing.
fn process(machine: &mut Machine) -> ProcessUsage {
    poll(machine, &ModelReading::default()).process
}

/// A server with two slots of 2048 tokens.
fn two_slots() -> ModelReading {
    ModelReading {
        facts: ModelFacts {
            slots: Some(2.0),
            max_context_size: Some(2048.0),
            ..ModelFacts::default()
        },
        ..ModelReading::default()
    }
}

/// A router's model whose server was started with these arguments.
fn router_child(arguments: &[String]) -> ModelReading {
    ModelReading {
        process: ProcessHints {
            arguments: Some(arguments.to_owned()),
            ..ProcessHints::default()
        },
        ..ModelReading::default()
    }
}

const RESIDENT: Option<f64> = Some(2048.0 * 1024.0);

#[test]
fn the_start_time_of_the_process_stays_when_the_clock_is_set() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    listen(&tree, Some(7), 0);
    map_model(&tree, 7);
    let mut start_time = || process(&mut machine).start_time;
    assert_eq!(start_time(), Some(1700000001.0));
    tree.write("proc/stat", "btime 1700003600\n");
    assert_eq!(start_time(), Some(1700000001.0));
    // Another process at the same port.
    stat(&tree, 7, 100, 5000);
    assert_eq!(start_time(), Some(1700003650.0));
}

#[test]
fn metrics_of_the_process_replace_those_of_the_server() {
    let servers = [(7, "python serve.py", 0), (8, "llama-server", 0)];
    let (tree, mut machine) = machine(&servers, &[]);
    listen(&tree, Some(7), 0);
    map_model(&tree, 7);
    let begun = std::time::Instant::now();
    let model = poll(&mut machine, &ModelReading::default());
    assert_eq!(model.process.memory_usage, RESIDENT);
    assert_eq!(model.process.thread_count, Some(9.0));
    assert_eq!(model.process.total_memory, Some(1073741824.0));
    assert_eq!(model.process.cpu_seconds, Some(1.0));
    assert_eq!(model.process.start_time, Some(1700000001.0));
    assert_eq!(
        model.process.cpu_utilization, None,
        "that needs an interval"
    );
    std::thread::sleep(Duration::from_millis(100));
    stat(&tree, 7, 105, 100);
    let busy = process(&mut machine).cpu_utilization;
    // 50 ms of two processors' time, in 100 ms or as long as this machine took.
    let least = 100.0 * 0.050 / (2.0 * begun.elapsed().as_secs_f64());
    assert!((least..=25.1).contains(&busy.unwrap()), "{busy:?}");
    assert!(machine.notes().is_empty());
}

#[test]
fn a_model_that_keeps_its_name_over_a_restart_keeps_its_new_process() {
    let (tree, mut machine) = machine(&[(42, "llama-server", 1000)], &[]);
    listen(&tree, Some(42), 1000);
    let reading = ModelReading {
        name: "m".to_owned(),
        ..two_slots()
    };
    let mut cpu_while_loading = || {
        machine.begin_poll();
        assert_eq!(machine.model_name(Some(&reading)), None);
        let mut model = Model {
            name: "m".to_owned(),
            ..Model::default()
        };
        machine.fill(&mut model, &reading);
        machine.keep_only(&[model.clone()]);
        model.process.cpu_utilization
    };
    assert_eq!(cpu_while_loading(), None);
    assert_eq!(cpu_while_loading(), Some(0.0));
}

#[test]
fn an_unnamed_model_gets_its_name_from_the_process_at_every_poll() {
    let (tree, mut machine) = machine(&[(42, "llama-server -m model.gguf", 1000)], &[]);
    listen(&tree, Some(42), 1000);
    let reading = two_slots();
    let name = |machine: &mut Machine| {
        machine.begin_poll();
        let name = machine.model_name(Some(&reading));
        let model = Model {
            name: name.clone().unwrap_or_default(),
            ..Model::default()
        };
        machine.keep_only(&[model]);
        name
    };
    for _ in 0..3 {
        assert_eq!(name(&mut machine).as_deref(), Some("model.gguf"));
    }
    // Restarted with another model; the exporter has not seen it down.
    run(
        &tree,
        42,
        "llama-server -m model.gguf --alias other",
        1000,
        200,
    );
    assert_eq!(name(&mut machine).as_deref(), Some("other"));
    machine.begin_poll();
    assert_eq!(machine.model_name(None), None);
}

#[test]
fn a_reused_pid_is_another_process() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    listen(&tree, Some(7), 0);
    assert_eq!(process(&mut machine).memory_usage, RESIDENT);
    // Another process has the PID, and nothing listens any more.
    std::fs::remove_file(tree.path("proc/7/fd/5")).unwrap();
    std::fs::remove_file(tree.path("proc/net/tcp")).unwrap();
    stat(&tree, 7, 1, 999);
    let model = poll(&mut machine, &ModelReading::default());
    assert_eq!(
        (model.process.memory_usage, model.process.thread_count),
        (None, None)
    );
    // The server returns with another PID: it is found at the first poll after it was down.
    run(&tree, 9, "llama-server", 0, 1000);
    listen(&tree, Some(9), 0);
    machine.keep_only(&[]);
    assert_eq!(process(&mut machine).memory_usage, RESIDENT);
}

#[test]
fn a_process_that_closed_the_socket_is_replaced() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0), (8, "x", 0)], &[]);
    map_model(&tree, 8);
    listen(&tree, Some(7), 0);
    poll(&mut machine, &ModelReading::default());
    std::fs::remove_file(tree.path("proc/7/fd/5")).unwrap();
    listen(&tree, Some(8), 0);
    stat(&tree, 8, 4200, 100);
    let model = poll(&mut machine, &ModelReading::default());
    assert_eq!(model.process.cpu_seconds, Some(42.0));
}

#[test]
fn of_several_processes_with_the_socket_only_a_llama_server_counts() {
    let (tree, mut machine) = self::machine(&[(7, "sh", 0), (8, "/app/llama-server", 0)], &[]);
    listen(&tree, Some(7), 0);
    listen(&tree, Some(8), 0);
    stat(&tree, 8, 4200, 100);
    let model = poll(&mut machine, &ModelReading::default());
    assert_eq!(model.process.cpu_seconds, Some(42.0));
    let (tree, mut machine) = self::machine(&[(7, "py", 0), (8, "py", 0)], &[]);
    for pid in [7, 8] {
        listen(&tree, Some(pid), 0);
        map_model(&tree, pid);
    }
    assert_eq!(process(&mut machine).thread_count, None);
    let why = &machine.notes()[0];
    assert!(
        why.starts_with("2 processes have the server's socket open"),
        "{why}"
    );
    assert!(why.contains("--pid-file"), "{why}");
    assert_eq!(absences(&machine), [Absence::ProcessNotVisible]);
}

#[test]
fn several_servers_that_share_a_port_are_ambiguous() {
    let servers = [(7, "llama-server", 0), (8, "llama-server", 0)];
    let (tree, mut machine) = machine(&servers, &[]);
    listen(&tree, Some(7), 0);
    let both = [4242, 4343].map(|inode| listening([0; 4], 0, inode));
    tree.write("proc/net/tcp", both.concat());
    tree.link("proc/8/fd/6", "socket:[4343]");
    assert_eq!(process(&mut machine).thread_count, None);
}

#[test]
fn a_process_that_only_forwards_is_not_the_server() {
    let line = "docker-proxy -host-ip 0.0.0.0 -host-port 8080 -container-port 8080";
    let (tree, mut machine) = machine(&[(7, line, 0), (8, "llama-server", 0)], &[]);
    listen(&tree, Some(7), 0);
    tree.write(
        "proc/7/maps",
        "7f00-7f01 r-xp 0 fe:00 1 /usr/bin/docker-proxy\n",
    );
    assert_eq!(process(&mut machine).thread_count, None);
    let why = &machine.notes()[0];
    assert!(
        why.starts_with("process 7 listens on the base URL's port"),
        "{why}"
    );
}

#[test]
fn a_server_on_the_same_port_of_another_address_is_not_the_server() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    listen(&tree, Some(7), 0);
    tree.write("proc/net/tcp", listening([192, 0, 2, 7], 0, 4242));
    assert_eq!(process(&mut machine).thread_count, None);
    assert!(machine.notes().is_empty());
}

/// The row of `/proc/net/tcp` for a connection between port 8080 of `local` and `remote`.
fn connected(local: [u8; 4], remote: [u8; 4]) -> String {
    let [local, remote] = [local, remote].map(u32::from_ne_bytes);
    format!(
        "   1: {local:08X}:1F90 {remote:08X}:D3A2 01 00000000:00000000 00:00000000 00000000  0        0 0 1 0\n"
    )
}

/// The connection from us that [`connected`] shows.
fn from_172_18_0_1(_: SocketAddr) -> Option<(SocketAddr, Option<TcpStream>)> {
    Some(("172.18.0.1:54178".parse().unwrap(), None))
}

/// Puts the process into a network namespace with the address 172.18.0.`last`, in which it listens.
/// Our own has 172.18.0.1.
fn contain(tree: &FileTree, pid: u32, last: u8, connection: &str) {
    let local = |last: u8| format!("|-- 172.18.0.{last}\n   /32 host LOCAL\n");
    tree.write("proc/net/fib_trie", local(1));
    tree.write(&format!("proc/{pid}/net/fib_trie"), local(last));
    let table = listening([0; 4], 0, 4200 + pid) + connection;
    tree.write(&format!("proc/{pid}/net/tcp"), table);
    let socket = format!("socket:[{}]", 4200 + pid);
    tree.link(&format!("proc/{pid}/fd/3"), socket);
    stat(tree, pid, u64::from(pid) * 100, 100);
}

#[test]
fn a_server_in_another_container_is_found_by_the_address_of_its_network() {
    let servers = [
        (1, "init", 0),
        (7, "llama-server", 0),
        (8, "llama-server", 0),
    ];
    let (tree, mut machine) = machine(&servers, &[]);
    for (pid, last) in [(7, 3), (8, 4)] {
        let connection = connected([172, 18, 0, last], [172, 18, 0, 1]);
        contain(&tree, pid, last, &connection);
    }
    tree.write("proc/8/uid_map", "         0          0 4294967295\n");
    machine.connect = from_172_18_0_1;
    let mut seconds = |host: &str| {
        machine.address = at(host);
        machine.keep_only(&[]);
        process(&mut machine).cpu_seconds
    };
    assert_eq!(seconds("172.18.0.4"), Some(8.0));
    assert_eq!(seconds("172.18.0.3"), Some(7.0));
    // The address of another machine, and a loopback address, which is our own.
    assert_eq!(seconds("172.18.0.5"), None);
    assert_eq!(seconds("127.0.0.1"), None);
}

#[test]
fn a_network_namespace_must_show_a_connection_of_ours() {
    let from_us = connected([172, 18, 0, 3], [172, 18, 0, 1]);
    let from_another = connected([172, 18, 0, 3], [172, 18, 0, 9]);
    for (connection, uid_map) in [
        (String::new(), None),
        (from_another, None),
        // In a user namespace of its own, a process can fake any address and connection.
        (from_us.clone(), Some("         0       1000          1\n")),
    ] {
        let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
        contain(&tree, 7, 3, &connection);
        if let Some(uid_map) = uid_map {
            tree.write("proc/7/uid_map", uid_map);
        }
        machine.address = at("172.18.0.3");
        machine.connect = from_172_18_0_1;
        let model = poll(&mut machine, &ModelReading::default());
        assert_eq!(model.process.thread_count, None, "{connection} {uid_map:?}");
        contain(&tree, 7, 3, &from_us);
        let _ = std::fs::remove_file(tree.path("proc/7/uid_map"));
        machine.keep_only(&[]);
        machine.address = at("172.18.0.3");
        assert_eq!(process(&mut machine).thread_count, Some(9.0));
    }
}

/// The models of a router, each on the port 8080 and up.
fn fill_all(machine: &mut Machine, names: &[String], arguments: &[String]) -> Vec<Model> {
    let reading = router_child(arguments);
    let fill = |name: &String| {
        let mut model = Model {
            name: name.clone(),
            ..Model::default()
        };
        machine.fill(&mut model, &reading);
        model
    };
    names.iter().map(fill).collect()
}

#[test]
fn processes_are_listed_once_a_poll_for_all_models() {
    let names: Vec<String> = (0..500).map(|name| format!("ever-new-{name:03}")).collect();
    let arguments = ["llama-server", "--port", "8080"].map(str::to_owned);
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    tree.write("proc/net/tcp", listening([127, 0, 0, 1], 0, 1));
    machine.begin_poll();
    fill_all(&mut machine, &names[..1], &arguments);
    // A process that starts during the poll is found at the next one.
    listen(&tree, Some(7), 0);
    let of_poll = |models: Vec<Model>| {
        models
            .iter()
            .filter(|of| of.process.thread_count.is_some())
            .count()
    };
    assert_eq!(of_poll(fill_all(&mut machine, &names[1..], &arguments)), 0);
    assert_eq!(machine.lookups, MAX_LOOKUPS_PER_POLL);
    machine.begin_poll();
    let found = fill_all(&mut machine, &names, &arguments);
    // The process is assigned to the first of the models that claim it.
    assert_eq!(of_poll(found), 1);
    let notes = machine.notes();
    assert!(
        notes.iter().any(|note| note.contains("another model")),
        "{notes:?}"
    );
    assert!(absences(&machine).contains(&Absence::ProcessShared));
}

/// Why sources of the processes are not read.
fn absences(machine: &Machine) -> Vec<Absence> {
    let sources = machine.sources().into_iter();
    sources.filter_map(|source| source.absence).collect()
}

#[test]
fn a_process_is_a_source_with_its_pid_and_the_time_of_its_reading() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    assert_eq!(process(&mut machine).thread_count, None);
    assert_eq!(absences(&machine), [Absence::ProcessNotFound]);
    listen(&tree, Some(7), 0);
    machine.keep_only(&[]);
    let began = Instant::now();
    assert_eq!(process(&mut machine).thread_count, Some(9.0));
    let sources = machine.sources();
    let source = sources
        .iter()
        .find(|of| of.kind == SourceKind::Process(Some(7)));
    let source = source.expect("the process is a source");
    assert!(source.read_at >= Some(began) && source.duration.is_some());
    assert_eq!((source.absence, source.model.as_deref()), (None, None));
}

#[test]
fn a_failed_lookup_is_retried_later_and_at_once_after_a_reconnect() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    assert_eq!(process(&mut machine).thread_count, None);
    listen(&tree, Some(7), 0);
    assert_eq!(process(&mut machine).thread_count, None);
    machine.keep_only(&[]);
    assert_eq!(process(&mut machine).thread_count, Some(9.0));
}

#[test]
fn arguments_count_without_the_environment_variables() {
    let line = "llama-server --sleep-idle-seconds 6";
    let (tree, mut machine) = machine(&[(7, line, 0)], &[]);
    listen(&tree, Some(7), 0);
    std::fs::remove_file(tree.path("proc/7/environ")).unwrap();
    let reading = two_slots();
    let mut model = poll(&mut machine, &reading);
    assert_eq!(
        machine.sleep_idle(&model),
        Some(BoundedDuration::from_secs(6))
    );
    assert!(machine.notes()[0].contains("variables"));
    assert!(absences(&machine).contains(&Absence::EnvironmentUnreadable));
    // They may set how the slots share the cache.
    model.slots.context_tokens = vec![(0, 100.0)];
    machine.fill(&mut model, &reading);
    assert_eq!(model.kv_cache.usage_ratio, None);
}

#[test]
fn invisible_limits_are_unknown_and_a_note_says_why() {
    let (tree, mut machine) = machine(&[(7, "llama-server", 0)], &[]);
    listen(&tree, Some(7), 0);
    tree.write("proc/7/cgroup", "0::/../other\n");
    poll(&mut machine, &ModelReading::default());
    std::thread::sleep(Duration::from_millis(20));
    let model = poll(&mut machine, &ModelReading::default());
    assert_eq!(
        (model.process.total_memory, model.process.cpu_utilization),
        (None, None)
    );
    assert_eq!(model.process.cpu_seconds, Some(1.0));
    assert!(machine.notes()[0].contains("cgroup"));
    assert_eq!(absences(&machine), [Absence::LimitsUnknown]);
}

#[test]
fn a_process_with_unreadable_descriptors_is_found_by_its_command_line() {
    let called = |servers: &[(u32, &str, u32)], uid: u32| {
        let (tree, machine) = machine(servers, &[]);
        listen(&tree, None, uid);
        let pids: Vec<u32> = servers.iter().map(|(pid, ..)| *pid).collect();
        for pid in &pids {
            if *pid != 5 {
                tree.link(&format!("proc/{pid}/net"), tree.path("proc/net"));
            }
        }
        let addresses = ["127.0.0.1".parse().unwrap()];
        let search = ProcessLookup::new(
            &machine.procfs,
            addresses.to_vec(),
            8080,
            process_lookup::connect,
        );
        let network = sockets::NetworkNamespace::new(tree.path("proc/net"), true).listening();
        let is_called = |arguments: &ServerArguments| arguments.may_listen_on(8080);
        search
            .by_command_line(&network.tcp(8080, &addresses), &pids, is_called)
            .map(|(process, _)| process.pid)
    };
    let servers = [
        (5, "llama-server", 1000),
        (7, "python serve.py --port 8080", 1000),
        (8, "llama-server -m x.gguf --port 8081", 1000),
        (9, "llama-server", 33),
    ];
    assert_eq!(
        called(&servers, 1000),
        Ok(7),
        "5 is in another network namespace"
    );
    assert_eq!(called(&servers, 33), Ok(9), "8080 is its default");
    assert!(called(&servers, 6).is_err());
    let twice = [
        (7, "tool --port 8080", 0),
        (8, "llama-server --port 8080", 0),
    ];
    let why = called(&twice, 0).unwrap_err().unwrap().detail;
    assert!(
        why.starts_with("2 processes have the server's port"),
        "{why}"
    );
    let wrapped = [
        (7, "docker-init -- llama-server --port 8080", 0),
        (8, "llama-server --port 8080", 0),
    ];
    assert_eq!(called(&wrapped, 0), Ok(8), "7 is a wrapper");
}

#[test]
fn a_pid_file_names_the_process_unless_its_pid_was_reused() {
    let file = std::env::temp_dir().join(format!("llamacpp-pid-{}", std::process::id()));
    std::fs::write(&file, "8\n").unwrap();
    let servers = [(7, "llama-server", 0), (8, "other", 0)];
    let (tree, mut machine) = machine(&servers, &["--pid-file", file.to_str().unwrap()]);
    listen(&tree, Some(7), 0);
    stat(&tree, 8, 4200, 100);
    let seconds =
        |machine: &mut Machine| poll(machine, &ModelReading::default()).process.cpu_seconds;
    assert_eq!(seconds(&mut machine), Some(42.0));
    std::fs::write(&file, "7\n").unwrap();
    assert_eq!(seconds(&mut machine), Some(1.0));
    // Another process has the PID, and the file is unchanged.
    stat(&tree, 7, 4200, 999);
    assert_eq!(seconds(&mut machine), None);
    assert!(machine.notes()[0].contains("now belongs to another process"));
    assert_eq!(absences(&machine), [Absence::PidFileUnusable]);
    let written_again = std::fs::File::options().append(true).open(&file).unwrap();
    let later = SystemTime::now() + Duration::from_secs(9);
    written_again.set_modified(later).unwrap();
    assert_eq!(seconds(&mut machine), Some(42.0));
    std::fs::write(&file, "77\n").unwrap();
    assert_eq!(seconds(&mut machine), None);
    assert!(machine.notes()[0].starts_with("no process has the PID in"));
    let _ = std::fs::remove_file(&file);
}

#[test]
fn a_fifo_in_place_of_the_pid_file_blocks_no_poll() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let made = std::process::Command::new("mkfifo").arg(&file).status();
    assert!(made.unwrap().success());
    let arguments = ["--pid-file".to_owned(), file.display().to_string()];
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (_tree, mut machine) = machine(&[(7, "llama-server", 0)], &arguments);
        let threads = process(&mut machine).thread_count;
        sender.send((threads, machine.notes())).unwrap();
    });
    let polled = receiver.recv_timeout(Duration::from_secs(60));
    let (threads, notes) = polled.expect("the poll waits for a writer of the PID file");
    assert_eq!(threads, None);
    assert!(notes[0].contains("it is a FIFO"), "{notes:?}");
}

#[test]
fn router_children_and_docker_model_runners_servers_are_found() {
    let servers = [
        (7, "llama-server --models-dir /m", 0),
        (
            8,
            "com.docker.llama-server -ngl 99 --model /b/sha256/abcabcabcabc/model.gguf --host /run/a.sock",
            0,
        ),
        (
            9,
            "com.docker.llama-server --model /b/sha256/defdefdefdef/model.gguf --embeddings",
            0,
        ),
        (
            10,
            "com.docker.llama-server --model /b/sha256/defdefdefdef/model.gguf",
            0,
        ),
    ];
    let (tree, machine) = machine(&servers, &[]);
    let find = |host: &str, reading: &ModelReading| {
        let addresses = [host.parse().unwrap()];
        let found = ProcessLookup::new(
            &machine.procfs,
            addresses.to_vec(),
            8080,
            process_lookup::connect,
        )
        .find(reading);
        found.map(|(process, _)| process.pid)
    };
    let by_file = |part: &str, mode: Option<&str>| ModelReading {
        mode: mode.map(str::to_owned),
        process: ProcessHints {
            file_part: Some(part.to_owned()),
            ..ProcessHints::default()
        },
        ..ModelReading::default()
    };
    assert_eq!(find("127.0.0.1", &by_file("abcabcabcabc", None)), Ok(8));
    let embedding = by_file("defdefdefdef", Some("embedding"));
    assert_eq!(find("127.0.0.1", &embedding), Ok(9));
    assert!(find("127.0.0.1", &by_file("defdefdefdef", None)).is_err());
    // Words that are not a digest match no file.
    for part in ["", "model", "model.gguf", "abcabc"] {
        assert_eq!(find("127.0.0.1", &by_file(part, None)), Err(None), "{part}");
    }
    // Another machine's Model Runner may have the same model.
    assert_eq!(find("192.0.2.1", &by_file("abcabcabcabc", None)), Err(None));

    listen(&tree, Some(9), 0);
    let child = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    let by_child = |words: &[&str]| find("127.0.0.1", &router_child(&child(words)));
    assert_eq!(by_child(&["llama-server", "--port", "8080"]), Ok(9));
    assert_eq!(by_child(&["llama-server", "--port", "8081"]), Err(None));
    tree.write(
        "proc/net/unix",
        "Num RefCount Protocol Flags Type St Inode Path\n0: 00000002 00000000 00010000 0001 01 777 /run/a.sock\n",
    );
    tree.link("proc/8/fd/3", "socket:[777]");
    let by_socket = by_child(&["x/llama-server", "--host", "/run/a.sock"]);
    assert_eq!(by_socket, Ok(8));
}

#[test]
fn the_kv_cache_follows_from_arguments_variables_and_the_model_file() {
    let line = "llama-server -m m.gguf -c 4096 -np 2 --sleep-idle-seconds 6";
    let (tree, mut machine) = machine(&[(7, line, 0)], &[]);
    listen(&tree, Some(7), 0);
    let header: BTreeMap<String, String> = [
        ("general.architecture", "gemma3"),
        ("gemma3.block_count", "18"),
        ("gemma3.context_length", "32768"),
        ("gemma3.embedding_length", "640"),
        ("gemma3.attention.head_count", "4"),
        ("gemma3.attention.head_count_kv", "1"),
        ("gemma3.attention.key_length", "256"),
        ("gemma3.attention.value_length", "256"),
        ("gemma3.attention.sliding_window", "512"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let mut reading = two_slots();
    reading.process.header = Some(Arc::new(header));
    let mut model = Model {
        name: "m".to_owned(),
        slots: crate::snapshot::SlotUsage {
            context_tokens: vec![(0, 100.0), (1, 924.0)],
            ..crate::snapshot::SlotUsage::default()
        },
        ..Model::default()
    };
    machine.fill(&mut model, &reading);
    // The variable sets 64 as the physical batch: a window of 768 cells.
    let limit = (4096 * 3 + 2 * 768 * 15) * 1024;
    assert_eq!(model.kv_cache.limit_bytes, Some(f64::from(limit)));
    let used = (1024 * 3 + (100 + 768) * 15) * 1024;
    assert_eq!(model.kv_cache.usage_bytes, Some(f64::from(used)));
    assert_eq!(model.kv_cache.usage_ratio, Some(0.25));
    assert_eq!(
        machine.sleep_idle(&model),
        Some(BoundedDuration::from_secs(6))
    );
    let mut asleep = Model {
        name: "m".to_owned(),
        status: Some(ModelStatus::Sleeping),
        ..Model::default()
    };
    machine.fill(&mut asleep, &reading);
    assert_eq!(
        (asleep.kv_cache.limit_bytes, asleep.process.thread_count),
        (None, Some(9.0))
    );
    // Without its file, cells are known and bytes are not.
    reading.process.header = None;
    model.kv_cache.limit_bytes = None;
    machine.fill(&mut model, &reading);
    assert_eq!(
        (model.kv_cache.limit_bytes, model.kv_cache.usage_ratio),
        (None, Some(0.25))
    );
}
