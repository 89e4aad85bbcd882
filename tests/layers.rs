//! Which top-level module of `src/` may use which: the `crate::` paths of every file, except those
//! of tests, against a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Each module and what it may use, lowest layer first: a row may name earlier rows only, so there
/// is no cycle.
const LAYERS: &[(&str, &[&str])] = &[
    ("bounds", &[]),
    ("units", &[]),
    // Plain data that `upstream` fills and `counters` reads.
    ("readings", &["bounds"]),
    ("snapshot", &["bounds", "readings"]),
    ("gguf", &["bounds"]),
    ("process", &["bounds", "snapshot"]),
    ("settings", &["bounds", "process"]),
    ("metrics", &["bounds", "readings", "snapshot"]),
    ("history", &["bounds", "readings", "snapshot", "metrics"]),
    ("counters", &["bounds", "snapshot", "readings"]),
    (
        "upstream",
        &["bounds", "snapshot", "readings", "process", "settings"],
    ),
    (
        "machine",
        &[
            "bounds", "readings", "snapshot", "gguf", "process", "settings",
        ],
    ),
    ("requests", &["bounds", "readings", "snapshot", "process"]),
    (
        "collector",
        &[
            "bounds", "snapshot", "readings", "process", "settings", "counters", "upstream",
            "machine", "requests", "history", "units",
        ],
    ),
    (
        "web",
        &[
            "bounds", "readings", "snapshot", "process", "settings", "metrics", "history", "units",
        ],
    ),
    (
        "app",
        &[
            "bounds",
            "readings",
            "snapshot",
            "process",
            "settings",
            "metrics",
            "upstream",
            "machine",
            "history",
            "units",
            "collector",
            "web",
        ],
    ),
    ("main", &["app", "process", "settings"]),
];

/// What modules that only compute must not use.
const IO: &[&str] = &["fs", "net", "process", "thread"];
const WITHOUT_IO: &[&str] = &[
    "bounds", "counters", "history", "metrics", "readings", "snapshot", "units",
];

/// The paths of one file, each as its first two segments: `crate::metrics` or `std::fs`.
#[derive(Default)]
struct Paths {
    found: BTreeSet<(String, String)>,
    /// Modules `mod NAME;` that are compiled for tests only.
    test_modules: BTreeSet<String>,
}

impl Paths {
    /// `depth` is how many modules the file is below the root of the crate.
    fn read(&mut self, tokens: TokenStream, depth: usize) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let is = |at: usize, wanted: &str| tokens.get(at).is_some_and(|t| t.to_string() == wanted);
        let is_separator = |at| is(at, ":") && is(at + 1, ":");
        let mut at = 0;
        while at < tokens.len() {
            if is(at, "#") && tokens.get(at + 1).is_some_and(is_for_tests) {
                at = self.skip_item(&tokens, at + 2);
                continue;
            }
            if is(at, "super") && is_separator(at + 1) {
                let mut levels = 0;
                while is(at, "super") && is_separator(at + 1) {
                    levels += 1;
                    at += 3;
                }
                if levels == depth {
                    self.add("crate", tokens.get(at));
                }
                continue;
            }
            for root in ["crate", "llamacpp_exporter", "std"] {
                if is(at, root) && is_separator(at + 1) {
                    let root = root.replace("llamacpp_exporter", "crate");
                    self.add(&root, tokens.get(at + 3));
                }
            }
            if let TokenTree::Group(group) = &tokens[at] {
                self.read(group.stream(), depth);
            }
            at += 1;
        }
    }

    /// Adds what follows `root::`, which is a name or a list in braces.
    fn add(&mut self, root: &str, next: Option<&TokenTree>) {
        match next {
            Some(TokenTree::Ident(name)) => {
                self.found.insert((root.to_owned(), name.to_string()));
            }
            Some(TokenTree::Group(list)) => {
                let list: Vec<_> = list.stream().into_iter().collect();
                let entries = list.split(|token| token.to_string() == ",");
                entries.for_each(|entry| self.add(root, entry.first()));
            }
            _ => {}
        }
    }

    /// The position after the item that begins at `at`.
    fn skip_item(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let is_end = |token: &TokenTree| match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            other => other.to_string() == ";",
        };
        let length = tokens[at..]
            .iter()
            .position(is_end)
            .map_or(0, |end| end + 1);
        if let [
            TokenTree::Ident(keyword),
            TokenTree::Ident(name),
            TokenTree::Punct(_),
        ] = &tokens[at..at + length]
            && keyword == "mod"
        {
            self.test_modules.insert(name.to_string());
        }
        at + length
    }
}

fn is_for_tests(attribute: &TokenTree) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text.starts_with("[cfg(test") || text.starts_with("[cfg(all(test")
}

/// The paths of each top-level module.
static PATHS: LazyLock<BTreeMap<String, BTreeSet<(String, String)>>> = LazyLock::new(read_sources);

fn read_sources() -> BTreeMap<String, BTreeSet<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.clone()];
    let (mut read, mut test_files) = (Vec::new(), BTreeSet::<PathBuf>::new());
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let relative = path.strip_prefix(&root).unwrap().with_extension("");
        let stem = relative.file_name().unwrap();
        let is_root = ["lib", "main"]
            .iter()
            .any(|name| relative == Path::new(name));
        let folder = match stem == "mod" || is_root {
            true => relative.parent().unwrap().to_owned(),
            false => relative.clone(),
        };
        let tokens = fs::read_to_string(&path).unwrap().parse::<TokenStream>();
        let mut paths = Paths::default();
        paths.read(tokens.expect("Rust"), folder.components().count());
        test_files.extend(paths.test_modules.iter().map(|name| folder.join(name)));
        read.push((relative, paths.found));
    }
    read.retain(|(path, _)| !path.ancestors().any(|folder| test_files.contains(folder)));
    let mut modules = BTreeMap::<_, BTreeSet<_>>::new();
    for (path, found) in read {
        let module = path.iter().next().unwrap().to_str().unwrap().to_owned();
        modules.entry(module).or_default().extend(found);
    }
    modules.remove("lib");
    modules
}

/// Each use of one top-level module by another.
fn uses() -> BTreeSet<(String, String)> {
    let mut uses = BTreeSet::new();
    for (module, paths) in &*PATHS {
        for (root, used) in paths {
            if root == "crate" && used != module {
                uses.insert((module.clone(), used.clone()));
            }
        }
    }
    assert!(uses.contains(&("web".into(), "metrics".into())), "{uses:?}");
    uses
}

#[test]
fn no_module_uses_one_that_the_table_forbids() {
    let allowed = |(module, used): &(String, String)| {
        let row = LAYERS.iter().find(|(name, _)| name == module);
        row.is_some_and(|(_, allowed)| allowed.contains(&used.as_str()))
    };
    let forbidden = uses().into_iter().filter(|use_| !allowed(use_));
    let forbidden: Vec<_> = forbidden
        .map(|(module, used)| format!("{module} → {used}"))
        .collect();
    assert!(forbidden.is_empty(), "not in the table: {forbidden:?}");
}

#[test]
fn the_table_has_no_cycle() {
    let mut earlier = Vec::new();
    for (module, allowed) in LAYERS {
        let later: Vec<_> = allowed
            .iter()
            .filter(|used| !earlier.contains(used))
            .collect();
        assert!(
            later.is_empty(),
            "{module} may use {later:?}, which are not in earlier rows"
        );
        earlier.push(module);
    }
}

#[test]
fn modules_that_only_compute_do_no_io() {
    for module in WITHOUT_IO
        .iter()
        .filter_map(|module| PATHS.get_key_value(*module))
    {
        let io = module
            .1
            .iter()
            .filter(|(root, used)| root == "std" && IO.contains(&used.as_str()));
        assert_eq!(
            io.collect::<Vec<_>>(),
            Vec::<&(String, String)>::new(),
            "{}",
            module.0
        );
    }
}

#[test]
fn paths_are_found_in_every_notation() {
    let text = r#"
        use crate::{alpha::{a, b}, beta, gamma::c as d};
        use super::super::delta::e;
        use super::not_at_the_root;
        fn f() { log!("crate::no {}", crate::epsilon::g()); } // crate::comment
        #[cfg(test)]
        mod tests { use crate::zeta; }
        #[cfg(all(test, unix))]
        mod simulated;
        use std::{fs::File, io};
    "#;
    let mut paths = Paths::default();
    paths.read(text.parse().unwrap(), 2);
    let found: Vec<_> = paths
        .found
        .iter()
        .map(|(root, name)| format!("{root}::{name}"))
        .collect();
    let expected =
        ["alpha", "beta", "delta", "epsilon", "gamma"].map(|name| format!("crate::{name}"));
    let std = ["fs", "io"].map(|name| format!("std::{name}"));
    assert_eq!(found, [&expected[..], &std[..]].concat());
    assert_eq!(paths.test_modules, BTreeSet::from(["simulated".to_owned()]));
}
