//! What README.md and docs/ name exists: flags, variables, metrics, files, headings, and the texts of
//! the program that docs/troubleshooting.md quotes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use llamacpp_exporter::metrics::catalogue::FAMILIES;
use llamacpp_exporter::settings;

/// Flags of other programs that the documents name.
const OTHER_FLAGS: &[&str] = &[
    "--add-host",
    "--agent",
    "--alias",
    "--api-key",
    "--api-prefix",
    "--build",
    "--build-arg",
    "--cap-add",
    "--ctx-size",
    "--enable-feature",
    "--format",
    "--gpus",
    "--host",
    "--lib",
    "--locked",
    "--log-disable",
    "--log-jsonl",
    "--metrics",
    "--models-dir",
    "--models-max",
    "--models-preset",
    "--n-gpu-layers",
    "--network",
    "--no-default-features",
    "--no-log-timestamps",
    "--no-slots",
    "--now",
    "--parallel",
    "--path",
    "--pid",
    "--platform",
    "--prefix",
    "--release",
    "--rm",
    "--security-opt",
    "--slots",
    "--spec-draft-n-max",
    "--ssl-cert-file",
    "--ssl-key-file",
    "--tcp",
    "--test",
    "--threads-http",
    "--user",
];
/// First words of commands.
const COMMANDS: &[&str] = &[
    "curl",
    "docker",
    "getent",
    "llamacpp-exporter",
    "openssl",
    "promtool",
    "ss",
    "time()",
];
/// Texts of other programs.
const OTHER_TEXTS: &[&str] = &[
    "Name or service not known",
    "no such host",
    "context deadline exceeded",
    "server returned HTTP status 501",
    "server returned HTTP status 421",
];
/// Folders of the repository, as the documents begin a path.
const FOLDERS: &[&str] = &[
    "src/",
    "docs/",
    "deploy/",
    "scripts/",
    "tests/",
    "examples/",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// The documents for users and contributors; the changelog names what was, too.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<_> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(|name| root().join(name))
        .into();
    paths.extend(files(&root().join("docs"), "md"));
    paths
        .into_iter()
        .map(|path| (path.clone(), read(&path)))
        .collect()
}

/// The words of `text` that consist of `is_part`.
fn words(text: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !is_part(c))
        .filter(|word| !word.is_empty())
}

/// What stands between backticks on a line.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Fails with all that `unknown` holds, so that one run shows everything.
#[track_caller]
fn assert_all_exist(unknown: Vec<String>) {
    assert!(
        unknown.is_empty(),
        "these do not exist:\n{}",
        unknown.join("\n")
    );
}

fn of(path: &Path, what: &str) -> String {
    format!("{}: {what}", path.strip_prefix(root()).unwrap().display())
}

#[test]
fn flags_exist() {
    let help = settings::help();
    let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
    let ours: BTreeSet<_> = words(&help, is_part).collect();
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        for flag in words(&text, |c| is_part(c) || c.is_ascii_uppercase() || c == '_') {
            let name = flag.strip_prefix("--").unwrap_or_default();
            let is_flag =
                name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_part);
            if is_flag && !ours.contains(flag) && !OTHER_FLAGS.contains(&flag) {
                unknown.push(of(&path, flag));
            }
        }
    }
    assert_all_exist(unknown);
}

#[test]
fn variables_exist() {
    let ours = settings::reference();
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        for name in words(&text, |c| c.is_ascii_uppercase() || c == '_') {
            let is_whole = name.starts_with("LLAMACPP_") && !name.ends_with('_');
            if is_whole && !ours.contains(&format!("`{name}`")) {
                unknown.push(of(&path, name));
            }
        }
    }
    assert_all_exist(unknown);
}

#[test]
fn metrics_exist() {
    let is_family = |name: &str| FAMILIES.iter().any(|family| family.name == name);
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        // Names with a colon are of recording rules or llama-server's own.
        for name in words(&text, |c| c.is_ascii_alphanumeric() || "_:".contains(c)) {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let is_whole =
                name.starts_with("llamacpp_") && !name.ends_with('_') && !name.contains(':');
            if is_whole && !is_family(name) && !base.is_some_and(is_family) {
                unknown.push(of(&path, name));
            }
        }
    }
    assert_all_exist(unknown);
}

#[test]
fn paths_exist() {
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        for name in words(&text, |c| c.is_ascii_alphanumeric() || "_-./*".contains(c)) {
            let name = name.trim_end_matches(['.', '*']);
            let is_path = FOLDERS.iter().any(|folder| name.starts_with(folder));
            if is_path && !name.contains('*') && !root().join(name).exists() {
                unknown.push(of(&path, name));
            }
        }
    }
    assert_all_exist(unknown);
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        let targets = text.split("](").skip(1);
        for target in targets.filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let linked = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let has_heading = |text: &str| {
                let mut lines = text.lines().filter(|line| line.starts_with('#'));
                lines.any(|line| anchor(line.trim_start_matches('#').trim()) == heading)
            };
            if !linked.exists() || !heading.is_empty() && !has_heading(&read(&linked)) {
                unknown.push(of(&path, target));
            }
        }
    }
    assert_all_exist(unknown);
}

#[test]
fn the_readme_links_to_every_document() {
    let readme = read(&root().join("README.md"));
    let documents = files(&root().join("docs"), "md");
    let links = documents.iter().map(|path| of(path, "").replace(": ", ""));
    assert_all_exist(
        links
            .filter(|link| !readme.contains(&format!("({link})")))
            .collect(),
    );
}

#[test]
fn texts_of_the_program_exist() {
    let sources: Vec<_> = files(&root().join("src"), "rs")
        .iter()
        .map(|path| read(path))
        .collect();
    // Text that is continued on the next line, and quotes in it.
    let mut source = String::new();
    for part in sources.join("\n").split("\\\n") {
        source += part.trim_start();
    }
    let source = source.replace("\\\"", "\"");
    let path = root().join("docs/troubleshooting.md");
    let mut unknown = Vec::new();
    for span in code_spans(&read(&path)) {
        let mut words = span.split_whitespace();
        let is_command = words.next().is_some_and(|first| COMMANDS.contains(&first));
        let is_text = !is_command && words.count() >= 2;
        // A note is a reason and a remedy, which are two texts.
        let exists = source.contains(span) || span.split(": ").all(|part| source.contains(part));
        if is_text && !exists && !OTHER_TEXTS.contains(&span) {
            unknown.push(of(&path, span));
        }
    }
    assert_all_exist(unknown);
}

#[test]
fn commands_are_accepted() {
    let mut checked = 0;
    for (path, text) in documents() {
        let blocks = text.split("```").skip(1).step_by(2);
        let lines = blocks.flat_map(|block| block.lines());
        for line in lines.filter(|line| !line.trim_start().starts_with('#')) {
            let Some((_, arguments)) = line.split_once("llamacpp-exporter --") else {
                continue;
            };
            let arguments = format!("--{arguments}");
            let words = arguments.split_whitespace();
            let end = ["#", "|", ">", "\\", "&&", "2>&1"];
            let words = words.take_while(|word| !end.contains(word));
            let given: Vec<OsString> = words.map(OsString::from).collect();
            if let Err(error) = settings::parse(given, |_| None) {
                // The files of examples do not exist here.
                assert!(
                    error.contains("cannot be read"),
                    "{}",
                    of(&path, &format!("{line}\n{error}"))
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} commands found");
}
