//! The program with an `nvidia-smi` that replays what real ones print.
//!
//! Those in `tests/recordings/nvidia` were recorded. The others are written by hand: their
//! shape is that of the recorded ones, of `nvidia-smi --help-query-gpu`, and of public issues of
//! llama.cpp's and of GPU exporters' users who quote drivers 470 to 580: a GPU in MIG mode (no
//! utilization), a laptop's (no power), one that has fallen off the bus.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use support::exporter::{self, Builder};
use support::recordings::{NEW, Stage};
use support::{Exporter, Server, wait_until};
use tempfile::TempDir;

/// A folder with an `nvidia-smi` that is a shell script, and what it and the test write.
struct Fake(TempDir);

impl Fake {
    /// `{calls}` in the script is a file of its own to write to.
    fn new(script: &str) -> Fake {
        let fake = Fake(tempfile::tempdir().unwrap());
        let calls = fake.path("calls").display().to_string();
        fake.write(
            "nvidia-smi",
            &format!("#!/bin/sh\n{script}").replace("{calls}", &calls),
        );
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(fake.path("nvidia-smi"), executable).unwrap();
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What the script wrote to `{calls}`.
    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// An exporter that finds it, and looks at no other GPU of this machine.
    fn exporter(&self, base_url: &str) -> Builder {
        fs::create_dir_all(self.path("sys")).unwrap();
        Exporter::with_url(base_url)
            .interval("1s")
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("").display()))
            .env("LLAMACPP_SYSFS", self.path("sys").to_str().unwrap())
    }

    /// The same, of a server that there is not.
    fn start(&self) -> Exporter {
        self.exporter("http://127.0.0.1:9").start()
    }
}

/// A GPU as it was recorded, one in MIG mode, a laptop's and one that has fallen off the bus.
fn gpus() -> String {
    format!(
        r#"echo "$@" >> {{calls}}
case "$1" in
--query-gpu=*)
    while :; do
        cat {recorded}/query-gpu-busy.csv
        echo "1, GPU-cd9ee947-34d2-d0fe-93e0-2195b3f2fd52, 570.124.06, [N/A], 33, 1, 81920, 81305, 87.12, NVIDIA A100-SXM4-80GB"
        echo "2, GPU-67051dc2-cce1-4acf-d254-e76d938eda30, 570.124.06, 0, 45, 11, 8188, 7890, [Not Supported], NVIDIA GeForce RTX 4060 Laptop GPU"
        echo "3, [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error]"
        echo "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error"
        cat {recorded}/wrong-id.txt
        head -c 100000 /dev/zero | tr '\0' ,
        echo
        sleep 0.2
    done ;;
*) while :; do cat {recorded}/query-compute-apps.csv; sleep 0.2; done ;;
esac
"#,
        recorded = recorded("").display()
    )
}

fn recorded(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/recordings/nvidia/h200-580.159.04")
        .join(name)
}

#[test]
fn values_of_nvidia_smi_are_exported_and_unknown_ones_are_absent() {
    let fake = Fake::new(&gpus());
    let exporter = fake.start();
    let metrics = |exporter: &Exporter| exporter.get("/metrics").body;
    // The last of the recorded lines of GPU 0.
    let last = "llamacpp_gpu_utilization_percent{gpu=\"0\"} 17";
    wait_until("three GPUs", || {
        let text = metrics(&exporter);
        text.contains("gpu=\"2\"") && text.contains(last)
    });
    let text = metrics(&exporter);
    for line in [
        "llamacpp_gpu_utilization_percent{gpu=\"2\"} 0",
        "llamacpp_temperature_celsius{gpu=\"0\"} 37",
        "llamacpp_temperature_celsius{gpu=\"1\"} 33",
        "llamacpp_gpu_memory_used_bytes{gpu=\"0\"} 8570011648",
        "llamacpp_gpu_memory_total_bytes{gpu=\"0\"} 150754820096",
        "llamacpp_gpu_memory_total_bytes{gpu=\"1\"} 85899345920",
        "llamacpp_gpu_memory_free_bytes{gpu=\"0\"} 141540982784",
        "llamacpp_gpu_power_watts{gpu=\"0\"} 153.72",
        "llamacpp_gpu_info{driver=\"580.159.04\",gpu=\"0\",name=\"NVIDIA H200\",uuid=\"GPU-03003391-6e0f-ad9d-1819-0436ef5d7153\"} 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
    assert!(!text.contains("llamacpp_gpu_utilization_percent{gpu=\"1\"}"));
    assert!(!text.contains("llamacpp_gpu_power_watts{gpu=\"2\"}"));
    assert!(!text.contains("_bytes{gpu=\"3\"}"));
    // One of each kind runs all the time, and is not started for every poll.
    exporter.after_polls(3);
    let text = metrics(&exporter);
    let joules = |gpu: u32| {
        let series = format!("llamacpp_gpu_energy_joules_total{{gpu=\"{gpu}\"}} ");
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok())
    };
    assert!(joules(0) > Some(0.0), "{text}");
    assert_eq!(joules(2), None, "its power is unknown");
    let calls = fake.calls();
    assert_eq!(calls.lines().count(), 2, "{calls}");
    assert!(
        calls
            .lines()
            .all(|call| call.ends_with("--format=csv,noheader,nounits --loop-ms=1000"))
    );
}

#[test]
fn a_crashed_nvidia_smi_is_restarted_with_growing_delays() {
    let fake = Fake::new(
        r#"echo "$1" >> {calls}
case "$1" in
--query-gpu=*) echo "0, GPU-a, 1, $(wc -l < {calls}), 2, 3, 4, 1, 5, A"; exit 1 ;;
*) exit 1 ;;
esac
"#,
    );
    let exporter = fake.start();
    wait_until("it was started again", || {
        let text = exporter.get("/metrics").body;
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("llamacpp_gpu_utilization_percent{gpu=\"0\"} "));
        found.is_some_and(|calls| calls.parse::<u32>().unwrap() >= 3)
    });
    let starts = fake.calls().lines().count() as u64;
    let polls = exporter.scrape().value("llamacpp_exporter_polls_total");
    // Each of the two is started later each time, so less often than there are polls.
    assert!(
        starts <= 2 * polls.unwrap_or(0.0) as u64 + 4,
        "{starts} starts in {polls:?} polls"
    );
}

#[test]
fn a_silent_nvidia_smi_delays_no_poll_and_has_no_metrics() {
    let fake = Fake::new("exec sleep 1000\n");
    let exporter = fake.start();
    exporter.after_polls(2);
    let text = exporter.get("/metrics").body;
    assert!(!text.contains("llamacpp_gpu_"), "{text}");
}

/// As a real one that was stopped by a signal for ten seconds.
#[test]
fn values_of_an_nvidia_smi_that_hangs_end_and_come_back() {
    let fake =
        Fake::new("while :; do [ ! -e {calls} ] && cat \"${0%/*}/gpu.csv\"; sleep 0.2; done\n");
    fs::copy(recorded("query-gpu-idle.csv"), fake.path("gpu.csv")).unwrap();
    let exporter = fake.start();
    let power = |exporter: &Exporter| exporter.scrape().has("llamacpp_gpu_power_watts");
    let log = || exporter.log_lines();
    wait_until("it is read", || power(&exporter));
    let logged = |text: &str| log().iter().filter(|line| line.contains(text)).count();
    let reading = "reading NVIDIA GPUs gpus=1 first=\"NVIDIA H200\" driver=580.159.04";
    wait_until("the log says so", || logged(reading) == 1);
    fake.write("calls", "");
    wait_until("it has no values", || !power(&exporter));
    wait_until("the log says so", || {
        logged("nvidia-smi no longer reports a GPU") == 1
    });
    fs::remove_file(fake.path("calls")).unwrap();
    wait_until("it is read again", || power(&exporter));
    wait_until("the log says so", || logged(reading) == 2);
}

#[test]
fn nvidia_smi_inherits_only_the_library_path() {
    let fake = Fake::new("echo \"CWD=$PWD\" >> {calls}; env >> {calls}; exec sleep 1000\n");
    let _exporter = fake
        .exporter("http://127.0.0.1:9")
        .env("LLAMACPP_API_KEY", "sk-ours")
        .env("AWS_SECRET_ACCESS_KEY", "ours")
        .env("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64")
        .start();
    wait_until("both have started", || {
        fake.calls().matches("LC_ALL=").count() == 2
    });
    let calls = fake.calls();
    for wanted in [
        "LC_ALL=C",
        "LD_LIBRARY_PATH=/usr/local/nvidia/lib64",
        "CWD=/",
    ] {
        assert!(
            calls.lines().any(|line| line == wanted),
            "{wanted}\n{calls}"
        );
    }
    for line in calls.lines() {
        let name = line.split('=').next().unwrap();
        // The shell adds the last of these.
        let known = [
            "CWD",
            "LC_ALL",
            "LD_LIBRARY_PATH",
            "PATH",
            "PWD",
            "OLDPWD",
            "SHLVL",
            "_",
        ];
        assert!(known.contains(&name), "{line}");
    }
}

#[test]
fn an_nvidia_smi_in_the_working_directory_is_not_run() {
    let fake = Fake::new("echo \"$@\" >> {calls}\nexec sleep 1000\n");
    fs::create_dir_all(fake.path("below")).unwrap();
    fs::rename(fake.path("nvidia-smi"), fake.path("below/nvidia-smi")).unwrap();
    let mut command = exporter::program();
    command
        .current_dir(fake.path(""))
        .args(["--base-url", "http://127.0.0.1:9", "--addr", "127.0.0.1:0"])
        .args(["--interval", "50ms"])
        .env("PATH", "below:./below:/usr/bin:/bin");
    let exporter = Exporter::spawn(command);
    exporter.after_polls(3);
    assert_eq!(fake.calls(), "");
}

#[test]
fn no_gpu_disables_nvidia_smi() {
    for (arguments, variable) in [(&["--no-gpu"][..], ""), (&[], "1")] {
        let fake = Fake::new(&gpus());
        let exporter = fake
            .exporter("http://127.0.0.1:9")
            .interval("50ms")
            .args(arguments)
            .env("LLAMACPP_NO_GPU", variable)
            .start();
        let scrape = exporter.after_polls(5);
        assert_eq!(fake.calls(), "");
        assert!(!scrape.has("llamacpp_temperature_celsius"));
    }
}

/// `/sys` of a laptop whose NVIDIA GPU powers down, as the kernel's ABI describes the files and
/// the public reports in `tests/cases/09-nvidia-smi-keeps-gpu-awake` describe the machine.
fn laptop(fake: &Fake, status: &str) {
    let device = |file: &str| format!("sys/bus/pci/devices/0000:01:00.0/{file}");
    for (file, text) in [
        ("vendor", "0x10de\n"),
        ("class", "0x030000\n"),
        ("power/control", "auto\n"),
        ("power/runtime_status", status),
    ] {
        fake.write(&device(file), text);
    }
}

#[test]
fn a_suspended_gpu_is_read_only_after_something_else_wakes_it() {
    let fake = Fake::new(&gpus());
    laptop(&fake, "suspended\n");
    let exporter = fake.start();
    exporter.after_polls(3);
    assert_eq!(fake.calls(), "", "nvidia-smi was started");
    laptop(&fake, "active\n");
    let awake = |exporter: &Exporter| exporter.get("/metrics").body.contains("gpu=\"0\"");
    wait_until("it is read", || awake(&exporter));
    laptop(&fake, "suspended\n");
    wait_until("it has no values", || !awake(&exporter));
    let starts = fake.calls().lines().count();
    exporter.after_polls(3);
    assert_eq!(fake.calls().lines().count(), starts);
}

/// The report of public users of such a laptop: `nvidia-smi` in a loop keeps it awake.
#[test]
fn an_unused_gpu_is_released_so_that_it_can_suspend() {
    let idle = r#"echo $$ >> {calls}
while :; do
    case "$1" in --query-gpu=*) echo "0, GPU-a, 550.1, 0, 40, 2, 8188, 7900, 3.5, A";; esac
    sleep 0.2
done
"#;
    let fake = Fake::new(idle);
    laptop(&fake, "active\n");
    let power = include_str!("cases/09-nvidia-smi-keeps-gpu-awake/power.txt");
    fake.write("proc/driver/nvidia/gpus/0000:01:00.0/power", power);
    let exporter = fake
        .exporter("http://127.0.0.1:9")
        .args(&["--procfs", fake.path("proc").to_str().unwrap()])
        .start();
    wait_until("it is read at first", || {
        exporter.get("/metrics").body.contains("gpu=\"0\"")
    });
    wait_until("both have ended", || {
        let alive = |pid: &str| is_running(pid);
        !fake.calls().lines().any(alive)
    });
}

fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    // Dead ones may wait for whoever inherits them.
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Lets `fake` replay two files, one for the GPUs and one for the processes.
fn replaying(gpus: &Path, processes: &Path) -> Fake {
    Fake::new(&format!(
        "while :; do case \"$1\" in --query-gpu=*) cat {} ;; *) cat {} ;; esac; sleep 0.2; done\n",
        gpus.display(),
        processes.display()
    ))
}

/// A machine in files, on which `pid` holds the model of the server; gives how to look at it.
fn with_process(fake: &Fake, pid: u32) -> [String; 4] {
    let stat = format!("{pid} (x) S 1 7 7 0 -1 4194304 1 0 0 0 9 9 0 0 20 0 9 0 500 1 2\n");
    fake.write(&format!("proc/{pid}/stat"), &stat);
    fake.write(
        &format!("proc/{pid}/status"),
        "VmRSS:\t2048 kB\nThreads:\t9\n",
    );
    fake.write(&format!("proc/{pid}/cmdline"), "llama-server\0");
    fs::create_dir_all(fake.path(&format!("proc/{pid}/fd"))).unwrap();
    fake.write("pid", &format!("{pid}\n"));
    let path = |name: &str| fake.path(name).display().to_string();
    [
        "--procfs".into(),
        path("proc"),
        "--pid-file".into(),
        path("pid"),
    ]
}

const PROCESS_MEMORY: &str = "llamacpp_process_gpu_memory_bytes";

#[test]
fn a_gpu_without_own_memory_has_the_memory_of_the_process() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/11-nvidia-gb10");
    let fake = replaying(
        &case.join("query-gpu.csv"),
        &case.join("query-compute-apps.csv"),
    );
    let arguments = with_process(&fake, 114_687);
    let server = Server::recorded(NEW, Stage::Idle);
    let exporter = fake
        .exporter(&server.url())
        .args(&arguments.each_ref().map(String::as_str))
        .start();
    let scrape = exporter.until("the memory of the process", |scrape| {
        scrape.has(PROCESS_MEMORY)
    });
    let gpu = [("gpu", "0")];
    assert_eq!(scrape.get(PROCESS_MEMORY, &gpu), Some(19135.0 * 1048576.0));
    for (metric, value) in [
        ("llamacpp_gpu_utilization_percent", Some(0.0)),
        ("llamacpp_temperature_celsius", Some(35.0)),
        ("llamacpp_gpu_power_watts", Some(11.17)),
        ("llamacpp_gpu_memory_used_bytes", None),
        ("llamacpp_gpu_memory_total_bytes", None),
        ("llamacpp_gpu_memory_free_bytes", None),
    ] {
        assert_eq!(scrape.get(metric, &gpu), value, "{metric}");
    }
}

/// In a PID namespace of its own, the same number may be another process's.
#[test]
fn in_a_container_only_a_process_that_has_the_gpu_open_is_matched() {
    let namespace = [
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(namespace);
        command
    };
    let allowed = unshare().arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no PID namespace can be made here");
        return;
    }
    let fake = replaying(
        &recorded("query-gpu-idle.csv"),
        &recorded("query-compute-apps-own-pid-namespace.csv"),
    );
    let arguments = with_process(&fake, 2);
    let server = Server::recorded(NEW, Stage::Idle);
    let mut command = unshare();
    command
        .arg(env!("CARGO_BIN_EXE_llamacpp-exporter"))
        .args(["--base-url", &server.url(), "--addr", "127.0.0.1:0"])
        .args(["--interval", "1s", "--sysfs", "/nonexistent"])
        .args(arguments)
        .env("PATH", format!("{}:/usr/bin:/bin", fake.path("").display()));
    let exporter = Exporter::spawn(command);
    exporter.until("both are read", |scrape| {
        scrape.has("llamacpp_memory_usage_bytes") && scrape.has("llamacpp_temperature_celsius")
    });
    assert!(!exporter.after_polls(3).has(PROCESS_MEMORY));
    std::os::unix::fs::symlink("/dev/nvidia0", fake.path("proc/2/fd/9")).unwrap();
    let scrape = exporter.until("it is seen to use it", |scrape| scrape.has(PROCESS_MEMORY));
    scrape.assert_value(PROCESS_MEMORY, 3590.0 * 1048576.0);
}

#[test]
fn check_reports_where_gpus_and_processes_were_searched() {
    let fake = Fake::new("");
    fs::remove_file(fake.path("nvidia-smi")).unwrap();
    let mut command = exporter::program();
    command
        .args(["--check", "--base-url", "http://127.0.0.1:9"])
        .args(["--interval", "100ms"])
        .env("PATH", fake.path(""))
        .env("LLAMACPP_SYSFS", fake.path("sys"));
    if Path::new("/usr/bin/nvidia-smi").exists() {
        return;
    }
    let report = exporter::run(&mut command).stdout;
    for wanted in [
        "this machine's GPUs: none\n".to_owned(),
        "no nvidia-smi in PATH, /usr/bin, /usr/lib/wsl/lib, /usr/local/nvidia/bin".to_owned(),
        format!(
            "no AMD or Intel GPU in {}",
            fake.path("sys/class/drm").display()
        ),
        "no processes in /nonexistent (--procfs)".to_owned(),
    ] {
        assert!(report.contains(&wanted), "{wanted}\n{report}");
    }
    command.arg("--no-gpu");
    let report = exporter::run(&mut command).stdout;
    assert!(report.contains("not read: --no-gpu is set"), "{report}");
}

#[test]
fn without_nvidia_smi_there_is_no_thread_for_it() {
    if Path::new("/usr/bin/nvidia-smi").exists() {
        return;
    }
    let fakes = ["exec sleep 1000\n", ""].map(Fake::new);
    fs::remove_file(fakes[1].path("nvidia-smi")).unwrap();
    let exporters = fakes.each_ref().map(Fake::start);
    // One that starts them, and one for each of the two that reads it. Threads that are still
    // starting, or that look a name up, come and go.
    wait_until("there are three threads more", || {
        let [with, without] = exporters.each_ref().map(Exporter::threads);
        with == without + 3
    });
}

/// They print nothing, so they notice no closed pipe, and do not heed SIGTERM: a real one in a
/// loop was seen to go on.
#[test]
fn nvidia_smi_ends_with_the_exporter() {
    for signal in [Signal::TERM, Signal::KILL] {
        let fake = Fake::new("trap '' TERM\necho $$ >> {calls}\nexec sleep 1000\n");
        let mut exporter = fake.start();
        let running = || {
            let calls = fake.calls();
            calls.lines().filter(|pid| is_running(pid)).count()
        };
        wait_until("both run", || running() == 2);
        exporter.signal(signal);
        wait_until("both have ended", || running() == 0);
    }
}
