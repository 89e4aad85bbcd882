//! The exporter that may be running at `--addr`: whether it is ours, what it watches, where its log
//! is.

use std::collections::BTreeSet;
use std::fs;

use crate::app::check::request;
use crate::app::report::{ExporterReport, ServerReport, values};
use crate::machine::procfs::Procfs;
use crate::machine::url_listener::UrlListener;
use crate::metrics::{exposition, lint::CheckedScrape};
use crate::settings::{BaseUrl, ListenAddress, Settings};
use crate::web::routes::GOOD;

/// The most bytes of an answer of `/healthz`.
const HEALTH_LIMIT: u64 = 64 << 10;
/// Where to look if the process cannot be seen.
const SOME_LOG: &str =
    "journalctl -u llamacpp-exporter, docker logs CONTAINER, or wherever its standard error goes";
const NOT_RUNNING: &str = "start it with the flags or variables of this check, without --check; if it listens elsewhere, say where with --addr";

/// Requests the exporter at `--addr`; `servers` are those that it should watch.
pub fn look(settings: &Settings, servers: &[ServerReport]) -> ExporterReport {
    let mut report = ExporterReport {
        addr: settings.addr.to_string(),
        state: "none",
        detail: Some(NOT_RUNNING.to_owned()),
        ..ExporterReport::default()
    };
    for base in settings.addr.destinations().iter().filter_map(base_url) {
        // A scrape is as large as one may be, and a byte more would be another program's.
        let scrape = request::get(&base, "/metrics", exposition::MAX_BYTES as u64, settings);
        let text = scrape.and_then(|response| response.successful()?.text());
        match text {
            Ok(text) => {
                report.url = Some(base.as_given() + "/metrics");
                report.detail = None;
                take_scrape(&mut report, &text, servers);
                if report.state == "running" {
                    report.health = health(&base, settings);
                    (report.pid, report.log) = process(&base, settings);
                }
                return report;
            }
            Err(error) => {
                let state = request::state_of(&error);
                if state != "none" {
                    report.state = state;
                    report.url = Some(base.as_given() + "/metrics");
                    report.detail = Some(format!(
                        "{error}; the exporter listens elsewhere with --addr :9101"
                    ));
                    return report;
                }
            }
        }
    }
    report
}

/// The URL of an address to connect to.
fn base_url(address: &ListenAddress) -> Option<BaseUrl> {
    match address {
        ListenAddress::Unix(path) => Some(BaseUrl::of_socket(path.clone(), "")),
        ListenAddress::Any(_) => None,
        ListenAddress::Ip(address) if address.port() == 0 => None,
        other => format!("http://{other}").parse().ok(),
    }
}

fn take_scrape(report: &mut ExporterReport, text: &str, servers: &[ServerReport]) {
    report.exposition = Some(values::checked(text));
    let scrape = CheckedScrape::parse(text).unwrap_or_default();
    let family = |name: &str| scrape.families.iter().find(|family| family.name == name);
    // A faulty scrape of our own is one all the same.
    let is_ours = text.contains("\nllamacpp_exporter_build_info{");
    if !is_ours {
        report.state = "other";
        report.exposition = None;
        let name = match text.contains("\nnode_exporter_build_info{") {
            true => "node_exporter",
            false => "another program",
        };
        report.detail = Some(format!(
            "{name} answers there: start the exporter with another port, --addr :9101"
        ));
        return;
    }
    report.state = "running";
    let info = family("llamacpp_exporter_build_info").and_then(|family| family.samples.first());
    report.version = info
        .and_then(|info| info.label("version"))
        .map(str::to_owned);
    for sample in family("llamacpp_up")
        .iter()
        .flat_map(|family| &family.samples)
    {
        if let Some(server) = sample.label("server") {
            report
                .servers
                .insert(server.to_owned(), sample.value == 1.0);
        }
    }
    let watched: BTreeSet<String> = report.servers.keys().map(|label| address(label)).collect();
    let wanted = servers.iter().map(|server| &server.server);
    let unwatched = wanted.filter(|server| !watched.contains(&address(server)));
    report.unwatched = unwatched.cloned().collect();
}

/// The label `server`, with one spelling of all loopback addresses.
fn address(label: &str) -> String {
    match format!("http://{label}").parse::<BaseUrl>() {
        Ok(url) if url.is_loopback() && url.server() == label => {
            format!("localhost:{}", url.port())
        }
        _ => label.to_owned(),
    }
}

/// The first line of `/healthz`.
fn health(base: &BaseUrl, settings: &Settings) -> Option<String> {
    let response = request::get(base, "/healthz", HEALTH_LIMIT, settings);
    let text = response.and_then(|response| response.text());
    match text {
        Ok(text) => text.lines().next().map(|line| match line {
            GOOD => "ok".to_owned(),
            reason => reason.to_owned(),
        }),
        Err(error) => Some(error.to_string()),
    }
}

/// The process that listens there, if that can be seen, and how to read its log.
fn process(base: &BaseUrl, settings: &Settings) -> (Option<u32>, Option<String>) {
    let procfs = Procfs::new(&settings.procfs);
    let pids: BTreeSet<u32> = procfs.pids().into_iter().collect();
    let pid = UrlListener::new(base, settings).among(&pids);
    let log = pid.and_then(|pid| {
        let groups = fs::read_to_string(procfs.process_path(pid, "cgroup")).ok();
        let stderr = fs::read_link(procfs.process_path(pid, "fd/2")).ok();
        let file = stderr
            .filter(|file| file.is_file())
            .map(|file| file.display().to_string());
        log_command(&groups.unwrap_or_default()).or(file)
    });
    (pid, Some(log.unwrap_or_else(|| SOME_LOG.to_owned())))
}

/// The command that shows the log of a process in these cgroups, the content of `/proc/PID/cgroup`.
fn log_command(groups: &str) -> Option<String> {
    let parts = || {
        groups
            .lines()
            .flat_map(|line| line.split([':', '/']))
            .filter(|part| !part.is_empty())
    };
    let is_id = |text: &&str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let container = parts().find_map(|part| {
        let name = part.trim_end_matches(".scope");
        let id = name.rsplit('-').next().filter(is_id)?;
        let program = if name.starts_with("libpod") {
            "podman"
        } else {
            "docker"
        };
        Some(format!("{program} logs {}", id.get(..12)?))
    });
    if groups.contains("kubepods") {
        return Some("kubectl logs POD".to_owned());
    }
    let unit = || {
        let is_unit = |part: &&str| part.ends_with(".service") && !part.starts_with("user@");
        let unit = parts().rfind(is_unit)?;
        let user = if groups.contains("user.slice") {
            " --user"
        } else {
            ""
        };
        Some(format!(
            "journalctl{user} -u {}",
            unit.trim_end_matches(".service")
        ))
    };
    container.or_else(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_says_where_the_log_is() {
        let id = "0123456789abcdef".repeat(4);
        for (groups, command) in [
            (
                "0::/system.slice/llamacpp-exporter.service\n".to_owned(),
                Some("journalctl -u llamacpp-exporter"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/exporter.service\n"
                    .to_owned(),
                Some("journalctl --user -u exporter"),
            ),
            (
                format!("0::/system.slice/docker-{id}.scope\n"),
                Some("docker logs 0123456789ab"),
            ),
            (
                format!("12:memory:/docker/{id}\n"),
                Some("docker logs 0123456789ab"),
            ),
            (
                format!("0::/machine.slice/libpod-{id}.scope/container\n"),
                Some("podman logs 0123456789ab"),
            ),
            (
                format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope\n"),
                Some("kubectl logs POD"),
            ),
            (
                "0::/user.slice/user-1000.slice/session-2.scope\n".to_owned(),
                None,
            ),
            ("0::/\n".to_owned(), None),
        ] {
            assert_eq!(log_command(&groups).as_deref(), command, "{groups}");
        }
    }
}
