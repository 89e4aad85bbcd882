//! Completions for bash, zsh and fish: flags, and the values that are files, folders or one of a few
//! words.

use llamacpp_exporter::settings::Settings;
use llamacpp_exporter::settings::table::{COMMANDS, Row, TABLE};

/// A flag, as a shell completes it.
struct Flag {
    names: Vec<&'static str>,
    meaning: &'static str,
    value: Value,
    is_repeatable: bool,
}

enum Value {
    None,
    File,
    Folder,
    OneOf(&'static [&'static str]),
    /// Only the user knows it; `--help` calls it so.
    Other(&'static str),
}

fn flags() -> Vec<Flag> {
    let settings = TABLE
        .iter()
        .filter(|row| !row.flag.is_empty())
        .map(|row| Flag {
            names: [row.flag, row.alias]
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect(),
            meaning: first_clause(row.help),
            value: value(row),
            is_repeatable: row.repeatable,
        });
    let commands = COMMANDS.iter().map(|(flag, _, meaning)| Flag {
        names: vec![flag],
        meaning: first_clause(meaning),
        value: Value::None,
        is_repeatable: false,
    });
    settings.chain(commands).collect()
}

/// A menu has one line for it.
fn first_clause(help: &'static str) -> &'static str {
    let end = [": ", "; "].iter().filter_map(|mark| help.find(mark)).min();
    &help[..end.unwrap_or(help.len())]
}

fn value(row: &Row) -> Value {
    const LEVELS: &[&str] = &["error", "warn", "info", "debug"];
    match row.argument {
        "" => Value::None,
        "F" => Value::File,
        "DIR" => Value::Folder,
        "L" => {
            for level in LEVELS {
                (row.set)(&mut Settings::default(), level).expect("a level");
            }
            Value::OneOf(LEVELS)
        }
        other => Value::Other(other),
    }
}

/// The names of the flags whose value is of that kind.
fn names(flags: &[Flag], is_wanted: impl Fn(&Value) -> bool) -> Vec<&'static str> {
    let wanted = flags.iter().filter(|flag| is_wanted(&flag.value));
    wanted.flat_map(|flag| flag.names.clone()).collect()
}

/// The completion for bash, which needs no package of helpers.
pub fn bash() -> String {
    let flags = flags();
    let mut cases = String::new();
    let mut case = |names: Vec<&str>, action: &str| {
        if !names.is_empty() {
            cases += &format!(
                "        {})\n            {action}\n            return\n            ;;\n",
                names.join(" | ")
            );
        }
    };
    case(
        names(&flags, |value| matches!(value, Value::File)),
        "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$word\")",
    );
    case(
        names(&flags, |value| matches!(value, Value::Folder)),
        "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$word\")",
    );
    for flag in &flags {
        if let Value::OneOf(words) = flag.value {
            let words = words.join(" ");
            case(
                flag.names.clone(),
                &format!("mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$word\")"),
            );
        }
    }
    case(names(&flags, |value| matches!(value, Value::Other(_))), ":");
    let all = names(&flags, |_| true).join(" ");
    format!(
        r#"# bash completion of llamacpp-exporter

_llamacpp_exporter() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD - 1]}}
    # --flag=value is three words.
    if [[ $word == "=" ]]; then
        word=
    elif [[ $flag == "=" ]]; then
        flag=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    COMPREPLY=()
    case $flag in
{cases}    esac
    mapfile -t COMPREPLY < <(compgen -W '{all}' -- "$word")
}}
complete -F _llamacpp_exporter llamacpp-exporter
"#
    )
}

/// The completion for zsh: a file `_llamacpp-exporter` in a folder of `fpath`.
pub fn zsh() -> String {
    let mut text = "#compdef llamacpp-exporter\n\n_arguments".to_owned();
    for flag in flags() {
        let meaning: String = flag
            .meaning
            .chars()
            .flat_map(|c| match c {
                '\'' => "'\\''".chars().collect::<Vec<_>>(),
                '[' | ']' | ':' | '\\' => vec!['\\', c],
                c => vec![c],
            })
            .collect();
        let action = match &flag.value {
            Value::None => String::new(),
            Value::File => ":file:_files".to_owned(),
            Value::Folder => ":folder:_files -/".to_owned(),
            Value::OneOf(words) => format!(":level:({})", words.join(" ")),
            Value::Other(name) => format!(":{name}: "),
        };
        let separator = if action.is_empty() { "" } else { "=" };
        let repeated = if flag.is_repeatable { "*" } else { "" };
        for name in &flag.names {
            text += &format!(" \\\n    '{repeated}{name}{separator}[{meaning}]{action}'");
        }
    }
    text + "\n"
}

/// The completion for fish.
pub fn fish() -> String {
    let mut text =
        "# fish completion of llamacpp-exporter\ncomplete -c llamacpp-exporter -f\n".to_owned();
    for flag in flags() {
        let value = match &flag.value {
            Value::None => String::new(),
            Value::File => " -r -F".to_owned(),
            Value::Folder => " -x -a '(__fish_complete_directories)'".to_owned(),
            Value::OneOf(words) => format!(" -x -a '{}'", words.join(" ")),
            Value::Other(_) => " -x".to_owned(),
        };
        let meaning = flag.meaning.replace('\\', "\\\\").replace('\'', "\\'");
        let names: String = flag
            .names
            .iter()
            .map(|name| format!(" -l {}", &name[2..]))
            .collect();
        text += &format!("complete -c llamacpp-exporter{names}{value} -d '{meaning}'\n");
    }
    text
}
