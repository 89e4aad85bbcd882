//! The Prometheus that may be scraping the exporter: whether it is there, and what it says of its
//! target.

use serde::Deserialize;

use crate::app::check::request;
use crate::app::report::{PrometheusReport, TargetReport};
use crate::settings::{BaseUrl, ListenAddress, Settings};

/// Where a Prometheus is looked for: its own port, and that of `compose.yaml`.
const USUAL_URLS: [&str; 2] = ["http://localhost:9090", "http://localhost:9091"];
/// The most bytes of a list of targets. One target has about a thousand.
const TARGETS_LIMIT: u64 = 16 << 20;
const BUILD_LIMIT: u64 = 64 << 10;
/// A part of the name of every exporter's job or host in the files of this project.
const NAME_PART: &str = "llamacpp";
const NO_TARGET: &str = "it has no target that is this exporter: add a job for its address, as prometheus.yml has one, and reload Prometheus";
const NOT_FOUND: &str = "if there is one elsewhere, say where with --prometheus-url";

/// `/api/v1/status/buildinfo`.
#[derive(Deserialize)]
struct BuildInfo {
    data: BuildData,
}

#[derive(Deserialize)]
struct BuildData {
    version: String,
}

/// `/api/v1/targets`.
#[derive(Deserialize)]
struct Targets {
    data: TargetLists,
}

#[derive(Deserialize)]
struct TargetLists {
    #[serde(rename = "activeTargets")]
    active: Vec<Target>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct Target {
    labels: TargetLabels,
    scrape_url: String,
    health: String,
    last_error: String,
    last_scrape: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TargetLabels {
    job: String,
}

/// Asks the given Prometheus, or those at the usual addresses. Of these, only one that is not
/// there is reported if none is.
pub fn look(settings: &Settings) -> Vec<PrometheusReport> {
    if let Some(base) = &settings.prometheus_url {
        return vec![ask(base, settings)];
    }
    let bases = USUAL_URLS.iter().filter_map(|url| url.parse().ok());
    let mut found: Vec<PrometheusReport> = bases.map(|base| ask(&base, settings)).collect();
    if found.iter().any(|found| found.state == "running") {
        found.retain(|found| found.state == "running");
        return found;
    }
    if let Some(last) = found.last_mut() {
        last.detail = Some(NOT_FOUND.to_owned());
    }
    found
}

fn ask(base: &BaseUrl, settings: &Settings) -> PrometheusReport {
    let mut report = PrometheusReport {
        url: base.as_given(),
        state: "running",
        ..PrometheusReport::default()
    };
    let response = request::get(
        base,
        "/api/v1/targets?state=active",
        TARGETS_LIMIT,
        settings,
    );
    let targets = response.and_then(|response| response.successful()?.json::<Targets>());
    let targets = match targets {
        Ok(targets) => targets.data.active,
        Err(error) => {
            report.state = request::state_of(&error);
            let is_given = settings.prometheus_url.is_some();
            report.detail = is_given.then(|| format!("{error}: check --prometheus-url"));
            return report;
        }
    };
    let build = request::get(base, "/api/v1/status/buildinfo", BUILD_LIMIT, settings);
    let build = build.and_then(|response| response.successful()?.json::<BuildInfo>());
    report.version = build.ok().map(|build| build.data.version);
    let is_ours = |target: &Target| is_exporter(target, &settings.addr);
    report.targets = targets
        .into_iter()
        .filter(is_ours)
        .map(target_report)
        .collect();
    if report.targets.is_empty() {
        report.detail = Some(NO_TARGET.to_owned());
    }
    report
}

/// Whether the target is the exporter at `addr`, or is called like one.
fn is_exporter(target: &Target, addr: &ListenAddress) -> bool {
    let Ok(url) = BaseUrl::without_secrets(&target.scrape_url).parse::<BaseUrl>() else {
        return false;
    };
    let is_named = url.server().contains(NAME_PART) || target.labels.job.contains(NAME_PART);
    let is_here = match addr {
        ListenAddress::Any(port) | ListenAddress::Name(_, port) => {
            url.port() == *port && url.is_loopback()
        }
        ListenAddress::Ip(address) => {
            url.server() == address.to_string() || url.port() == address.port() && url.is_loopback()
        }
        ListenAddress::Unix(_) => false,
    };
    is_named || is_here
}

fn target_report(target: Target) -> TargetReport {
    let is_known = |text: &String| !text.is_empty();
    TargetReport {
        url: BaseUrl::without_secrets(&target.scrape_url),
        job: target.labels.job,
        health: target.health,
        last_error: Some(target.last_error).filter(is_known),
        last_scrape: Some(target.last_scrape).filter(is_known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_the_exporter_is_found_by_address_or_name() {
        let is_found = |url: &str, job: &str, addr: &str| {
            let target = Target {
                scrape_url: url.to_owned(),
                labels: TargetLabels {
                    job: job.to_owned(),
                },
                ..Target::default()
            };
            is_exporter(&target, &addr.parse().unwrap())
        };
        assert!(is_found("http://localhost:9100/metrics", "models", ":9100"));
        assert!(is_found(
            "http://192.0.2.1:9100/metrics",
            "models",
            "192.0.2.1:9100"
        ));
        assert!(is_found(
            "http://llamacpp-exporter:9100/metrics",
            "models",
            ":9101"
        ));
        assert!(is_found("http://a:b@h:1/metrics", "llamacpp", ":9101"));
        // That may be a node_exporter.
        assert!(!is_found("http://192.0.2.1:9100/metrics", "node", ":9100"));
        assert!(!is_found(
            "http://localhost:9090/metrics",
            "prometheus",
            ":9100"
        ));
        assert!(!is_found("", "", ":9100"));
    }
}
