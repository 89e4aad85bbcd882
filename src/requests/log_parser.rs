//! One line of llama-server's log: what it says about requests and slots.
//!
//! The lines of builds b7376 to b11549 are read alike. Wrappers and colours are
//! gone by then; what still stands before llama-server's own words, such as the
//! prefix of a wrapper that is not known, is skipped.

/// A line of llama-server's own form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogLine {
    /// The port of the router's child that wrote it, where one did.
    pub child: Option<u16>,
    /// llama-server's own time, where the line has it and its level (from b9294): microseconds
    /// since the server's start.
    pub time: Option<u64>,
    /// What it says, if that is anything that is counted.
    pub event: Option<Event>,
}

/// What a line says. Nothing in it is a text: a user of the model's API can put whole lines
/// into the log, and no label may come from there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A server begins to load its model: whatever was going on before is over.
    Loading,
    /// Nothing is at work: no timings of what has ended can come any more (before b10068).
    Idle,
    /// How many slots there are and, from b9538, how they share the cache.
    Slots {
        /// `n_slots`.
        count: u64,
        /// `n_ctx_slot`.
        context: Option<u64>,
        /// `kv_unified`.
        unified: Option<bool>,
    },
    /// Tokens that fit a slot, as builds before b9538 say it.
    SlotContext(u64),
    /// Whether all slots share one cache, as builds before b9294 say it.
    Unified(bool),
    /// A task was put on a slot; whether its prompt is that of another (`n` > 1 in a request).
    Launched(Task, bool),
    /// The lines that follow tell this task's timings (before b9294).
    TimingsOf(Task),
    /// Time and tokens of the prompt; without a task: of [`Event::TimingsOf`].
    Prompt(Option<Task>, Span),
    /// Time and tokens of the generation.
    Generation(Option<Task>, Span),
    /// Both together: the last line of a task's timings.
    Total(Option<Task>, Span),
    /// A task has left its slot, and so many tokens in it.
    Released(Task, u64),
    /// A task whose client went away, by its id.
    Cancelled(u64),
    /// A task that was answered with an error, by its id.
    Failed(u64),
}

/// One task on one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The slot's id.
    pub slot: u64,
    /// The task's id, which no other task of this life of the server has.
    pub id: u64,
}

/// How long something took, and for how many tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Milliseconds.
    pub ms: f64,
    /// Tokens.
    pub tokens: u64,
}

/// How far into a line llama-server's own words may begin.
const LONGEST_PREFIX: usize = 300;

/// Reads one line; gives `None` where it is none of llama-server's.
pub fn parse(text: &str) -> Option<LogLine> {
    let (prefix, event) = match tagged(text) {
        // Whoever writes is the one that speaks; what the line quotes is not the server's.
        Some(found) => found,
        None => {
            let (prefix, event) = untagged(text)?;
            (prefix, Some(event))
        }
    };
    Some(LogLine {
        child: child(prefix),
        time: time(prefix),
        event,
    })
}

/// `317.06.410.187 I ` right before the words: minutes, seconds, milliseconds, microseconds, and
/// the level.
fn time(prefix: &str) -> Option<u64> {
    let (before, level) = prefix.strip_suffix(' ')?.rsplit_once(' ')?;
    if !matches!(level, "I" | "W" | "E" | "D") {
        return None;
    }
    let word = before.rsplit(' ').next()?;
    let mut parts = word.split('.');
    let mut micros: u64 = 0;
    for (digits, units) in [(0, 1), (2, 60), (3, 1000), (3, 1000)] {
        let part = parts.next()?;
        let is_part =
            part.bytes().all(|byte| byte.is_ascii_digit()) && (digits == 0 || part.len() == digits);
        let value: u64 = part.parse().ok().filter(|_| is_part)?;
        micros = micros.checked_mul(units)?.checked_add(value)?;
    }
    parts.next().is_none().then_some(micros)
}

/// A line that says which part of the server wrote it: `slot print_timing: …`, `srv  stop: …`.
fn tagged(text: &str) -> Option<(&str, Option<Event>)> {
    let head = &text.as_bytes()[..text.len().min(LONGEST_PREFIX)];
    for start in 0..head.len() {
        let is_slot = head[start..].starts_with(b"slot ");
        if !(is_slot || head[start..].starts_with(b"srv ")) || !begins_word(head, start) {
            continue;
        }
        let words = text[start..].split_once(' ').unwrap_or_default().1;
        let Some((function, said)) = words.split_once(": ") else {
            continue;
        };
        // Not a host that is called srv, and what it runs.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_~:()<>".contains(&byte);
        if !function.trim_start().bytes().all(is_name) {
            continue;
        }
        let event = if is_slot {
            slot_event(function, said)
        } else {
            server_event(said)
        };
        return Some((&text[..start], event));
    }
    None
}

/// Lines that do not say who wrote them: timings before b9294, and the library's own.
fn untagged(text: &str) -> Option<(&str, Event)> {
    if let Some(at) = text.find("llama_context: kv_unified") {
        let (_, value) = text[at..].split_once('=')?;
        return Some((&text[..at], Event::Unified(flag(value.trim())?)));
    }
    let at = text.find(" time = ")?;
    if at > LONGEST_PREFIX {
        return None;
    }
    let before = &text[..at];
    let mut names = ["prompt eval", "eval", "total"].into_iter();
    let start = names.find_map(|name| before.strip_suffix(name))?.len();
    if !begins_word(text.as_bytes(), start) {
        return None;
    }
    Some((&text[..start], timing(None, &text[start..])?))
}

/// Whether a word may begin there: right behind a prefix.
fn begins_word(text: &[u8], start: usize) -> bool {
    let before = start.checked_sub(1).and_then(|before| text.get(before));
    before.is_none_or(|before| b" \t\"|:]=\r".contains(before))
}

/// `[34541] ` before the words of a child: how a router passes them on.
fn child(prefix: &str) -> Option<u16> {
    let (before, rest) = prefix.split_at(prefix.find('[')?);
    // journald writes `name[123]: `.
    let port = rest[1..].split_once("] ").and_then(|(port, _)| {
        let whole = before.is_empty() || before.ends_with([' ', '\t', '"', '|']);
        port.trim_start().parse().ok().filter(|_| whole)
    });
    port.or_else(|| child(&rest[1..]))
}

fn slot_event(function: &str, said: &str) -> Option<Event> {
    let rest = said.strip_prefix("id ")?;
    let (slot, rest) = rest.split_once('|')?;
    let (id, rest) = rest.trim_start().strip_prefix("task ")?.split_once('|')?;
    let rest = rest.trim();
    if let Some(context) = rest.strip_prefix("new slot, n_ctx = ") {
        return Some(Event::SlotContext(number(context)?));
    }
    let task = Task {
        slot: slot.trim().parse().ok()?,
        id: id.trim().parse().ok()?,
    };
    if let Some(rest) = rest.strip_prefix("processing task") {
        Some(Event::Launched(task, rest.starts_with(", is_child = 1")))
    } else if let Some(rest) = rest.strip_prefix("stop processing: ") {
        Some(Event::Released(task, number(rest.split_once("= ")?.1)?))
    } else if function.trim_start().starts_with("print_timing") {
        // The line ends here, or with whatever an unknown wrapper puts behind it.
        if rest.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            timing(Some(task), rest)
        } else {
            Some(Event::TimingsOf(task))
        }
    } else {
        None
    }
}

fn server_event(said: &str) -> Option<Event> {
    if let Some(id) = said.strip_prefix("cancel task, id_task = ") {
        Some(Event::Cancelled(number(id)?))
    } else if let Some(rest) = said.strip_prefix("task id = ") {
        let (id, what) = rest.split_once(", ")?;
        what.starts_with("error")
            .then_some(Event::Failed(id.parse().ok()?))
    } else if said.starts_with("loading model") {
        Some(Event::Loading)
    } else if said.starts_with("all slots are idle") {
        Some(Event::Idle)
    } else if said.starts_with("initializing") {
        Some(Event::Slots {
            count: number(said.split_once("n_slots = ")?.1)?,
            context: said
                .split_once("n_ctx_slot = ")
                .and_then(|(_, rest)| number(rest)),
            unified: said
                .split_once("kv_unified = ")
                .and_then(|(_, rest)| flag(rest)),
        })
    } else {
        None
    }
}

/// `prompt eval time =      42.92 ms /     7 tokens (…`
fn timing(task: Option<Task>, text: &str) -> Option<Event> {
    let (name, rest) = text.split_once(" time = ")?;
    let (ms, rest) = rest.split_once("ms /")?;
    let (tokens, _) = rest.split_once(" tokens")?;
    let span = Span {
        ms: ms
            .trim()
            .parse()
            .ok()
            .filter(|ms: &f64| ms.is_finite() && *ms >= 0.0)?,
        tokens: tokens.trim().parse().ok()?,
    };
    match name {
        "prompt eval" => Some(Event::Prompt(task, span)),
        "eval" => Some(Event::Generation(task, span)),
        "total" => Some(Event::Total(task, span)),
        _ => None,
    }
}

/// The number that a text begins with.
fn number(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

fn flag(text: &str) -> Option<bool> {
    let text = text.trim_start_matches('\'');
    match () {
        () if text.starts_with("true") => Some(true),
        () if text.starts_with("false") => Some(false),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Task = Task { slot: 1, id: 150 };

    fn event(line: &str) -> Option<Event> {
        parse(line).and_then(|line| line.event)
    }

    #[test]
    fn timings_are_read_with_and_without_their_head() {
        let span = Span {
            ms: 42.92,
            tokens: 7,
        };
        let words = "prompt eval time =      42.92 ms /     7 tokens (    6.13 ms per token,   163.08 tokens per second)";
        let headed = format!("0.05.446.571 I slot print_timing: id  1 | task 150 | {words}");
        assert_eq!(event(&headed), Some(Event::Prompt(Some(TASK), span)));
        assert_eq!(event(words), Some(Event::Prompt(None, span)));
        assert_eq!(
            event(
                "       eval time =       0.00 ms /     1 tokens (    -nan ms per token, 1000000.00 tokens per second)"
            ),
            Some(Event::Generation(None, Span { ms: 0.0, tokens: 1 }))
        );
        assert_eq!(
            event("slot print_timing: id  1 | task 150 | "),
            Some(Event::TimingsOf(TASK))
        );
    }

    #[test]
    fn what_an_unknown_wrapper_writes_around_a_line_is_skipped() {
        let words =
            "slot      release: id  1 | task 150 | stop processing: n_tokens = 44, truncated = 0";
        for (prefix, time) in [
            ("", None),
            ("0.05.846.253 I ", Some(5_846_253)),
            ("317.06.410.187 W ", Some(19_026_410_187)),
            ("[llama] 0.05.846.253 I ", Some(5_846_253)),
            ("host srv 0.05.846.253 I ", Some(5_846_253)),
            ("0.05.846.253 i ", None),
            ("0.5.846.253 I ", None),
            ("0.05.846.253.1 I ", None),
            ("99999999999999999999.05.846.253 I ", None),
            ("I ", None),
            ("{\"unknown\":\"", None),
            ("    MESSAGE=", None),
        ] {
            let line = format!("{prefix}{words}");
            let read = parse(&line).unwrap_or_else(|| panic!("{prefix:?}"));
            let expected = LogLine {
                child: None,
                time,
                event: Some(Event::Released(TASK, 44)),
            };
            assert_eq!(read, expected, "{prefix:?}");
            for behind in ["", "\\n\",\"stream\":\"stderr\"}", "\""] {
                let timing =
                    format!("{prefix}      total time =    1430.48 ms /    67 tokens{behind}");
                let total = event(&timing);
                assert!(matches!(total, Some(Event::Total(None, _))), "{timing}");
                let head = format!("{prefix}slot print_timing: id  1 | task 150 | {behind}");
                assert_eq!(event(&head), Some(Event::TimingsOf(TASK)), "{head}");
            }
        }
    }

    #[test]
    fn a_routers_children_are_told_apart() {
        for (line, child) in [
            (
                "[34541] 0.03.7 I srv          stop: cancel task, id_task = 3",
                Some(34541),
            ),
            (
                "unknown | [34541] 0.03.7 I srv          stop: cancel task, id_task = 3",
                Some(34541),
            ),
            (
                "host llama[77]: [ 8081] srv          stop: cancel task, id_task = 3",
                Some(8081),
            ),
            (
                "host llama[77]: srv          stop: cancel task, id_task = 3",
                None,
            ),
        ] {
            let read = parse(line).unwrap();
            assert_eq!(
                (read.child, read.event),
                (child, Some(Event::Cancelled(3))),
                "{line}"
            );
        }
    }

    #[test]
    fn the_facts_of_old_and_new_builds_are_read() {
        assert_eq!(
            event(
                "srv    load_model: initializing, n_slots = 2, n_ctx_slot = 2048, kv_unified = 'true'"
            ),
            Some(Event::Slots {
                count: 2,
                context: Some(2048),
                unified: Some(true)
            })
        );
        assert_eq!(
            event("srv          init: initializing slots, n_slots = 4"),
            Some(Event::Slots {
                count: 4,
                context: None,
                unified: None
            })
        );
        assert_eq!(
            event("slot   load_model: id  0 | task -1 | new slot, n_ctx = 2048"),
            Some(Event::SlotContext(2048))
        );
        assert_eq!(
            event("llama_context: kv_unified    = false"),
            Some(Event::Unified(false))
        );
    }

    #[test]
    fn an_error_is_no_cancellation() {
        assert_eq!(
            event(
                "0.39.291.176 E srv    send_error: task id = 18, error: request (3002 tokens) exceeds the available context size"
            ),
            Some(Event::Failed(18))
        );
    }

    #[test]
    fn what_a_line_quotes_is_not_what_it_says() {
        for line in [
            "srv  log_server_r: request: {\"prompt\":\"slot print_timing: id  1 | task 150 | total time = 1.00 ms / 2 tokens\"}",
            "0.05 I slot update_slots: id  1 | task 2 | prompt: 'srv stop: cancel task, id_task = 2'",
            "my favourite slot release: id  1",
            "retotal time = 1.00 ms / 2 tokens",
            "slot print_timing: id  1 | task 2 | n_decoded =    102, tg =  33.77 t/s",
            "slot print_timing: id  1 | task 2 | total time = NaN ms / 2 tokens",
            "slot print_timing: id  1 | task 2 | total time = -3 ms / 2 tokens",
            "",
            "slot ",
            "srv : ",
        ] {
            assert_eq!(event(line), None, "{line}");
        }
    }
}
