//! The man page, with the macros of man(7).

use llamacpp_exporter::process::build_info::VERSION;
use llamacpp_exporter::settings::table::{COMMANDS, Row, TABLE};

/// The page, with this date (YYYY-MM-DD).
pub fn page(date: &str) -> String {
    let mut page = format!(
        ".TH LLAMACPP-EXPORTER 1 {date} \"llamacpp-exporter {VERSION}\" \"User Commands\"\n{HEAD}"
    );
    for row in TABLE.iter().filter(|row| !row.flag.is_empty()) {
        page += &option(row);
    }
    for (flag, _, meaning) in COMMANDS {
        page += &format!(".TP\n\\fB{}\\fR\n{}.\n", text(flag), text(meaning));
    }
    page += VARIABLES;
    for row in TABLE {
        for name in row.variables {
            page += &format!(".TP\n\\fB{}\\fR\n", text(name));
            page += &match row.flag {
                "" => format!("{}.\n", text(row.help)),
                flag => format!("See \\fB{}\\fR.\n", text(flag)),
            };
        }
    }
    page + TAIL
}

fn option(row: &Row) -> String {
    let argument = match row.argument {
        "" => String::new(),
        argument => format!(" \\fI{}\\fR", text(argument)),
    };
    let mut names = format!("\\fB{}\\fR{argument}", text(row.flag));
    if !row.alias.is_empty() {
        names += &format!(", \\fB{}\\fR{argument}", text(row.alias));
    }
    let mut option = format!(".TP\n{names}\n{}.\n", text(row.help));
    if !row.default.is_empty() {
        option += &format!("The default is \\fB{}\\fR.\n", text(row.default));
    }
    option
}

/// Plain text: hyphens that can be copied, no escapes, and no line that is a request or too long.
fn text(plain: &str) -> String {
    let escaped = plain.replace('\\', "\\e").replace('-', "\\-");
    let mut lines: Vec<String> = Vec::new();
    for word in escaped.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < LINE => *line += &format!(" {word}"),
            _ if word.starts_with(['.', '\'']) => lines.push(format!("\\&{word}")),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// The most bytes of a line, with room for a full stop.
const LINE: usize = 78;

const HEAD: &str = r#".nh
.SH NAME
llamacpp\-exporter \- Prometheus exporter for llama.cpp servers
.SH SYNOPSIS
.B llamacpp\-exporter
.RI [ FLAG " " VALUE ]\&...
.SH DESCRIPTION
Watches llama.cpp servers (llama\-server, its router, Docker Model Runner,
llama\-swap, Ollama) and serves their metrics for Prometheus at
.BR /metrics .
It polls the servers at an interval.
A scrape never waits for a poll, and a poll never loads a model or wakes it.
.PP
A flag overrides its variable, which overrides the default.
An empty variable counts as unset.
Durations are written like
.BR 5s ,
.BR 500ms ,
.BR 1m30s ,
.BR 1.5s ,
or as a number of seconds.
.SH OPTIONS
"#;

const VARIABLES: &str = ".SH ENVIRONMENT\n";

const TAIL: &str = r#".SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
The exporter cannot run (for example, the port is taken), or
.B \-\-check
found a server down.
.TP
.B 2
Usage error.
.SH FILES
.TP
.I /etc/default/llamacpp\-exporter
Variables of the systemd service
.BR llamacpp\-exporter.service .
.SH EXAMPLES
Print what is found at a llama\-server, and what is missing:
.PP
.RS
.nf
llamacpp\-exporter \-\-base\-url http://localhost:8080 \-\-check
.fi
.RE
.PP
Watch two servers, and read the log of the first one for the latencies of its
requests:
.PP
.RS
.nf
llamacpp\-exporter \-\-base\-url http://localhost:8080,http://localhost:8081 \e
    \-\-log\-file http://localhost:8080=/var/log/llama\-server/server.log
.fi
.RE
"#;
