//! Parses one line of llama-server's log into an event.
//!
//! The formats of builds b7376 to b11549 are parsed alike. Wrappers and colours are gone by then;
//! what else stands before llama-server's own words, such as an unknown wrapper's prefix, is
//! skipped.

use crate::requests::PhaseTiming;

/// A line of llama-server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogLine {
    /// The port of the router's child that wrote it, if one did.
    pub port: Option<u16>,
    /// Microseconds since the server's start, where the line has its time and level (from b9294).
    pub time: Option<u64>,
    /// What it reports, if that is anything that is used.
    pub event: Option<LogEvent>,
}

/// What a line reports. It holds no text: users of the model's API can write whole lines into the
/// log, and no label may come from there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogEvent {
    /// The server begins to load its model: all earlier tasks have ended.
    Loading,
    /// All slots are idle: no more timings of ended tasks follow (before b10068).
    Idle,
    /// The number of slots, or their size; each line has a part of it.
    Slots(LoggedSlots),
    /// A task was put on a slot.
    Launched {
        /// Which one.
        task: SlotTask,
        /// Whether its prompt is another task's (`n` > 1 in the request).
        is_child: bool,
    },
    /// The next lines have this task's timings (before b9294).
    TimingsOf(SlotTask),
    /// How many tokens a task has generated so far (from b9294).
    Generated(SlotTask, u64),
    /// Time and tokens of the prompt. Without a task, here and below, it is that of
    /// [`LogEvent::TimingsOf`].
    Prompt(Option<SlotTask>, PhaseTiming),
    /// Time and tokens of the generation.
    Generation(Option<SlotTask>, PhaseTiming),
    /// Both together: the last line of a task's timings.
    Total(Option<SlotTask>, PhaseTiming),
    /// A task has left its slot.
    Released {
        /// Which one.
        task: SlotTask,
        /// Tokens in the slot.
        tokens: u64,
        /// Whether its context was full before it had ended, or lost its beginning.
        is_truncated: bool,
    },
    /// The client of the task with this ID disconnected.
    Cancelled(u64),
    /// The task with this ID was answered with an error of this HTTP status.
    Failed(u64, u16),
    /// A request was answered with an error of this HTTP status before it became a task.
    Refused(u16),
    /// The server ends: it cancels the tasks that are left.
    ShuttingDown,
    /// The server falls asleep: it cancels a read of `/metrics` that waits.
    FallingAsleep,
}

/// One task on one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotTask {
    /// The slot's ID.
    pub slot: u64,
    /// The task's ID, which is unique while the server runs.
    pub id: u64,
}

/// A server's slots, as far as its log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedSlots {
    /// Number of slots (`n_slots`).
    pub slots: Option<u64>,
    /// Tokens that fit in one slot (`n_ctx_slot`, from b9538; `n_ctx` before).
    pub slot_context: Option<u64>,
    /// Whether all slots share one KV cache (`kv_unified`; not reported from b9294 to b9713).
    pub kv_unified: Option<bool>,
}

impl LoggedSlots {
    /// These, with what a later line adds.
    #[must_use]
    pub fn updated(self, later: LoggedSlots) -> LoggedSlots {
        LoggedSlots {
            slots: later.slots.or(self.slots),
            slot_context: later.slot_context.or(self.slot_context),
            kv_unified: later.kv_unified.or(self.kv_unified),
        }
    }

    /// Cells of the KV cache, where it is known how the slots share it.
    pub fn kv_cells(&self) -> Option<u64> {
        let (slots, context) = (self.slots?, self.slot_context?);
        let is_shared = slots == 1 || self.kv_unified?;
        let caches = if is_shared { 1 } else { slots };
        Some(context.saturating_mul(caches)).filter(|cells| *cells > 0)
    }
}

/// The statuses that the log has of errors. Most errors that are found before a request becomes a
/// task are not logged: a missing field, an unknown path, a missing key.
pub const STATUSES: [u16; 3] = [400, 500, 501];

/// How far into a line llama-server's own words may begin, in bytes.
const MAX_PREFIX: usize = 300;

/// Parses one line; `None` if it is not one of llama-server's.
pub fn parse(text: &str) -> Option<LogLine> {
    // A line that names its function is parsed as that alone: it may quote other lines.
    let (prefix, event) = match tagged(text) {
        Some(tagged) => tagged,
        None => untagged(text).map(|(prefix, event)| (prefix, Some(event)))?,
    };
    Some(LogLine {
        port: port(prefix),
        time: time(prefix),
        event,
    })
}

/// `317.06.410.187 I `, right before the words: minutes, seconds, milliseconds, microseconds and
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

/// A line that names the function that wrote it: `slot print_timing: …`, `srv  stop: …`. Returns
/// what stands before it, and its event.
fn tagged(text: &str) -> Option<(&str, Option<LogEvent>)> {
    let head = &text.as_bytes()[..text.len().min(MAX_PREFIX)];
    for start in 0..head.len() {
        let is_slot = head[start..].starts_with(b"slot ");
        if !(is_slot || head[start..].starts_with(b"srv ")) || !begins_word(head, start) {
            continue;
        }
        let words = text[start..].split_once(' ').unwrap_or_default().1;
        let Some((function, message)) = words.split_once(": ") else {
            continue;
        };
        // Not a host with the name srv, followed by a program's.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_~:()<>".contains(&byte);
        if !function.trim_start().bytes().all(is_name) {
            continue;
        }
        let event = if is_slot {
            slot_event(function, message)
        } else {
            server_event(message)
        };
        return Some((&text[..start], event));
    }
    None
}

/// A line that names no function: timings before b9294, and what the library writes.
fn untagged(text: &str) -> Option<(&str, LogEvent)> {
    if let Some(at) = text.find("llama_context: kv_unified") {
        let (_, value) = text[at..].split_once('=')?;
        let layout = LoggedSlots {
            kv_unified: Some(flag(value.trim())?),
            ..LoggedSlots::default()
        };
        return Some((&text[..at], LogEvent::Slots(layout)));
    }
    let at = text.find(" time = ")?;
    if at > MAX_PREFIX {
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

/// Whether a word may begin there: at the start, or right after a prefix.
fn begins_word(text: &[u8], start: usize) -> bool {
    let before = start.checked_sub(1).and_then(|before| text.get(before));
    before.is_none_or(|before| b" \t\"|:]=\r".contains(before))
}

/// `[34541] `, which a router puts before the lines of a child.
fn port(prefix: &str) -> Option<u16> {
    let (before, rest) = prefix.split_at(prefix.find('[')?);
    // journald writes `name[123]: `.
    let port = rest[1..].split_once("] ").and_then(|(port, _)| {
        let whole = before.is_empty() || before.ends_with([' ', '\t', '"', '|']);
        port.trim_start().parse().ok().filter(|_| whole)
    });
    port.or_else(|| self::port(&rest[1..]))
}

fn slot_event(function: &str, message: &str) -> Option<LogEvent> {
    let rest = message.strip_prefix("id ")?;
    let (slot, rest) = rest.split_once('|')?;
    let (id, rest) = rest.trim_start().strip_prefix("task ")?.split_once('|')?;
    let rest = rest.trim();
    if let Some(context) = rest.strip_prefix("new slot, n_ctx = ") {
        return Some(LogEvent::Slots(LoggedSlots {
            slot_context: Some(number(context)?),
            ..LoggedSlots::default()
        }));
    }
    let task = SlotTask {
        slot: slot.trim().parse().ok()?,
        id: id.trim().parse().ok()?,
    };
    if let Some(rest) = rest.strip_prefix("processing task") {
        Some(LogEvent::Launched {
            task,
            is_child: rest.starts_with(", is_child = 1"),
        })
    } else if let Some(rest) = rest.strip_prefix("stop processing: ") {
        Some(LogEvent::Released {
            task,
            tokens: number(rest.split_once("= ")?.1)?,
            is_truncated: rest.contains(", truncated = 1"),
        })
    } else if function.trim_start().starts_with("print_timing") {
        // The line ends here, or with whatever an unknown wrapper appends.
        // `n_decoded` before b10434.
        let mut names = ["n_gen = ", "n_decoded = "].into_iter();
        if let Some(generated) = names.find_map(|name| rest.strip_prefix(name)) {
            Some(LogEvent::Generated(task, number(generated.trim_start())?))
        } else if rest.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            timing(Some(task), rest)
        } else {
            Some(LogEvent::TimingsOf(task))
        }
    } else {
        None
    }
}

fn server_event(message: &str) -> Option<LogEvent> {
    let after = |key: &str| message.split_once(key).map(|(_, rest)| rest);
    if let Some(id) = message.strip_prefix("cancel task, id_task = ") {
        Some(LogEvent::Cancelled(number(id)?))
    } else if let Some(rest) = message.strip_prefix("task id = ") {
        let (id, error) = rest.split_once(", error: ")?;
        Some(LogEvent::Failed(id.parse().ok()?, error_status(error)))
    } else if let Some(error) = message.strip_prefix("got exception: {\"error\":{\"code\":") {
        let status = number(error).and_then(|status| u16::try_from(status).ok());
        Some(LogEvent::Refused(
            status.filter(|status| STATUSES.contains(status))?,
        ))
    } else if message.contains("cleaning up before exit") {
        Some(LogEvent::ShuttingDown)
    } else if message.starts_with("server is entering sleeping state") {
        Some(LogEvent::FallingAsleep)
    } else if message.starts_with("loading model") {
        Some(LogEvent::Loading)
    } else if message.starts_with("all slots are idle") {
        Some(LogEvent::Idle)
    } else if message.starts_with("initializing") {
        Some(LogEvent::Slots(LoggedSlots {
            slots: Some(number(after("n_slots = ")?)?),
            slot_context: after("n_ctx_slot = ").and_then(number),
            kv_unified: after("kv_unified = ").and_then(flag),
        }))
    } else {
        None
    }
}

/// The status that llama-server answers with for a text of its `send_error`
/// (tools/server/server-context.cpp): 500, but for these.
fn error_status(error: &str) -> u16 {
    const PREFIXES: [(&str, u16); 6] = [
        ("Failed to initialize samplers", 400),
        ("Prompt contains invalid tokens", 400),
        ("Cannot run multiple aLoRAs", 400),
        ("Invalid slot ID", 400),
        ("Unable to restore slot", 400),
        ("This feature is not supported", 501),
    ];
    let mut prefixes = PREFIXES.into_iter();
    // `request (3002 tokens) exceeds the available context size (512 tokens), …`, and that of an
    // embedding: `input (3002 tokens) is larger than the max context size (512 tokens). …`
    let is_too_long = ["request (", "input ("]
        .iter()
        .any(|start| error.starts_with(start))
        && [
            "exceeds the available context",
            "larger than the max context",
        ]
        .iter()
        .any(|words| error.contains(words));
    match prefixes.find(|(prefix, _)| error.starts_with(prefix)) {
        Some((_, status)) => status,
        None if is_too_long => 400,
        None => 500,
    }
}

/// `prompt eval time =      42.92 ms /     7 tokens (…`
fn timing(task: Option<SlotTask>, text: &str) -> Option<LogEvent> {
    let (name, rest) = text.split_once(" time = ")?;
    let (ms, rest) = rest.split_once("ms /")?;
    let (tokens, _) = rest.split_once(" tokens")?;
    let ms = ms.trim().parse().ok();
    let timing = PhaseTiming {
        ms: ms.filter(|ms: &f64| ms.is_finite() && *ms >= 0.0)?,
        tokens: tokens.trim().parse().ok()?,
    };
    match name {
        "prompt eval" => Some(LogEvent::Prompt(task, timing)),
        "eval" => Some(LogEvent::Generation(task, timing)),
        "total" => Some(LogEvent::Total(task, timing)),
        _ => None,
    }
}

/// The number that a text begins with.
fn number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().ok()
}

fn flag(text: &str) -> Option<bool> {
    let text = text.trim_start_matches('\'');
    let values = [("true", true), ("false", false)];
    let value = values.into_iter().find(|(word, _)| text.starts_with(word));
    value.map(|(_, value)| value)
}

#[cfg(test)]
mod tests;
