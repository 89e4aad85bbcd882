//! The program with an `nvidia-smi` that replays what real ones print.
//!
//! The lines are written by hand, none was recorded: no machine with an NVIDIA GPU was to
//! be had. Their shape is that of `--format=csv,noheader,nounits` as `nvidia-smi
//! --help-query-gpu` and `--help-query-compute-apps` describe it, and as public issues of
//! llama.cpp's and of GPU exporters' users quote drivers 470 to 580: a plain GPU, one in
//! MIG mode (no utilization), a laptop's (no power), one that has fallen off the bus.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The exporter, with a folder of its own that is all of its PATH besides the system's.
struct Exporter {
    child: Child,
    address: String,
    folder: PathBuf,
}

impl Exporter {
    fn start(name: &str, nvidia_smi: &str) -> Exporter {
        let folder = std::env::temp_dir().join(format!("nvidia-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        if !nvidia_smi.is_empty() {
            let program = folder.join("nvidia-smi");
            fs::write(&program, format!("#!/bin/sh\n{nvidia_smi}")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_llamacpp-exporter"))
            .args(["--base-url", "http://127.0.0.1:9", "--addr", "127.0.0.1:0"])
            .args(["--interval", "1s"])
            .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
            .env("RECORD", folder.join("calls"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("serving") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it has not started");
        }
        let address = line.split("addr=").nth(1).unwrap();
        let address = address.split(' ').next().unwrap().to_owned();
        // What is said later goes nowhere, and must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Exporter {
            child,
            address,
            folder,
        }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = self.metrics();
            if wanted(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "it does not come:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn threads(&self) -> usize {
        let folder = format!("/proc/{}/task", self.child.id());
        fs::read_dir(Path::new(&folder)).unwrap().count()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

const GPUS: &str = r#"echo "$@" >> "$RECORD"
case "$1" in
--query-gpu=*)
    while :; do
        echo "0, GPU-2ac434d3-1aca-57a0-597d-1d2effdba9f3, 570.124.06, 37, 54, 36537, 81559, 287.31, NVIDIA H100 80GB HBM3"
        echo "1, GPU-cd9ee947-34d2-d0fe-93e0-2195b3f2fd52, 570.124.06, [N/A], 33, 1, 81920, 87.12, NVIDIA A100-SXM4-80GB"
        echo "2, GPU-67051dc2-cce1-4acf-d254-e76d938eda30, 570.124.06, 0, 45, 11, 8188, [Not Supported], NVIDIA GeForce RTX 4060 Laptop GPU"
        echo "3, [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error]"
        echo "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error"
        head -c 100000 /dev/zero | tr '\0' ,
        echo
        sleep 0.2
    done ;;
*) exec sleep 1000 ;;
esac
"#;

#[test]
fn what_nvidia_smi_tells_is_served_and_what_it_does_not_tell_is_absent() {
    let exporter = Exporter::start("tells", GPUS);
    let text = exporter.wait_for(|text| text.contains("gpu=\"2\""));
    for line in [
        "llamacpp_gpu_utilization_percent{gpu=\"0\"} 37",
        "llamacpp_gpu_utilization_percent{gpu=\"2\"} 0",
        "llamacpp_temperature_celsius{gpu=\"1\"} 33",
        "llamacpp_gpu_memory_used_bytes{gpu=\"0\"} 38311821312",
        "llamacpp_gpu_memory_total_bytes{gpu=\"1\"} 85899345920",
        "llamacpp_gpu_power_watts{gpu=\"0\"} 287.31",
        "llamacpp_gpu_info{driver=\"570.124.06\",gpu=\"0\",name=\"NVIDIA H100 80GB HBM3\",uuid=\"GPU-2ac434d3-1aca-57a0-597d-1d2effdba9f3\"} 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
    assert!(!text.contains("llamacpp_gpu_utilization_percent{gpu=\"1\"}"));
    assert!(!text.contains("llamacpp_gpu_power_watts{gpu=\"2\"}"));
    assert!(!text.contains("_bytes{gpu=\"3\"}"));
    // One of each kind runs all the time, and is not started for every poll.
    std::thread::sleep(Duration::from_millis(2500));
    let calls = fs::read_to_string(exporter.folder.join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 2, "{calls}");
    assert!(
        calls
            .lines()
            .all(|call| call.ends_with("--format=csv,noheader,nounits --loop-ms=1000"))
    );
}

#[test]
fn one_that_dies_is_started_again_and_delays_nothing() {
    let dies = r#"echo "$1" >> "$RECORD"
case "$1" in
--query-gpu=*) echo "0, GPU-a, 1, $(wc -l < "$RECORD"), 2, 3, 4, 5, A"; exit 1 ;;
*) exit 1 ;;
esac
"#;
    let exporter = Exporter::start("dies", dies);
    exporter.wait_for(|text| text.contains("llamacpp_gpu_info{"));
    exporter.wait_for(|text| {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("llamacpp_gpu_utilization_percent{gpu=\"0\"} "));
        found.is_some_and(|calls| calls.parse::<u32>().unwrap() >= 3)
    });
    // One, two, four seconds lie between its starts.
    let calls = fs::read_to_string(exporter.folder.join("calls")).unwrap();
    assert!(calls.lines().count() <= 8, "{calls}");
}

#[test]
fn one_that_says_nothing_delays_no_poll_and_is_not_shown() {
    let exporter = Exporter::start("hangs", "exec sleep 1000\n");
    let polls = |text: &str| text.contains("llamacpp_exporter_polls_total 3\n");
    let text = exporter.wait_for(polls);
    assert!(!text.contains("llamacpp_gpu_"), "{text}");
}

#[test]
fn where_it_is_not_installed_there_is_no_thread_for_it() {
    let without = Exporter::start("none", "");
    let with = Exporter::start("there", "exec sleep 1000\n");
    for exporter in [&without, &with] {
        exporter.wait_for(|text| text.contains("llamacpp_exporter_polls_total"));
    }
    if Path::new("/usr/bin/nvidia-smi").exists() {
        return;
    }
    // Threads that are still starting, or that look a name up, come and go.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while without.threads() + 2 != with.threads() {
        let counts = (without.threads(), with.threads());
        assert!(std::time::Instant::now() < deadline, "{counts:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The program's own children are `nvidia-smi`s that print nothing: they have to be told.
#[test]
fn none_outlives_the_exporter_however_that_ends() {
    for signal in ["TERM", "KILL"] {
        let name = format!("ends-{signal}");
        let says_its_number = "echo $$ >> \"$RECORD\"\nexec sleep 1000\n";
        let mut exporter = Exporter::start(&name, says_its_number);
        let calls = exporter.folder.join("calls");
        let running = || -> Vec<String> {
            let numbers = fs::read_to_string(&calls).unwrap_or_default();
            let alive = |pid: &str| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
                // Dead ones may wait for whoever inherits them.
                stat.is_ok_and(|stat| !stat.contains(") Z "))
            };
            numbers
                .lines()
                .filter(|pid| alive(pid))
                .map(str::to_owned)
                .collect()
        };
        let wait = |wanted: &dyn Fn(usize) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !wanted(running().len()) {
                assert!(Instant::now() < deadline, "{:?}", running());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait(&|count| count == 2);
        let kill = format!("kill -{signal} {}", exporter.child.id());
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        exporter.child.wait().unwrap();
        wait(&|count| count == 0);
    }
}
